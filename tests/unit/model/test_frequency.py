"""The probability of being a candidate, compared with a simulation and at its limits."""

import numpy as np
import pytest

from model.frequency import combined_log_q


def test_q_is_the_share_of_simulated_steps_that_have_the_item():
    rng = np.random.default_rng(0)
    share = np.array([0.5, 0.2, 0.1, 0.05, 0.15, 0.0])
    steps = 20_000
    taken = np.zeros((steps, 6), np.bool_)
    for _ in range(4):
        taken[np.arange(steps), rng.choice(6, steps, p=share)] = True
    for _ in range(2):
        taken[np.arange(steps), rng.integers(0, 6, steps)] = True
    np.testing.assert_allclose(np.exp(combined_log_q(share, 4, 6, 2)), taken.mean(0), atol=0.012)


def test_a_rare_item_keeps_its_precision():
    got = combined_log_q(np.array([1e-11, 2e-11]), 256, 10**9, 0)
    assert got[1] - got[0] == pytest.approx(np.log(2), abs=1e-5)


def test_an_item_that_nobody_took_is_as_likely_as_a_uniform_draw_and_finite_without_draws():
    assert combined_log_q(np.zeros(1), 256, 1000, 500)[0] == pytest.approx(np.log(1 - 0.999**500), rel=1e-5)
    assert np.isfinite(combined_log_q(np.zeros(1), 256, 1000, 0)[0])
    assert combined_log_q(np.array([1.0]), 256, 1, 500)[0] == pytest.approx(0.0, abs=1e-6)


def test_a_frequency_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match="1\\.5"):
        combined_log_q(np.array([1.5]), 1, 2, 3)
