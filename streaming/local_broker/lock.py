"""Rewrites `kafka.lock` for another Kafka version: `python -m streaming.local_broker.lock`."""

import tempfile
from pathlib import Path

from jgo.env._lockfile import LockedDependency, LockFile
from jgo.maven import MavenContext
from jgo.parse import Coordinate

from streaming.local_broker.jars import LOCK_PATH

KAFKA_VERSION = "4.3.1"
ROOTS = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}",
)
# Kafka leaves the choice of a logging backend to its distribution: without this jar the broker logs nothing.
LOG_BINDING = ("org.apache.logging.log4j", "log4j-slf4j-impl")


def write_lock(path: Path = LOCK_PATH) -> int:
    """Resolves Kafka's jars and writes their versions and checksums; returns how many there are."""
    with tempfile.TemporaryDirectory() as repository:
        context = MavenContext(repo_cache=Path(repository))
        roots = [context.create_dependency(_coordinate(root)) for root in ROOTS]
        inputs, others = context.resolver.resolve(roots)
        needed = [*inputs, *(d for d in others if d.scope in ("compile", "runtime"))]
        locked = [LockedDependency.from_dependency(dependency) for dependency in needed]
        locked.append(_log_binding(context, locked))
    LockFile(locked, environment_name="kafka").save(path)
    return len(locked)


def _coordinate(text: str) -> Coordinate:
    group, artifact, version = text.split(":")
    return Coordinate(groupId=group, artifactId=artifact, version=version, scope="compile")


def _log_binding(context: MavenContext, locked: list[LockedDependency]) -> LockedDependency:
    # Resolved separately: as a third root, its parent would override the versions of Kafka's own jars.
    version = next(d.version for d in locked if d.artifactId == "log4j-core")
    coordinate = _coordinate(":".join([*LOG_BINDING, version]))
    return LockedDependency.from_dependency(context.create_dependency(coordinate))


if __name__ == "__main__":
    print(f"{LOCK_PATH}: {write_lock()} jars")  # noqa: T201  a program for developers
