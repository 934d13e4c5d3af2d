from pathlib import Path

import pytest

from cluster.config import FreshetConfig, TrainConfig
from deploy.command.preflight import (
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
    config = FreshetConfig(
        storage_path=str(tmp_path), train=TrainConfig(checkpoint_path=str(tmp_path / "file"))
    )
    with pytest.raises(StorageUnusable, match=r"file, not a folder \(setting: train.checkpoint_path="):
        check_storage(config)


def test_a_storage_path_that_cannot_be_made_or_written_is_refused_with_the_reason():
    """Also for root, who may write anywhere but in a file system that takes nothing."""
    with pytest.raises(
        StorageUnusable, match=r"^/proc/nope cannot be written: .* \(setting: storage_path\)$"
    ):
        check_storage(FreshetConfig(storage_path="/proc/nope"))
    with pytest.raises(StorageUnusable, match=r"^/proc/self cannot be written"):
        check_storage(FreshetConfig(storage_path="/proc/self"))


def test_a_storage_path_that_is_an_address_is_refused():
    with pytest.raises(StorageUnusable, match=r"s3://bucket/a is an address.*train\.checkpoint_path"):
        check_storage(FreshetConfig(storage_path="s3://bucket/a"))


def test_an_empty_storage_path_is_refused():
    for text in ("", "  "):
        with pytest.raises(ValueError, match=r"^storage_path must name a folder, got "):
            FreshetConfig(storage_path=text)


def test_a_relative_storage_path_becomes_absolute_and_an_address_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_storage(FreshetConfig(storage_path="runs/a")).storage_path == str(tmp_path / "runs/a")
    assert absolute_storage(FreshetConfig(storage_path="s3://bucket/a")).storage_path == "s3://bucket/a"
    home = absolute_storage(FreshetConfig(storage_path="~/a")).storage_path
    assert home == str(Path.home() / "a")


def test_what_others_can_read_of_an_earlier_run_is_said_in_one_line_and_left_as_it_is(tmp_path, capsys):
    run = tmp_path / "run"
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    histories = run / "checkpoints" / "step-00000001" / "users.arrow"
    for path, mode in ((histories, 0o644), (run / "settings.yaml", 0o644), (run / "progress.json", 0o600)):
        path.touch()
        path.chmod(mode)
    check_storage(FreshetConfig(storage_path=str(run)))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for part in (
        "(storage_path) holds 1 files",
        "checkpoints/step-00000001/users.arrow",
        f"chmod -R go-rwx {run}",
    ):
        assert part in said
    assert histories.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("closed", ["checkpoints/step-00000001", "checkpoints", "."])
def test_a_folder_on_the_way_that_keeps_others_out_is_enough(tmp_path, capsys, closed):
    run = tmp_path / "run"
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    (run / "checkpoints" / "step-00000001" / "users.arrow").touch()
    (run / closed).chmod(0o700)
    check_storage(FreshetConfig(storage_path=str(run)))
    assert capsys.readouterr().err == ""
