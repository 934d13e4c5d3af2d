"""A step with events that cannot be trained on: they are found, and the others are trained once, on all ranks."""

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch

from cluster.collectives import Collectives
from cluster.training.state.run import TrainingRun, partitions_of_rank
from cluster.training.steps.guarded_step import (
    MOST_ALONE,
    MOST_TOGETHER,
    Findings,
    GuardedStep,
    search_apart,
    search_together,
)
from cluster.training.steps.refusal import StepRefused
from streaming.batches.batcher import Batcher
from streaming.batches.selection import select_events
from streaming.events.schema import WEIGHT
from tests.benchmarks.support.synthetic import Population
from tests.support.memory_source import MemorySource, NoDeadLetters, partitioned_log
from tests.support.ranks import run_on_ranks
from tests.support.step_faults import PLACES, raising_at
from tests.support.step_faults import WEIGHT as RAISES
from tests.support.unit_runs import small_config

EVENTS, PARTITIONS = 256, 4
POPULATION = Population(users=300, items=80, burst=2.0, attributes=1)
LOG = partitioned_log(POPULATION.events(2 * EVENTS), PARTITIONS)
QUOTA = min(rows.num_rows for rows in LOG.values()) // 2
BAD = {(0, 3), (0, 27), (2, 40), (3, 20)}
"""(partition, offset) of the events that cannot be trained on, all of the first step."""
TOO_HEAVY = 3e38


@pytest.fixture(autouse=True)
def _one_thread():
    """As workers have by default; on a busy machine threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _log(weight):
    """The log in which the bad events have this weight: below validation, which would not let it through."""
    log = {}
    for partition, rows in LOG.items():
        weights = rows[WEIGHT].to_numpy().copy()
        weights[[offset for p, offset in BAD if p == partition]] = weight
        place = rows.schema.get_field_index(WEIGHT)
        log[partition] = rows.set_column(place, rows.schema.field(place), np.asarray(weights, np.float32))
    return log


def _state(run):
    order = np.lexsort(run.table.index.keys()[::-1])
    tables, ids = run.table.index.keys()
    return {
        "towers": {n: p.detach().numpy().copy() for n, p in run.model.state_dict().items()},
        "keys": list(zip(tables[order].tolist(), ids[order].tolist(), strict=True)),
        "rows": run.table.values_CD[: len(run.table)].numpy()[order].copy(),
        "frequency": run.table.frequency_C[: len(run.table)][order].copy(),
        "events_seen": run.train_step.events_seen,
        "baselines": run.progressive.baseline_arrays(),
        "generator": torch.get_rng_state().tolist(),
        "items": run.catalogue.item_ids.tolist(),
        "queries": [queries.tolist() for queries in run.progressive.recent_queries],
    }


def _train(rank, weight, config, place="", *, known=False):
    """Two steps; `known` leaves the bad events out without a search. (state, places quarantined, reasons, trained)"""
    comm, cpu = Collectives(), torch.device("cpu")
    run = TrainingRun.create(config, partitions_of_rank(PARTITIONS, rank, comm.world), comm, cpu)
    run.catalogue.apply(POPULATION.catalogue())
    source = MemorySource(_log(1.0 if known else weight), run.partitions)
    batcher = Batcher(config.stream, source, run.users, run.catalogue, NoDeadLetters())
    guarded = GuardedStep(run.train_step, comm, cpu, run.progressive)
    bad, reasons, trained = [], [], []
    with raising_at(place):
        for step in range(2):
            batch = batcher.next_batch(QUOTA)
            if known:
                batch = select_events(
                    batch, np.array([place not in BAD or step > 0 for place in _places(batch)])
                )
            outcome = guarded.train(batch, step)
            trained += _places(outcome.trained)
            if outcome.quarantined is not None:
                assert not outcome.quarantined.is_step
                assert outcome.quarantined.events == len(BAD)
                bad += _places(outcome.quarantined.batch)
                reasons += outcome.quarantined.reasons
    return _state(run), bad, reasons, trained


def _places(batch):
    return [(row["partition"], offset) for row in batch.to_pylist() for offset in row["offset"]]


CONFIGS = {
    "default": small_config(dropout=0.3, contrastive_weight=0.1),
    "baskets, members": small_config(dropout=0.3, history_before="time", members=2),
}


WANTED = {
    TOO_HEAVY: "is not finite",
    -1.0: "weights must be finite and not negative",
    RAISES: "KeyError: 'an event of weight 77'",
}
FAULTS = [(TOO_HEAVY, ""), (-1.0, ""), *((RAISES, place) for place in PLACES)]


@pytest.mark.parametrize("settings", CONFIGS)
@pytest.mark.parametrize(("weight", "place"), FAULTS)
def test_four_bad_events_are_found_and_the_rest_trains_as_if_they_had_not_been_there(weight, place, settings):
    config = CONFIGS[settings]
    state, bad, reasons, trained = _train(0, weight, config, place)
    assert set(bad) == BAD
    assert len(bad) == 4
    assert all(WANTED[weight] in reason for reason in reasons)
    read = {(p, offset) for p in LOG for offset in range(2 * QUOTA)}
    assert len(trained) == len(set(trained)) == len(read) - 4
    assert set(trained) == read - BAD
    # Bit for bit: towers, rows, frequencies, baselines and the generator know nothing of the search.
    _same(state, _train(0, weight, config, known=True)[0])


def _same(one, other):
    for name in ("keys", "events_seen", "generator", "items", "queries"):
        assert one[name] == other[name], name
    for name in ("rows", "frequency"):
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    for kind in ("towers", "baselines"):
        for name, value in one[kind].items():
            np.testing.assert_array_equal(value, other[kind][name], err_msg=name)


def _train_each(rank, faults, config):
    return [_train(rank, weight, config, place) for weight, place in faults]


def test_two_ranks_find_the_same_events_as_one_and_go_on_with_the_same_towers():
    config = replace(CONFIGS["default"], model=replace(CONFIGS["default"].model, dropout=0.0))
    faults = [fault for fault in FAULTS if fault[0] != -1.0]
    of_ranks = run_on_ranks(_train_each, 2, faults, config, timeout_s=400)
    for (weight, place), *ranks in zip(faults, *of_ranks, strict=True):
        alone, _, reasons, trained = _train(0, weight, config, place)
        assert {place for _, bad, _, _ in ranks for place in bad} == BAD
        assert sum(len(bad) for _, bad, _, _ in ranks) == 4
        assert sorted(place for *_, mine in ranks for place in mine) == sorted(trained)
        assert {r.split(" ")[0] for _, _, told, _ in ranks for r in told} == {
            r.split(" ")[0] for r in reasons
        }
        for state, *_ in ranks:
            assert state["events_seen"] == alone["events_seen"]
            for name, value in ranks[0][0]["towers"].items():
                np.testing.assert_array_equal(state["towers"][name], value, err_msg=name)
        for name, value in alone["towers"].items():
            if not name.endswith(
                "to_qkv.bias"
            ):  # a key bias moves no softmax: Adam scales up its rounding error
                np.testing.assert_allclose(ranks[0][0]["towers"][name], value, atol=2e-4, err_msg=name)


def test_a_step_that_nothing_can_be_learnt_from_is_given_up_after_a_bounded_search():
    config = CONFIGS["default"]
    run = TrainingRun.create(config, list(range(PARTITIONS)), Collectives(), torch.device("cpu"))
    batcher = Batcher(
        config.stream, MemorySource(LOG, run.partitions), run.users, run.catalogue, NoDeadLetters()
    )
    probes = []

    def fails(prepared, step, *_):
        probes.append(step)
        raise StepRefused("the model is at fault", {})

    with patch.object(run.train_step, "_find_gradients", fails):
        outcome = GuardedStep(run.train_step, Collectives(), torch.device("cpu"), run.progressive).train(
            batcher.next_batch(QUOTA), 0
        )
    assert outcome.events == outcome.trained.num_rows == 0
    assert outcome.quarantined.is_step
    assert outcome.quarantined.events == len(outcome.quarantined.reasons) == PARTITIONS * QUOTA
    assert len(probes) < 5 * MOST_ALONE


@pytest.mark.parametrize("bad", [{0}, {1023}, {5, 6, 700}, set(range(100, 116))])
def test_a_search_names_what_is_bad_alone_in_few_probes(bad):
    sizes = []

    def probe(numbers):
        sizes.append(len(numbers))
        return "bad" if bad & set(numbers.tolist()) else ""

    found = Findings()
    search_apart(probe, np.arange(1024), "bad", found)
    assert found.reasons == dict.fromkeys(bad, "bad")
    assert not found.gave_up
    assert len(sizes) <= 20 * len(bad)
    assert sum(sizes) <= 2 * 1024 * len(bad)


def test_events_that_are_bad_only_beside_others_are_found_too_and_as_few_of_them_as_is_needed():
    heavy = {3: 0.6, 80: 0.6, 200: 0.6, 41: 0.1}

    def probe(numbers):
        return "" if sum(heavy.get(n, 0.0) for n in numbers.tolist()) < 1 else "too much"

    found = Findings()
    search_apart(probe, np.arange(256), "too much", found)
    assert not found.reasons
    search_together(probe, np.arange(256), "too much", found)
    assert found.reasons == {80: "too much", 200: "too much"}
    assert not found.gave_up


def test_however_many_are_bad_alone_each_is_found_and_no_other():
    bad = set(range(512, 1024, 4)) | {1}
    found = Findings()
    search_apart(lambda numbers: "bad" if bad & set(numbers.tolist()) else "", np.arange(1024), "bad", found)
    assert set(found.reasons) == bad
    assert not found.gave_up


def test_a_search_goes_on_where_the_first_events_are_bad_and_each_half_has_a_bad_one():
    bad = set(range(MOST_ALONE)) | {2**n + 1 for n in range(4, 10)}
    found = Findings()
    search_apart(lambda numbers: "bad" if bad & set(numbers.tolist()) else "", np.arange(1024), "bad", found)
    assert set(found.reasons) == bad
    assert not found.gave_up


def test_what_is_not_searched_for_what_is_bad_beside_others_is_left_for_a_step_of_its_own():
    found = Findings()
    search_together(lambda numbers: "too many" if len(numbers) > 500 else "", np.arange(1024), "", found)
    assert len(found.reasons) == MOST_TOGETHER
    assert set(found.unsearched.tolist()).isdisjoint(found.reasons)
    assert len(found.unsearched) == 1024 - 500 - MOST_TOGETHER
    assert not found.gave_up


def test_events_that_are_too_many_for_one_step_are_trained_in_several():
    config = CONFIGS["default"]
    run = TrainingRun.create(config, list(range(PARTITIONS)), Collectives(), torch.device("cpu"))
    run.catalogue.apply(POPULATION.catalogue())
    source = MemorySource(LOG, run.partitions)
    batch = Batcher(config.stream, source, run.users, run.catalogue, NoDeadLetters()).next_batch(QUOTA)
    find = run.train_step._find_gradients

    def limited(prepared, *arguments):
        if prepared.global_targets.events > 150:
            raise StepRefused("too many", {})
        return find(prepared, *arguments)

    guarded = GuardedStep(run.train_step, Collectives(), torch.device("cpu"), run.progressive)
    trained, bad, left = [], [], batch
    with patch.object(run.train_step, "_find_gradients", limited):
        while left is not None:
            outcome = guarded.train(left, 0)
            trained += _places(outcome.trained)
            bad += _places(outcome.quarantined.batch) if outcome.quarantined else []
            left = outcome.left
    assert len(bad) == MOST_TOGETHER
    assert sorted(trained + bad) == sorted(_places(batch))


def test_a_step_that_is_refused_once_and_not_again_is_trained_whole():
    config = CONFIGS["default"]
    run = TrainingRun.create(config, list(range(PARTITIONS)), Collectives(), torch.device("cpu"))
    source = MemorySource(LOG, run.partitions)
    batch = Batcher(config.stream, source, run.users, run.catalogue, NoDeadLetters()).next_batch(QUOTA)
    find = run.train_step._find_gradients
    calls = []

    def fails_once(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise StepRefused("once", {})
        return find(*arguments)

    with patch.object(run.train_step, "_find_gradients", fails_once):
        outcome = GuardedStep(run.train_step, Collectives(), torch.device("cpu"), run.progressive).train(
            batch, 0
        )
    assert outcome.quarantined is None
    assert outcome.left is None
    assert outcome.events == PARTITIONS * QUOTA


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")],
)
def test_what_says_nothing_of_the_events_ends_the_run(error):
    config = CONFIGS["default"]
    run = TrainingRun.create(config, list(range(PARTITIONS)), Collectives(), torch.device("cpu"))
    source = MemorySource(LOG, run.partitions)
    batch = Batcher(config.stream, source, run.users, run.catalogue, NoDeadLetters()).next_batch(QUOTA)
    guarded = GuardedStep(run.train_step, Collectives(), torch.device("cpu"), run.progressive)
    with patch.object(run.model, "forward", side_effect=error), pytest.raises(type(error)):
        guarded.train(batch, 0)


def _lose_a_message(rank, config):
    run = TrainingRun.create(
        config, partitions_of_rank(PARTITIONS, rank, 2), Collectives(), torch.device("cpu")
    )
    source = MemorySource(LOG, run.partitions)
    batch = Batcher(config.stream, source, run.users, run.catalogue, NoDeadLetters()).next_batch(QUOTA)
    with patch("torch.distributed.all_reduce", side_effect=RuntimeError("Connection closed by peer")):
        try:
            GuardedStep(run.train_step, run.train_step._comm, torch.device("cpu"), run.progressive).train(
                batch, 0
            )
        except RuntimeError as error:
            return str(error)
    return ""


def test_a_message_between_ranks_that_fails_ends_the_run():
    assert run_on_ranks(_lose_a_message, 2, CONFIGS["default"]) == ["Connection closed by peer"] * 2
