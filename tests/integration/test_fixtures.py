import ray


def test_the_ray_of_the_session_has_four_slots_and_sees_the_project(ray_cluster):
    @ray.remote
    def threads() -> str:
        import os

        from streaming.schema import EVENT_SCHEMA

        return f"{os.environ['OMP_NUM_THREADS']} {EVENT_SCHEMA.names[0]}"

    assert ray.cluster_resources()["CPU"] == 4
    assert ray.get(threads.remote()) == "1 user_id"


def test_each_test_has_topics_of_its_own(stream_factory, unique_name):
    one, two = stream_factory(partitions=1), stream_factory(partitions=1)
    names = {one.interactions_topic, two.interactions_topic, one.items_topic, two.items_topic, unique_name}
    assert len(names) == 5
