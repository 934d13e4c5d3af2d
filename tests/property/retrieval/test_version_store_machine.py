"""Random publications, deltas, refusals, promotions, rollbacks, prunings and crashes against a model of the store.

A reader follows the live version and its deltas and searches while each change is made, in a thread of its own.
"""

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from retrieval.config import IndexConfig
from retrieval.deltas.chain import DeltaChain
from retrieval.deltas.delta import DeltasDropped, write_items
from retrieval.indexes.ivf import IvfIndex
from retrieval.indexes.parts import write_part
from retrieval.versions.searcher import Searcher
from retrieval.versions.shards import ShardFiles
from retrieval.versions.store import VersionRefused, VersionStore
from tests.property.retrieval.test_version_store import PowerCut, power_cut_before

ITEMS = 5
SHARD = ShardFiles.of_rank(0)
REFUSED = "recall is 0.5, below the bound 0.95"
CONFIG = IndexConfig(kind="ivf_flat", nlist=1, nprobe=1, device="cpu")
VECTORS = np.eye(ITEMS, dtype=np.float32)
keeps = st.integers(1, 3)
cuts = st.integers(0, 50)
IDS = st.integers(-5, 5)


class Versions(RuleBasedStateMachine):
    """The model: which versions there are, in order, which of them a gate refused, and which is live.

    Each version and delta has a token; `items` says which ids a search finds there, `deltas` are the live version's.
    """

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp(prefix="versions-"))
        self.pool = ThreadPoolExecutor(1)
        self.names, self.refused, self.live, self.made, self.highest = [], set(), None, 0, 0
        self.items, self.deltas, self.writer, self.lives = {}, [], None, 0
        self.searcher = Searcher(self.folder / "index")
        self.index = IvfIndex.build(VECTORS, CONFIG, seed=1)

    def teardown(self):
        self.pool.shutdown()
        shutil.rmtree(self.folder)

    @property
    def store(self):
        """As another process sees it."""
        return VersionStore(self.folder / "index")

    @contextmanager
    def reader(self):
        """Follow and search while the block runs; no result may be an item of another version."""
        done = Event()

        def read():
            while True:
                last = done.is_set()
                self.searcher.refresh()
                loaded = self.searcher.loaded
                if loaded is not None:
                    ids, scores = loaded.search(VECTORS, 40)
                    found = ids[np.isfinite(scores)]
                    token = (loaded.delta or loaded.version).manifest["token"]
                    assert set(found.tolist()) == self.items[token]
                    assert found.shape[0] == ITEMS * len(self.items[token])
                if last:
                    return

        reading = self.pool.submit(read)
        try:
            yield
        finally:
            done.set()
            reading.result()

    def publish(self, keep, keep_refused, refused):
        store, token = self.store, self.made
        self.made += 1
        self.items[token] = {token * 1000 + row for row in range(ITEMS)}
        building = store.begin()
        self.index.save(building.path / SHARD.index)
        write_part(building.path / SHARD.items, token * 1000 + np.arange(ITEMS), VECTORS)
        described = {"token": token, "kind": "ivf_flat", "nprobe": 1}
        name = store.commit(building, described | ({"refused": REFUSED} if refused else {})).name
        if not refused:
            store.promote(name)
        store.prune(keep, keep_refused)
        return name

    def after_prune(self, names, refused, live, keep, keep_refused):
        passed = [name for name in names if name not in refused][-keep:]
        return [n for n in names if n in {*passed, *[n for n in names if n in refused][-keep_refused:], live}]

    def went_live(self, name):
        if name != self.live:
            self.live, self.deltas, self.lives = name, [], self.lives + 1

    @precondition(lambda self: self.live)
    @rule(
        changed=st.lists(IDS, max_size=4, unique=True),
        deleted=st.lists(IDS | st.integers(0, 30), max_size=4),
        another=st.booleans(),
        cut=st.none() | cuts,
    )
    def append_delta(self, changed, deleted, another, cut):
        if another or self.writer is None:
            self.writer = DeltaChain(self.store, self.store.current()), self.lives
        chain, lives = self.writer
        version = chain.version
        if lives != self.lives:  # it knows the deltas of a version that was left
            with pytest.raises(DeltasDropped):
                self.append(chain, 0, [1], [])
            self.writer = None
            return
        before = self.deltas[-1] if self.deltas else version.manifest["token"]
        gone = [version.manifest["token"] * 1000 + row if row >= 0 else row for row in deleted]
        token, self.made = self.made, self.made + 1
        gone = sorted({*gone} - {*changed})
        self.items[token] = (self.items[before] | {*changed}) - {*gone}
        with self.reader():
            if cut is None:
                assert self.append(chain, token, changed, gone).number == len(self.deltas) + 1
                self.deltas.append(token)
            elif self.cut_off(cut, self.append, chain, token, changed, gone):
                self.writer = None  # its process has died
                self.deltas += [token] if len(chain.names()) > len(self.deltas) else []
            else:
                self.deltas.append(token)
        if self.writer and not chain.names():
            self.writer = None

    def append(self, chain, token, changed, gone):
        folder = chain.begin()
        ids = np.array(changed, np.int64)
        write_items(folder.path, 0, ids, VECTORS[ids % ITEMS], np.array(gone, np.int64))
        return chain.commit(folder, {"token": token})

    def agrees(self):
        assert self.store.names() == self.names
        assert self.store.live_name() == self.live

    @rule(keep=keeps, keep_refused=keeps, refused=st.booleans())
    def publish_whole(self, keep, keep_refused, refused):
        with self.reader():
            name = self.publish(keep, keep_refused, refused)
        assert int(name[1:]) == self.highest + 1
        self.highest += 1
        self.refused |= {name} if refused else set()
        self.went_live(self.live if refused else name)
        self.names = self.after_prune([*self.names, name], self.refused, self.live, keep, keep_refused)
        self.agrees()
        hidden = [path.name for path in self.store.root.iterdir() if path.name.startswith((".b", ".r", ".C"))]
        assert hidden == []

    @rule(keep=keeps, keep_refused=keeps, refused=st.booleans(), cut=cuts)
    def publish_until_cut(self, keep, keep_refused, refused, cut):
        before = self.names
        with self.reader():
            self.cut_off(cut, self.publish, keep, keep_refused, refused)
        new = [name for name in self.store.names() if name not in before]
        assert len(new) <= 1
        if refused:
            assert self.store.live_name() == self.live
        else:
            assert self.store.live_name() in {self.live, *new}
        self.refused |= set(new) if refused else set()
        self.went_live(self.store.live_name())
        least = self.after_prune([*before, *new], self.refused, self.live, keep, keep_refused)
        self.names = self.store.names()
        assert set(least) <= set(self.names) <= {*before, *new}
        self.highest = max([self.highest, *(int(name[1:]) for name in self.names)])

    @precondition(lambda self: self.names)
    @rule(data=st.data(), despite=st.booleans(), whole=st.booleans(), cut=st.none() | cuts)
    def promote(self, data, despite, whole, cut):
        name = data.draw(st.sampled_from(self.names))
        change = self.store.rollback if whole else self.store.promote
        with self.reader():
            if name in self.refused and not despite:
                with pytest.raises(VersionRefused, match=name):
                    change(name)
            elif cut is None:
                change(name, refused=despite)
                self.went_live(name)
            else:
                self.cut_off(cut, change, name, refused=despite)
                assert self.store.live_name() in (self.live, name)
                self.went_live(self.store.live_name())
        self.agrees()

    @precondition(lambda self: self.names)
    @rule(keep=keeps, keep_refused=keeps, cut=st.none() | cuts)
    def prune(self, keep, keep_refused, cut):
        before = self.names
        least = self.after_prune(before, self.refused, self.live, keep, keep_refused)
        with self.reader():
            was_cut = cut is not None and self.cut_off(cut, self.store.prune, keep, keep_refused)
            if cut is None:
                self.store.prune(keep, keep_refused)
        self.names = self.store.names()
        if was_cut:
            assert set(least) <= set(self.names) <= set(before)
        else:
            assert self.names == least

    @invariant()
    def all_versions_are_whole_and_the_reader_has_the_live_one(self):
        for name in self.names:
            self.store.verify(name)
        current = self.store.current()
        assert (current.name if current else None) == self.live
        assert self.live is None or self.live in self.names
        self.searcher.refresh()
        assert (self.searcher.version.name if self.searcher.version else None) == self.live
        if current is not None:
            assert list(DeltaChain(self.store, current).verify().values()) == [""] * len(self.deltas)
            assert self.searcher.loaded.delta_number == len(self.deltas)

    def cut_off(self, cut, change, *args, **kwargs):
        """Whether the power was cut."""
        try:
            with power_cut_before(cut):
                change(*args, **kwargs)
        except PowerCut:
            return True
        return False


TestVersions = Versions.TestCase
TestVersions.settings = settings(max_examples=40, stateful_step_count=12, deadline=None)
