"""Chooses a folder for Numba's cache if Numba finds none: with a read-only installation and no writable home.

Numba keeps compiled functions beside their source or in the user's cache folder, and refuses to import a function if it
can write to neither. It executes what it reads back, so the folder must not be writable by other users.
"""

from __future__ import annotations

import atexit
import os
import stat
import sys
from pathlib import Path

_VARIABLE = "NUMBA_CACHE_DIR"


def ensure_cache(package: Path) -> None:
    """Set NUMBA_CACHE_DIR, for this process and its children, if a package's functions could not be cached.

    Must run before the first of them is compiled.
    """
    chosen = os.environ.get(_VARIABLE, "")
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "numba"
    places = [Path(chosen)] if chosen else []
    if any(_writable(place) for place in (*places, package / "__pycache__", home)):
        return
    os.environ[_VARIABLE] = str(_private_folder())
    if "numba" in sys.modules:  # Numba has already read its environment
        sys.modules["numba"].config.CACHE_DIR = os.environ[_VARIABLE]


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".freshet-{os.getpid()}"
        os.close(os.open(probe, os.O_CREAT | os.O_WRONLY, 0o600))
        probe.unlink()
    except OSError:
        return False
    return True


def _private_folder() -> Path:
    """The user's folder in the temporary folder, or one for this process if another user owns that name."""
    import shutil  # both imports take longer than everything else before the command line handles signals
    import tempfile

    folder = Path(tempfile.gettempdir()) / f"freshet-numba-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        found = None
    ours = found is not None and stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if ours and found is not None and stat.S_IMODE(found.st_mode) == 0o700 and _writable(folder):
        return folder
    fresh = Path(tempfile.mkdtemp(prefix="freshet-numba-"))
    atexit.register(shutil.rmtree, fresh, ignore_errors=True)
    return fresh
