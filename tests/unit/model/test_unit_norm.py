"""Unit vectors and their gradient against torch's own."""

import torch
import torch.nn.functional as F

from model.unit_norm import unit


def test_value_and_gradient_are_torchs_also_of_a_zero_row():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64) * 3
    x[3] = 0.0
    pull = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    found, wanted = x.clone().requires_grad_(), x.clone().requires_grad_()
    (unit(found) * pull).sum().backward()
    (F.normalize(wanted, dim=1) * pull).sum().backward()
    assert torch.equal(unit(x), F.normalize(x, dim=1))
    assert torch.equal(unit(found).detach(), unit(x))
    others = torch.arange(40) != 3
    torch.testing.assert_close(found.grad[others], wanted.grad[others], rtol=1e-12, atol=1e-14)
    assert torch.isfinite(found.grad).all()


def test_the_gradient_is_that_of_central_differences():
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(unit, (x,))
