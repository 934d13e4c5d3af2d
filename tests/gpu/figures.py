"""Figures beside their floors: bytes over the measured copy rate, operations over the measured matrix rate.

Shape letters: U rows of a step, D columns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from cluster.collectives import Collectives
from cluster.config import FreshetConfig, ProgressiveConfig, TrainConfig
from cluster.device import compute_deterministically
from cluster.publishing.item_encoding import encode_owned_items
from cluster.tables.row_optimizer import row_optimizer
from cluster.tables.sharded_embedding import ShardedEmbedding
from cluster.training.state.run import TrainingRun
from model.config import ModelConfig
from model.features import ITEM
from streaming.batches.batcher import Batcher
from streaming.config import StreamConfig
from tests.benchmarks.support.synthetic import Population
from tests.gpu.conftest import DEVICE, REHEARSAL
from tests.support.memory_source import MemorySource, NoDeadLetters, partitioned_log

DIM = 128
ROWS = 20_000 if REHEARSAL else 10_000_000
TOUCHED = 2_000 if REHEARSAL else 200_000
EVENTS = 256 if REHEARSAL else 8192
ITEMS = 2_000 if REHEARSAL else 1_000_000
INDEXED = 5_000 if REHEARSAL else 10_000_000
Figure = dict[str, Any]


def measured(group: str, rates: dict[str, float]) -> Iterator[Figure]:
    """The figures of a group, each as soon as it is there; what failed says why.

    Args:
        group: of `GROUPS`.
        rates: what the machine can do; the group `rates` fills it.
    """
    try:
        yield from GROUPS[group](rates)
    except Exception as error:  # the next group is worth having all the same
        yield {"figure": group, "why": f"failed: {error!r}"[:300]}
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def _sync() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _median_s(work: Callable[[], object], times: int = 10, warm: int = 3) -> float:
    found = []
    for _ in range(times + warm):
        _sync()
        started = time.perf_counter()
        work()
        _sync()
        found.append(time.perf_counter() - started)
    return float(np.median(found[warm:]))


def _figure(name: str, value: float, unit: str, floor: float | None = None, of: str = "") -> Figure:
    found: Figure = {"figure": name, "value": value, "unit": unit}
    return found if floor is None else found | {"floor": floor, "floor_of": of}


def _rates(rates: dict[str, float]) -> Iterator[Figure]:
    """What the machine can do: all floors come from here."""
    n = 1 << (22 if REHEARSAL else 30)
    source, target = torch.randn(n, device=DEVICE), torch.empty(n, device=DEVICE)
    rates["copy"] = 8 * n / _median_s(lambda: target.copy_(source))
    yield _figure("copy within the device, read and written", rates["copy"] / 1e9, "GB/s")
    size = 256 if REHEARSAL else 8192
    kinds = {
        "float32": (torch.float32, False),
        "tf32": (torch.float32, True),
        "bf16": (torch.bfloat16, False),
    }
    for name, (dtype, tf32) in kinds.items():
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
        rates[name] = 2 * size**3 / _median_s(lambda a=a, b=b: a @ b, 6)
        yield _figure(f"matrix product, {name}", rates[name] / 1e12, "TFLOP/s")
    torch.backends.cuda.matmul.allow_tf32 = False
    host = torch.randn(1 << 24)
    held = host.pin_memory() if DEVICE.type == "cuda" else host
    for name, tensor in (("pageable", host), ("pinned", held)):
        rate = 4 * host.numel() / _median_s(lambda t=tensor: t.to(DEVICE, non_blocking=True), 5)
        yield _figure(f"copy from {name} memory of the host", rate / 1e9, "GB/s")
    tiny = torch.zeros(16, device=DEVICE)
    yield _figure("a launch", _median_s(lambda: [tiny.add_(1) for _ in range(1000)], 5) * 1e3, "µs")


def _table() -> ShardedEmbedding:
    table = ShardedEmbedding(DIM, Collectives(), row_optimizer("adam"), seed=1, device=DEVICE)
    for first in range(0, ROWS, 1_000_000):
        ids = np.arange(first, min(first + 1_000_000, ROWS))
        table.add(np.full(ids.shape[0], ITEM, np.int16), ids)
    return table


def _rows(rates: dict[str, float]) -> Iterator[Figure]:
    """Lookup and update, and torch's own way to do the same."""
    started = time.perf_counter()
    table = _table()
    _sync()
    yield _figure(f"a table of {ROWS:,} rows of {DIM} filled", time.perf_counter() - started, "s")
    if DEVICE.type == "cuda":
        peak, held = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
        yield _figure("memory at the peak of its growth", peak / 1e9, "GB", held / 1e9, "what it holds")
    rng = np.random.default_rng(0)
    sets = [rng.choice(ROWS, TOUCHED, replace=False) for _ in range(4)]
    tables, turn = np.full(TOUCHED, ITEM, np.int16), iter(range(10**9))

    def step() -> None:
        lookup = table.lookup(tables, sets[next(turn) % 4], time_ms=1)
        lookup.rows_UD.grad = gradient
        table.apply_gradients(lookup, 1e-3)

    gradient = torch.randn(TOUCHED + 1, DIM, device=DEVICE)
    row = 4 * DIM
    # Read and write a row for the lookup; read the gradient, read and write the value and two moments.
    floor = 9 * row * TOUCHED / rates["copy"]
    name = f"lookup and update of {TOUCHED:,} rows"
    yield _figure(name, _median_s(step) * 1e3, "ms", floor * 1e3, "bytes; aim: twice")
    index = torch.from_numpy(table.index.find(tables, sets[0])).to(DEVICE)
    seconds = _median_s(lambda: table.values_CD.index_select(0, index))
    yield _figure(
        "of it the gather alone", seconds * 1e3, "ms", 2 * row * TOUCHED / rates["copy"] * 1e3, "bytes"
    )
    update = lambda: table.optimizer.update(table.values_CD, table.state, index, gradient[1:], 1e-3)  # noqa: E731
    floor = 7 * row * TOUCHED / rates["copy"]
    yield _figure("of it the update alone", _median_s(update) * 1e3, "ms", floor * 1e3, "bytes")
    host = _median_s(lambda: table.index.find(tables, sets[next(turn) % 4]), 5)
    yield _figure("of it the map of ids, on the host", host * 1e3, "ms")
    yield _plain_torch(index)


def _plain_torch(index: torch.Tensor) -> Figure:
    embedding = torch.nn.Embedding(ROWS, DIM, sparse=True, device=DEVICE)
    optimizer = torch.optim.SparseAdam(embedding.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        embedding(index).sum().backward()
        optimizer.step()

    return _figure("the same by nn.Embedding and SparseAdam", _median_s(step, 5) * 1e3, "ms")


def _run(events: int, steps: int, items: int, **model: Any) -> tuple[TrainingRun, Batcher]:
    population = Population(users=2000 if REHEARSAL else 200_000, items=items, burst=4.0)
    config = FreshetConfig(
        stream=StreamConfig(history_length=50, seen_length=100, user_attributes=["a", "b", "c"]),
        model=ModelConfig(dim=DIM, uniform_negatives=2000, **model),
        train=TrainConfig(batch_events=events),
        progressive=ProgressiveConfig(sample_fraction=0.0),
    )
    run = TrainingRun.create(config, [0], Collectives(), DEVICE)
    run.catalogue.apply(population.catalogue())
    log = partitioned_log(population.events(events * steps), 1)
    source = MemorySource(log, [0])
    return run, Batcher(config.stream, source, run.users, run.catalogue, NoDeadLetters())


def _steps(rates: dict[str, float]) -> Iterator[Figure]:
    """A training step, whole and in parts, beside the larger of its two floors."""
    from torch.utils.flop_counter import FlopCounterMode

    count, warm = (3, 2) if REHEARSAL else (8, 4)
    run, batcher = _run(EVENTS, 2 * count + warm + 1, ITEMS)
    for first in range(0, ROWS, 1_000_000):
        ids = np.arange(ITEMS + first, ITEMS + min(first + 1_000_000, ROWS))
        run.table.add(np.full(ids.shape[0], ITEM, np.int16), ids)
    parts = _laps(run, batcher, range(count + warm), warm)
    torch.use_deterministic_algorithms(False)
    fastest = _laps(run, batcher, range(count + warm, 2 * count + warm), 0)["train"]
    compute_deterministically(DEVICE)
    with FlopCounterMode(display=False) as counter:
        prepared = run.train_step.prepare(batcher.next_batch(EVENTS), 2 * count + warm)
        run.train_step.train(prepared, 2 * count + warm)
    touched = prepared.lookup.rows_UD.shape[0]
    by_work, by_bytes = counter.get_total_flops() / rates["float32"], 9 * 4 * DIM * touched / rates["copy"]
    floor, of = max((by_work, "operations"), (by_bytes, "bytes"))
    for name, seconds in parts.items():
        yield _figure(
            f"step of {EVENTS:,} events, {name}",
            seconds * 1e3,
            "ms",
            *((floor * 1e3, of) if name == "train" else ()),
        )
    yield _figure("the same, train, with kernels that do not repeat", fastest * 1e3, "ms")
    whole = sum(parts.values())
    yield _figure("training", EVENTS / whole, "examples/s", EVENTS / floor, f"{of}, nothing else")
    yield _figure("share of the floor", floor / whole, "", 1.0, of)
    if DEVICE.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        seconds = _median_s(lambda: run.model.encode_items(prepared.lookup.rows_UD.detach(), prepared.items))
        torch.backends.cuda.matmul.allow_tf32 = False
        yield _figure("the candidates' tower with tf32", seconds * 1e3, "ms")
    yield from _encoding(run, rates)


def _laps(run: TrainingRun, batcher: Batcher, steps: range, warm: int) -> dict[str, float]:
    """Medians of the parts of a step, in seconds, without the first `warm` steps."""
    laps: dict[str, list[float]] = {"batch": [], "prepare": [], "train": []}
    for step in steps:
        at = [time.perf_counter()]
        batch = batcher.next_batch(EVENTS)
        at.append(time.perf_counter())
        prepared = run.train_step.prepare(batch, step)
        _sync()
        at.append(time.perf_counter())
        run.train_step.train(prepared, step)
        _sync()
        at.append(time.perf_counter())
        for lap, seconds in zip(laps.values(), np.diff(at), strict=True):
            lap.append(float(seconds))
    return {name: float(np.median(lap[warm:])) for name, lap in laps.items()}


def _encoding(run: TrainingRun, rates: dict[str, float]) -> Iterator[Figure]:
    def encode() -> None:
        encode_owned_items(run.model, run.table, run.catalogue, Collectives())

    seconds = _median_s(encode, 3, 1)
    known = run.catalogue.item_ids.shape[0]
    floor = known * 3 * 4 * DIM / rates["copy"]
    yield _figure("items encoded", known / seconds, "items/s", known / floor, "bytes, nothing else")


def _checkpoint(rates: dict[str, float]) -> Iterator[Figure]:
    """How long a full checkpoint keeps training waiting, and how long it takes."""
    from tempfile import TemporaryDirectory

    from cluster.checkpoints.checkpoint import CheckpointStore
    from cluster.training.state.worker_state import checkpointer_of

    run, batcher = _run(256, 400, 5000)
    run._opened = (MemorySource({}, []), batcher, None)  # type: ignore[arg-type]
    ids = np.arange(10_000, 10_000 + (20_000 if REHEARSAL else 1_000_000))
    run.table.add(np.full(ids.shape[0], ITEM, np.int16), ids)
    with TemporaryDirectory() as folder:
        checkpointer = checkpointer_of(run, CheckpointStore(folder), Collectives())
        started, committed = time.perf_counter(), None
        checkpointer.begin(0)
        while committed is None:
            checkpointer.copy_some()
            if checkpointer.ready:
                committed = checkpointer.advance()
            elif run.step < 300:
                prepared = run.train_step.prepare(batcher.next_batch(256), run.step)
                run.train_step.train(prepared, run.step)
                run.step += 1
        whole = time.perf_counter() - started
        checkpointer.close()
    yield _figure(
        "a full checkpoint's pauses together",
        sum(checkpointer.stalls_s) * 1e3,
        "ms",
        whole * 1e3,
        "its writing",
    )


def _index(rates: dict[str, float]) -> Iterator[Figure]:
    """Build and search beside the CPU's, which builds a fortieth and answers an eighth of the queries."""
    from retrieval.config import (
        IndexConfig,
    )  # here, so that a Faiss that cannot be imported costs these figures alone
    from retrieval.gpu import visible_gpus
    from retrieval.indexes.exact import exact_top_k, recall_at_k
    from retrieval.indexes.gpu_index import build_index

    generator = torch.Generator(device=DEVICE).manual_seed(1)
    centres = torch.randn(4096, DIM, device=DEVICE, generator=generator)
    of = torch.randint(0, 4096, (INDEXED,), device=DEVICE, generator=generator)
    parts = []
    for part in of.split(1_000_000):
        noise = torch.randn(part.shape[0], DIM, device=DEVICE, generator=generator)
        parts.append(torch.nn.functional.normalize(centres[part] + 0.5 * noise, dim=1).cpu())
    vectors = torch.cat(parts).numpy()
    queries = np.ascontiguousarray(vectors[:: max(1, INDEXED // 2048)][:2048])
    gpus = visible_gpus() > 0
    device = "cuda" if gpus else "cpu"
    few = np.ascontiguousarray(vectors[: INDEXED // 40])
    for name, chosen in ((f"on the {device}", device), ("on the CPU", "cpu")):
        started = time.perf_counter()
        build_index(few, IndexConfig(device=chosen), seed=1)
        yield _figure(f"index of {few.shape[0]:,} x {DIM} built {name}", time.perf_counter() - started, "s")
    started = time.perf_counter()
    index = build_index(vectors, IndexConfig(device=device), seed=1)
    seconds = time.perf_counter() - started
    # Assignment compares every item with every centroid once.
    floor = 2 * INDEXED * index.nlist * DIM / rates["float32"]
    yield _figure(f"index of {INDEXED:,} x {DIM} built on the {device}", seconds, "s", floor, "assignment")
    wanted = exact_top_k(queries, vectors, 10, [0] if gpus else ())
    sides = {device: index} if index.on_cpu() is index else {device: index, "cpu": index.on_cpu()}
    for side, searched in sides.items():
        for nprobe in (8, 32, 128):
            found = searched.search(queries, 10, nprobe)[0]
            some = queries if side == "cuda" else queries[: queries.shape[0] // 8]
            rate = some.shape[0] / _median_s(lambda i=searched, n=nprobe, q=some: i.search(q, 10, n), 3, 1)
            recall = recall_at_k(found, wanted)
            yield _figure(f"search on the {side}, nprobe {nprobe}, recall {recall:.3f}", rate, "queries/s")


GROUPS: dict[str, Callable[[dict[str, float]], Iterator[Figure]]] = {
    "rates": _rates,
    "rows": _rows,
    "steps": _steps,
    "checkpoint": _checkpoint,
    "index": _index,
}
