"""A training step compared with plain Python and torch: the loss's inputs, how towers and rows move (Eq. 16)."""

import copy
from collections import Counter
from dataclasses import replace
from math import log

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.collectives import Collectives
from cluster.config import FreshetConfig, TrainConfig
from cluster.tables.row_optimizer import row_optimizer
from cluster.tables.sharded_embedding import ShardedEmbedding
from cluster.training.steps.train_step import TrainStep
from model.cl_epidtn import CLEPIDTN
from model.embedding import initial_rows
from model.features import ITEM, KeyCollector, item_inputs, query_inputs
from model.two_tower import Targets
from streaming.catalogue.catalogue import Catalogue, CatalogueUpdate
from streaming.config import StreamConfig
from streaming.events.schema import ITEM_SCHEMA, USER_SCHEMA
from tests.support.equations import CONFIG
from tests.support.reference_model import item_categories
from tests.support.training_batches import Run, to_batch

LISTED = 12
"""Items 1 to 12 are in the catalogue from the start; 20 and up come with events."""
DRAWS = 9
STEPS = [
    [
        Run(5, [], [3, 20], attributes=(1, 2), weights=[0.5, 3.0]),
        Run(6, [3, 8], [5, 8, 3, 9], attributes=(2, 0), weights=[1.0, 0.5, 0.5, 1.0], negatives=(4,)),
        Run(7, [9, 4], [3], seen=[9, 4, 11, 2], attributes=(0, 3), weights=[3.0]),
    ],
    [
        Run(8, [12], [3, 21], seen=[12, 7], attributes=(1, 2), weights=[1.0, 3.0]),
        Run(5, [3, 20], [6], seen=[3, 20], attributes=(1, 2), weights=[0.5]),
    ],
    [Run(6, [5, 8, 3, 9], [20, 1, 20], seen=[3, 8, 5, 9, 10], attributes=(2, 0), weights=[3.0, 1.0, 0.5])],
]
"""Items again in a later step and in one run; seen items that stand in no history; new ones in both first steps."""


def _categories(ids):
    return np.where((ids <= LISTED)[:, None], item_categories(ids), 0)


def _catalogue(stream):
    listed = np.arange(1, LISTED + 1)
    items = [
        pa.array(listed),
        pa.array([""] * LISTED),
        pa.array([[c for c in own if c] for own in item_categories(listed).tolist()], pa.list_(pa.int64())),
        pa.array([False] * LISTED),
    ]
    catalogue = Catalogue(stream)
    catalogue.apply(CatalogueUpdate(pa.table(items, schema=ITEM_SCHEMA), USER_SCHEMA.empty_table()))
    return catalogue


def _train_step(history_mask="past", **train):
    model = replace(CONFIG, uniform_negatives=DRAWS, history_mask=history_mask)
    stream = StreamConfig(user_attributes=["gender", "age"])
    config = FreshetConfig(stream=stream, model=model, train=TrainConfig(**train), seed=11)
    torch.manual_seed(2)
    towers, comm, cpu = CLEPIDTN(model, 2), Collectives(), torch.device("cpu")
    optimizer = row_optimizer(config.train.row_optimizer)
    table = ShardedEmbedding(model.dim, comm, optimizer, seed=config.seed, device=cpu, init_std=0.3)
    return TrainStep(towers, table, _catalogue(stream), comm, config, cpu)


class _Stream:
    """What the steps so far have shown, counted in Python."""

    def __init__(self):
        self.weight = Counter()
        self.known = {*range(1, LISTED + 1)}

    def targets(self, runs, candidates, history_mask):
        """`Targets` of the next step by its definition; the step's own events count already."""
        own = [(t, w) for run in runs for t, w in zip(run.targets, run.weights, strict=True)]
        for item, weight in own:
            self.weight[item] += weight
            self.known.add(item)
        batch, total = sum(w for _, w in own), self.weight.total()
        missed = (1 - 1 / len(self.known)) ** DRAWS
        log_q = [log(1 - (1 - self.weight[i] / total) ** batch * missed) for i in candidates]
        drop = []
        for run in runs:
            for k, target in enumerate(run.targets):
                taken = run.targets[:k] if history_mask == "past" else run.targets
                known = {*run.seen, *run.context, *taken}
                drop.append([i in known and i != target for i in candidates])
        place = [candidates.index(target) for target, _ in own]
        return Targets(torch.tensor(place), torch.tensor(log_q), torch.tensor(drop), batch)


@pytest.mark.parametrize("history_mask", ["past", "all"])
def test_the_loss_is_told_how_likely_each_candidate_was_what_no_negative_is_and_the_weight_of_all_events(
    history_mask, one_thread
):
    step, stream, drawn = _train_step(history_mask), _Stream(), 0
    for number, runs in enumerate(STEPS[:2]):
        prepared = step.prepare(to_batch(runs), number)
        candidates = prepared.items.id_C.tolist()
        wanted = stream.targets(runs, candidates, history_mask)
        assert {t for run in runs for t in run.targets} <= {*candidates} <= stream.known
        assert len({*candidates}) == len(candidates)
        drawn += sum(
            not t and stream.weight[i] > 0
            for i, t in zip(candidates, prepared.items.is_target_C, strict=True)
        )
        got = prepared.targets
        assert got.target_E.tolist() == wanted.target_E.tolist()
        np.testing.assert_allclose(got.log_q_M, wanted.log_q_M, rtol=2e-6)
        assert got.drop_EM.tolist() == wanted.drop_EM.tolist()
        assert got.global_events == wanted.global_events
        step.train(prepared, number)
    assert drawn  # an item of the first step that only a draw made a candidate of the second


def test_equation_16_a_step_is_adam_of_towers_and_rows_at_their_rates_times_warm_up_times_decay(one_thread):
    train = {"learning_rate": 0.02, "row_learning_rate": 0.05, "warmup_steps": 2, "gradient_clip": 0.05}
    step, stream = _train_step(**train), _Stream()
    towers = copy.deepcopy(step.model).train()
    adam = torch.optim.Adam(towers.parameters())
    rows, row_adam = {}, {}
    for number, (runs, decay) in enumerate(zip(STEPS, (0.9, 0.7, 0.2), strict=True)):
        prepared = step.prepare(to_batch(runs), number)
        candidates = prepared.items.id_C.tolist()
        targets = stream.targets(runs, candidates, "past")
        keys = KeyCollector()
        queries = query_inputs(to_batch(runs), _categories, keys, towers.config)
        taken = np.isin(candidates, [t for run in runs for t in run.targets])
        items = item_inputs(np.array(candidates), _categories, keys, taken)
        tables, ids = keys.keys()
        names = list(zip(tables.tolist(), ids.tolist(), strict=True))
        for table, key in names:
            if (table, key) not in rows:
                fresh = initial_rows(np.array([table], np.int16), np.array([key]), CONFIG.dim, 11, 0.3)
                rows[table, key] = torch.from_numpy(fresh[0]).requires_grad_()
                row_adam[table, key] = torch.optim.Adam([rows[table, key]])
        rows_UD = torch.stack([torch.zeros(CONFIG.dim), *(rows[name] for name in names)])
        terms = towers(rows_UD, queries, items, targets, seed=11, step=number)
        for optimizer in (adam, *row_adam.values()):
            optimizer.zero_grad()
        terms.total.backward()
        norm = torch.cat([p.grad.flatten() for p in towers.parameters() if p.grad is not None]).norm()
        assert norm > 0.05
        for parameter in towers.parameters():
            if parameter.grad is not None:
                parameter.grad *= 0.05 / norm
        rate = decay * (0.5, 1.0, 1.0)[number]
        adam.param_groups[0]["lr"] = 0.02 * rate
        adam.step()
        for name in names:
            row_adam[name].param_groups[0]["lr"] = 0.05 * rate
            row_adam[name].step()

        before = {name: p.detach().clone() for name, p in step.model.named_parameters()}
        losses = step.train(prepared, number, decay=decay)
        assert losses == pytest.approx({name: float(x) for name, x in terms.detached().items()}, rel=1e-4)
        moved = 0
        for (name, got), want in zip(step.model.named_parameters(), towers.parameters(), strict=True):
            np.testing.assert_allclose(got.detach(), want.detach(), rtol=1e-4, atol=2e-5, err_msg=name)
            moved += not torch.equal(got, before[name])
        assert moved > 0.9 * len(before)
    tables_K, ids_K = np.array([t for t, _ in rows], np.int16), np.array([i for _, i in rows])
    assert len(step.table) == len(rows)
    got_KD = step.table.lookup(tables_K, ids_K, create=False).rows_UD[1:]
    np.testing.assert_allclose(got_KD, torch.stack([*rows.values()]).detach(), rtol=1e-4, atol=2e-5)
    assert step.events_seen == stream.weight.total()


@pytest.mark.parametrize("counted", [-1000.0, 1e9])
def test_an_item_whose_count_is_no_share_of_all_events_is_trained_with_the_nearest_share(counted):
    """As checkpoints have them in which negative weights were counted, or through rounding."""
    step = _train_step()
    step.train(step.prepare(to_batch(STEPS[0]), 0), 0)
    tables, ids = np.array([ITEM], np.int16), np.array([3])
    step.table.frequency_C[step.table.index.find(tables, ids)] = counted
    prepared = step.prepare(to_batch(STEPS[1]), 1)
    log_q = dict(zip(prepared.items.id_C.tolist(), prepared.targets.log_q_M.tolist(), strict=True))
    assert log_q[3] == max(log_q.values()) if counted > 0 else np.isfinite(log_q[3])
    assert np.isfinite(step.train(prepared, 1)["total"])
