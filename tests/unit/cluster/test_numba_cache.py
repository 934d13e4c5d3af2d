"""The location of Numba's cache with a read-only installation and no home, in processes without root rights."""

import ctypes
import os
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

CAP_DAC_OVERRIDE = 1
PR_CAPBSET_DROP = 24
ROOT = Path(__file__).parents[3]
USE = (
    "import os, cluster, streaming.events.hashing, model.metrics; "
    "from streaming.events.partitioner import partition_of_users; "
    + (
        "import numpy as np; print(partition_of_users(np.arange(3), 2).shape, os.environ.get('NUMBA_CACHE_DIR'))"
    )
)


def bound_by_permissions():
    """Root writes where it likes, unless it gives that up for what it executes; others may not do that, nor need to."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


@contextmanager
def read_only(folder):
    """Everything in it."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    try:
        yield
    finally:
        for path in folders:
            path.chmod(0o755)


@pytest.fixture
def installed(tmp_path):
    """A copy of the packages, and a home, both without the right to write."""
    for package in ("cluster", "streaming", "model", "retrieval"):
        for source in (ROOT / package).rglob("*"):
            if source.suffix in (".py", ".lock", ".toml"):
                target = tmp_path / "site" / source.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    with read_only(tmp_path / "site"), read_only(tmp_path / "home"):
        yield tmp_path


def use(installed, **environment):
    """Import and call compiled functions there; the cache folder that the process chose."""
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR")
    }
    folders = {"PYTHONPATH": str(installed / "site"), "TMPDIR": str(installed / "tmp")}
    done = subprocess.run(
        [sys.executable, "-c", USE],
        env={**inherited, **folders, **environment},
        cwd=installed / "site",
        preexec_fn=bound_by_permissions,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    shape, _, folder = done.stdout.strip().rpartition(" ")
    assert shape == "(3,)"
    return folder


def test_a_read_only_installation_and_home_get_a_private_folder_that_is_used_again(installed):
    folder = use(installed, HOME=str(installed / "home"))
    assert Path(folder).parent == installed / "tmp"
    assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
    kept = {path.name for path in Path(folder).rglob("*.nbc")}
    assert kept
    assert use(installed, HOME=str(installed / "home")) == folder
    assert {path.name for path in Path(folder).rglob("*.nbc")} == kept


def test_a_folder_that_others_may_write_to_is_not_trusted(installed):
    planted = installed / "tmp" / f"freshet-numba-{os.geteuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    folder = use(installed, HOME="/nonexistent")
    assert Path(folder) != planted
    assert list(planted.iterdir()) == []
    assert not Path(folder).exists()  # it was of that process alone


def test_a_home_that_can_be_written_is_left_to_numba(installed):
    assert use(installed, HOME=str(installed / "tmp")) == "None"
