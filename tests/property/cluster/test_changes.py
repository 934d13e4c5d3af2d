"""The changes that a table reports, over any number of calls, add up to the table."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.collectives import Collectives
from cluster.tables.row_optimizer import RowAdagrad
from cluster.tables.sharded_embedding import ShardedEmbedding

IDS = st.lists(st.integers(0, 12), min_size=1, max_size=6, unique=True)
CALLS = st.lists(st.tuples(st.sampled_from(["train", "count", "forget", "take", "look"]), IDS), max_size=25)


def _content(table, rows):
    keys = zip(*(part.tolist() for part in table.keys_of(rows)), strict=True)
    columns = [table.values_CD[rows, 0], table.state["accumulator"][rows]]
    columns += [table.frequency_C[rows], table.last_seen_ms_C[rows]]
    return dict(zip(keys, zip(*(column.tolist() for column in columns), strict=True), strict=True))


@settings(max_examples=150, deadline=None)
@given(CALLS)
def test_deltas_replayed_in_order_are_the_table_and_name_as_removed_only_what_they_had_before(calls):
    table = ShardedEmbedding(2, Collectives(), RowAdagrad(), seed=1, device=torch.device("cpu"))
    replayed = {}
    for time, (name, small) in enumerate([*calls, ("take", [0])], start=1):
        ids, tables = np.array(small, np.int64), np.zeros(len(small), np.int16)
        if name == "train":
            lookup = table.lookup(tables, ids, time_ms=time)
            lookup.rows_UD.square().sum().backward()
            table.apply_gradients(lookup, 0.1)
        elif name == "count":
            table.count(tables, ids, np.ones(len(small)), time)
        elif name == "forget":
            table.forget(tables, ids)
        elif name == "look":
            table.lookup(tables, ids, create=False)
        else:
            rows, removed = table.take_changes()
            gone = set(zip(*(part.tolist() for part in removed), strict=True))
            changed = _content(table, rows)
            assert gone <= replayed.keys()
            assert not gone & changed.keys()
            replayed = {key: row for key, row in replayed.items() if key not in gone} | changed
            assert replayed == _content(table, table.rows())


def test_a_key_that_comes_back_starts_from_its_first_value_with_nothing_of_what_it_had():
    table = ShardedEmbedding(4, Collectives(), RowAdagrad(), seed=1, device=torch.device("cpu"))
    key = np.zeros(1, np.int16), np.array([5])
    first = table.lookup(*key, time_ms=9).rows_UD[1].detach().clone()
    lookup = table.lookup(*key, time_ms=9)
    lookup.rows_UD.sum().backward()
    table.apply_gradients(lookup, 0.1)
    table.count(*key, np.ones(1), 9)
    assert table.forget(*key) == 1
    assert not table.values_CD.any(), "what is forgotten is not left in memory"
    assert torch.equal(table.lookup(*key).rows_UD[1].detach(), first)
    assert table.frequencies(*key).tolist() == [0.0]
    assert not table.state["accumulator"].any()
    assert not table.last_seen_ms_C.any()
