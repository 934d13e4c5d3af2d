"""Co-occurrence counts in checkpoints: a delta has the counts since its parent; earlier versions' files are read."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.audit.state import read_state
from cluster.checkpoints.arrays import read_table, read_tensors
from cluster.checkpoints.checkpoint import CheckpointStore, open_checkpoint
from cluster.checkpoints.parts.baselines import FILE as BASELINES
from cluster.checkpoints.parts.pairs import PairPart, load_pairs, merged_pairs
from cluster.checkpoints.writing import FullPolicy
from cluster.collectives import Collectives
from cluster.training.state.worker_state import checkpointer_of
from model.baselines.pair_table import PairTable
from tests.support.checkpointing import save_checkpoint
from tests.support.state_digests import digests
from tests.support.unit_runs import small_run, train_steps

FORMAT_1 = Path(__file__).parents[4] / "data" / "checkpoint-format-1"


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=50)


def _counts(pairs):
    keys = zip(pairs.low_P.tolist(), pairs.high_P.tolist(), strict=True)
    return dict(zip(keys, pairs.count_P.tolist(), strict=True))


def _merged(checkpoint):
    columns = [tensor.tolist() for tensor in merged_pairs(checkpoint).values()]
    return {(low, high): count for low, high, count in zip(*columns, strict=True)}


def _restored(checkpoint):
    counts = PairTable()
    load_pairs(checkpoint, counts)
    return _counts(counts.pairs())


def _is_parted(checkpoint):
    return not any("cooccurrence.row" in read_tensors(link.file(BASELINES)) for link in checkpoint.links)


def test_a_delta_has_the_pairs_that_were_counted_since_and_the_chain_has_all(store):
    run = small_run()
    counts = run.progressive.cooccurrence.pairs
    train_steps(run, 6)
    checkpointer = checkpointer_of(run, store, Collectives())
    full = checkpointer.finish(run.step)
    before = _counts(counts.pairs())
    assert _merged(full) == _restored(full) == before
    train_steps(run, 1)
    delta = checkpointer.finish(run.step)
    now = _counts(counts.pairs())
    changed = read_table(delta.file("cooccurrence.changes.arrow"))
    assert changed.num_rows == sum(before.get(pair) != count for pair, count in now.items())
    assert 0 < changed.num_rows < len(now)
    assert _merged(delta) == _restored(delta) == now
    assert _is_parted(delta)


def test_a_checkpoint_whose_pairs_are_in_the_file_of_earlier_versions_is_read_and_the_next_delta_has_all(
    tmp_path,
):
    shutil.copytree(FORMAT_1, tmp_path / "step-00000003")
    old = open_checkpoint(tmp_path / "step-00000003")
    tensors = read_tensors(old.file(BASELINES))
    run = small_run(old, dropout=0.3, dim=4, augmented_dim=2, with_actions=True)
    assert len(run.progressive.cooccurrence.pairs) == tensors["cooccurrence.row"].shape[0] > 0
    store = CheckpointStore(tmp_path)
    checkpointer = checkpointer_of(run, store, Collectives(), old)
    checkpointer._policy = FullPolicy(share=100.0)
    deltas = []
    for _ in range(2):
        train_steps(run, 1)
        deltas.append(checkpointer.finish(run.step))
        assert (
            _merged(deltas[-1])
            == _restored(deltas[-1])
            == _counts(run.progressive.cooccurrence.pairs.pairs())
        )
    assert [delta.manifest["kind"] for delta in deltas] == ["delta", "delta"]
    sizes = [read_table(delta.file("cooccurrence.changes.arrow")).num_rows for delta in deltas]
    assert sizes[1] < sizes[0] == len(_merged(deltas[0]))


def test_equal_counts_have_equal_digests_in_either_form(tmp_path):
    shutil.copytree(FORMAT_1, tmp_path / "step-00000003")
    old = open_checkpoint(tmp_path / "step-00000003")
    run = small_run(old, dropout=0.3, dim=4, augmented_dim=2, with_actions=True)
    new = save_checkpoint(run, CheckpointStore(tmp_path / "other"), Collectives())
    before, after = (
        {name: part for name, part in digests(read_state(one)).items() if "cooccurrence" in name}
        for one in (old, new)
    )
    assert before == after
    assert len(before) == 4


def test_only_the_rank_that_writes_has_files_and_every_rank_forgets_its_changes():
    counts = PairTable()
    counts.reserve(9)
    counts.count(np.array([3, 4]), np.array([[5, 6], [3, -1]]))
    part = PairPart(counts, writes=False)
    assert list(part.base()) == []
    assert part.changes() == {}
    assert counts.take_changes().count_P.shape == (0,)
    (empty,) = PairPart(PairTable(), writes=True).base()
    assert (empty[0], empty[1].num_rows) == ("cooccurrence.arrow", 0)


def test_a_run_that_is_restored_ranks_with_the_counts_that_it_had(store):
    run = small_run()
    train_steps(run, 4)
    resumed = small_run(save_checkpoint(run, store, Collectives()))
    recent = np.arange(20).reshape(1, 20)
    known = run.progressive.cooccurrence.items
    scores = [r.progressive.cooccurrence.scores(recent, known + 3) for r in (run, resumed)]
    np.testing.assert_array_equal(*scores)
    assert torch.from_numpy(scores[0]).any()


@pytest.mark.parametrize("limit", ["baseline_max_items", "baseline_max_pairs"])
def test_counting_that_has_stopped_gives_its_memory_back_and_no_checkpoint_brings_the_pairs_back(
    store, limit
):
    run = small_run()
    train_steps(run, 3)
    checkpointer = checkpointer_of(run, store, Collectives())
    full = checkpointer.finish(run.step)
    counts = run.progressive.cooccurrence
    assert len(_merged(full)) == len(counts.pairs) > 0
    setattr(run.config.progressive, limit, 5)
    train_steps(run, 1)
    assert counts.stopped
    assert (len(counts.pairs), counts.pairs.nbytes) == (0, 0)
    delta = checkpointer.finish(run.step)
    assert delta.manifest["kind"] == "delta"
    again = small_run(delta)
    assert again.progressive.cooccurrence.stopped
    assert _merged(delta) == {}
    for one in (run, again):  # the limits that stopped it do not matter any more
        one.config.progressive = small_run().config.progressive
        train_steps(one, 1)
        assert len(one.progressive.cooccurrence.pairs) == 0
    whole = save_checkpoint(again, CheckpointStore(store.where + "-other"), Collectives())
    assert digests(read_state(whole)) == digests(read_state(checkpointer.finish(run.step)))
