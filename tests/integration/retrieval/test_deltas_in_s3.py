"""Deltas in an object store: a real S3 server (moto) on a free port of loopback, through pyarrow.fs."""

import numpy as np
import pytest

from retrieval.config import IndexConfig
from retrieval.deltas.chain import DeltaChain
from retrieval.deltas.delta import DeltaError, DeltasDropped
from retrieval.versions.publish import publish
from retrieval.versions.searcher import Searcher
from retrieval.versions.store import VersionStore
from tests.integration.retrieval.test_versions_in_s3 import Cut, DiesBefore
from tests.support.s3_server import objects_in
from tests.unit.retrieval.deltas.conftest import append, live_version

DIM = 8
CONFIG = IndexConfig(kind="ivf_flat", nlist=4, nprobe=4, versions_to_keep=2, max_imbalance=100)


def publish_items(store, folder, vectors):
    folder.mkdir(exist_ok=True)
    items = iter([(np.arange(vectors.shape[0]) * 10, vectors)])
    publish(store, folder, items, vectors[:9], CONFIG, metadata={}, seed=1)
    return DeltaChain(store, store.current())


def test_a_searcher_follows_deltas_in_s3_as_on_a_disk(bucket, tmp_path):
    places = (f"{bucket}/followed", tmp_path / "index")
    found = {place: [] for place in places}
    for place in places:
        rng, store = np.random.default_rng(3), VersionStore(place)
        vectors = rng.normal(size=(80, DIM)).astype(np.float32)
        chain = publish_items(store, tmp_path / "attempt", vectors)
        searcher = Searcher(place)
        for n in range(3):
            append(
                chain,
                [10 * n, 1000 + n],
                rng.normal(size=(2, DIM)).astype(np.float32),
                deleted=[500 + 10 * n],
            )
            assert searcher.refresh()
            assert not searcher.refresh()
            found[place] += searcher.search(vectors[:9], 5)
        assert (searcher.loaded.delta_number, searcher.loaded.size) == (3, 80)
        assert chain.verify() == {f"d0000000{n}": "" for n in (1, 2, 3)}
        away = Searcher(place)
        assert away.loaded.delta_number == 3
        publish_items(store, tmp_path / "attempt", vectors)
        assert chain.names() == []
        store.rollback("v00000001")
        assert searcher.refresh()
        assert (searcher.version.name, searcher.loaded.delta_number) == ("v00000001", 0)
    assert all(np.array_equal(*pair) for pair in zip(*found.values(), strict=True))
    assert not any("deltas/" in name for name in objects_in(places[0])[0])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_delta_in_s3_leaves_the_reader_at_the_last_whole_one(bucket, tmp_path, damage):
    place = f"{bucket}/damaged-{damage}"
    store = VersionStore(place)
    vectors = np.random.default_rng(3).normal(size=(80, DIM)).astype(np.float32)
    chain = publish_items(store, tmp_path / "attempt", vectors)
    for n in range(3):
        append(chain, [1000 + n], vectors[n : n + 1])
    objects, files = objects_in(place)
    path = objects["deltas/v00000001/d00000002/items-0000.arrow"].path
    with files.open_input_file(path) as source:
        content = bytearray(source.read())
    content[len(content) // 2] ^= 1
    files.delete_file(path)
    if damage != "missing":
        with files.open_output_stream(path) as sink:
            sink.write(bytes(content[:-9] if damage == "truncated" else content))
    searcher = Searcher(place)
    assert searcher.loaded.delta_number == 1
    assert "d00000002" in searcher._follower.problem
    publish_items(store, tmp_path / "attempt", vectors)
    assert searcher.refresh()
    assert (searcher.version.name, searcher.loaded.delta_number) == ("v00000002", 0)


def test_whenever_a_writer_dies_in_s3_readers_have_whole_deltas_only_and_the_next_one_continues(bucket):
    committed = []
    for change in range(20):
        store = VersionStore(f"{bucket}/cut-{change}")
        version = live_version(store)
        chain = DeltaChain(store, version)
        append(chain, [1])
        chain._storage._files = DiesBefore(chain._storage._files, change)  # type: ignore[attr-defined]
        try:
            append(chain, [2], deleted=[3])
            died = False
        except Cut:
            died = True
        reader = DeltaChain(VersionStore(store.where), version)
        numbers = [delta.number for delta in reader.after(0)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert set(reader.verify().values()) == {""}
        after = append(DeltaChain(VersionStore(store.where), version), [4])
        assert after.number == len(numbers) + 1
        assert [delta.number for delta in reader.after(0)] == [*numbers, after.number]
        committed.append(len(numbers) == 2)
        if not died:
            break
    assert committed[-1]
    assert not died
    assert committed.index(True) >= 3  # two files, then the manifest


def test_a_delta_in_s3_whose_predecessors_were_dropped_is_taken_back(bucket):
    store = VersionStore(f"{bucket}/dropped")
    chain = DeltaChain(store, live_version(store))
    append(chain, [1])
    chain._storage.remove("d00000001")
    with pytest.raises(DeltasDropped, match="predecessors were dropped"):
        append(chain, [2])
    assert chain.names() == []
    with pytest.raises(DeltaError, match="no delta 'd00000002'"):
        chain.open("d00000002")
