"""Runs a function on several ranks, each in its own process with a gloo group, like Ray Train.

The processes are forked from one that has only imported the worker and its libraries and loaded compiled kernels, which
takes more CPU time than most tests.
"""

import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

_IMPORTED = [
    "pytest",
    "cluster.training.refresh",
    "cluster.serving.recommender",
    "tests.support.warm_kernels",
]


def run_on_ranks(
    function: Callable[..., Any], world: int, *args: Any, timeout_s: float = 120.0, backend: str = "gloo"
) -> list[Any]:
    """`function(rank, *args)` on every rank; their results in rank order. A rank's failure fails the test.

    With NCCL all ranks share the first GPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        context: Any = mp.get_context("spawn" if "nccl" in backend else "forkserver")
        context.set_forkserver_preload(_IMPORTED)
        queue = context.Queue()
        store = str(Path(folder) / "store")
        processes = [
            context.Process(
                target=_enter,
                args=(dict(os.environ), rank, world, store, queue, backend, function, args),
                daemon=True,
            )
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        try:
            results = dict(_take(queue, processes, timeout_s) for _ in range(world))
        finally:
            for process in processes:
                process.join(10)
                process.kill()
    return [results[rank] for rank in range(world)]


def _take(queue: Any, processes: list[Any], timeout_s: float) -> tuple[int, Any]:
    rank, result, failure = queue.get(timeout=timeout_s)
    if failure:
        for process in processes:
            process.kill()
        raise AssertionError(f"rank {rank} failed:\n{failure}")
    return rank, result


def _enter(
    environment: dict[str, str],
    rank: int,
    world: int,
    store: str,
    queue: Any,
    backend: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    os.environ.clear()  # inherited from the process that it was forked from
    os.environ |= environment | {"OMP_NUM_THREADS": "1"}
    if "nccl" in backend:
        # NCCL refuses two ranks on one GPU unless they seem to be on two hosts, which communicate by sockets.
        os.environ |= {"NCCL_HOSTID": f"host-{rank}", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}
        torch.cuda.set_device(0)
    torch.set_num_threads(1)
    try:
        dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=world)
        queue.put((rank, function(rank, *args), ""))
        dist.barrier()
        dist.destroy_process_group()
    except Exception:
        queue.put((rank, None, traceback.format_exc()))
