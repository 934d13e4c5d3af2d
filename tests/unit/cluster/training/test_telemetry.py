"""progress.json: a reader sees the old one or the new one, never a part."""

import json
import threading

import pytest

from cluster.training.telemetry import PROGRESS_FILE, read_progress, write_progress


def test_what_was_written_last_is_read_with_the_time_of_writing(tmp_path):
    assert read_progress(tmp_path) is None
    write_progress(tmp_path / "run", {"step": 1})
    write_progress(tmp_path / "run", {"step": 2, "time_s": 5.0})
    assert read_progress(tmp_path / "run") == {"step": 2, "time_s": 5.0}
    write_progress(tmp_path / "run", {"step": 3})
    assert read_progress(tmp_path / "run")["time_s"] > 1.6e9


def test_a_reader_never_sees_a_part_while_it_is_replaced_and_no_temporary_file_remains(tmp_path):
    write_progress(tmp_path, {"step": 0, "filler": "x" * 50_000})
    done = threading.Event()

    def write() -> None:
        for step in range(100):
            write_progress(tmp_path, {"step": step, "filler": "x" * 50_000})
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = [read_progress(tmp_path)["step"]]
    while not done.is_set():
        seen.append(read_progress(tmp_path)["step"])
    writer.join()
    assert seen == sorted(seen)
    assert [p.name for p in tmp_path.iterdir()] == [PROGRESS_FILE]


def test_a_failed_write_leaves_the_last_progress(tmp_path):
    write_progress(tmp_path, {"step": 1})
    with pytest.raises(TypeError):
        write_progress(tmp_path, {"step": object()})
    assert read_progress(tmp_path)["step"] == 1


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / PROGRESS_FILE).write_text('{"step": 1')
    with pytest.raises(ValueError, match=PROGRESS_FILE):
        read_progress(tmp_path)


def test_a_file_that_holds_no_object_counts_as_no_progress(tmp_path):
    (tmp_path / PROGRESS_FILE).write_text(json.dumps([1, 2]))
    assert read_progress(tmp_path) is None
