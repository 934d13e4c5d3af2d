from pathlib import Path

import pytest

from cluster.config import FreshetConfig
from deploy.preflight import (
    NotACheckpoint,
    StorageUnusable,
    absolute_storage,
    check_checkpoint,
    check_storage,
)


def test_a_folder_without_a_manifest_is_not_a_checkpoint(tmp_path):
    with pytest.raises(NotACheckpoint, match=r"no manifest.json .*--checkpoint"):
        check_checkpoint(tmp_path)
    with pytest.raises(NotACheckpoint, match="there is no such folder"):
        check_checkpoint(tmp_path / "missing")
    (tmp_path / "manifest.json").touch()
    check_checkpoint(tmp_path)


def test_a_storage_path_below_a_file_is_refused_with_the_setting(tmp_path):
    (tmp_path / "file").touch()
    check_storage(FreshetConfig(storage_path=str(tmp_path / "new" / "run")))
    with pytest.raises(StorageUnusable, match=r"is a file, not a folder \(setting: storage_path="):
        check_storage(FreshetConfig(storage_path=str(tmp_path / "file" / "run")))


def test_a_relative_storage_path_becomes_absolute_and_an_address_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_storage(FreshetConfig(storage_path="runs/a")).storage_path == str(tmp_path / "runs/a")
    assert absolute_storage(FreshetConfig(storage_path="s3://bucket/a")).storage_path == "s3://bucket/a"
    home = absolute_storage(FreshetConfig(storage_path="~/a")).storage_path
    assert home == str(Path.home() / "a")
