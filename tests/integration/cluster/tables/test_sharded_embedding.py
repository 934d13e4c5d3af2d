"""Rows that exist on exactly one rank give what one process gives."""

import numpy as np
import pytest
import torch

from cluster.collectives import Collectives, CrossRankGather
from cluster.tables.row_optimizer import row_optimizer
from cluster.tables.sharded_embedding import ShardedEmbedding
from tests.support.ranks import run_on_ranks

IDS = np.array([3, 11, 5, -8, 2**40, 77, 1, 0, 9, 1234567], np.int64)
TABLES = (np.arange(10) % 2).astype(np.int16)
SHARE = [[0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 8, 9], []]
KINDS = ("adam", "adagrad")


def _table(kind: str) -> ShardedEmbedding:
    return ShardedEmbedding(8, Collectives(), row_optimizer(kind), seed=4, device=torch.device("cpu"))


def _rows(table: ShardedEmbedding) -> dict:
    tables, ids = table.index.keys()
    keys = zip(tables.tolist(), ids.tolist(), strict=True)
    return dict(zip(keys, table.values_CD[: len(table)].numpy().copy(), strict=True))


def _train(rank: int, kind: str) -> dict:
    """Three steps in which the loss is a weighted sum of squares of the rows that this rank asks for."""
    table = _table(kind)
    mine = np.array(SHARE[rank], np.int64)
    for step in range(3):
        lookup = table.lookup(TABLES[mine], IDS[mine])
        weight = torch.from_numpy(mine + step + 1.0).to(torch.float32)
        (lookup.rows_UD[1:].square().sum(1) * weight).sum().backward()
        table.apply_gradients(lookup, 0.05)
    return _rows(table)


def _alone(kind: str, world: int) -> dict:
    table = _table(kind)
    for step in range(3):
        lookup = table.lookup(TABLES, IDS)
        weight = torch.zeros(10)
        for part in SHARE[:world]:
            for k in part:
                weight[k] += k + step + 1.0
        (lookup.rows_UD[1:].square().sum(1) * weight).sum().backward()
        table.apply_gradients(lookup, 0.05)
    return _rows(table)


def _missing_rows(rank: int) -> tuple[np.ndarray, int, np.ndarray]:
    table = _table("adam")
    seen = table.lookup(TABLES, IDS, create=False).rows_UD.numpy().copy()
    return seen, len(table), table.lookup(TABLES, IDS).rows_UD.detach().numpy().copy()


def _gather_gradient(rank: int) -> tuple[list[float], list[list[float]]]:
    gather = CrossRankGather(Collectives(), torch.device("cpu"))
    mine = torch.arange(float(rank * 2)).reshape(rank * 2, 1).requires_grad_()
    first = gather(mine)
    second = gather(mine * 2)
    loss = (first * torch.arange(first.shape[0]).unsqueeze(1)).sum() if rank == 1 else torch.zeros(())
    gather.close(loss + 0 * second.sum() if rank == 2 else loss).backward()
    return first.detach().flatten().tolist(), mine.grad.tolist() if mine.grad is not None else []


def _everything(rank: int) -> dict:
    trained = {kind: _train(rank, kind) for kind in KINDS}
    return {"trained": trained, "missing": _missing_rows(rank), "gathered": _gather_gradient(rank)}


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request):
    """What each rank of a group found; one start of its processes serves every test here."""
    return run_on_ranks(_everything, request.param)


@pytest.mark.parametrize("kind", KINDS)
def test_overlapping_requests_of_several_ranks_train_each_row_as_one_process_would(ranks, kind):
    together = _alone(kind, len(ranks))
    parts = [rank["trained"][kind] for rank in ranks]
    keys = [key for part in parts for key in part]
    assert sorted(keys) == sorted(together)
    assert len(keys) == len(set(keys)), "a row lives on two ranks"
    assert all(parts), "a rank owns nothing of ten keys: the hash is broken"
    for part in parts:
        for key, value in part.items():
            np.testing.assert_allclose(value, together[key], atol=1e-6)


def test_a_lookup_without_create_shows_the_values_that_a_row_would_start_from_and_makes_none(ranks):
    for seen, size, created in (rank["missing"] for rank in ranks):
        assert size == 0
        np.testing.assert_array_equal(seen, created)
        assert np.abs(seen[1:]).min() > 0
        assert np.all(seen[0] == 0)


def test_gather_concatenates_in_rank_order_and_returns_gradients_also_when_ranks_skip_it_in_their_loss(ranks):
    whole = [0.0, 1.0, 0.0, 1.0, 2.0, 3.0] if len(ranks) == 3 else [0.0, 1.0]
    for rank in ranks:
        assert rank["gathered"][0] == whole
    assert ranks[1]["gathered"][1] == [[0.0], [1.0]]
    if len(ranks) == 3:
        assert ranks[2]["gathered"][1] == [[2.0], [3.0], [4.0], [5.0]]
