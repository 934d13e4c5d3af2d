"""Admission, expiry and eviction: as the settings say, and the same on one, two and three ranks."""

import numpy as np
import pytest
import torch

from cluster.collectives import Collectives
from cluster.tables.buckets import shared_keys
from cluster.tables.config import TableConfig
from cluster.tables.row_optimizer import row_optimizer
from cluster.tables.sharded_embedding import ShardedEmbedding, StaleLookupError
from model.features import CATEGORY, ITEM, USER
from tests.support.ranks import run_on_ranks

STEPS = 24
SETTINGS = {
    "admission": TableConfig(admit_after=4),
    "admission and few waiting": TableConfig(admit_after=4, max_waiting=40, sweep_every=3),
    "expiry": TableConfig(expire_after_s=4, sweep_every=3),
    "recency": TableConfig(max_rows=70, sweep_every=3),
    "frequency": TableConfig(max_rows=70, evict="frequency", sweep_every=3),
    "all": TableConfig(admit_after=3, max_waiting=30, expire_after_s=6, max_rows=25, sweep_every=2),
}


def _table(limits, kind="adam"):
    return ShardedEmbedding(
        4, Collectives(), row_optimizer(kind), seed=4, device=torch.device("cpu"), init_std=0.2, limits=limits
    )


def _keys(table, *ids):
    return np.full(len(ids), table, np.int16), np.array(ids, np.int64)


def _held(table):
    return set(zip(*(part.tolist() for part in table.keys_of(table.rows())), strict=True))


def _train(table, keys, time_ms=0, weight=1.0):
    lookup = table.lookup(*keys, time_ms=time_ms)
    (lookup.rows_UD[1:].square().sum() * weight).backward()
    table.apply_gradients(lookup, 0.05)


def _global_step(step):
    """Keys of a step, whether only drawn, and who asks: skewed to low ids; every fourth is nobody's but rank 0's."""
    rng = np.random.default_rng(step)
    ids = np.unique((rng.pareto(0.8, 60) * 4).astype(np.int64)) % 400
    tables = np.array([ITEM, USER, CATEGORY], np.int16)[ids % 3]
    keys = np.unique(np.stack([tables, ids], 1), axis=0)
    drawn = (keys[:, 0] == ITEM) & (rng.random(keys.shape[0]) < 0.4)
    return keys[:, 0].astype(np.int16), keys[:, 1], drawn, rng.integers(0, 3, keys.shape[0]), rng.random(400)


def _run(rank, world_of_events):
    """The rows and the waiting keys that this rank ends with, under every setting."""
    return {name: _run_with(limits, rank, world_of_events) for name, limits in SETTINGS.items()}


def _run_with(limits, rank, world):
    table = _table(limits)
    for step in range(STEPS):
        tables, ids, drawn, asker, weights = _global_step(step)
        # With three ranks the second asks for nothing at all in every other step.
        asker = np.where((asker == 1) & (step % 2 == 0), 0, asker) % world
        # Key 0 is asked for by all of them.
        mine = (asker == rank) | (ids == ids[0])
        lookup = table.lookup(tables[mine], ids[mine], drawn_U=drawn[mine], time_ms=step * 1000)
        share = torch.from_numpy(np.where(ids[mine] == ids[0], 1.0 / world, 1.0)).to(torch.float32)
        (lookup.rows_UD[1:].square().sum(1) * share).sum().backward()
        table.apply_gradients(lookup, 0.05)
        counted = (tables == ITEM) & ~drawn & (table.owners(tables, ids) == rank)
        table.count(tables[counted], ids[counted], weights[ids[counted]] + 0.5, step * 1000)
        if (step + 1) % limits.sweep_every == 0:
            table.sweep(step * 1000)
    rows = table.rows()
    keys = list(zip(*(part.tolist() for part in table.keys_of(rows)), strict=True))
    numbers = np.concatenate(
        [table.values_CD[rows], table.frequency_C[rows, None], table.last_seen_ms_C[rows, None]], axis=1
    )
    read = table.lookup(*_keys(USER, *range(0, 400, 7)), create=False).rows_UD.numpy()
    waiting = [tuple(row.values()) for row in table.waiting.to_table().to_pylist()]
    return {"keys": keys, "numbers": numbers, "read": read, "waiting": waiting}


@pytest.fixture(scope="module")
def alone():
    return _run(0, 1)


@pytest.mark.parametrize("world", [2, 3])
def test_what_is_admitted_expires_and_is_evicted_does_not_depend_on_the_number_of_ranks(alone, world):
    ranks = run_on_ranks(_run, world, world)
    for name, whole in alone.items():
        parts = [rank[name] for rank in ranks]
        keys = [key for part in parts for key in part["keys"]]
        assert sorted(keys) == sorted(whole["keys"]), name
        place = {key: k for k, key in enumerate(whole["keys"])}
        numbers = np.concatenate([part["numbers"] for part in parts])
        expected = whole["numbers"][[place[key] for key in keys]]
        np.testing.assert_allclose(numbers, expected, atol=1e-5, err_msg=name)
        waiting = sorted(row for part in parts for row in part["waiting"])
        assert [row[:2] for row in waiting] == [row[:2] for row in whole["waiting"]], name
        np.testing.assert_allclose([r[2:] for r in waiting], [r[2:] for r in whole["waiting"]])
        for part in parts:
            np.testing.assert_allclose(part["read"], whole["read"], atol=1e-5, err_msg=name)


def test_every_setting_of_the_comparison_bites(alone):
    """Else equal results of different numbers of ranks would prove nothing."""
    endless = {name: sum(t in (ITEM, USER) for t, _ in held["keys"]) for name, held in alone.items()}
    assert endless["recency"] <= 70 + 60
    assert endless["all"] < endless["admission"] < 150
    assert endless["expiry"] < 150
    waiting = {name: len(held["waiting"]) for name, held in alone.items()}
    assert waiting["admission"] > 40 >= waiting["admission and few waiting"] > 0
    assert sorted(alone["recency"]["keys"]) != sorted(alone["frequency"]["keys"])


def test_below_the_count_a_key_reads_and_trains_the_row_of_its_table_and_bucket_and_is_counted():
    table = _table(TableConfig(admit_after=3))
    user = _keys(USER, 7)
    shared = shared_keys(*user)
    start = table.lookup(*user, create=False).rows_UD[1].clone()
    assert torch.equal(start, table.initial(*shared)[0])
    _train(table, user)
    _train(table, user)
    assert _held(table) == {(int(shared[0][0]), int(shared[1][0]))}
    assert table.frequencies(*user).tolist() == [2.0]
    seen = table.lookup(*user, create=False).rows_UD[1]
    assert torch.equal(seen, table.values_CD[table.rows()[0]])
    assert not torch.equal(seen, start)
    assert torch.equal(table.lookup(*user).rows_UD[1].detach(), seen), "training sees what serving sees"


def test_two_keys_of_one_bucket_train_their_shared_row_by_the_sum_of_their_gradients():
    ids = np.arange(40_000)
    buckets = shared_keys(np.full(40_000, USER, np.int16), ids)[1]
    first, second = ids[buckets == buckets[0]][:2]
    shared, own = _table(TableConfig(admit_after=9)), _table(TableConfig())
    for _ in range(3):
        lookup = shared.lookup(*_keys(USER, first, second))
        assert lookup.local_R.tolist() == [0, 0]
        (lookup.rows_UD[1] * 1.0 + lookup.rows_UD[2] * 2.0).sum().backward()
        shared.apply_gradients(lookup, 0.05)
        lookup = own.lookup(*shared_keys(*_keys(USER, first)))
        (lookup.rows_UD[1] * 3.0).sum().backward()
        own.apply_gradients(lookup, 0.05)
    torch.testing.assert_close(shared.values_CD[0], own.values_CD[0])
    assert shared.waiting.frequencies(*_keys(USER, first, second)).tolist() == [3.0, 3.0]


def test_at_the_count_a_key_gets_its_own_row_that_goes_on_from_the_shared_one_without_its_moments():
    table = _table(TableConfig(admit_after=3))
    item, user = _keys(ITEM, 7), _keys(USER, 8)
    for _ in range(2):
        _train(table, item)
        _train(table, user)
    table.count(*item, np.array([2.5]), 5)
    assert table.waiting.frequencies(*item).tolist() == [2.5]
    shared = table.lookup(*item, create=False).rows_UD[1].clone()
    table.count(*item, np.array([0.5]), 6)
    row = table.index.find(*item)
    assert row[0] >= 0
    assert len(table.waiting) == 1, "an item counts by its events, a user by steps"
    assert torch.equal(table.values_CD[row[0]], shared)
    assert not table.state["first_moment"][row[0]].any()
    assert (table.frequency_C[row[0]], table.last_seen_ms_C[row[0]]) == (3.0, 6)
    _train(table, user)
    assert (USER, 8) in _held(table)


def test_by_choice_an_admitted_keys_own_row_starts_as_that_of_any_new_key():
    table = _table(TableConfig(admit_after=3, admitted_start="fresh"))
    item = _keys(ITEM, 7)
    for _ in range(2):
        _train(table, item)
    table.count(*item, np.array([3.0]), 5)
    row = table.index.find(*item)
    assert torch.equal(table.values_CD[row], table.initial(*item))
    assert not table.state["first_moment"][row[0]].any()
    assert table.frequency_C[row[0]] == 3.0


def test_categories_have_rows_at_once_and_a_key_that_was_only_drawn_is_not_counted():
    table = _table(TableConfig(admit_after=2))
    tables, ids = np.array([CATEGORY, USER], np.int16), np.array([3, 4])
    for _ in range(5):
        lookup = table.lookup(tables, ids, drawn_U=np.array([False, True]))
        lookup.rows_UD.sum().backward()
        table.apply_gradients(lookup, 0.05)
    assert {key for key in _held(table) if key[0] >= 0} == {(CATEGORY, 3)}
    assert table.frequencies(tables, ids).tolist() == [5.0, 0.0]


def test_a_row_expires_when_event_time_has_gone_further_than_the_limit_since_an_event_had_it():
    table = _table(TableConfig(expire_after_s=10))
    _train(table, _keys(USER, 1, 2, 3), 1_000)
    _train(table, _keys(CATEGORY, 1), 1_000)
    _train(table, _keys(USER, 2), 5_000)
    lookup = table.lookup(*_keys(USER, 3), drawn_U=np.ones(1, bool), time_ms=9_000)
    lookup.rows_UD.sum().backward()
    table.apply_gradients(lookup, 0.05)
    assert table.sweep(11_000) == 0
    table.take_changes()
    assert table.sweep(11_001) == 2
    assert _held(table) == {(USER, 2), (CATEGORY, 1)}, "a draw keeps nothing alive"
    assert table.take_changes()[1][1].tolist() == [1, 3]
    assert table.sweep(15_001) == 1


def test_above_the_limit_the_longest_unseen_go_or_the_least_frequent_and_categories_do_not_count():
    for evict, gone in (("recency", {11, 12}), ("frequency", {13, 14})):
        table = _table(TableConfig(max_rows=3, evict=evict))
        _train(table, _keys(CATEGORY, *range(50)), 0)
        for place, (user, steps) in enumerate([(11, 9), (12, 8), (13, 2), (14, 3), (15, 4)]):
            for step in range(steps):
                _train(table, _keys(USER, user), place * 100 + step)
        assert table.sweep(0) == 2
        assert {k for t, k in _held(table) if t == USER} == {11, 12, 13, 14, 15} - gone
        assert table.sweep(0) == 0


def test_a_step_that_was_prepared_before_rows_were_removed_is_refused_and_changes_nothing():
    table = _table(TableConfig(max_rows=1))
    _train(table, _keys(USER, 1, 2), 5)
    lookup = table.lookup(*_keys(USER, 1, 2, 3), time_ms=6)
    lookup.rows_UD.sum().backward()
    table.sweep(7)
    _train(table, _keys(USER, 9), 8)  # takes the number of a row that went
    before = [table.values_CD.clone(), *(t.clone() for t in table.state.values())]
    with pytest.raises(StaleLookupError, match="between steps"):
        table.apply_gradients(lookup, 0.05)
    assert all(map(torch.equal, before, [table.values_CD, *table.state.values()]))
    _train(table, _keys(USER, 1, 2, 3), 9)


def test_by_default_every_key_has_its_row_at_once_and_a_sweep_removes_nothing():
    table = _table(TableConfig())
    lookup = table.lookup(*_keys(USER, *range(50)), time_ms=1)
    assert table.sweep(10**15) == 0
    lookup.rows_UD.sum().backward()
    table.apply_gradients(lookup, 0.05)
    assert len(table) == 50
    assert len(table.waiting) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("admit_after", -1),
        ("max_rows", -1),
        ("expire_after_s", -1),
        ("max_waiting", 0),
        ("sweep_every", 0),
        ("evict", "x"),
        ("admitted_start", "x"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"table\.{name} must .*{value}"):
        TableConfig(**{name: value})
