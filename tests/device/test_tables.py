"""Rows on the device: looked up, trained, admitted, expired, evicted, forgotten and grown as those of the CPU."""

import numpy as np
import pytest
import torch

from cluster.collectives import Collectives
from cluster.tables.config import TableConfig
from cluster.tables.row_optimizer import row_optimizer
from cluster.tables.sharded_embedding import ShardedEmbedding
from model.features import ITEM, USER
from tests.device.pretended_device import DeviceTensor, host
from tests.support.device_runs import table_of, trained_table
from tests.support.unit_runs import CPU

LIMITS = {
    "no limits": TableConfig(),
    "admission": TableConfig(admit_after=2),
    "admission, fresh rows": TableConfig(admit_after=2, admitted_start="fresh"),
    "expiry": TableConfig(expire_after_s=2),
    "recency": TableConfig(max_rows=300),
    "frequency": TableConfig(max_rows=300, evict="frequency"),
    "all": TableConfig(admit_after=2, max_waiting=200, expire_after_s=3, max_rows=200),
}


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("kind", ["adam", "adagrad"])
def test_a_table_on_the_device_ends_with_the_rows_of_one_on_the_cpu(gpu, kind, limits):
    here, there = (trained_table(device, kind, LIMITS[limits]) for device in (CPU, gpu.device))
    assert isinstance(there.values_CD, DeviceTensor)
    wanted, found = table_of(here), table_of(there)
    assert torch.equal(found["keys"], wanted["keys"])
    assert wanted["keys"].shape[1] > 150
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name].numpy(), value.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_read_gives_the_values_that_training_would_give_and_makes_no_rows(gpu):
    limits = TableConfig(admit_after=3)
    here, there = (trained_table(device, "adam", limits) for device in (CPU, gpu.device))
    ids = np.arange(0, 4000, 7)
    before = len(there)
    for table in (ITEM, USER):
        keys = (np.full(ids.shape[0], table, np.int16), ids)
        read = [t.lookup(*keys, create=False).rows_UD for t in (here, there)]
        np.testing.assert_allclose(host(read[1]), read[0], rtol=1e-5, atol=1e-6)
    assert len(there) == before


def test_a_removed_rows_number_starts_with_nothing_of_it(gpu):
    table = trained_table(gpu.device, "adam")
    tables, ids = (part[:1].copy() for part in table.keys_of(table.rows()))
    [row] = table.index.find(tables, ids)
    table.forget(tables, ids)
    assert not host(table.values_CD[row]).any()
    assert not any(host(state[row]).any() for state in table.state.values())


def test_growing_holds_one_tensor_twice_not_all_of_them(gpu):
    table = ShardedEmbedding(64, Collectives(), row_optimizer("adam"), seed=1, device=gpu.device)
    table.add(np.full(4096, ITEM, np.int16), np.arange(4096))
    table.values_CD.fill_(1.5)
    held = gpu.memory.peak = gpu.memory.held
    table.add(np.full(1, ITEM, np.int16), np.array([5000]))
    assert table.values_CD.shape[0] == 4096 * 3 // 2
    assert host(table.values_CD[:4096] == 1.5).all()
    assert not host(table.state["second_moment"]).any()
    # Values and two moments: what is left is half as large again, and one old tensor beside it.
    assert gpu.memory.peak <= held * (1.5 + 1 / 3) * 1.01
