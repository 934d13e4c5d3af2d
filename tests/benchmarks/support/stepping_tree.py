"""Training steps of one source tree on given batches, timed on request: for comparing two commits side by side.

    python tests/benchmarks/support/stepping_tree.py TREE BATCHES SETTINGS

TREE is a checkout of this repository, BATCHES an Arrow file of training batches, and SETTINGS a JSON object of model
settings. Each line of standard input is a number of steps to train; the answer is the CPU seconds that they took. The
last line is empty. Imports depend on the tree, so they are tried in order.
"""

import gc
import importlib
import json
import os
import sys
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")


def first_of(*modules: str) -> Any:
    """The first of these modules that the tree has."""
    for module in modules[:-1]:
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError:
            continue
    return importlib.import_module(modules[-1])


def main() -> None:
    """Train as asked until standard input ends."""
    tree, batches, settings = sys.argv[1:]
    sys.path[:0] = [tree]
    import pyarrow as pa
    import torch

    from cluster.collectives import Collectives
    from cluster.config import FreshetConfig
    from model.config import ModelConfig
    from streaming.config import StreamConfig
    from tests.benchmarks.support.synthetic import Population

    torch.set_num_threads(1)
    with pa.OSFile(batches) as file, pa.ipc.open_stream(file) as reader:
        loaded = list(reader)
    attributes = loaded[0].column("attributes").value_lengths()[0].as_py()
    config = FreshetConfig(
        stream=StreamConfig(user_attributes=[f"a{k}" for k in range(attributes)]),
        model=ModelConfig(**json.loads(settings)),
        device="cpu",
    )
    run_class = first_of("cluster.training.state.run", "cluster.training.run").TrainingRun
    run = run_class.create(config, [0], Collectives(), torch.device("cpu"))
    run.catalogue.apply(Population(attributes=attributes).catalogue())
    step = 0
    for line in sys.stdin:
        if not line.strip():
            break
        gc.collect()
        started = time.process_time()
        for _ in range(int(line)):
            run.train_step.train(run.train_step.prepare(loaded[step % len(loaded)], step), step)
            step += 1
        print(time.process_time() - started, flush=True)


if __name__ == "__main__":
    main()
