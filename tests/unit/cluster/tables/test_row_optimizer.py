"""Touched-row optimizers against torch's own and against their formulas."""

import numpy as np
import pytest
import torch

from cluster.tables.row_optimizer import RowAdagrad, RowAdam, row_optimizer

ROWS, DIM = 7, 5


def _state(optimizer):
    return {name: torch.zeros(ROWS, *s, dtype=d) for name, (s, d) in optimizer.state_shapes(DIM).items()}


def _gradient(step, rows=ROWS):
    return torch.randn(rows, DIM, generator=torch.Generator().manual_seed(step))


def test_row_adam_equals_torch_adam_when_every_row_is_touched_in_every_step():
    values, reference = torch.ones(ROWS, DIM), torch.ones(ROWS, DIM, requires_grad=True)
    ours, state = RowAdam(), _state(RowAdam())
    theirs = torch.optim.Adam([reference], lr=0.03)
    for step in range(20):
        ours.update(values, state, torch.randperm(ROWS).sort().values, _gradient(step), 0.03)
        reference.grad = _gradient(step)
        theirs.step()
    torch.testing.assert_close(values, reference.detach(), atol=2e-6, rtol=1e-5)


def test_a_seldom_touched_row_moves_under_row_adam_as_if_it_had_been_trained_alone():
    values, state, alone = torch.zeros(ROWS, DIM), _state(RowAdam()), torch.zeros(1, DIM, requires_grad=True)
    theirs = torch.optim.Adam([alone], lr=0.1)
    for step in range(12):
        touched = torch.tensor([0, 3]) if step % 4 == 0 else torch.tensor([0])
        RowAdam().update(values, state, touched, _gradient(step)[touched], 0.1)
        if step % 4 == 0:
            alone.grad = _gradient(step)[3:4]
            theirs.step()
    torch.testing.assert_close(values[3], alone.detach()[0], atol=1e-6, rtol=1e-5)
    assert state["updates"].tolist() == [12, 0, 0, 3, 0, 0, 0]


@pytest.mark.parametrize("name", ["adam", "adagrad"])
def test_untouched_rows_and_their_state_do_not_move(name):
    optimizer = row_optimizer(name)
    values, state = torch.ones(ROWS, DIM), _state(optimizer)
    for step in range(3):
        optimizer.update(values, state, torch.tensor([4, 1]), _gradient(step, 2), 0.1)
    untouched = [0, 2, 3, 5, 6]
    assert torch.equal(values[untouched], torch.ones(5, DIM))
    assert all(not tensor[untouched].any() for tensor in state.values())
    assert (values[[1, 4]] != 1).all()


def test_row_adagrad_divides_by_the_root_of_the_summed_mean_square_of_the_rows_gradients():
    values, state = torch.zeros(ROWS, DIM), _state(RowAdagrad())
    expected, accumulator = np.zeros((ROWS, DIM)), np.zeros(ROWS)
    for step in range(5):
        touched = [0, 2, 5] if step % 2 else [2, 6]
        gradient = _gradient(step, len(touched))
        RowAdagrad().update(values, state, torch.tensor(touched), gradient, 0.1)
        for row, g in zip(touched, gradient.double().numpy(), strict=True):
            accumulator[row] += (g**2).mean()
            expected[row] -= 0.1 * g / (np.sqrt(accumulator[row]) + 1e-8)
    np.testing.assert_allclose(values.numpy(), expected, atol=1e-6)
    assert state["accumulator"].shape == (ROWS,)


@pytest.mark.parametrize("name", ["adam", "adagrad"])
def test_the_caller_keeps_its_gradient(name):
    optimizer, gradient = row_optimizer(name), _gradient(1, 2)
    before = gradient.clone()
    optimizer.update(torch.zeros(ROWS, DIM), _state(optimizer), torch.tensor([0, 1]), gradient, 0.1)
    assert torch.equal(gradient, before)


@pytest.mark.parametrize("name", ["adam", "adagrad"])
@pytest.mark.parametrize("dim", [1, 5, 64])
def test_the_compiled_loop_is_what_torch_says_to_rounding_wherever_the_gradients_stand(name, dim):
    ours, theirs = row_optimizer(name), row_optimizer(name)
    rng = np.random.default_rng(dim)
    shapes = ours.state_shapes(dim).items()
    values = torch.randn(50, dim, generator=torch.Generator().manual_seed(1))
    expected = values.clone()
    state, other = ({n: torch.zeros(50, *s, dtype=d) for n, (s, d) in shapes} for _ in range(2))
    for step in range(40):
        index, at = torch.from_numpy(rng.permutation(50)[:20]), torch.from_numpy(rng.permutation(30)[:20])
        gradient = torch.from_numpy(rng.normal(size=(30, dim)).astype(np.float32)) * 10.0 ** (step % 7 - 5)
        gradient[at[0]] = 0.0
        ours.update(values, state, index, gradient, 0.01, at)
        theirs.update_with_torch(expected, other, index, gradient[at], 0.01)
    torch.testing.assert_close(values, expected, atol=1e-6, rtol=1e-6)
    for key, tensor in state.items():
        torch.testing.assert_close(tensor, other[key], atol=1e-6, rtol=1e-5)


def test_after_more_updates_than_the_table_of_corrections_has_adam_goes_on_without_any():
    optimizer = RowAdam()
    values, state = (
        torch.zeros(1, 3),
        {name: torch.zeros(1, *s, dtype=d) for name, (s, d) in optimizer.state_shapes(3).items()},
    )
    state["updates"][:] = 10_000_000
    optimizer.update(values, state, torch.tensor([0]), torch.ones(1, 3), 0.1)
    np.testing.assert_allclose(values, -0.1 * 0.1 / np.sqrt(0.001), rtol=1e-5)
    assert state["updates"].tolist() == [10_000_001]


@pytest.mark.parametrize("updates", [0, 1, 6, 999, 50_000])
def test_a_gpu_corrects_bias_by_the_same_numbers_as_the_compiled_loop(updates):
    index, gradient, moved = torch.arange(ROWS), _gradient(1), []
    for update in (RowAdam().update, RowAdam().update_with_torch):
        values, state = torch.zeros(ROWS, DIM), _state(RowAdam())
        state["updates"].fill_(updates)
        update(values, state, index, gradient, 1.0)
        moved.append(values)
    # β2 ** t in float32 is off by 6e-5 of the first correction.
    torch.testing.assert_close(moved[1], moved[0], rtol=1e-6, atol=0)
