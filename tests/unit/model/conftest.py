"""A small random step of the stream, whole or cut by rank."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.config import ModelConfig
from model.features import KeyCollector, item_inputs, query_inputs
from model.two_tower import Targets

SCHEMA = pa.schema(
    [
        ("user_id", pa.int64()),
        ("items", pa.list_(pa.int64())),
        ("times_ms", pa.list_(pa.int64())),
        ("context_length", pa.int32()),
        ("events_before", pa.int64()),
        ("attributes", pa.list_(pa.int64())),
        ("seen", pa.list_(pa.int64())),
        ("partition", pa.int32()),
        ("offset", pa.list_(pa.int64())),
        ("row", pa.list_(pa.int32())),
        ("append_ms", pa.list_(pa.int64())),
        ("weight", pa.list_(pa.float32())),
        ("negatives", pa.list_(pa.int64())),
    ]
)


@dataclass(frozen=True)
class Run:
    user: int
    context: list[int]
    targets: list[int]
    attributes: tuple[int, ...] = (1, 2)
    events_before: int | None = None
    weight: float = 1.0
    negatives: tuple[int, ...] = ()


def to_batch(runs: list[Run]) -> pa.RecordBatch:
    columns: list[list[object]] = [[] for _ in SCHEMA]
    for n, run in enumerate(runs):
        count = len(run.targets)
        before = len(run.context) if run.events_before is None else run.events_before
        row = (
            run.user,
            run.context + run.targets,
            list(range(len(run.context) + count)),
            len(run.context),
            before,
            list(run.attributes),
            run.context,
            n % 3,
            [100 * run.user + k for k in range(count)],
            list(range(count)),
            [0] * count,
            [run.weight] * count,
            list(run.negatives),
        )
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def categories(ids: np.ndarray) -> np.ndarray:
    """Up to two categories of an item; every seventh item has none."""
    first = np.where(ids % 7 == 0, 0, ids % 5 + 1)
    second = np.where(ids % 3 == 0, ids % 4 + 10, 0)
    return np.stack([first, second], axis=1)


def rows_for(keys: KeyCollector, dim: int) -> torch.Tensor:
    """Rows that are a function of the key, so that every rank gets the same; row 0 is zero."""
    tables, ids = keys.keys()
    rows = np.zeros((1 + len(ids), dim), np.float32)
    for k, (table, key) in enumerate(zip(tables.tolist(), ids.tolist(), strict=True)):
        rows[k + 1] = np.random.default_rng([table, key & 0xFFFFFFFF]).normal(0, 0.3, dim)
    return torch.from_numpy(rows).requires_grad_()


@dataclass
class RankStep:
    """One rank's arguments of `CLEPIDTN.forward`."""

    rows_UD: torch.Tensor
    keys: KeyCollector
    queries: object
    items: object
    targets: Targets

    def arguments(self) -> tuple[object, ...]:
        return self.rows_UD, self.queries, self.items, self.targets


def rank_step(
    runs: list[Run], mine: list[int], all_items: list[int], total: float, config: ModelConfig
) -> RankStep:
    """`mine` are the candidates of this rank, `all_items` those of all ranks in gathered order."""
    keys = KeyCollector()
    queries = query_inputs(to_batch(runs), categories, keys, config)
    targeted = {t for t in all_items if t < 900}
    ids = np.array(mine, np.int64)
    items = item_inputs(ids, categories, keys, np.array([i in targeted for i in mine], np.bool_))
    place = {item: m for m, item in enumerate(all_items)}
    targets_E = [t for run in runs for t in run.targets]
    users_E = [n for n, run in enumerate(runs) for _ in run.targets]
    drop = np.zeros((len(targets_E), len(all_items)), np.bool_)
    for e, (n, target) in enumerate(zip(users_E, targets_E, strict=True)):
        for item in runs[n].context:
            if item in place and item != target:
                drop[e, place[item]] = True
    log_q = torch.log(torch.tensor([0.01 + (i % 10) / 20 for i in all_items]))
    targets = Targets(
        torch.tensor([place[t] for t in targets_E], dtype=torch.int64), log_q, torch.from_numpy(drop), total
    )
    return RankStep(rows_for(keys, config.dim), keys, queries, items, targets)


def random_runs(seed: int, users: int, window: int) -> list[Run]:
    rng = np.random.default_rng(seed)
    runs = []
    for user in range(users):
        length = int(rng.integers(0, window + 1)) if user else 0
        context = rng.integers(1, 60, length).tolist()
        targets = rng.integers(1, 60, int(rng.integers(1, window + 1))).tolist()
        attributes = (int(rng.integers(0, 3)), int(rng.integers(0, 3)))
        runs.append(Run(user + 5, context, targets, attributes, length + 3 * user, float(rng.integers(1, 4))))
    return runs


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are tiny: a second thread costs more than it computes, twenty times on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def config() -> ModelConfig:
    return ModelConfig(
        dim=8, heads=2, layers=2, history_length=6, augmented_dim=4, dropout=0.0, contrastive_weight=0.5
    )


@pytest.fixture
def step_of() -> Callable[..., RankStep]:
    return rank_step


@pytest.fixture
def runs_of() -> Callable[..., list[Run]]:
    return random_runs


@pytest.fixture
def batch_of() -> Callable[[list[Run]], pa.RecordBatch]:
    return to_batch


@pytest.fixture
def run_class() -> type[Run]:
    return Run


@pytest.fixture
def item_categories() -> Callable[[np.ndarray], np.ndarray]:
    return categories


@pytest.fixture
def key_rows() -> Callable[[KeyCollector, int], torch.Tensor]:
    return rows_for
