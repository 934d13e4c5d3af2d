import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = {"cluster", "streaming", "model", "retrieval", "deploy"}


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory):
    """Names in the wheel built from the committed files, as they are in the working tree."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-c", build, str(target)], cwd=source, capture_output=True, check=True)
    [wheel] = target.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_the_five_packages_and_nothing_else(wheel_names):
    top = {name.split("/")[0] for name in wheel_names}
    assert {name for name in top if not name.endswith(".dist-info")} == PACKAGES


def test_the_wheel_holds_the_lock_of_the_local_broker(wheel_names):
    assert "streaming/local_broker/kafka.lock" in wheel_names


def test_the_constraints_pin_every_version_and_hold_no_address():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert len(lines) > 100
    for line in lines:
        assert "==" in line
        assert "://" not in line
        assert " @ " not in line


def test_make_without_a_target_lists_the_targets():
    result = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, check=True, text=True)
    for target in ("install", "demo", "test", "test-gpu", "lint", "format", "bench", "clean"):
        assert f"make {target} " in result.stdout
