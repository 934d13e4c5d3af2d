"""Towers that are read from files are made without random numbers and without the libraries that "meta" imports."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from cluster.queries.towers import new_towers, towers_to_fill
from tests.support.unit_runs import small_config

PROGRAM = """
import sys
from cluster.queries.towers import towers_to_fill
from model.config import ModelConfig
towers_to_fill(ModelConfig(), 2)
assert "sympy" not in sys.modules
"""


@pytest.mark.parametrize("layers", [1, 3])
def test_no_random_number_is_drawn_and_every_parameter_is_zero(layers):
    config = small_config()
    config = replace(config, model=replace(config.model, layers=layers))
    new = new_towers(config, torch.device("cpu"))
    before = torch.get_rng_state()
    empty = towers_to_fill(config.model, len(config.stream.user_attributes))
    assert torch.equal(torch.get_rng_state(), before)
    assert {n: p.shape for n, p in empty.state_dict().items()} == {
        n: p.shape for n, p in new.state_dict().items()
    }
    assert not any(parameter.any() for parameter in empty.parameters())
    empty.load_state_dict(new.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(empty.parameters(), new.parameters(), strict=True))


def test_nothing_large_is_imported_for_it():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=120)
