"""Virtual environments of what we are compared with: under tests/benchmarks, made on first use, not the project's."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_FOLDER = Path(__file__).resolve().parents[1]


class PeerError(RuntimeError):
    """A peer could not be installed or did not run; says what was run."""


def peer_environment(name: str, *installs: Sequence[str]) -> Path:
    """The interpreter of `.venv-peer-NAME`; each of `installs` is the arguments of one `uv pip install`, in order."""
    folder = _FOLDER / f".venv-peer-{name}"
    stamp, python, wanted = folder / "installed", folder / "bin" / "python", repr(installs)
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    if uv is None:
        raise PeerError("uv is not installed, and makes the peer's environment: run `make install`")
    print(f"installing into {folder} …", file=sys.stderr, flush=True)
    run_peer([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)])
    for arguments in installs:
        run_peer([uv, "pip", "install", "--quiet", "--python", str(python), *arguments])
    stamp.write_text(wanted)
    return python


def run_peer(command: Sequence[str]) -> str:
    """What it prints, on one thread and without a GPU."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "POLARS_MAX_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        raise PeerError(f"exit status {done.returncode} of: {' '.join(command)}")
    return done.stdout
