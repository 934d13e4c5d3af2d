"""Extracts MovieLens 100K from the wheel of `recbole`, downloaded with any installer that this Python has."""

import csv
import ensurepip
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streaming.local_broker.jars import cache_root

RECBOLE = "recbole==1.2.1"
MEMBER = "recbole/dataset_example/ml-100k/ml-100k"
ML_100K_COUNTS = {"users": 943, "items": 1682, "interactions": 100_000}
FETCH_TIMEOUT_S = 600
TIE_SEED = 0
FetchProgress = Callable[[str], None]
Row = dict[str, str]


class DatasetError(RuntimeError):
    """A data set could not be fetched or read."""


def default_cache_dir() -> Path:
    """Where data sets are kept: `datasets` in $FRESHET_CACHE or ~/.cache/freshet."""
    return cache_root() / "datasets"


def fetch_ml_100k(folder: Path, progress: FetchProgress) -> None:
    """Writes MovieLens 100K into `folder`, in one rename.

    Raises:
        DatasetError: no installer could download the wheel, or its content is not as expected.
    """
    progress("fetching MovieLens 100K (2 MB, once)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as name:
        work = Path(name)
        _bring_wheel(work / "wheel")
        tables = {kind: _rows(work / "wheel", kind) for kind in ("inter", "item", "user")}
        ready = work / "ready"
        ready.mkdir()
        _write_ml_100k(tables, ready)
        _put_in_place(ready, folder)
    progress(f"MovieLens 100K is in {folder}")


def _bring_wheel(target: Path) -> None:
    """Downloads the wheel into `target`, or unpacks it there."""
    command, environment = _installer(target)
    try:
        result = subprocess.run(
            command,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
            timeout=FETCH_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _fetch_failure(type(error).__name__) from error
    if result.returncode:
        raise _fetch_failure((result.stderr.strip().splitlines() or ["no reason given"])[-1])


def _fetch_failure(reason: str) -> DatasetError:
    return DatasetError(
        f"Could not fetch ml-100k, which the package {RECBOLE} carries ({reason}): try again with a "
        "network that reaches a Python package index, or give the folder of another data set."
    )


def _installer(target: Path) -> tuple[list[str], dict[str, str]]:
    """The command that downloads a wheel: this Python's pip, else uv, else Python's bundled pip."""
    download = ["-m", "pip", "download", "--quiet", "--retries=1", "--no-deps", "--only-binary=:all:"]
    pip = [sys.executable, *download, "-d", str(target), RECBOLE]
    if importlib.util.find_spec("pip"):
        return pip, {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if uv := shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent)):
        install = ["pip", "install", "--quiet", "--no-deps", "--target", str(target), RECBOLE]
        return [uv, *install, "--python", sys.executable], {}
    # Python bundles pip's wheel for venv; it runs from there without being installed.
    wheels = sorted(Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl"))
    return pip, {"PYTHONPATH": str(wheels[-1])} if wheels else {}


def _rows(wheel_folder: Path, kind: str) -> list[Row]:
    member = f"{MEMBER}.{kind}"
    unpacked = wheel_folder / member
    wheels = sorted(wheel_folder.glob("*.whl"))
    try:
        text = unpacked.read_text("utf-8") if unpacked.is_file() else _read_member(wheels, member)
    except (KeyError, IndexError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{RECBOLE} does not hold {member} ({type(error).__name__})") from error
    # The header names a type after each colon: "user_id:token".
    header, _, body = text.partition("\n")
    names = [field.partition(":")[0] for field in header.rstrip("\r").split("\t")]
    return list(csv.DictReader(io.StringIO(body), names, delimiter="\t", quoting=csv.QUOTE_NONE))


def _read_member(wheels: list[Path], member: str) -> str:
    with zipfile.ZipFile(wheels[0]) as archive:
        return archive.read(member).decode("utf-8")


def _write_ml_100k(rows: dict[str, list[Row]], folder: Path) -> None:
    genres = {int(row["item_id"]): row["class"].split() for row in rows["item"]}
    names = sorted({genre for item in genres.values() for genre in item})
    first = {item: names.index(listed[0]) for item, listed in genres.items()}
    tables = {
        "interactions": _interactions(rows["inter"], first),
        "items": _items(rows["item"], first),
        "users": _users(rows["user"]),
    }
    counts = {name: table.num_rows for name, table in tables.items()}
    if counts != ML_100K_COUNTS:
        raise DatasetError(f"{RECBOLE} holds {counts}, not MovieLens 100K's {ML_100K_COUNTS}")
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    (folder / "meta.json").write_text(json.dumps(_meta(names, counts), indent=1))


def _interactions(rows: list[Row], first_category: dict[int, int]) -> pa.Table:
    user_N = np.array([int(row["user_id"]) for row in rows])
    item_N = np.array([int(row["item_id"]) for row in rows])
    time_N = np.array([int(row["timestamp"]) for row in rows])
    rating_N = np.array([int(row["rating"]) for row in rows], np.int8)
    # Half of a user's events share a second; their order is drawn, so that it carries no information.
    order_N = np.lexsort((np.random.default_rng(TIE_SEED).random(len(rows)), time_N, user_N))
    user_N, item_N, time_N, rating_N = (column[order_N] for column in (user_N, item_N, time_N, rating_N))
    start_N = np.r_[True, user_N[1:] != user_N[:-1]]
    row_N = np.arange(len(rows))
    return pa.table(
        {
            "user_id": user_N,
            "item_id": item_N,
            "timestamp": time_N,
            "category": np.array([first_category[item] for item in item_N.tolist()]),
            "action": ["rate"] * len(rows),
            "pos": (row_N - np.maximum.accumulate(np.where(start_N, row_N, 0))).astype(np.int32),
            "rating": rating_N,
        }
    )


def _items(rows: list[Row], first_category: dict[int, int]) -> pa.Table:
    return pa.table(
        {
            "item_id": [int(row["item_id"]) for row in rows],
            "category": [first_category[int(row["item_id"])] for row in rows],
            "genres": [row["class"] for row in rows],
            "movie_title": [row["movie_title"] for row in rows],
            "release_year": [row["release_year"] for row in rows],
        }
    )


def _users(rows: list[Row]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [int(r[name]) for r in rows] for name in ("user_id", "age")}
    columns |= {name: [row[name] for row in rows] for name in ("gender", "occupation", "zip_code")}
    return pa.table(columns)


def _meta(category_names: list[str], counts: dict[str, int]) -> dict[str, Any]:
    return {
        "name": "ml-100k",
        "source": f"MovieLens 100K (GroupLens, University of Minnesota), from {RECBOLE}, {MEMBER}.*",
        "citation": "F. M. Harper, J. A. Konstan: The MovieLens Datasets. ACM TiiS 5(4), 2015.",
        "terms": "research use, with acknowledgement; no redistribution or commercial use without permission",
        "timestamp_kind": "unix seconds (real)",
        "category_names": category_names,
        "user_attributes": "age, gender, occupation, zip_code",
        **{f"n_{name}": count for name, count in counts.items()},
    }


def _put_in_place(ready: Path, folder: Path) -> None:
    if folder.exists() and not (folder / "meta.json").is_file():
        shutil.rmtree(
            folder
        )  # the meta file appears with the rename; without it, the folder is not one of our data sets
    try:
        ready.rename(folder)
    except OSError:
        # Another process was faster; both have the same content.
        if not (folder / "meta.json").is_file():
            raise
