"""Checkpoints in the layout of format 2, as they were written before checkpoints and versions shared one store."""

import shutil
from pathlib import Path

from cluster.audit.state import read_state
from cluster.checkpoints.checkpoint import CheckpointStore, open_checkpoint
from cluster.collectives import Collectives
from cluster.training.state.worker_state import checkpointer_of
from tests.support.state_digests import digests
from tests.support.unit_runs import small_run, train_steps

FORMAT_2 = Path(__file__).parents[3] / "data" / "checkpoints-format-2"
WRITTEN = {
    "rows": "d27b347a16ac77f5",
    "users 0": "3622e73902e5fe2b",
    "users 1": "e9b2c4343498c207",
    "ledger 0": "e73a74b42a21891a",
    "ledger 1": "9c18866711bd585e",
    "catalogue-items.arrow": "cfda4dc919af68ab",
}
"""Digests of the state, as the code that wrote it saw it."""


def test_a_chain_holds_what_its_writer_wrote():
    newest = CheckpointStore(FORMAT_2).newest()
    assert [link.manifest["kind"] for link in newest.links] == ["full", "delta"]
    found = digests(read_state(newest))
    assert {name: found[name] for name in WRITTEN} == WRITTEN


def test_a_run_goes_on_from_it_with_another_delta(tmp_path):
    store = CheckpointStore(shutil.copytree(FORMAT_2, tmp_path / "checkpoints"))
    run = small_run(store.newest())
    checkpointer = checkpointer_of(run, store, Collectives(), store.newest())
    train_steps(run, 1)
    committed = checkpointer.finish(run.step)
    checkpointer.close()
    assert (committed.step, committed.manifest["follows"]) == (3, "step-00000002")
    assert open_checkpoint(committed.location).manifest == committed.manifest
