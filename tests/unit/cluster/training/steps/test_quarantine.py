"""A step that cannot be learned from changes nothing."""

import numpy as np
import orjson
import pytest
import torch

from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.training.state.run import TrainingRun
from cluster.training.steps.quarantine import Quarantined, describe_places, quarantine_letters
from cluster.training.steps.refusal import StepRefused
from model.config import ModelConfig
from streaming.config import StreamConfig
from streaming.histories.id_texts import KnownTexts
from tests.support.memory_source import MemorySource
from tests.support.training_batches import Run, random_runs, to_batch

CONFIG = FreshetConfig(
    stream=StreamConfig(user_attributes=[]),
    model=ModelConfig(dim=8, layers=1, heads=2, augmented_dim=4, uniform_negatives=9),
    device="cpu",
)


def _state(run):
    moments = [m for state in run.train_step.optimizer.state.values() for m in state.values()]
    tensors = [*run.model.state_dict().values(), *moments]
    return [tensor.clone() for tensor in tensors], run.train_step.events_seen


@pytest.mark.parametrize("where", ["weight", "row gradient"])
def test_a_refused_step_leaves_towers_rows_optimizers_and_frequencies_as_they_were(where, monkeypatch):
    run = TrainingRun.create(CONFIG, [0], Collectives(), torch.device("cpu"))
    batch = to_batch(random_runs(np.random.default_rng(0), 12, 30))
    run.train_step.train(run.train_step.prepare(batch, 0), 0)
    bad = batch
    if where == "weight":
        bad = to_batch([Run(1, [1, 2], [3, 4], weights=[3e38, 3e38])])
    prepared = run.train_step.prepare(bad, 1)
    if where == "row gradient":
        prepared.lookup.rows_UD.register_hook(
            lambda gradient: gradient.index_fill(0, torch.tensor([1]), np.inf)
        )
    size = len(run.table)
    rows = [run.table.values_CD[:size].clone(), *(t[:size].clone() for t in run.table.state.values())]
    frequency, (before, seen) = run.table.frequency_C[:size].copy(), _state(run)
    with pytest.raises(StepRefused, match="is not finite") as refused:
        run.train_step.train(prepared, 1)
    assert where == "row gradient" or not np.isfinite(refused.value.losses["total"])
    after, seen_after = _state(run)
    assert seen_after == seen
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(run.table.values_CD[:size], rows[0])
    assert all(torch.equal(a, t[:size]) for a, t in zip(rows[1:], run.table.state.values(), strict=True))
    np.testing.assert_array_equal(run.table.frequency_C[:size], frequency)
    run.train_step.train(run.train_step.prepare(batch, 1), 1)


def test_a_letter_of_an_event_that_cannot_be_read_again_says_what_the_batch_knows():
    batch = to_batch([Run(5, [1, 2], [3], offsets=[9], weights=[2.0])])
    quarantined = Quarantined(batch, ["total nan is not finite"], 1, "", is_step=False)
    (letter,) = quarantine_letters(quarantined, MemorySource({}, []), 7, KnownTexts())
    assert letter.key == b"topic/0/9/0"
    assert "step 7" in letter.reason
    assert "total nan" in letter.reason
    assert orjson.loads(letter.value) == {
        "user_id": 5,
        "item_id": 3,
        "timestamp_ms": 1002,
        "weight": 2.0,
    }


def test_an_error_that_ends_the_run_names_the_events_of_its_step():
    batch = to_batch([Run(5, [], [3, 4], offsets=[9, 12]), Run(6, [], [3], partition=2, offsets=[1])])
    assert describe_places(batch) == "partition 0, offsets 9 to 12; partition 2, offsets 1 to 1"
    assert describe_places(batch.slice(0, 0)) == "no events of this rank"
