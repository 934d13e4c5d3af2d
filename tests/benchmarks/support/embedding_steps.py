"""Steps of one rank on nothing but embeddings, in a process of its own: prints JSON (rank 0: examples, seconds).

    python embedding_steps.py KIND RANK WORLD STORE JSON-SETTINGS

A step: ids of this rank's share of the batch, uniform over the rows, to rows, to the sum of the squares of each
example's summed rows (the lightest tower that gives every row a gradient of its own), backward, update.

    ours-adagrad, ours-adam   ShardedEmbedding, dedup included
    torchrec                  row-wise sharded EmbeddingCollection, row-wise Adagrad fused into backward
    sparse-adam               nn.Embedding(sparse=True) and SparseAdam; with several ranks a replica on each and an
                              all-gather of the sparse gradients
"""

import json
import os
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
import torch.distributed as dist


def ours(kind, settings):
    from cluster.collectives import Collectives
    from cluster.tables.row_optimizer import row_optimizer
    from cluster.tables.sharded_embedding import ShardedEmbedding
    from model.features import KeyCollector

    comm = Collectives()
    table = ShardedEmbedding(settings["dim"], comm, row_optimizer(kind), seed=1, device=torch.device("cpu"))
    everything = np.arange(settings["rows"])
    zeros = np.zeros(settings["rows"], np.int16)
    mine = table.owners(zeros, everything) == comm.rank
    table.add(zeros[mine], everything[mine])

    def step(ids):
        keys = KeyCollector()
        index = torch.from_numpy(keys.add(0, ids))
        lookup = table.lookup(*keys.keys())
        loss_of(torch.nn.functional.embedding(index, lookup.rows_UD)).backward()
        table.apply_gradients(lookup, 0.01)

    return step


def torchrec(settings):
    from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
    from torchrec.distributed.types import ShardingPlan
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

    cpu = torch.device("cpu")
    config = EmbeddingConfig(
        name="t", embedding_dim=settings["dim"], num_embeddings=settings["rows"], feature_names=["items"]
    )
    module = torch.nn.Sequential(EmbeddingCollection(tables=[config], device=torch.device("meta")))
    apply_optimizer_in_backward(RowWiseAdagrad, module.parameters(), {"lr": 0.01})
    sharder, world = EmbeddingCollectionSharder(), dist.get_world_size()
    plan = construct_module_sharding_plan(
        module[0],
        {"t": row_wise(compute_kernel="fused")},
        sharder=sharder,
        world_size=world,
        local_size=world,
        device_type="cpu",
    )
    model = DistributedModelParallel(module, device=cpu, plan=ShardingPlan({"0": plan}), sharders=[sharder])

    def step(ids):
        lengths = torch.full((ids.shape[0],), ids.shape[1], dtype=torch.int64)
        features = KeyedJaggedTensor(["items"], torch.from_numpy(ids).reshape(-1), lengths=lengths)
        rows = model(features)["items"].values()
        loss_of(rows.view(*ids.shape, -1)).backward()

    return step


def sparse_adam(settings):
    embedding = torch.nn.Embedding(settings["rows"], settings["dim"], sparse=True)
    optimizer = torch.optim.SparseAdam(embedding.parameters(), lr=0.01)
    world = dist.get_world_size()

    def step(ids):
        optimizer.zero_grad()
        loss_of(embedding(torch.from_numpy(ids))).backward()
        if world > 1:
            share = embedding.weight.grad
            indices = share._indices().contiguous()
            all_indices = [torch.empty_like(indices) for _ in range(world)]
            all_values = [torch.empty_like(share._values()) for _ in range(world)]
            dist.all_gather(all_indices, indices)
            dist.all_gather(all_values, share._values())
            embedding.weight.grad = torch.sparse_coo_tensor(
                torch.cat(all_indices, 1), torch.cat(all_values), share.shape
            )
        optimizer.step()

    return step


def loss_of(rows_BLD):
    return rows_BLD.sum(dim=1).square().sum()


def main():
    kind, rank, world, store, settings = (
        sys.argv[1],
        int(sys.argv[2]),
        int(sys.argv[3]),
        sys.argv[4],
        sys.argv[5],
    )
    settings = json.loads(settings)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    make = {
        "torchrec": torchrec,
        "sparse-adam": sparse_adam,
        "ours-adagrad": lambda s: ours("adagrad", s),
        "ours-adam": lambda s: ours("adam", s),
    }[kind]
    step = make(settings)
    rng = np.random.default_rng(rank)
    shape = (settings["batch"] // world, settings["items"])
    batches = [
        rng.integers(0, settings["rows"], shape) for _ in range(settings["warmup"] + settings["steps"])
    ]
    for ids in batches[: settings["warmup"]]:
        step(ids)
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    for ids in batches[settings["warmup"] :]:
        step(ids)
    dist.barrier()
    wall_s, cpu_s = time.perf_counter() - wall, torch.tensor(time.process_time() - cpu)
    dist.all_reduce(cpu_s)
    if rank == 0:
        print(
            json.dumps(
                {"examples": settings["batch"] * settings["steps"], "wall_s": wall_s, "cpu_s": cpu_s.item()}
            ),
            flush=True,
        )
    dist.barrier()
    # All is measured, and TorchRec's threads have been seen to abort a process that takes its group down.
    os._exit(0)


if __name__ == "__main__":
    main()
