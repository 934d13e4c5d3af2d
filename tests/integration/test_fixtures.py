def test_each_test_has_topics_of_its_own(stream_factory, unique_name):
    one, two = stream_factory(partitions=1), stream_factory(partitions=1)
    names = {one.interactions_topic, two.interactions_topic, one.items_topic, two.items_topic, unique_name}
    assert len(names) == 5
