"""YouTube DNN and DSSM against their equations, one event at a time in NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.baselines.dssm import DSSM
from model.baselines.youtube_dnn import YouTubeDNN
from model.features import ACTIVITY, CATEGORY, ITEM, USER, attribute_table


@pytest.fixture
def config(config):
    return replace(config, source_items=0, similarity="dot")


class Rows:
    """The step's rows by (table, id)."""

    def __init__(self, step):
        tables, ids = step.keys.keys()
        keys = zip(tables.tolist(), ids.tolist(), strict=True)
        self._of = {key: step.rows_UD[k + 1].detach().numpy() for k, key in enumerate(keys)}

    def item(self, item):
        return self._of[ITEM, item]

    def categories(self, item, item_categories):
        row = item_categories(np.array([item]))[0]
        return sum((self._of[CATEGORY, c] for c in row.tolist() if c), np.zeros_like(self.item(item)))

    def user(self, run, k):
        bucket = min(20, int(2 * np.log2(max(1, run.events_before + k))))
        zero = np.zeros_like(self._of[USER, run.user])
        attributes = [self._of[attribute_table(f), a] if a else zero for f, a in enumerate(run.attributes)]
        return np.concatenate([self._of[USER, run.user], self._of[ACTIVITY, bucket], *attributes])


def _dense(tower, x):
    linear = [module for module in tower if isinstance(module, torch.nn.Linear)]
    for n, layer in enumerate(linear):
        x = layer.weight.detach().numpy() @ x + layer.bias.detach().numpy()
        x = np.maximum(x, 0) if n < len(linear) - 1 else x
    return x


def _step(step_of, runs_of, config):
    runs = runs_of(4, 6, config.history_length)
    items = [*sorted({t for run in runs for t in run.targets}), 900, 901]
    return runs, items, step_of(runs, items, items, 9.0, config)


def _events(runs, window):
    for run in runs:
        for k in range(len(run.targets)):
            yield run, k, (run.context + run.targets[:k])[-window:]


def _mean(vectors, dim):
    return np.mean(vectors, axis=0) if vectors else np.zeros(dim)


@torch.no_grad()
def test_youtube_dnn_compares_a_dense_tower_of_attributes_and_mean_history_with_item_embeddings(
    config, runs_of, step_of
):
    runs, items, step = _step(step_of, runs_of, config)
    model, rows = YouTubeDNN(config, 2).eval(), Rows(step)
    want = [
        _dense(
            model.user_tower,
            np.concatenate([rows.user(run, k), _mean([rows.item(i) for i in history], config.dim)]),
        )
        for run, k, history in _events(runs, config.history_length)
    ]
    got = model.encode_queries(step.rows_UD, step.queries).vectors_ED
    np.testing.assert_allclose(got, np.stack(want), rtol=1e-4, atol=1e-6)
    vectors = model.encode_items(step.rows_UD, step.items).vectors_CD
    np.testing.assert_allclose(vectors, np.stack([rows.item(i) for i in items]))


@torch.no_grad()
def test_dssm_compares_two_dense_towers_that_read_ids_and_categories(
    config, runs_of, step_of, item_categories
):
    runs, items, step = _step(step_of, runs_of, config)
    model, rows = DSSM(config, 2).eval(), Rows(step)

    def item_vector(item):
        return rows.item(item) + rows.categories(item, item_categories)

    want = [
        _dense(
            model.user_tower,
            np.concatenate([rows.user(run, k), _mean([item_vector(i) for i in history], config.dim)]),
        )
        for run, k, history in _events(runs, config.history_length)
    ]
    got = model.encode_queries(step.rows_UD, step.queries).vectors_ED
    np.testing.assert_allclose(got, np.stack(want), rtol=1e-4, atol=1e-6)
    fields = [np.concatenate([rows.item(i), rows.categories(i, item_categories)]) for i in items]
    vectors = model.encode_items(step.rows_UD, step.items).vectors_CD
    np.testing.assert_allclose(
        vectors, np.stack([_dense(model.item_tower, f) for f in fields]), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("kind", [YouTubeDNN, DSSM])
@torch.no_grad()
def test_both_sides_have_unit_norm_with_cosine(config, runs_of, step_of, kind):
    config = replace(config, similarity="cosine")
    _, _, step = _step(step_of, runs_of, config)
    model = kind(config, 2).eval()
    for vectors in (
        model.encode_queries(step.rows_UD, step.queries).vectors_ED,
        model.encode_items(step.rows_UD, step.items).vectors_CD,
    ):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(vectors.shape[0]))


def test_a_dense_tower_has_the_configured_number_of_hidden_layers_each_half_as_wide(config):
    tower = YouTubeDNN(replace(config, layers=3), 2).user_tower
    widths = [m.out_features for m in tower if isinstance(m, torch.nn.Linear)]
    assert widths == [64, 32, 16, 8]
