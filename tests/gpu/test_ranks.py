"""NCCL for what lies on GPUs, gloo for ids, as the launcher sets them up."""

import torch
import torch.distributed as dist

from cluster.device import process_group_backend
from tests.support.device_runs import assert_ranks_train_what_one_trains, config_of, steps_of_a_rank
from tests.support.ranks import run_on_ranks
from tests.support.unit_runs import CPU


def _sums(rank: int) -> list[float]:
    """A sum over ranks of a tensor on the GPU, and one of a tensor on the host."""
    found = []
    for device in ("cuda", "cpu"):
        x = torch.full((3,), rank + 1.0, device=device)
        dist.all_reduce(x)
        found.append(float(x[0]))
    return found


def _train(rank: int, device: str) -> dict:
    return steps_of_a_rank(rank, torch.device(device), config_of("the defaults"))


def test_one_rank_talks_over_nccl_and_gloo_at_once(real_gpu):
    assert run_on_ranks(_sums, 1, backend=process_group_backend("cuda")) == [[1.0, 1.0]]


def test_two_ranks_on_one_card_train_over_nccl_what_one_trains_on_the_cpu(real_gpu):
    alone = steps_of_a_rank(0, CPU, config_of("the defaults"))
    ranks = run_on_ranks(_train, 2, "cuda", backend=process_group_backend("cuda"), timeout_s=90)
    assert_ranks_train_what_one_trains(alone, ranks)


def test_two_ranks_train_over_gloo_what_one_trains():
    alone = steps_of_a_rank(0, CPU, config_of("the defaults"))
    assert_ranks_train_what_one_trains(alone, run_on_ranks(_train, 2, "cpu", timeout_s=90))
