"""Results of cells on disk, either complete or absent.

A result is two files: `<key>.npz` (ranks of the test), and `<key>.json`, which is written last and holds the checksum
of the other. Each is written under another name, fsynced, and renamed, so a process can die at any moment.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cluster.evaluation.grids.cell import FORMAT, Cell, CellResult, default_settings
from cluster.evaluation.measuring.measures import RankedTargets
from cluster.evaluation.systems.fitting import Fitted
from retrieval.storage.durable import replace_durably, sha256


class CellFiles:
    """The folder of finished cells.

    Args:
        folder: created by the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, cell: Cell) -> CellResult | None:
        """A finished cell's result; None if there is none, it is incomplete, or its settings differ."""
        key = cell.key
        try:
            record = json.loads((self.folder / f"{key}.json").read_bytes())
            if record["format"] != FORMAT or record["key"] != key or not _same(record["settings"], cell):
                return None
            return _result(record, self._ranks(key, record["ranks_sha256"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, result: CellResult) -> None:
        """Write a result durably."""
        self.folder.mkdir(parents=True, exist_ok=True)
        checksum = None
        if result.ranks is not None:
            checksum = replace_durably(
                self.folder / f"{result.key}.npz", _packed(result.ranks), private=False
            ).sha256
        record = json.dumps(_record(result, checksum), indent=1, allow_nan=True).encode()
        replace_durably(self.folder / f"{result.key}.json", record, private=False)

    def _ranks(self, key: str, checksum: str | None) -> RankedTargets | None:
        if checksum is None:
            return None
        path = self.folder / f"{key}.npz"
        if sha256(path) != checksum:
            raise ValueError(f"{path} is not what was written")
        with np.load(path, allow_pickle=False) as arrays:  # noqa: TID251 - plain arrays only
            return RankedTargets(**{name: arrays[name] for name in arrays.files})


def _same(recorded: dict[str, Any], cell: Cell) -> bool:
    """Whether a result's settings are the cell's; a setting that its version did not have must have its default."""
    wanted, defaults = (json.loads(json.dumps(each)) for each in (cell.settings, default_settings()))
    return all(recorded.get(name, defaults[name]) == value for name, value in wanted.items())


def _packed(ranks: RankedTargets) -> bytes:
    packed = io.BytesIO()
    np.savez_compressed(packed, **vars(ranks))
    return packed.getvalue()


def _record(result: CellResult, checksum: str | None) -> dict[str, Any]:
    parts = {name: value for name, value in vars(result).items() if name not in ("ranks", "fitted")}
    return {"format": FORMAT, **parts, "fitted": asdict(result.fitted), "ranks_sha256": checksum}


def _result(record: dict[str, Any], ranks: RankedTargets | None) -> CellResult:
    names = ("key", "system", "seed", "settings", "data", "wall_s", "figures")
    parts = {name: record[name] for name in names}
    code = record.get("code", "")
    return CellResult(**parts, code=code, fitted=Fitted(**record["fitted"]), ranks=ranks)
