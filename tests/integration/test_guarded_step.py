"""A step with events that cannot be trained on: these are found, the others trained once, on all ranks alike."""

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch

from cluster.collectives import Collectives
from cluster.training.guarded_step import MOST_FOUND, Findings, GuardedStep, search_apart, search_together
from cluster.training.run import TrainingRun, partitions_of_rank
from cluster.training.train_step import StepRefused, query_inputs
from streaming.batch_selection import select_events
from streaming.batcher import Batcher
from streaming.schema import WEIGHT
from tests.benchmarks.support.synthetic import Population
from tests.memory_source import MemorySource, NoDeadLetters, partitioned_log
from tests.ranks import run_on_ranks
from tests.unit_runs import small_config

EVENTS, PARTITIONS = 1024, 4
POPULATION = Population(users=300, items=80, burst=2.0, attributes=1)
LOG = partitioned_log(POPULATION.events(2 * EVENTS), PARTITIONS)
QUOTA = min(rows.num_rows for rows in LOG.values()) // 2
BAD = {(0, 3), (0, 117), (2, 40), (3, 200)}
"""(partition, offset) of the events that cannot be trained on, all of the first step."""
RAISES, TOO_HEAVY = 77.0, 3e38


def _log(weight):
    """The log in which the bad events have this weight: below validation, which would not let it through."""
    log = {}
    for partition, rows in LOG.items():
        weights = rows[WEIGHT].to_numpy().copy()
        weights[[offset for p, offset in BAD if p == partition]] = weight
        place = rows.schema.get_field_index(WEIGHT)
        log[partition] = rows.set_column(place, rows.schema.field(place), np.asarray(weights, np.float32))
    return log


def _raising(batch, *arguments):
    if (batch.column("weight").flatten().to_numpy() == RAISES).any():
        raise KeyError("an event of weight 77")
    return query_inputs(batch, *arguments)


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
    }


def _train(rank, weight, config, *, known=False):
    """Two steps; `known` leaves the bad events out without a search. (state, places quarantined, reasons, trained)"""
    comm, cpu = Collectives(), torch.device("cpu")
    run = TrainingRun.create(config, partitions_of_rank(PARTITIONS, rank, comm.world), comm, cpu)
    run.catalogue.apply(POPULATION.catalogue())
    source = MemorySource(_log(1.0 if known else weight), run.partitions)
    batcher = Batcher(config.stream, source, run.users, run.catalogue, NoDeadLetters())
    guarded = GuardedStep(run.train_step, comm, cpu, run.progressive)
    bad, reasons, trained = [], [], []
    with patch("cluster.training.train_step.query_inputs", _raising):
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


@pytest.mark.parametrize("settings", CONFIGS)
@pytest.mark.parametrize("weight", [TOO_HEAVY, RAISES, -1.0])
def test_four_bad_events_of_a_thousand_are_found_and_the_rest_trains_as_if_they_had_not_been_there(
    weight, settings
):
    config = CONFIGS[settings]
    state, bad, reasons, trained = _train(0, weight, config)
    assert set(bad) == BAD
    assert len(bad) == 4
    wanted = {TOO_HEAVY: "is not finite", RAISES: "KeyError", -1.0: "weights must be finite and not negative"}
    assert all(wanted[weight] in reason for reason in reasons)
    read = {(p, offset) for p in LOG for offset in range(2 * QUOTA)}
    assert len(trained) == len(set(trained)) == len(read) - 4
    assert set(trained) == read - BAD
    # Bit for bit: towers, rows, frequencies, baselines and the generator know nothing of the search.
    _same(state, _train(0, weight, config, known=True)[0])


def _same(one, other):
    for name in ("keys", "events_seen", "generator"):
        assert one[name] == other[name], name
    for name in ("rows", "frequency"):
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    for kind in ("towers", "baselines"):
        for name, value in one[kind].items():
            np.testing.assert_array_equal(value, other[kind][name], err_msg=name)


def _train_each(rank, weights, config):
    return [_train(rank, weight, config) for weight in weights]


def test_two_ranks_find_the_same_events_as_one_and_go_on_with_the_same_towers():
    config = replace(CONFIGS["default"], model=replace(CONFIGS["default"].model, dropout=0.0))
    weights = [TOO_HEAVY, RAISES]
    of_ranks = run_on_ranks(_train_each, 2, weights, config)
    for weight, *ranks in zip(weights, *of_ranks, strict=True):
        alone, _, reasons, trained = _train(0, weight, config)
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

    def fails(prepared, step, **_):
        probes.append(step)
        raise StepRefused("the model is at fault", {})

    with patch.object(run.train_step, "_find_gradients", fails):
        outcome = GuardedStep(run.train_step, Collectives(), torch.device("cpu"), run.progressive).train(
            batcher.next_batch(QUOTA), 0
        )
    assert outcome.events == outcome.trained.num_rows == 0
    assert outcome.quarantined.is_step
    assert outcome.quarantined.events == len(outcome.quarantined.reasons) == PARTITIONS * QUOTA
    assert len(probes) < 4 * MOST_FOUND


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


def test_with_more_bad_events_than_are_looked_for_the_unsearched_go_too_and_what_is_known_to_be_good_stays():
    bad = set(range(512, 1024, 4))
    for search in (search_apart, search_together):
        found = Findings()
        search(lambda numbers: "bad" if bad & set(numbers.tolist()) else "", np.arange(1024), "bad", found)
        assert found.gave_up
        assert bad <= set(found.reasons)
        assert min(found.reasons) == 512
