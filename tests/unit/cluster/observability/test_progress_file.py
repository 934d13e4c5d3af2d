"""progress.json: a reader sees the old one or the new one, never a part."""

import json
import os
import shutil
import threading

import pytest

from cluster.observability.progress_file import PROGRESS_FILE, ProgressFile, read_progress, write_progress
from tests.support.full_disk import FULL, READ_ONLY, files_of_at_most, refusing


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


@pytest.mark.parametrize(
    "what", ["writes", ("open", FULL), ("open", READ_ONLY), ("replace", FULL), ("mkdir", FULL)], ids=str
)
def test_a_disk_that_is_full_costs_readings_and_with_room_again_the_next_is_there(tmp_path, caplog, what):
    file = ProgressFile(tmp_path / "run")
    if "mkdir" not in what:
        file.write({"step": 1})
    with files_of_at_most(0) if what == "writes" else refusing(*what, below=tmp_path):
        for step in (2, 3):
            file.write({"step": step})
    assert caplog.text.count("cannot be written") == 1
    assert (read_progress(tmp_path / "run") or {}).get("step") == (None if "mkdir" in what else 1)
    file.write({"step": 4})
    assert read_progress(tmp_path / "run")["step"] == 4
    assert "works again" in caplog.text
    assert [path.name for path in (tmp_path / "run").iterdir()] == [PROGRESS_FILE]


def test_a_folder_that_is_removed_meanwhile_is_made_again(tmp_path):
    file = ProgressFile(tmp_path / "run")
    file.write({"step": 1})
    shutil.rmtree(tmp_path / "run")
    file.write({"step": 2})
    assert file.read()["step"] == 2


def test_what_a_power_cut_left_of_the_last_reading_stops_no_trainer(tmp_path, caplog):
    (tmp_path / PROGRESS_FILE).write_text('{"step": ')
    assert ProgressFile(tmp_path).read() is None
    assert "not valid JSON" in caplog.text


@pytest.mark.parametrize("umask", [0, 0o022])
def test_only_their_owner_reads_it_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_progress(tmp_path / "runs" / "run", {"step": 1})
    finally:
        os.umask(before)
    folder = tmp_path / "runs" / "run"
    assert (folder.stat().st_mode & 0o777, folder.parent.stat().st_mode & 0o777) == (0o700, 0o700)
    assert (folder / PROGRESS_FILE).stat().st_mode & 0o777 == 0o600
