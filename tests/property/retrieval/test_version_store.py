"""A crash between any two changes of the file system leaves a store that answers, whole."""

import os
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.versions.store import VersionStore

CHANGES = ("mkdir", "open", "fsync", "rename", "replace", "unlink", "rmdir")


class PowerCut(BaseException):
    """No handler of ordinary errors may clean up after it."""


@contextmanager
def power_cut_before(change: int):
    """Raise before the n-th change that this thread makes through `os`; everything after it fails too."""
    left, thread = change, threading.get_ident()

    def cut(real):
        def call(*args, **kwargs):
            nonlocal left
            if threading.get_ident() != thread:
                return real(*args, **kwargs)
            left -= 1
            if left < 0:
                raise PowerCut
            return real(*args, **kwargs)

        return call

    with mock.patch.multiple(os, **{name: cut(getattr(os, name)) for name in CHANGES}):
        yield


def publish(store: VersionStore, content: bytes, keep: int) -> None:
    building = store.begin()
    (building.path / "a").write_bytes(content)
    (building.path / "b").write_bytes(content[::-1])
    store.promote(store.commit(building, {"content": content.decode()}).name)
    store.prune(keep)


def publish_until_cut(store: VersionStore, content: bytes, keep: int, change: int) -> bool:
    """Whether the power was cut."""
    try:
        with power_cut_before(change):
            publish(store, content, keep)
    except PowerCut:
        return True
    return False


def content_of_live(store: VersionStore) -> bytes | None:
    live = store.current()
    if live is None:
        return None
    store.verify(live.name)
    assert (live.path / "a").read_bytes() == live.manifest["content"].encode()
    return (live.path / "a").read_bytes()


def number(name: str) -> int:
    return int(name[1:])


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), min_size=1, max_size=6), keep=st.integers(1, 3))
def test_any_series_of_crashes_leaves_the_old_or_the_new_version_live_and_all_versions_whole(cuts, keep):
    with tempfile.TemporaryDirectory() as folder:
        live, highest = None, 0
        for n, change in enumerate(cuts):
            new = f"content {n}".encode()
            was_cut = publish_until_cut(VersionStore(Path(folder) / "index"), new, keep, change)
            store = VersionStore(Path(folder) / "index")  # as the next process sees it
            after = content_of_live(store)
            assert after in ((live, new) if was_cut else (new,))
            for name in store.names():
                store.verify(name)
            live, highest = after, max([highest, *map(number, store.names())])
        publish(store, b"after all", keep)
        assert content_of_live(store) == b"after all"
        assert number(store.names()[-1]) == highest + 1
        assert len(store.names()) <= keep
        assert [p.name for p in store.root.iterdir() if p.name.startswith((".b", ".r", ".C"))] == []


def test_every_single_step_of_a_publication_can_be_the_last():
    with tempfile.TemporaryDirectory() as folder:
        outcomes = []
        for change in range(200):
            store = VersionStore(Path(folder) / f"index-{change}")
            for content in (b"one", b"two"):
                publish(store, content, 2)
            was_cut = publish_until_cut(store, b"three", 2, change)
            outcomes.append(content_of_live(VersionStore(store.root)))
            for name in store.names():
                store.verify(name)
            if not was_cut:
                break
        # The pointer changes once, and there were steps before and after it.
        switch = outcomes.index(b"three")
        assert 5 < switch < len(outcomes) - 1 < 199
        assert outcomes == [b"two"] * switch + [b"three"] * (len(outcomes) - switch)
