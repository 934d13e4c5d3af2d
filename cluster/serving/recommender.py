"""Recommendations from the live version: its query tower, its rows and its index, as one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from cluster.checkpoints.checkpoint import Checkpoint, CheckpointStore
from cluster.checkpoints.hold import holding
from cluster.checkpoints.parts.catalogue import read_catalogue
from cluster.checkpoints.parts.rows import PREFIX as ROWS
from cluster.checkpoints.parts.rows import load_rows
from cluster.checkpoints.parts.towers import FILE as TOWERS
from cluster.checkpoints.parts.towers import load_towers
from cluster.checkpoints.parts.users import load_users, partitions_in
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.publishing.query_batch import history_batch
from cluster.tables.config import TableConfig
from cluster.tables.row_optimizer import row_optimizer
from cluster.tables.sharded_embedding import ShardedEmbedding
from model.cl_epidtn import cl_epidtn
from model.config import ModelConfig
from model.features import KeyCollector, query_inputs
from retrieval.versions.searcher import Searcher
from retrieval.versions.store import Version
from streaming.catalogue.catalogue import Catalogue
from streaming.events.ids import integer_ids
from streaming.histories.history import UserStore

Int64Array = npt.NDArray[np.int64]


class NothingToServe(RuntimeError):
    """No version has been published here; the message names the path and what to do."""


class UnknownUser(ValueError):
    """The user has no history and none was given; the message names the user and the option."""


@dataclass(frozen=True)
class Recommendation:
    """One recommended item."""

    item_id: int
    title: str
    score: float


class Recommender:
    """Answers from the live index version and from the histories of the newest checkpoint."""

    def __init__(self, config: FreshetConfig) -> None:
        storage = Path(config.storage_path)
        on_gpu = config.index.device == "cuda"
        self._searcher = Searcher(storage / "index", config.index.gpu if on_gpu else None)
        version = self._searcher.version
        if version is None:
            raise NothingToServe(
                f"no index version is live in {storage / 'index'}; run `freshet train` or `freshet refresh`, "
                "or set storage_path to a run that has published"
            )
        self.version = version.name
        self._config = config
        self._load_query_side(version)
        newest = CheckpointStore(config.checkpoint_location).newest()
        self._users = UserStore(config.stream.history_length, config.stream.seen_length)
        if newest is not None:
            self._load_users(newest)

    def recommend(
        self, user_id: int | str | None = None, history: Sequence[int | str] | None = None, k: int = 10
    ) -> list[Recommendation]:
        """The k best items that the user has not had.

        Args:
            user_id: a user of the stream, a number or a text; without `history`, what the newest checkpoint knows of
                them is used.
            history: item ids, oldest first, instead.
            k: how many.
        Raises:
            UnknownUser: neither the stream nor the caller knows what the user did.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k} (option -k)")
        user = integer_ids([user_id if user_id is not None else -1])
        past = integer_ids(list(history)) if history is not None else self._past(user)
        if history is None and past.shape[0] == 0:
            raise UnknownUser(
                f"user {user_id} has no events in {self._config.storage_path}; give --history 1,2,3"
            )
        vectors = self._encode(user, past)
        ids, scores = self._searcher.search(vectors, k, exclude=[past])
        found = np.isfinite(scores[0])
        titles = self._catalogue.titles(ids[0][found])
        return [
            Recommendation(int(item), title, float(score))
            for item, title, score in zip(ids[0][found], titles, scores[0][found], strict=True)
        ]

    def history_titles(self, user_id: int | str, n: int = 5) -> list[str]:
        """Titles of the user's last n items, newest first."""
        return self._catalogue.titles(self._past(integer_ids([user_id]))[-n:][::-1])

    def user_ids(self) -> Int64Array:
        """Users that the newest checkpoint knows, int64 (n,)."""
        return self._users.users()

    def _load_query_side(self, version: Version) -> None:
        """The searcher has verified what the manifest lists, and nothing else is read."""
        saved = json.loads(version.file("model.json").read_text())
        known = {f.name for f in fields(ModelConfig)}
        self._model_config = ModelConfig(**{k: v for k, v in saved["model"].items() if k in known})
        self._model = cl_epidtn(self._model_config, len(saved["user_attributes"]))
        load_towers(version.file(TOWERS), self._model)
        self._model.eval()
        self._table = ShardedEmbedding(
            self._model_config.dim,
            Collectives(),
            row_optimizer(saved["row_optimizer"]),
            seed=int(saved["seed"]),
            device=torch.device("cpu"),
            init_std=self._model_config.init_std,
            limits=TableConfig(admit_after=float(saved.get("admit_after", 1.0))),
        )
        load_rows([version.file(name) for name in version.files(ROWS)], self._table, 0, 1, state=False)
        # The version's own attributes: the settings may have changed since it was published.
        self._catalogue = Catalogue(replace(self._config.stream, user_attributes=saved["user_attributes"]))
        self._catalogue.apply(read_catalogue(version))

    def _load_users(self, checkpoint: Checkpoint) -> None:
        with holding(checkpoint.storage, checkpoint.name, "freshet recommend"):
            load_users(checkpoint, self._users, partitions_in(checkpoint))

    def _past(self, user: Int64Array) -> Int64Array:
        return self._users.last(user, self._config.stream.seen_length)[0]

    @torch.no_grad()
    def _encode(self, user: Int64Array, past: Int64Array) -> npt.NDArray[np.float32]:
        width = self._config.stream.history_length
        recent = past[-width:]
        batch = history_batch(
            user,
            np.array([recent.shape[0]]),
            recent,
            np.zeros_like(recent),
            np.maximum(self._users.counts(user), past.shape[0]),
            self._catalogue.user_attributes(user),
        )
        keys = KeyCollector()
        queries = query_inputs(batch, self._catalogue.categories, keys, self._model_config)
        rows_UD = self._table.lookup(*keys.keys(), create=False).rows_UD
        vectors: npt.NDArray[np.float32] = self._model.encode_queries(rows_UD, queries).vectors_ED.numpy()
        return vectors
