"""Copies of stored files: complete, shared, bounded, and never removed while in use."""

import gc
import hashlib
import io
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from retrieval.storage.base import DamagedFile
from retrieval.storage.cache import FileCache
from retrieval.storage.durable import FileEntry


class Source:
    """Content that counts how often it is read."""

    def __init__(self, content):
        self.content, self.reads = content, 0
        self.entry = FileEntry("file", len(content), hashlib.sha256(content).hexdigest())

    def __call__(self):
        self.reads += 1
        return io.BytesIO(self.content)


@pytest.fixture
def cache(tmp_path):
    return FileCache(tmp_path / "cache", most_bytes=100)


def names(cache):
    """The folders of the copies, and what is being copied; no folder is left without its copy."""
    assert all(path.is_file() or list(path.iterdir()) for path in cache.root.iterdir())
    return sorted(path.name for path in cache.root.iterdir())


def test_a_file_is_copied_once_and_shared(cache):
    source = Source(b"a" * 40)
    copies = [cache.copy_of(source.entry, source) for _ in range(3)]
    assert {copy.path.read_bytes() for copy in copies} == {source.content}
    assert (source.reads, names(cache)) == (1, [source.entry.sha256])
    assert copies[0].path.name == "file"  # row files say in their names which rows they hold


def test_what_was_used_longest_ago_is_removed_once_the_bound_is_passed(cache):
    sources = [Source(b"%d" % n * 40) for n in range(3)]
    for n, source in enumerate(sources[:2]):
        cache.copy_of(source.entry, source)
        os.utime(cache.root / source.entry.sha256 / "file", (n, n))
    cache.copy_of(sources[2].entry, sources[2])
    assert names(cache) == sorted(source.entry.sha256 for source in sources[1:])


def test_what_is_in_use_stays_beyond_the_bound_until_it_is_let_go(cache):
    first, second, third = (Source(letter * 80) for letter in (b"a", b"b", b"c"))
    used = cache.copy_of(first.entry, first)
    cache.copy_of(second.entry, second)
    assert used.path.read_bytes() == first.content
    del used
    gc.collect()
    cache.copy_of(third.entry, third)
    assert names(cache) == [third.entry.sha256]


def test_a_copy_that_was_damaged_is_made_again(cache):
    source = Source(b"content")
    cache.copy_of(source.entry, source).path.write_bytes(b"contest")
    assert cache.copy_of(source.entry, source).path.read_bytes() == b"content"
    assert source.reads == 2


def test_what_is_not_as_the_manifest_says_leaves_nothing(cache):
    source, other = Source(b"content"), Source(b"another")
    with pytest.raises(DamagedFile, match="file does not match its checksum"):
        cache.copy_of(source.entry, other)
    assert names(cache) == []


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "", ".."])
def test_a_name_that_is_a_path_is_refused(cache, name):
    source = Source(b"content")
    with pytest.raises(DamagedFile, match="for a checksum"):
        cache.copy_of(FileEntry(name, 7, source.entry.sha256), source)
    assert source.reads == 0


@pytest.mark.parametrize("checksum", ["../outside", "/etc/hostname", "", "a" * 63, "A" * 64])
def test_a_checksum_that_is_none_is_refused_before_it_becomes_a_path(cache, tmp_path, checksum):
    source = Source(b"content")
    (tmp_path / "outside").write_bytes(b"secret")
    with pytest.raises(DamagedFile, match="for a checksum"):
        cache.copy_of(FileEntry("file", 7, checksum), source)
    assert source.reads == 0


def test_a_source_that_fails_half_way_leaves_nothing(cache):
    class Failing(io.BytesIO):
        def read(self, size=-1):
            raise OSError("connection lost")

    with pytest.raises(OSError, match="connection lost"):
        cache.copy_of(Source(b"content").entry, Failing)
    assert names(cache) == []


def test_what_a_killed_process_had_half_copied_is_removed_and_what_another_copies_now_is_not(cache):
    code = (
        "import contextlib, os, signal, sys, pathlib\n"
        "from retrieval.storage.cache import FileCache\n"
        "from retrieval.storage.durable import FileEntry\n"
        "class Source:\n"
        "    def read(self, size): os.kill(os.getpid(), signal.SIGKILL)\n"
        "FileCache(pathlib.Path(sys.argv[1])).copy_of(\n"
        "    FileEntry('file', 1, 64 * 'a'), lambda: contextlib.nullcontext(Source()))\n"
    )
    command = [sys.executable, "-c", code, str(cache.root)]
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": os.getcwd()}, check=False)
    assert killed.returncode == -signal.SIGKILL
    [leftover] = names(cache)
    source = Source(b"content")

    def copied_beside():
        """A source that is read while another copy is made, with everything here older than any leftover."""
        for path in cache.root.iterdir():
            os.utime(path, (0, 0))
        other = Source(b"another")
        cache.copy_of(other.entry, other)
        return io.BytesIO(source.content)

    cache.copy_of(source.entry, copied_beside)
    assert leftover not in names(cache)
    assert source.entry.sha256 in names(cache)


def test_many_who_want_one_file_get_it_whole(cache):
    source = Source(b"x" * 90)
    with ThreadPoolExecutor(8) as pool:
        copies = list(pool.map(lambda _: cache.copy_of(source.entry, source), range(32)))
    assert {copy.path.read_bytes() for copy in copies} == {source.content}
    assert names(cache) == [source.entry.sha256]


def test_many_small_files_are_copied_with_few_looks_at_all_copies(tmp_path, monkeypatch):
    looks, shrink = [], FileCache._shrink
    monkeypatch.setattr(
        FileCache, "_shrink", lambda cache, coming: (looks.append(coming), shrink(cache, coming))
    )
    cache = FileCache(tmp_path / "cache", most_bytes=6400)
    for n in range(40):
        source = Source(b"%010d" % n)
        cache.copy_of(source.entry, source)
    assert 2 <= len(looks) <= 5
    assert len(names(cache)) == 40
