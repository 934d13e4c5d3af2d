"""Towers and AdamW's moments through a file: the next step is the same one."""

import pytest
import torch
from torch import nn

from cluster.checkpoints.manifest import CheckpointError
from cluster.checkpoints.parts.towers import load_towers, save_towers
from model.tower_optimizer import TowerOptimizer


def _model(seed, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.LayerNorm(width), nn.Linear(width, 1))


def _optimizer(model):
    return TowerOptimizer(model.parameters(), weight_decay=0.1)


def _step(model, optimizer, seed):
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
    optimizer.clear_gradients()
    model(inputs).square().sum().backward()
    optimizer.step(0.05)


def _parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_after_a_round_trip_the_next_step_is_the_same_to_the_bit(tmp_path):
    model, loaded = _model(1), _model(2)
    optimizer, other = _optimizer(model), _optimizer(loaded)
    for seed in range(3):
        _step(model, optimizer, seed)
    load_towers(tmp_path / save_towers(tmp_path, model, optimizer).name, loaded, other)
    assert torch.equal(_parameters(loaded), _parameters(model))
    for seed in (3, 4):
        _step(model, optimizer, seed)
        _step(loaded, other, seed)
    assert torch.equal(_parameters(loaded), _parameters(model))


def test_without_an_optimizer_only_the_parameters_are_written_and_read(tmp_path):
    model, loaded = _model(1), _model(2)
    path = tmp_path / save_towers(tmp_path, model, None).name
    load_towers(path, loaded)
    assert torch.equal(_parameters(loaded), _parameters(model))
    other = _optimizer(loaded)
    load_towers(path, loaded, other)
    assert not other.state


def test_towers_of_another_shape_are_refused_by_the_parameters_name_with_both_shapes(tmp_path):
    path = tmp_path / save_towers(tmp_path, _model(1, width=4), None).name
    with pytest.raises(CheckpointError, match=r"parameter 0\.bias has shape \(4,\).*\(6,\)") as refused:
        load_towers(path, _model(1, width=6))
    assert "\n" not in str(refused.value)


def test_a_part_that_the_file_does_not_have_starts_fresh_and_the_log_says_so(tmp_path, caplog):
    path, loaded = tmp_path / save_towers(tmp_path, _model(1)[:3], None).name, _model(2)
    load_towers(path, loaded)
    assert torch.equal(loaded[0].weight, _model(1)[0].weight)
    assert torch.equal(loaded[3].weight, _model(2)[3].weight)
    assert "nothing for 3.bias, 3.weight: new, so it starts fresh" in caplog.text


def test_a_part_that_the_model_does_not_have_any_more_is_refused_by_the_parameters_name(tmp_path):
    path = tmp_path / save_towers(tmp_path, _model(1), None).name
    with pytest.raises(CheckpointError, match=r"parameter 3\.bias has shape \(1,\).*None"):
        load_towers(path, _model(1)[:3])
