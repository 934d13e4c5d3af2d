import numpy as np
import pyarrow as pa
import pytest

from retrieval import Searcher, VersionCorrupt, VersionError, read_item_vectors
from retrieval.indexes.parts import write_part
from tests.unit.retrieval.conftest import clustered


def _vectors(table):
    return np.stack(table["vector"].to_numpy(zero_copy_only=False))


def test_the_live_version_is_read_as_arrow_and_says_which_it_is(store, put):
    put(clustered(30)[0])
    vectors, _ = clustered(40)
    name = put(vectors, ids=np.arange(40) + 7).version.name
    table = read_item_vectors(store.where)
    assert table.schema.metadata == {b"version": name.encode()}
    order = np.argsort(table["item_id"].to_numpy())
    np.testing.assert_array_equal(table["item_id"].to_numpy()[order], np.arange(40) + 7)
    np.testing.assert_array_equal(_vectors(table)[order], vectors)
    assert read_item_vectors(store.where, "v00000001").num_rows == 30


def test_a_version_of_several_shards_is_read_as_one_table(store):
    vectors, _ = clustered(30)
    building = store.begin()
    for shard, rows in enumerate((slice(0, 20), slice(20, 30))):
        write_part(building.path / f"items-{shard:04d}.arrow", np.arange(30)[rows], vectors[rows])
    store.promote(store.commit(building, {}).name)
    table = read_item_vectors(store.where)
    assert table["item_id"].to_pylist() == list(range(30))
    np.testing.assert_array_equal(_vectors(table), vectors)


def test_what_cannot_be_read_is_named(store, put):
    with pytest.raises(VersionError, match="no index version is live"):
        read_item_vectors(store.where)
    version = put(clustered(30)[0]).version
    with pytest.raises(VersionError, match="no index version 'v00000009'"):
        read_item_vectors(store.where, "v00000009")
    items = next(version.path.glob("items*.arrow"))
    content = bytearray(items.read_bytes())
    content[len(content) // 2] ^= 1
    items.write_bytes(content)
    with pytest.raises(VersionCorrupt, match=r"v00000001.*items.*\.arrow"):
        read_item_vectors(store.where)


def _texts(ids, texts):
    sink = pa.BufferOutputStream()
    table = pa.table({"id": pa.array(ids, pa.int64()), "text": texts})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return {"id-texts-items-r00000.arrow": bytes(sink.getvalue())}


def test_ids_that_are_texts_come_back_beside_the_vectors_and_from_a_search(store, put):
    vectors, _ = clustered(40)
    put(vectors, ids=np.arange(40), extra_files=_texts([30, -5, 7], ["scarf", "gone", "boots"]))
    table = read_item_vectors(store.where)
    found = dict(zip(table["item_id"].to_pylist(), table["item_text"].to_pylist(), strict=True))
    assert {key: text for key, text in found.items() if text} == {7: "boots", 30: "scarf"}
    with Searcher(store.where) as searcher:
        ids, _ = searcher.search(vectors[[7, 8]], 1)
        assert searcher.as_given(ids[:, 0]) == ["boots", 8]
        assert searcher.as_given(np.array([-1, 30, 99])) == [-1, "scarf", 99]
    file = next(store.open(store.live_name()).path.glob("id-texts*"))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(VersionCorrupt, match="id-texts"):
        read_item_vectors(store.where)
