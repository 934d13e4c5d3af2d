"""Splits a data set into training events and events to predict.

Shape letters: U users, Q queries, G targets of all queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from cluster.evaluation.config import ProtocolConfig
from cluster.evaluation.protocol.interactions import Interactions
from streaming.arrays import Int64Array

_DAY_MS = 86_400_000


@dataclass(frozen=True)
class Queries:
    """Users at a time, and their next events. Query q is user `user_Q[q]` after its first `cut_Q[q]` events."""

    user_Q: Int64Array
    cut_Q: Int64Array
    target_offset_Q1: Int64Array
    target_G: Int64Array
    """Raw item ids; those of query q begin at `target_offset_Q1[q]`."""

    def __len__(self) -> int:
        return len(self.user_Q)

    def some(self, count: int, seed: int) -> Queries:
        """Up to `count` of the queries, drawn with `seed`, in order."""
        if len(self) <= count or count == 0:
            return self
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:count])
        return self.take(chosen)

    def take(self, chosen: Int64Array) -> Queries:
        """The chosen queries."""
        lengths = np.diff(self.target_offset_Q1)[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        at = np.repeat(self.target_offset_Q1[chosen] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Queries(self.user_Q[chosen], self.cut_Q[chosen], offsets, self.target_G[at])

    @staticmethod
    def joined(parts: Sequence[Queries]) -> Queries:
        """The queries of all parts, concatenated."""
        lengths = np.concatenate([np.diff(part.target_offset_Q1) for part in parts])
        return Queries(
            np.concatenate([part.user_Q for part in parts]),
            np.concatenate([part.cut_Q for part in parts]),
            np.concatenate([[0], np.cumsum(lengths)]),
            np.concatenate([part.target_G for part in parts]),
        )


@dataclass(frozen=True)
class Stage:
    """A time span of a walk-forward, which is predicted from its start and then trained on."""

    queries: Queries
    before_U: Int64Array
    """Number of each user's events before it."""
    until_U: Int64Array
    """The same for its end."""
    tested: bool
    """Whether its queries belong to the test; otherwise they are validation."""


@dataclass(frozen=True)
class Split:
    """One protocol applied to one data set."""

    interactions: Interactions
    train_U: Int64Array
    """Number of each user's first events that are trained on; in a walk-forward, before it begins."""
    validation: Queries
    test: Queries
    """In a walk-forward, the queries of all tested stages, in their order."""
    stages: tuple[Stage, ...] = ()
    """Stages of a walk-forward, in time order; empty if nothing after `train_U` is trained on."""


class ProtocolError(ValueError):
    """The data set cannot be split as asked."""


def split(interactions: Interactions, config: ProtocolConfig) -> Split:
    """Applies the configured protocol.

    Raises:
        ProtocolError: nothing would be left to train on or to test.
    """
    if config.kind == "leave_one_out":
        return leave_one_out(interactions)
    return temporal(interactions, config)


def leave_one_out(interactions: Interactions) -> Split:
    """The last event of each user is the test, the one before it validation; users with fewer than three events are
    only trained on."""
    length_U = interactions.length_U
    users = np.flatnonzero(length_U >= 3)
    if users.shape[0] == 0:
        raise ProtocolError("no user has three events, so none can be left out (setting: protocol.kind)")
    train_U = np.where(length_U >= 3, length_U - 2, length_U)
    return Split(
        interactions,
        train_U,
        _one_each(interactions, users, length_U[users] - 2),
        _one_each(interactions, users, length_U[users] - 1),
    )


def _one_each(interactions: Interactions, users: Int64Array, cut: Int64Array) -> Queries:
    targets = interactions.item_T[interactions.offset_U1[users] + cut]
    return Queries(users, cut, np.arange(users.shape[0] + 1), targets)


def temporal(interactions: Interactions, config: ProtocolConfig) -> Split:
    """Train before one time, validate up to a second one, and test after it; later events are never used.

    A query is a user at such a time. Its targets are the next event, the events of the next day that has any, or all
    events up to the next time. In a walk-forward, both time spans are cut into stages of `walk_forward_days`, each with
    its own queries; `test_at_once` leaves the test in one piece.
    """
    validation_ms, test_ms, end_ms = moments(interactions.time_T, config)
    train_U = counts_before(interactions, validation_ms)
    if train_U.sum() == 0:
        raise ProtocolError(
            f"no event before {_date(validation_ms)} to train on (setting: protocol.validation_from)"
        )
    tested_U, all_U = counts_before(interactions, test_ms), counts_before(interactions, end_ms)
    validation = _between(interactions, train_U, tested_U, config)
    stages: tuple[Stage, ...] = ()
    if config.walk_forward_days:
        stride_ms = config.walk_forward_days * _DAY_MS
        test_stride_ms = end_ms - test_ms if config.test_at_once else stride_ms
        stages = (
            *_stages(interactions, validation_ms, test_ms, stride_ms, config, tested=False),
            *_stages(interactions, test_ms, end_ms, test_stride_ms, config, tested=True),
        )
        test = Queries.joined([stage.queries for stage in stages if stage.tested])
    else:
        test = _between(interactions, tested_U, all_U, config)
    if len(test) == 0:
        raise ProtocolError(f"no event after {_date(test_ms)} to test on (setting: protocol.test_from)")
    return Split(interactions, train_U, validation, test, stages)


def _stages(
    interactions: Interactions,
    start_ms: int,
    end_ms: int,
    stride_ms: int,
    config: ProtocolConfig,
    *,
    tested: bool,
) -> list[Stage]:
    """[start, end) in spans of `stride_ms`; the last one may be shorter."""
    bounds = [*range(start_ms, end_ms, stride_ms), end_ms]
    counts = [counts_before(interactions, moment) for moment in bounds]
    return [
        Stage(_between(interactions, before_U, until_U, config), before_U, until_U, tested)
        for before_U, until_U in pairwise(counts)
    ]


def moments(time_T: Int64Array, config: ProtocolConfig) -> tuple[int, int, int]:
    """When validation and test start and the test ends, ms: dates, or shares of the events in time order."""
    ordered = np.sort(time_T)
    validation, test = (_moment(ordered, text) for text in (config.validation_from, config.test_from))
    if not validation < test:
        raise ProtocolError(
            f"validation starts at {_date(validation)}, not before the test at {_date(test)} "
            "(settings: protocol.validation_from, protocol.test_from)"
        )
    return validation, test, int(ordered[-1]) + 1


def _moment(ordered_T: Int64Array, text: str) -> int:
    try:
        share = float(text)
    except ValueError:
        return int(np.datetime64(text, "ms").astype(np.int64))
    return int(ordered_T[min(int(share * ordered_T.shape[0]), ordered_T.shape[0] - 1)])


def counts_before(interactions: Interactions, moment_ms: int) -> Int64Array:
    """Number of each user's events before a time, int64 (U,)."""
    earlier = np.concatenate([[0], np.cumsum(interactions.time_T < moment_ms)])
    counts: Int64Array = earlier[interactions.offset_U1[1:]] - earlier[interactions.offset_U1[:-1]]
    return counts


def _between(
    interactions: Interactions, cut_U: Int64Array, end_U: Int64Array, config: ProtocolConfig
) -> Queries:
    """Users after their first `cut_U` events, with their events up to `end_U` as targets."""
    users = np.flatnonzero((end_U > cut_U) & (cut_U >= config.min_history))
    first = interactions.offset_U1[users] + cut_U[users]
    last = interactions.offset_U1[users] + end_U[users]
    if config.targets == "next":
        last = first + 1
    elif config.targets == "day":
        last = np.minimum(last, _ends_of_days(interactions, users, first))
    lengths = last - first
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    at = np.repeat(first - offsets[:-1], lengths) + np.arange(offsets[-1])
    queries = Queries(users, cut_U[users], offsets, interactions.item_T[at])
    return _distinct_targets(queries, interactions, config.exclude_seen)


def _ends_of_days(interactions: Interactions, users: Int64Array, first: Int64Array) -> Int64Array:
    """The index after the last event on the day of each user's event `first`."""
    day_T = interactions.time_T // _DAY_MS
    user_T = np.repeat(np.arange(interactions.user_U.shape[0]), interactions.length_U)
    starts = np.flatnonzero(np.diff(day_T, prepend=-1) | np.diff(user_T, prepend=-1))
    ends = np.append(starts[1:], day_T.shape[0])
    ends_of: Int64Array = ends[np.searchsorted(starts, first, side="right") - 1]
    return ends_of


def _distinct_targets(queries: Queries, interactions: Interactions, exclude_seen: bool) -> Queries:
    """Distinct targets, without seen items if these are not ranked; queries without targets are dropped."""
    lengths = np.diff(queries.target_offset_Q1)
    query_G = np.repeat(np.arange(len(queries)), lengths)
    _, first = np.unique(np.stack([query_G, queries.target_G], axis=1), axis=0, return_index=True)
    keep = np.zeros(query_G.shape[0], np.bool_)
    keep[first] = True
    if exclude_seen:
        keep &= ~_had(queries, interactions, query_G)
    kept = np.bincount(query_G[keep], minlength=len(queries))
    offsets = np.concatenate([[0], np.cumsum(kept)])
    thinned = Queries(queries.user_Q, queries.cut_Q, offsets, queries.target_G[keep])
    return thinned.take(np.flatnonzero(kept > 0))


def _had(queries: Queries, interactions: Interactions, query_G: Int64Array) -> npt.NDArray[np.bool_]:
    """Whether the user of each target had it before the query."""
    user_T = np.repeat(np.arange(interactions.user_U.shape[0]), interactions.length_U)
    within_T = np.arange(user_T.shape[0]) - np.repeat(interactions.offset_U1[:-1], interactions.length_U)
    cut_U = np.zeros(interactions.user_U.shape[0], np.int64)
    cut_U[queries.user_Q] = queries.cut_Q
    before = within_T < cut_U[user_T]
    both = np.concatenate([interactions.item_T, queries.target_G])
    names, dense = np.unique(both, return_inverse=True)
    known = np.unique(user_T[before] * names.shape[0] + dense[: user_T.shape[0]][before])
    return np.isin(queries.user_Q[query_G] * names.shape[0] + dense[user_T.shape[0] :], known)


def _date(moment_ms: int) -> str:
    return str(np.datetime64(moment_ms, "ms").astype("datetime64[s]"))
