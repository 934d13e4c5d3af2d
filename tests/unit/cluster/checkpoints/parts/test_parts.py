"""A piece of state is one file and one line of the list: nothing else names it."""

import numpy as np
import pyarrow as pa
import pytest

from cluster.audit.state import difference, digest, read_state
from cluster.checkpoints.arrays import read_table
from cluster.checkpoints.part import Copies, Part
from cluster.collectives import Collectives
from cluster.training.state import worker_state
from cluster.training.state.parts import parts_of
from cluster.training.state.worker_state import checkpointer_of
from tests.support.checkpointing import save_checkpoint
from tests.support.unit_runs import open_run, small_config, train_steps

pytestmark = pytest.mark.usefixtures("one_thread")


class TallyPart(Part):
    """A piece of state that nobody else knows of: one number by id, and one in the manifest."""

    names = ("tally",)

    def __init__(self, tally):
        self._tally = tally

    def copies(self):
        """See Part."""
        table = pa.table({"count": np.array(self._tally["counts"], np.int64)})
        return Copies({"tally.arrow": table}, told={"tally_total": sum(self._tally["counts"])})

    def merged(self, told):
        """See Part."""
        return {"tally_total": sum(rank["tally_total"] for rank in told)}

    def restore(self, saved):
        """See Part."""
        self._tally["counts"] = read_table(saved.file("tally.arrow"))["count"].to_pylist()
        self._tally["total"] = saved.manifest["tally_total"]


@pytest.fixture
def tally(monkeypatch):
    """Puts the part in the list."""
    state = {"counts": []}
    monkeypatch.setattr(worker_state, "parts_of", lambda *args: [*parts_of(*args), TallyPart(state)])
    return state


def test_a_new_part_is_saved_restored_and_audited_by_its_line_in_the_list_alone(store, tally):
    run = open_run(small_config())
    tally["counts"] = [4, 9]
    checkpointer = checkpointer_of(run, store, Collectives())
    train_steps(run, 2)
    full = checkpointer.finish(run.step)
    tally["counts"] = [4, 9, 2]
    train_steps(run, 1)
    delta = checkpointer.finish(run.step)
    checkpointer.close()
    assert (full.manifest["tally_total"], delta.manifest["tally_total"]) == (13, 15)
    for checkpoint, counts in ((full, [4, 9]), (delta, [4, 9, 2])):
        tally["counts"] = []
        open_run(small_config(), checkpoint)
        assert tally == {"counts": counts, "total": sum(counts)}
        assert read_state(checkpoint).tables["tally.arrow"]["count"].to_pylist() == counts
    assert difference(read_state(full), read_state(delta))["counters"]["tally_total"] == [13, 15]
    tally["counts"] = [4, 9, 3]
    assert digest(read_state(save_checkpoint(run, store, Collectives()))) != digest(read_state(delta))


def test_a_part_that_is_not_learnt_stays_behind_when_a_run_starts_from_a_checkpoint(store, tally):
    run = open_run(small_config())
    tally["counts"] = [4, 9]
    train_steps(run, 2)
    checkpoint = save_checkpoint(run, store, Collectives())
    tally["counts"] = []
    open_run(small_config(), start=checkpoint)
    assert tally["counts"] == []


def test_every_file_of_a_checkpoint_and_its_deltas_belongs_to_one_part(store):
    config = small_config()
    config.table.admit_after = 3
    run = open_run(config)
    checkpointer = checkpointer_of(run, store, Collectives())
    parts = parts_of(run, Collectives())
    files = set()
    run.texts.items.clashes(np.array([5]), np.array([0]), pa.array(["a text id"]))
    for _ in range(3):
        train_steps(run, 2)
        files |= {entry["name"] for entry in checkpointer.finish(run.step).manifest["files"]}
    checkpointer.close()
    owners = {file: [type(p).__name__ for p in parts if file.startswith(tuple(p.names))] for file in files}
    assert {file: owner for file, owner in owners.items() if len(owner) != 1} == {}
    with_files = {type(part).__name__ for part in parts if part.names}
    assert {owner for [owner] in owners.values()} == with_files
