import json
import math
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from deploy.output import plain, write_json

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
    with pytest.raises(TypeError, match="type object"):
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
