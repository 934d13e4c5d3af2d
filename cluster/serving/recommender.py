"""Recommendations from the live version and its deltas: query tower, rows, catalogue and index of one state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from cluster.checkpoints.checkpoint import Checkpoint, CheckpointStore
from cluster.checkpoints.hold import holding
from cluster.checkpoints.parts.id_texts import ITEMS as ITEM_TEXTS
from cluster.checkpoints.parts.id_texts import USERS as USER_TEXTS
from cluster.checkpoints.parts.id_texts import read_texts
from cluster.checkpoints.parts.users import load_users, partitions_in
from cluster.config import FreshetConfig
from cluster.queries.query_batch import history_batch
from cluster.queries.served_model import ServedModel, follow_models
from retrieval.versions.following import Following
from streaming.arrays import Int64Array
from streaming.events.ids import read_ids
from streaming.histories.history import UserStore
from streaming.histories.id_texts import IdTexts, KnownTexts


class NothingToServe(RuntimeError):
    """No version has been published here; the message names the path and what to do."""


class UnknownItems(ValueError):
    """No item of a given history is known; the message names the first ones and the option."""


class UnknownUser(ValueError):
    """The user has no history and none was given; the message names the user and the option."""


@dataclass(frozen=True)
class Recommendation:
    """One recommended item; its id as it was put in, a number or a text."""

    item_id: int | str
    title: str
    score: float


@dataclass(frozen=True)
class Answer:
    """What one request got.

    Attributes:
        version: name of the index version that everything in it came from.
        delta: number of the last of its deltas that is in it; 0 for the full version.
        items: best first.
    """

    version: str
    delta: int
    items: list[Recommendation]


class Recommender:
    """Answers from the live index version and from the histories of the newest checkpoint.

    It follows new versions and deltas by `refresh`, or from a thread inside `with recommender.following():`. Each
    request is answered from the state that was in memory when it began. Histories are read once, from the newest
    checkpoint; that of a user whom a delta deletes is no longer used, and neither is a deleted item in any of them.
    `close`, or the end of its block, stops threads that follow and releases the version.

    Args:
        config: `storage_path` names the run.
    Raises:
        NothingToServe: the run has published no version.
    """

    def __init__(self, config: FreshetConfig) -> None:
        self._models = follow_models(config)
        if not self._models.refresh():
            raise NothingToServe(
                f"no index version is live in {config.index_location}; run `freshet train` or `freshet refresh`, "
                "or set storage_path (or train.index_path) to a run that has published"
            )
        self._config = config
        newest = CheckpointStore(config.checkpoint_location).newest()
        self._users = UserStore(config.stream.history_length, config.stream.seen_length)
        self._texts = KnownTexts()
        if newest is not None:
            self._load_users(newest)

    @property
    def model(self) -> ServedModel:
        """The model in memory. Keep the object for calls that must all use one version and delta.

        Raises:
            NothingToServe: the recommender was closed.
        """
        current = self._models.current
        if current is None:
            raise NothingToServe(f"the recommender of {self._config.index_location} was closed")
        return current

    @property
    def version(self) -> str:
        """The name of the version in memory."""
        return self.model.version.name

    def refresh(self) -> bool:
        """Load the live version if it is not the one in memory, and its new deltas; returns whether anything changed.

        Cheap if nothing changed. A delta costs what it changes, not what the version holds. If the next delta cannot be
        used, the model in memory stays, and the log says why, once.

        Raises:
            VersionError: the live version cannot be used; the one in memory stays.
        """
        return self._models.refresh()

    def following(self, every_s: float = 0.1) -> Following:
        """Follows new versions and deltas from a thread while the block runs, checking every `every_s` seconds."""
        return self._models.following(every_s)

    def close(self) -> None:
        """Stop threads that follow, and release the version in memory with its files."""
        self._models.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def recommend(
        self,
        user_id: int | str | None = None,
        history: Sequence[int | str] | None = None,
        k: int = 10,
        exclude: Sequence[int | str] = (),
    ) -> list[Recommendation]:
        """The items of `answer`."""
        return self.answer(user_id, history, k, exclude).items

    def answer(
        self,
        user_id: int | str | None = None,
        history: Sequence[int | str] | None = None,
        k: int = 10,
        exclude: Sequence[int | str] = (),
    ) -> Answer:
        """The k best items that are not in the user's history, and the version that they came from.

        Args:
            user_id: a user of the stream, a number or a string; without `history`, their history in the newest
                checkpoint is used.
            history: item ids, oldest first, to use instead.
            k: number of items.
            exclude: more item ids that must not be recommended.
        Raises:
            UnknownUser: none was given, and the newest checkpoint has none of the user, or a delta has deleted it.
            UnknownItems: a history was given, and none of its items is known.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k} (option -k)")
        model = self.model  # the same state for everything below
        user = self._user(user_id)
        past = self._items(history) if history is not None else self._past(model, user)
        if history is None and past.shape[0] == 0:
            raise UnknownUser(
                f"user {user_id} has no events in {self._config.storage_path}; give --history 1,2,3"
            )
        if history and not model.catalogue.knows(past).any():
            raise UnknownItems(
                f"none of the items {', '.join(map(str, list(history)[:3]))} is known to {model.version.name} in "
                f"{self._config.storage_path}: --history takes item ids as they are in the events"
            )
        unwanted = np.concatenate([past, self._items(exclude)])
        ids, scores = model.search(self._encode(model, user, past), k, exclude=[unwanted])
        found = np.isfinite(scores[0])
        titles = model.catalogue.titles(ids[0][found])
        items = [
            Recommendation(item, title, float(score))
            for item, title, score in zip(
                self._as_given(model, ids[0][found]), titles, scores[0][found], strict=True
            )
        ]
        return Answer(model.version.name, model.delta, items)

    def history_titles(self, user_id: int | str, n: int = 5) -> list[str]:
        """Titles of the user's last n items, newest first."""
        model = self.model
        return model.catalogue.titles(self._past(model, self._user(user_id))[-n:][::-1])

    def user_ids(self) -> list[int | str]:
        """Users that the newest checkpoint knows and no delta has deleted, as they were put in."""
        users = self._users.users()
        return self._texts.users.as_given(users[~self.model.catalogue.is_deleted_user(users)])

    def _as_given(self, model: ServedModel, item_Q: Int64Array) -> list[int | str]:
        """Items as they were put in; of what came after the version, the newest checkpoint has the texts."""
        given = self._texts.items.as_given(item_Q)
        own = model.catalogue.item_texts(item_Q)
        return [later if text is None else text for text, later in zip(own, given, strict=True)]

    def _user(self, user_id: int | str | None) -> Int64Array:
        """int64 (1,): an id without events if there is no user, or if its hash is that of another user's text."""
        found = _without_clashes([user_id] if user_id is not None else [], self._texts.users)
        return found if found.shape[0] else np.array([-1], np.int64)

    def _items(self, given: Sequence[int | str]) -> Int64Array:
        """int64 (n,): items; those whose hash is that of another item's text are left out."""
        return _without_clashes(given, self._texts.items)

    def _load_users(self, checkpoint: Checkpoint) -> None:
        with holding(checkpoint.storage, checkpoint.name, "freshet recommend"):
            load_users(checkpoint, self._users, partitions_in(checkpoint))
            read_texts(checkpoint.files(USER_TEXTS), self._texts.users)
            read_texts(checkpoint.files(ITEM_TEXTS), self._texts.items)

    def _past(self, model: ServedModel, user: Int64Array) -> Int64Array:
        if model.catalogue.is_deleted_user(user)[0]:
            return np.zeros(0, np.int64)
        past = self._users.last(user, self._config.stream.seen_length)[0]
        return past[~model.catalogue.is_deleted(past)]

    def _encode(self, model: ServedModel, user: Int64Array, past: Int64Array) -> npt.NDArray[np.float32]:
        width = self._config.stream.history_length
        recent = past[-width:]
        batch = history_batch(
            user,
            np.array([recent.shape[0]]),
            recent,
            np.zeros_like(recent),
            np.maximum(self._users.counts(user), past.shape[0]),
            model.catalogue.user_attributes(user),
        )
        return model.encode(batch)


def _without_clashes(given: Sequence[int | str], texts: IdTexts) -> Int64Array:
    read = read_ids(list(given))
    keep_N = np.ones(read.ids_N.shape[0], np.bool_)
    keep_N[read.text_at] = ~texts.differs(read.ids_N[read.text_at], read.texts)
    return read.ids_N[keep_N]
