"""RecTools in a virtual environment of its own, made on first use, and runs of its SASRec there.

Shape letters: U users, Q queries, I items, D columns.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from cluster.evaluation.measuring.ranking import rank
from cluster.evaluation.protocol.data import EvaluationData
from cluster.evaluation.protocol.protocols import Queries
from model.metrics import hit_rate
from streaming.arrays import Float32Array, Int64Array
from tests.benchmarks.support.peer_environment import peer_environment, run_peer
from tests.benchmarks.support.window import Cost

_SCRIPT = Path(__file__).with_name("peer_sasrec.py")
_RECTOOLS = "rectools[torch]==0.19.0"


def peer_python() -> Path:
    """The interpreter of the peer's environment: same Python, same torch."""
    return peer_environment("sasrec", [_RECTOOLS, f"torch=={torch.__version__.partition('+')[0]}"])


@dataclass(frozen=True)
class PeerRun(Cost):
    """What its training cost; an example is a position with a loss."""

    version: str
    steps: int


@dataclass(frozen=True)
class PeerFit:
    """A run over epochs, and how well each of them ranks."""

    run: PeerRun
    validation: list[float] = field(default_factory=list)
    """HR@10 after each epoch."""
    test: float = 0.0
    """HR@10 of the epoch that is the best in validation."""
    best_epoch: int = 0


def timed_peer(data: EvaluationData, settings: Mapping[str, Any], *, steps: int, warmup: int) -> PeerRun:
    """A fresh process, a fresh model, so many steps behind the warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        return _run_peer(data, {**settings, "steps": steps, "warmup": warmup, "epochs": 0}, Path(folder))


def fit_peer(data: EvaluationData, settings: Mapping[str, Any], queries: Queries, *, epochs: int) -> PeerFit:
    """Trains for `epochs` and ranks with the epoch that is the best on the validation queries."""
    with tempfile.TemporaryDirectory() as folder:
        run = _run_peer(data, {**settings, "steps": 0, "warmup": 0, "epochs": epochs}, Path(folder))
        vectors = [dict(np.load(Path(folder) / f"epoch-{n}.npz")) for n in range(1, epochs + 1)]
    window = settings["window"]
    validation = [_hit_rate(data, each, "validation", queries, window) for each in vectors]
    best = int(np.argmax(validation))
    test = _hit_rate(data, vectors[best], "test", data.split.test, window)
    return PeerFit(run, validation, test, best + 1)


def _run_peer(data: EvaluationData, settings: Mapping[str, Any], folder: Path) -> PeerRun:
    known = data.interactions
    np.savez(
        folder / "data.npz",
        item_T=known.item_T,
        offset_U1=known.offset_U1,
        train_U=data.split.train_U,
    )
    (folder / "settings.json").write_text(json.dumps(dict(settings)))
    arguments = [folder / "data.npz", folder / "settings.json", folder]
    printed = run_peer([str(peer_python()), str(_SCRIPT), *map(str, arguments)])
    return PeerRun(**json.loads(printed.splitlines()[-1]))


def _hit_rate(
    data: EvaluationData,
    vectors: Mapping[str, npt.NDArray[Any]],
    moment: str,
    queries: Queries,
    window: int,
) -> float:
    """HR@10 of the queries by the ranking code that every system here goes through."""
    known = PeerVectors(data.interactions.user_U, vectors[moment], vectors["item_ids"], vectors["items"])
    ranking = rank(known, data.interactions, queries, data.item_ids, window=window, exclude_seen=True)
    return hit_rate(ranking.rank_G, 10)


class PeerVectors:
    """Vectors that somebody else worked out, as what `rank` asks for. Items without a vector come last."""

    def __init__(
        self, user_U: Int64Array, users_UD: Float32Array, item_I: Int64Array, items_ID: Float32Array
    ) -> None:
        self._user_U, self._users_UD = user_U, users_UD
        order = np.argsort(item_I)
        self._item_I, self._items_ID = item_I[order], items_ID[order]

    def encode_users(self, batch: pa.RecordBatch) -> Float32Array:
        """By the id of each row's user."""
        return self._users_UD[np.searchsorted(self._user_U, batch.column("user_id").to_numpy())]

    def encode_items(self, item_ids: Int64Array) -> Float32Array:
        """NaN where there is none."""
        at = np.minimum(np.searchsorted(self._item_I, item_ids), self._item_I.shape[0] - 1)
        known = self._item_I[at] == item_ids
        return np.where(known[:, None], self._items_ID[at], np.nan).astype(np.float32)

    def scores(self, users_QD: Float32Array, items_ID: Float32Array) -> Float32Array:
        """Inner products, −inf for an item without a vector."""
        scores_QI = users_QD @ items_ID.T
        return np.where(np.isnan(scores_QI), -np.inf, scores_QI)
