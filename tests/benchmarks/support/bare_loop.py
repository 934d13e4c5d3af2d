"""What a plain PyTorch loop would do with the same batches: the baseline of the step benchmark.

Shapes: U unique keys of a step, R rows of the table, D columns.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cluster.config import FreshetConfig
from cluster.training.state.run import TrainingRun
from model.cl_epidtn import CLEPIDTN
from model.features import ItemInputs, QueryInputs
from model.two_tower import StepPlan, Targets
from tests.benchmarks.support.window import Clock, Timing


@dataclass(frozen=True)
class ReadyStep:
    """A step whose features are computed, its ids replaced by rows of the table, its candidates chosen."""

    index_1U: Tensor
    """int64 (1 + U,): row 0 of the table is the zero row."""
    queries: QueryInputs
    items: ItemInputs
    targets: Targets
    plan: StepPlan
    events: int


def make_ready(run: TrainingRun, batches: list[pa.RecordBatch]) -> tuple[list[ReadyStep], Tensor]:
    """Everything but the training, done beforehand, and the table's first values, float32 (1 + R, D)."""
    ready = []
    for step, batch in enumerate(batches):
        prepared = run.train_step.prepare(batch, step)
        index_1U = torch.from_numpy(np.concatenate([[0], prepared.lookup.local_R + 1]))
        run.train_step._count(prepared.global_targets)  # what later steps' log q is made of
        ready.append(
            ReadyStep(
                index_1U,
                prepared.queries,
                prepared.items,
                prepared.targets,
                prepared.plan,
                prepared.global_targets.events,
            )
        )
    return ready, torch.cat([torch.zeros(1, run.table.dim), run.table.values_CD[: len(run.table)]])


class BareLoop:
    """The same model on `nn.Embedding(sparse=True)` with SparseAdam, and AdamW for the towers."""

    def __init__(self, config: FreshetConfig, first_rows: Tensor) -> None:
        torch.manual_seed(config.seed)
        self._train = config.train
        self._seed = config.seed
        self._model = CLEPIDTN(config.model, len(config.stream.user_attributes)).train()
        self._table = torch.nn.Embedding.from_pretrained(
            first_rows.clone(), freeze=False, padding_idx=0, sparse=True
        )
        self._dense = torch.optim.AdamW(
            self._model.parameters(), lr=self._train.learning_rate, weight_decay=self._train.weight_decay
        )
        self._sparse = torch.optim.SparseAdam(self._table.parameters(), lr=self._train.row_learning_rate)

    def step(self, ready: ReadyStep, step: int) -> Tensor:
        """One optimizer step; the loss."""
        rows_UD = self._table(ready.index_1U)
        terms = self._model(
            rows_UD, ready.queries, ready.items, ready.targets, seed=self._seed, step=step, plan=ready.plan
        )
        self._dense.zero_grad(set_to_none=True)
        self._sparse.zero_grad(set_to_none=True)
        terms.total.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._train.gradient_clip)
        self._dense.step()
        self._sparse.step()
        return terms.total.detach()

    def timed(self, ready: list[ReadyStep], warmup: int) -> Timing:
        """All steps, the clock on after `warmup` of them."""
        for step, one in enumerate(ready[:warmup]):
            self.step(one, step)
        clock = Clock()
        for step, one in enumerate(ready[warmup:], start=warmup):
            self.step(one, step)
        return clock.read(sum(one.events for one in ready[warmup:]))
