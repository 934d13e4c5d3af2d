"""Full disks at every write of a publish, and damage to every kind of file of a version: named, and never served."""

import errno
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from retrieval.config import IndexConfig
from retrieval.ranks import OtherRankStorageError
from retrieval.versions.publish import publish
from retrieval.versions.searcher import Searcher
from retrieval.versions.store import VersionCorrupt, VersionError, VersionStore
from tests.support.thread_ranks import outcomes_on_threads
from tests.unit.retrieval.conftest import clustered

VECTORS, QUERIES = clustered(60)
CONFIG = IndexConfig(kind="ivf_flat", nlist=2)
WORLD = 2
CHANGES = ("mkdir", "open", "fsync", "rename", "replace", "unlink")
OF_QUERIES = {"towers.safetensors": b"towers" * 50, "rows-0000-4095.arrow": b"rows" * 50, "model.json": b"{}"}


@pytest.fixture
def attempt(store, tmp_path):
    """Publish by two ranks; what each of them returned or raised. `full` names files that find no room."""

    def publish_by_two(full=()):
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        for name, content in OF_QUERIES.items():
            (folder / name).write_bytes(content)
        for name in full:
            (folder / name).symlink_to("/dev/full")

        def build(ranks):
            mine = slice(ranks.rank, None, ranks.world)
            items = iter([(np.arange(60)[mine], VECTORS[mine])])
            return publish(store, folder, items, QUERIES, CONFIG, ranks=ranks, metadata={}, seed=1)

        return outcomes_on_threads(WORLD, build)

    return publish_by_two


def require_clean(store, names):
    """The live version is the newest and whole, and nothing is left of attempts that failed."""
    assert store.names() == names
    for name in names:
        store.verify(name)
    assert store.live_name() == names[-1]
    assert sorted(path.name for path in store.root.iterdir()) == [".lock", "CURRENT", *names]


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("items-0000.arrow", 0),
        ("items-0001.arrow", 1),
        (".sample-0000.arrow", 0),
        (".sample-0001.arrow", 1),
        ("index-0000.faiss", 0),
        ("index-0001.faiss", 1),
    ],
)
def test_a_rank_that_finds_no_room_names_the_file_on_all_ranks_and_costs_only_the_version(
    store, attempt, name, rank
):
    attempt()
    raised = attempt(full=[name])
    assert raised[rank].errno == errno.ENOSPC
    assert isinstance(raised[1 - rank], OtherRankStorageError)
    for error in raised:
        assert "No space left on device" in str(error)
        assert name in str(error)
    require_clean(store, ["v00000001"])
    attempt()
    require_clean(store, ["v00000001", "v00000002"])


@contextmanager
def no_room_from(change):
    """Of the changes of the file system through `os`, this one and those after it fail; yields the count of calls."""
    calls = [0]

    def act(real, name):
        def call(path, *args, **kwargs):
            if name == "open" and not args[0] & os.O_CREAT:
                return real(path, *args, **kwargs)
            calls[0] += 1
            if calls[0] > change and name != "unlink":
                raise OSError(
                    errno.ENOSPC, os.strerror(errno.ENOSPC), *([] if isinstance(path, int) else [str(path)])
                )
            return real(path, *args, **kwargs)

        return call

    with mock.patch.multiple(os, **{name: act(getattr(os, name), name) for name in CHANGES}):
        yield calls


def test_a_disk_that_is_full_from_any_change_on_leaves_a_whole_live_version_and_the_next_attempt_clean(
    tmp_path,
):
    outcomes = []
    for change in range(200):
        store = VersionStore(tmp_path / f"index-{change}")

        def put(store=store):
            folder = Path(tempfile.mkdtemp(dir=tmp_path))
            items = iter([(np.arange(60), VECTORS)])
            return publish(store, folder, items, QUERIES, CONFIG, metadata={}, seed=1)

        put()
        failure = None
        with no_room_from(change) as calls:
            try:
                put()
            except OSError as error:
                failure = error
        if failure is not None:
            assert failure.errno == errno.ENOSPC
            assert str(tmp_path) in str(failure)
            outcomes.append(store.live_name())
        store.verify(store.live_name())
        for name in store.names():
            store.verify(name)
        put()
        require_clean(store, store.names())
        if calls[0] <= change:
            break
    assert 8 < len(outcomes) < 199
    switch = outcomes.count("v00000001")
    assert outcomes == ["v00000001"] * switch + ["v00000002"] * (len(outcomes) - switch)


def damaged(content, how):
    if how == "truncated":
        return content[:-1]
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 8
    return bytes(changed)


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_damage_to_any_file_of_a_version_is_named_and_keeps_it_from_being_served(store, attempt, how):
    attempt()
    searcher = Searcher(store.root)
    attempt()
    version = store.current()
    names = sorted(path.name for path in version.path.iterdir())
    assert names == sorted(
        [*OF_QUERIES, "manifest.json"]
        + [
            f"{kind}"
            for rank in range(WORLD)
            for kind in (f"index-{rank:04d}.faiss", f"items-{rank:04d}.arrow")
        ]
    )
    for name in names:
        content = (version.path / name).read_bytes()
        (version.path / name).write_bytes(damaged(content, how))
        for use in (
            lambda: store.verify(version.name),
            searcher.refresh,
            lambda: store.rollback(version.name),
        ):
            with pytest.raises(VersionCorrupt, match=f"v00000002 is damaged: .*{name}"):
                use()
        assert searcher.version.name == "v00000001"
        (version.path / name).write_bytes(content)
    assert searcher.refresh()


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_pointer_is_named_and_the_next_version_heals_it(store, attempt, how):
    attempt()
    searcher = Searcher(store.root)
    pointer = store.root / "CURRENT"
    pointer.write_bytes(damaged(pointer.read_bytes(), how))
    with pytest.raises(VersionError, match="no index version"):
        searcher.refresh()
    assert searcher.version.name == "v00000001"
    attempt()
    require_clean(store, ["v00000001", "v00000002"])
