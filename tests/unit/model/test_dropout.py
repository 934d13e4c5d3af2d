"""Dropout from eight-bit draws: its probability, its mean, its gradient."""

import pytest
import torch

from model.dropout import Dropout, dropout


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.9])
def test_the_given_share_is_dropped_everywhere_alike_and_the_mean_stays(ratio):
    torch.manual_seed(0)
    x = torch.ones(4000, 64)
    out = dropout(x, ratio, True)
    # Every column, since a column is always the same byte of a random number.
    share_of_column = (out == 0).float().mean(0)
    assert float((share_of_column - ratio).abs().max()) < 0.035
    assert float((out == 0).float().mean()) == pytest.approx(ratio, abs=0.004)
    assert float(out.mean()) == pytest.approx(1.0, abs=0.01 / (1 - ratio))
    assert out.unique().shape[0] == 2


def test_the_gradient_passes_where_the_value_did_with_the_same_factor():
    x = torch.randn(50, 30, requires_grad=True)
    out = dropout(x, 0.4, True)
    out.sum().backward()
    assert torch.allclose(x.grad * x.detach(), out.detach())


def test_it_does_nothing_in_evaluation_or_at_ratio_zero():
    x = torch.randn(5, 7)
    assert dropout(x, 0.5, False) is x
    assert dropout(x, 0.0, True) is x
    assert Dropout(0.5).eval()(x) is x


def test_the_same_seed_gives_the_same_mask_and_the_next_draw_another():
    x = torch.ones(9, 11)
    torch.manual_seed(3)
    first, second = dropout(x, 0.5, True), dropout(x, 0.5, True)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.5, True), first)
    assert not torch.equal(first, second)
