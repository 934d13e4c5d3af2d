"""`index list | verify | promote | rollback` on versions that lie in a run's folder."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.command.errors import UsageError
from deploy.verbs.index_versions import NoSuchVersion, RefusedVersion
from retrieval.deltas.chain import DeltaChain
from retrieval.deltas.delta import write_items
from retrieval.versions.store import VersionCorrupt, VersionStore

FIGURES = {"step": 30, "items": 1682, "kind": "ivf", "nlist": 41, "nprobe": 7, "recall": 0.953}


@pytest.fixture
def versions(tmp_path):
    """Two versions, of which the second is live."""
    store = VersionStore(tmp_path / "index")
    for content in (b"old", b"newer"):
        building = store.begin()
        (building.path / "index.faiss").write_bytes(content)
        store.promote(store.commit(building, FIGURES).name)
    return store


WHY = "recall is 0.9, below the bound 0.95 (index.min_recall; a larger index.max_probe_fraction searches more lists)"
GATE = [{"name": "recall", "value": 0.9, "bound": 0.95, "passed": False}]


@pytest.fixture
def refused(versions):
    """A third version, which a gate refused."""
    building = versions.begin()
    (building.path / "index.faiss").write_bytes(b"worse")
    return versions.commit(building, FIGURES | {"refused": WHY, "gate": GATE}).name


def _invoke(tmp_path, *arguments):
    out = tmp_path / "out.json"
    done = CliRunner().invoke(
        app, ["index", *arguments, f"storage_path={tmp_path}", "--json", str(out)], env={"COLUMNS": "80"}
    )
    return done, json.loads(out.read_text()) if out.exists() else None


def test_the_list_shows_the_figures_of_each_version_and_which_is_live(tmp_path, versions):
    done, entries = _invoke(tmp_path, "list")
    assert done.exit_code == 0
    assert entries == [
        {"name": "v00000001", "live": False, "bytes": 3, **FIGURES},
        {"name": "v00000002", "live": True, "bytes": 5, **FIGURES},
    ]
    lines = done.output.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].split() == ["v00000002", "live", "30", "1,682", "ivf", ".953", "7", "of", "41", "0.00"]


def test_a_version_without_figures_is_listed(tmp_path):
    store = VersionStore(tmp_path / "index")
    store.commit(store.begin(), {})
    done, [entry] = _invoke(tmp_path, "list")
    assert done.exit_code == 0
    assert (entry["name"], entry["live"], entry["recall"]) == ("v00000001", False, None)


def test_an_unreadable_version_is_listed_with_what_is_wrong(tmp_path, versions):
    (tmp_path / "index" / "v00000001" / "manifest.json").write_text("{")
    done, [damaged, whole] = _invoke(tmp_path, "list")
    assert done.exit_code == 0
    assert "v00000001 is damaged" in damaged["error"]
    assert whole["live"]
    assert "v00000001: index version v00000001 is damaged" in done.output


def test_whole_versions_are_verified(tmp_path, versions):
    done, results = _invoke(tmp_path, "verify")
    assert done.exit_code == 0
    assert [result["whole"] for result in results] == [True, True]


@pytest.mark.parametrize("name", ["index.faiss", "manifest.json"])
def test_a_damaged_version_is_named_and_exits_1(tmp_path, versions, name):
    (tmp_path / "index" / "v00000001" / name).write_bytes(b"xxx")
    done, results = _invoke(tmp_path, "verify")
    assert done.exit_code == 1
    assert [result["whole"] for result in results] == [False, True]
    assert "v00000001  DAMAGED" in done.output
    done, [alone] = _invoke(tmp_path, "verify", "--name", "v00000002")
    assert (done.exit_code, alone["whole"]) == (0, True)


def test_an_older_version_becomes_the_live_one(tmp_path, versions):
    done, result = _invoke(tmp_path, "rollback", "--to", "v00000001")
    assert done.exit_code == 0
    assert result == {"live": "v00000001", "before": "v00000002"}
    assert versions.current().name == "v00000001"


def test_a_damaged_version_does_not_become_live(tmp_path, versions):
    (tmp_path / "index" / "v00000001" / "index.faiss").write_bytes(b"xxx")
    done, _ = _invoke(tmp_path, "rollback", "--to", "v00000001")
    assert isinstance(done.exception, VersionCorrupt)
    assert versions.current().name == "v00000002"


@pytest.mark.parametrize("arguments", [["rollback", "--to", "v00000009"], ["verify", "--name", "v00000009"]])
def test_an_unknown_version_is_refused_with_those_that_there_are(tmp_path, versions, arguments):
    done, _ = _invoke(tmp_path, *arguments)
    assert isinstance(done.exception, NoSuchVersion)
    assert "there are v00000001, v00000002" in str(done.exception)


def test_a_rollback_without_a_name_is_a_usage_error(tmp_path, versions):
    done, _ = _invoke(tmp_path, "rollback")
    assert isinstance(done.exception, UsageError)
    assert "--to" in str(done.exception)


def test_a_run_without_versions_is_an_error_that_names_the_setting(tmp_path):
    done, _ = _invoke(tmp_path, "list")
    assert isinstance(done.exception, NoSuchVersion)
    assert "storage_path" in str(done.exception)


def test_the_list_says_which_version_was_refused_and_why(tmp_path, refused):
    done, entries = _invoke(tmp_path, "list")
    assert done.exit_code == 0
    assert entries[2] == {"name": refused, "live": False, "bytes": 5, **FIGURES, "refused": WHY, "gate": GATE}
    lines = done.output.splitlines()
    assert lines[3].split()[:2] == [refused, "refused"]
    assert " ".join(" ".join(lines[4:]).split()) == f"{refused} was refused: {WHY}"
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("verb", ["promote", "rollback"])
def test_a_refused_version_does_not_become_live_by_itself(tmp_path, versions, refused, verb):
    done, _ = _invoke(tmp_path, verb, "--to", refused)
    assert isinstance(done.exception, RefusedVersion)
    assert "recall is 0.9, below the bound 0.95" in str(done.exception)
    assert "`freshet index promote --refused` serves it all the same" in str(done.exception)
    assert versions.current().name == "v00000002"


def test_a_refused_version_becomes_live_on_demand_if_it_is_whole(tmp_path, versions, refused):
    done, result = _invoke(tmp_path, "promote", "--to", refused, "--refused")
    assert (done.exit_code, result) == (0, {"live": refused, "before": "v00000002"})
    versions.promote("v00000002")
    (versions.root / refused / "index.faiss").write_bytes(b"worsE")
    done, _ = _invoke(tmp_path, "promote", "--to", refused, "--refused")
    assert isinstance(done.exception, VersionCorrupt)
    assert versions.current().name == "v00000002"


def test_a_version_without_an_index_is_never_live(tmp_path, versions):
    name = versions.commit(versions.begin(), {"refused": "finite is 0.5", "has_index": False}).name
    for more in ([], ["--refused"]):
        done, _ = _invoke(tmp_path, "promote", "--to", name, *more)
        assert isinstance(done.exception, RefusedVersion)
        assert "it has no index" in str(done.exception)
        assert "--refused" not in str(done.exception)


def test_a_refused_version_is_verified_like_any_other(tmp_path, versions, refused):
    assert _invoke(tmp_path, "verify", "--name", refused)[0].exit_code == 0
    (versions.root / refused / "index.faiss").write_bytes(b"worsE")
    done, [result] = _invoke(tmp_path, "verify", "--name", refused)
    assert (done.exit_code, result["whole"]) == (1, False)
    assert "index.faiss" in done.output


@pytest.fixture
def chain(versions):
    """Three deltas of the live version, and one that a gate refused."""
    chain = DeltaChain(versions, versions.current())
    for n in range(3):
        folder = chain.begin()
        write_items(folder.path, 0, np.array([n]), np.ones((1, 2), np.float32), np.array([n + 10]))
        chain.commit(folder, {"step": 1000 + n})
    chain.aside(chain.begin(), {"step": 1003}, "norms is 0.5, below the bound 1")
    return chain


def test_the_list_shows_the_deltas_of_the_live_version(tmp_path, versions, chain):
    done, [old, live] = _invoke(tmp_path, "list")
    assert done.exit_code == 0
    assert "deltas" not in old
    assert (live["deltas"], live["newest_delta"]["number"], live["newest_delta"]["step"]) == (3, 3, 1002)
    assert live["refused_deltas"] == {"aside-00000001": "norms is 0.5, below the bound 1"}
    lines = done.output.splitlines()
    assert lines[3] == "v00000002 has deltas: 3, the newest of step 1,002"
    assert lines[4] == "v00000002/aside-00000001 was refused: norms is 0.5, below the bound 1"
    assert max(map(len, lines)) <= 80


def test_the_list_of_a_damaged_chain_still_works(tmp_path, versions, chain):
    (tmp_path / "index/deltas/v00000002/d00000003/manifest.json").write_text("{")
    done, [_, live] = _invoke(tmp_path, "list")
    assert (done.exit_code, live["deltas"], live["newest_delta"]) == (0, 3, None)


def test_deltas_are_verified_with_their_version(tmp_path, versions, chain):
    done, results = _invoke(tmp_path, "verify")
    assert done.exit_code == 0
    assert [(result["name"], result["whole"]) for result in results] == [
        ("v00000001", True),
        ("v00000002", True),
        *((f"v00000002/d{n:08}", True) for n in (1, 2, 3)),
    ]
    assert [file["name"] for file in results[2]["files"]] == ["deleted-0000.arrow", "items-0000.arrow"]


@pytest.mark.parametrize("name", ["items-0000.arrow", "manifest.json"])
def test_a_damaged_delta_is_named_and_exits_1(tmp_path, versions, chain, name):
    (tmp_path / "index/deltas/v00000002/d00000002" / name).write_bytes(b"xxx")
    done, results = _invoke(tmp_path, "verify", "--name", "v00000002")
    assert done.exit_code == 1
    assert [result["whole"] for result in results] == [True, True, False, True]
    assert "v00000002/d00000002  DAMAGED" in done.output


def test_a_rollback_drops_the_deltas_of_the_version_that_is_left(tmp_path, versions, chain):
    done, _ = _invoke(tmp_path, "rollback", "--to", "v00000001")
    assert done.exit_code == 0
    _, entries = _invoke(tmp_path, "list")
    assert not any("deltas" in entry for entry in entries)
