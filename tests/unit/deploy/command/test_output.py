import json
import math
import os
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from deploy.command.output import OutputUnwritable, plain, write_json
from tests.support.full_disk import FULL, READ_ONLY, files_of_at_most, refusing

Point = namedtuple("Point", "x y")


@dataclass
class Result:
    path: Path
    recall: float
    counts: np.ndarray


def test_dataclasses_paths_arrays_and_tuples_become_plain_values():
    value = Result(Path("/a"), math.nan, np.arange(2))
    assert plain({1: [value, Point(1, np.float32(0.5))]}) == {
        "1": [{"path": "/a", "recall": None, "counts": [0, 1]}, {"x": 1, "y": 0.5}]
    }


def test_a_value_without_a_json_form_is_named():
    with pytest.raises(TypeError, match="serializable: object"):
        plain(object())


def test_the_file_is_replaced_as_a_whole_and_its_folder_is_made(tmp_path):
    path = tmp_path / "deep" / "result.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


def test_a_value_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json(None, {"a": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_who_may_read_a_result_is_the_umasks_to_say(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_json(tmp_path / "result.json", {"a": 1})
    finally:
        os.umask(before)
    assert (tmp_path / "result.json").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("what", ["writes", ("mkdir", FULL), ("replace", READ_ONLY)], ids=str)
def test_a_disk_that_cannot_take_it_is_named_with_the_file_and_leaves_the_old_one(tmp_path, what):
    path = tmp_path / "deep" / "result.json"
    if "mkdir" not in what:
        write_json(path, {"a": 1})
    full = files_of_at_most(0) if what == "writes" else refusing(*what, below=tmp_path)
    with full, pytest.raises(OutputUnwritable, match=rf"{path} cannot be written: \[Errno"):
        write_json(path, {"a": 2})
    if "mkdir" not in what:
        assert json.loads(path.read_text()) == {"a": 1}
        assert [p.name for p in path.parent.iterdir()] == ["result.json"]
