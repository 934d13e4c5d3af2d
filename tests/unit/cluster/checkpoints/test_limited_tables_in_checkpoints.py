"""A table with admission, expiry and eviction continues from a chain of checkpoints as if it had not stopped."""

import numpy as np

from cluster.audit.state import read_state
from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.checkpoints.parts.waiting import load_waiting, waiting_tables
from cluster.checkpoints.writing import FullPolicy
from cluster.collectives import Collectives
from cluster.tables.config import TableConfig
from cluster.training.state.worker_state import checkpointer_of
from model.features import ITEM, SOURCE, USER
from tests.support.state_digests import digests
from tests.support.unit_runs import small_run, train_steps

LIMITS = TableConfig(admit_after=3, max_waiting=12, expire_after_s=1e9, max_rows=25, sweep_every=2)


def test_rows_that_went_and_keys_that_wait_are_resumed_from_a_chain_of_deltas(tmp_path):
    store = CheckpointStore(tmp_path, keep=9)
    run = small_run(table=LIMITS, user_id_embedding=True)
    checkpointer = checkpointer_of(run, store, Collectives())
    checkpointer._policy = FullPolicy(every=9, share=10.0)
    for _ in range(3):
        train_steps(run, 3)
        committed = checkpointer.finish(run.step)
    assert [link.manifest["kind"] for link in committed.links] == ["full", "delta", "delta"]
    assert len(run.table.waiting) > 3
    tables = run.table.keys_of(run.table.rows())[0]
    assert 0 < np.isin(tables, (ITEM, USER, SOURCE)).sum() < 120
    assert (tables < 0).any()
    train_steps(run, 3)
    whole = read_state(checkpointer.finish(run.step))
    resumed = small_run(committed, table=LIMITS, user_id_embedding=True)  # with the generators of then
    again = checkpointer_of(resumed, store, Collectives(), committed)
    train_steps(resumed, 3)
    assert digests(read_state(again.finish(resumed.step))) == digests(whole)


def test_waiting_keys_are_read_by_whoever_owns_their_buckets(tmp_path):
    run = small_run(table=LIMITS)
    train_steps(run, 5)
    checkpointer = checkpointer_of(run, CheckpointStore(tmp_path), Collectives())
    committed = checkpointer.finish(run.step)
    files = [committed.file(name) for name in waiting_tables(run.table, 0, 1)]
    shares = [small_run(table=LIMITS).table for _ in range(3)]
    for rank, share in enumerate(shares):
        load_waiting(files, share, rank, 3)
    rows = [row for share in shares for row in share.waiting.to_table().to_pylist()]
    whole = run.table.waiting.to_table().to_pylist()
    assert sorted(rows, key=str) == sorted(whole, key=str)
    assert all(len(share.waiting) < len(whole) for share in shares)
