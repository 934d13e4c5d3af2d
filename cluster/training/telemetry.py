"""What the trainer says of itself while it runs: one small JSON file, replaced atomically."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROGRESS_FILE = "progress.json"


def write_progress(storage_path: Path, progress: Mapping[str, Any]) -> None:
    """Replace `storage_path/progress.json`; a reader sees the old one or the new one, never a part."""
    storage_path.mkdir(parents=True, exist_ok=True)
    temporary = storage_path / f".{PROGRESS_FILE}.{os.getpid()}"
    temporary.write_text(json.dumps({"time_s": time.time(), **progress}))
    temporary.replace(storage_path / PROGRESS_FILE)


def read_progress(storage_path: Path) -> dict[str, Any] | None:
    """The last progress that was written, or None if no trainer has said anything here."""
    try:
        content = json.loads((storage_path / PROGRESS_FILE).read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{storage_path / PROGRESS_FILE} is not valid JSON ({error}); remove it") from error
    return content if isinstance(content, dict) else None
