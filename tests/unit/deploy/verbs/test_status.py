import io
import json
import re
import shutil
import time
from types import SimpleNamespace

import pytest

from deploy.command.terminal import Terminal
from deploy.verbs.status import NothingThere, checkpoint_offsets, collect_status, print_status
from retrieval.storage.durable import manifest_checksum


@pytest.fixture
def run(tmp_path, monkeypatch, progress_record):
    """A storage path as a trainer left it 5 s ago, with a broker that holds 50 messages; the clock stands still."""
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s)
    (tmp_path / "progress.json").write_text(json.dumps(progress_record(time_s=now_s - 5)))
    for step in (120, 240):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        manifest = {
            "step": step,
            "positions": {"0": [20, 3], "1": [25, 0]},
            "rows_read": 2400,
            "written_ms": int((now_s - 200) * 1000),
            "stream": {"origin": {"1": 5}},
            "format": 2,
            "chain": [],
            "files": [],
        }
        manifest["checksum"] = manifest_checksum(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "checkpoints" / ".writing-step-00000300").mkdir()
    version = tmp_path / "index" / "v00000006"
    version.mkdir(parents=True)
    (version / "manifest.json").write_text(
        json.dumps({"format": 1, "files": [], "items": 1682, "recall": 0.987})
    )
    (tmp_path / "index" / "CURRENT").write_text("v00000006\n")
    monkeypatch.setattr("streaming.sources.kafka_source.end_offsets", lambda config, topic: {0: 24, 1: 26})
    return SimpleNamespace(
        storage_path=str(tmp_path),
        checkpoint_location=str(tmp_path / "checkpoints"),
        index_location=str(tmp_path / "index"),
        stream=SimpleNamespace(interactions_topic="i", parquet=""),
    )


def test_the_status_has_checkpoints_versions_and_the_lag(run):
    status = collect_status(run)
    assert [entry["name"] for entry in status["checkpoints"]] == ["step-00000120", "step-00000240"]
    assert status["index_versions"] == [{"name": "v00000006", "items": 1682, "recall": 0.987}]
    assert status["index_current"] == "v00000006"
    assert (status["lag_messages"], status["lag_events"]) == (5, 300)  # 2,400 rows were in 40 messages
    assert status["age_s"] == pytest.approx(5)


def test_a_broker_that_does_not_answer_leaves_the_rest_of_the_status(run, monkeypatch):
    def unreachable(config, topic):
        raise RuntimeError("no broker answers\nat 127.0.0.1:1")

    monkeypatch.setattr("streaming.sources.kafka_source.end_offsets", unreachable)
    status = collect_status(run)
    assert status["lag_messages"] is None
    assert status["broker"] == "no broker answers at 127.0.0.1:1"
    assert len(status["checkpoints"]) == 2


def test_an_empty_storage_path_is_an_error_that_names_the_setting(tmp_path):
    config = SimpleNamespace(
        storage_path=str(tmp_path),
        checkpoint_location=str(tmp_path / "checkpoints"),
        index_location=str(tmp_path / "index"),
        stream=None,
    )
    with pytest.raises(NothingThere, match="storage_path"):
        collect_status(config)


def test_the_table_shows_it(run):
    out = io.StringIO()
    print_status(Terminal(file=out, width=140), collect_status(run))
    text = out.getvalue()
    for part in (
        "training (",
        "step-00000240",
        "live: v00000006",
        "recall@10 .987",
        ".150 on 6,000 events (exact: among all items by the model in training)",
        ".200 on 1,500 events, last by v00000006; 2,345 more not answered (served: by the live version, as users got "
        "it)",
        "about 300 events behind",
    ):
        assert part in text
    assert re.search(r"state +training \(as of \d{4}-\d\d-\d\d [\d:]{8}[+-]\d\d:\d\d, 5 s ago\)", text)
    assert re.search(
        r"step-00000240; the newest written \d{4}-\d\d-\d\d [\d:]{8}[+-]\d\d:\d\d, 3 min 20 s ago", text
    )


def test_before_the_first_checkpoint_the_lag_is_the_whole_topic(run, tmp_path, monkeypatch, progress_record):
    shutil.rmtree(tmp_path / "checkpoints")
    monkeypatch.setattr("streaming.sources.kafka_source.first_offsets", lambda config, topic: {0: 4, 1: 6})
    status = collect_status(run)
    assert status["lag_messages"] == 40
    assert status["lag_events"] == round(
        40 * 75_123 / 4
    )  # by what the run says of the messages that it waits for
    (tmp_path / "progress.json").write_text(json.dumps(progress_record(lag_events=None)))
    status = collect_status(run)
    assert status["lag_events"] is None
    out = io.StringIO()
    print_status(Terminal(file=out, width=160), status)
    assert (
        "40 messages behind the newest checkpoint; their number of events is not yet known" in out.getvalue()
    )


def test_of_files_the_run_knows_the_lag(run, monkeypatch):
    run.stream.parquet = "files"
    monkeypatch.setattr(
        "streaming.sources.kafka_source.end_offsets", lambda *_: pytest.fail("no topic is read")
    )
    assert collect_status(run)["lag_events"] == 75_123


def test_a_silent_trainer_is_said_to_be_maybe_dead(run, progress_record, tmp_path):
    (tmp_path / "progress.json").write_text(json.dumps(progress_record(time_s=time.time() - 100)))
    out = io.StringIO()
    print_status(Terminal(file=out, width=120), collect_status(run))
    assert "it may have died" in out.getvalue()


def test_what_was_not_trained_on_is_shown_by_kind(run, progress_record, tmp_path):
    record = progress_record(events_duplicate=7, events_quarantined=0, messages_skipped=12)
    (tmp_path / "progress.json").write_text(json.dumps(record))
    out = io.StringIO()
    print_status(Terminal(file=out, width=160), collect_status(run))
    assert ", 7 duplicates, 12 skipped, " in out.getvalue()


def test_a_half_written_manifest_is_left_out(run, tmp_path):
    (tmp_path / "checkpoints" / "step-00000240" / "manifest.json").write_text("{")
    assert [entry["name"] for entry in collect_status(run)["checkpoints"]] == ["step-00000120"]


def test_positions_are_offsets_or_offset_and_row():
    assert checkpoint_offsets({"positions": {"0": [5, 2], "3": 7}}) == {0: 5, 3: 7}
    assert checkpoint_offsets({}) == {}


def test_the_gates_of_the_last_version_are_shown_with_their_bounds_and_why_one_was_refused(
    run, tmp_path, progress_record
):
    check = {"name": "recall", "value": 0.9, "bound": 0.95, "passed": False, "note": ""}
    record = progress_record(time_s=time.time(), index={"gate": {"checks": [check]}})
    (tmp_path / "progress.json").write_text(json.dumps(record))
    aside = tmp_path / "index" / "v00000007"
    aside.mkdir()
    why = "recall is 0.9, below the bound 0.95 (index.min_recall)"
    (aside / "manifest.json").write_text(json.dumps({"format": 1, "files": [], "refused": why}))
    out = io.StringIO()
    print_status(Terminal(file=out, width=300), collect_status(run))
    shown = out.getvalue()
    assert "FAILED recall 0.9 (at least 0.95)" in shown
    assert f"v00000007 was refused: {why}" in shown
    assert "v00000006, v00000007 (refused); live: v00000006" in shown
