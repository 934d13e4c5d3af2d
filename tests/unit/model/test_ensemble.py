"""Members side by side: one inner product, separate models."""

from dataclasses import replace

import pytest
import torch

from model.cl_epidtn import CLEPIDTN, cl_epidtn
from model.config import ModelConfig
from model.ensemble import Ensemble


@pytest.fixture
def two(config):
    """Two members with visible signals in every path, and their settings."""
    torch.manual_seed(0)
    settings = replace(config, dim=16, members=2, similarity="dot", temperature=0.5)
    model = cl_epidtn(settings, 2).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model, settings


@pytest.fixture
def step(two, runs_of, step_of):
    runs = runs_of(1, 5, two[1].history_length)
    items = [*sorted({t for run in runs for t in run.targets}), 900, 901]
    total = sum(run.weight * len(run.targets) for run in runs)
    return step_of(runs, items, items, total, two[1])


def _own(rows, k):
    return rows[:, 8 * k : 8 * k + 8].contiguous()


def test_one_inner_product_of_the_whole_is_the_sum_of_the_members_scores(two, step):
    model, _ = two
    model.eval()
    queries = model.encode_queries(step.rows_UD, step.queries).vectors_ED
    items = model.encode_items(step.rows_UD, step.items).vectors_CD
    alone = [
        member.encode_queries(_own(step.rows_UD, k), step.queries).vectors_ED
        @ member.encode_items(_own(step.rows_UD, k), step.items).vectors_CD.T
        for k, member in enumerate(model.members)
    ]
    assert queries.shape[1] == items.shape[1] == 16
    assert torch.allclose(queries @ items.T, alone[0] + alone[1], atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=0.1)


def test_with_cosine_the_whole_has_unit_norm_and_its_score_is_the_mean_of_the_members_cosines(
    config, runs_of, step_of
):
    settings = replace(config, dim=16, members=2, similarity="cosine")
    model = cl_epidtn(settings, 2).eval()
    runs = runs_of(2, 4, config.history_length)
    step = step_of(runs, [1, 2, 900], sorted({t for run in runs for t in run.targets} | {900}), 1.0, settings)
    items = model.encode_items(step.rows_UD, step.items).vectors_CD
    first, second = (
        member.encode_items(_own(step.rows_UD, k), step.items).vectors_CD
        for k, member in enumerate(model.members)
    )
    assert torch.allclose(items.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(items @ items.T, (first @ first.T + second @ second.T) / 2, atol=1e-5)


def test_each_member_is_trained_by_its_own_loss_as_if_it_were_alone(two, step):
    model, _ = two
    terms = model(*step.arguments(), seed=3, step=6)
    terms.total.backward()
    together = step.rows_UD.grad.clone()
    total = 0.0
    for k, member in enumerate(model.members):
        own = _own(step.rows_UD.detach(), k).requires_grad_()
        alone = member(own, *step.arguments()[1:], seed=3 * 2 + k, step=6)
        with_whole = {name: p.grad.clone() for name, p in member.named_parameters()}
        member.zero_grad()
        alone.total.backward()
        for name, parameter in member.named_parameters():
            assert torch.allclose(parameter.grad, with_whole[name], rtol=1e-4, atol=1e-6), name
        assert torch.allclose(_own(together, k), own.grad, rtol=1e-4, atol=1e-6)
        total += float(alone.total.detach())
    assert float(terms.total.detach()) == pytest.approx(total, rel=1e-6)
    assert all(float(value) > 0 for value in terms.detached().values())


def test_the_members_draw_views_of_their_own(two, step):
    model, _ = two
    twin = Ensemble(two[1], lambda own: CLEPIDTN(own, 2))
    for member in twin.members:
        member.load_state_dict(model.members[0].state_dict())
    same_rows = torch.cat([_own(step.rows_UD.detach(), 0)] * 2, dim=1)
    terms = twin.train()(same_rows, *step.arguments()[1:], seed=3, step=6)
    alone = model.members[0](_own(same_rows, 0), *step.arguments()[1:], seed=6, step=6)
    assert float(terms.contrastive_sequence.detach()) != pytest.approx(
        2 * float(alone.contrastive_sequence.detach()), rel=1e-4
    )


def test_one_member_is_the_model_itself(config):
    assert isinstance(cl_epidtn(config, 2), CLEPIDTN)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": 0}, r"model\.members must be at least 1, got 0"),
        ({"members": 3}, r"model\.members must divide model\.dim=16, got 3"),
        ({"members": 8, "heads": 4}, r"model\.heads must divide model\.dim / model\.members = 2, got 4"),
    ],
)
def test_members_that_cannot_share_the_columns_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(dim=16, **settings)
