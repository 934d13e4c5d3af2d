"""The precision of the towers' products: near float32 in training, and nothing but training is touched."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.publishing.item_encoding import encode_owned_items
from tests.support.checkpointing import save_checkpoint
from tests.support.device_runs import config_of, differing, distance, gradients, state_of, train_and_score
from tests.support.unit_runs import QUOTA, open_run

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}


class _Products(TorchDispatchMode):
    """Counts matrix products by their inputs' type."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in PRODUCTS:
            self.found[args[-1].dtype] += 1
        return func(*args, **(kwargs or {}))


def _run(precision, variant="two layers", **model):
    config = config_of(variant, **model)
    config.precision = precision
    return open_run(config)


def _first_forward(run):
    """The products of a training step's forward, and of the encoding of all items."""
    prepared = run.train_step.prepare(run.batcher.next_batch(QUOTA), 0)
    arguments = prepared.lookup.rows_UD, prepared.queries, prepared.items, prepared.targets
    with _Products() as training:
        run.model.train()(*arguments, seed=1, step=0)
    with _Products() as encoding:
        encode_owned_items(run.model, run.table, run.catalogue, Collectives())
    return training.found, encoding.found


def test_bf16_multiplies_the_towers_in_bfloat16_and_all_else_in_float32():
    plain_training, plain_encoding = _first_forward(_run("fp32"))
    training, encoding = _first_forward(_run("bf16"))
    assert set(plain_training) == set(plain_encoding) == {torch.float32}
    # What stays: scores, the similarities of the contrastive losses, the filter of the recent sources.
    assert 1 <= training[torch.float32] <= 8
    assert training[torch.bfloat16] == plain_training[torch.float32] - training[torch.float32]
    assert training[torch.bfloat16] > training[torch.float32]
    assert encoding == plain_encoding


@pytest.mark.parametrize("variant", ["two members", "pointwise", "cl_dssm", "the towers alone"])
def test_bf16_loses_about_what_float32_loses(variant):
    wanted, found = (train_and_score(_run(precision, variant), 3) for precision in ("fp32", "bf16"))
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine["total"] == pytest.approx(theirs["total"], rel=2e-2)
    assert found != wanted, "nothing was rounded"


def test_bf16_gradients_are_float32_and_point_the_same_way():
    here, there = _run("fp32", init_std=0.2), _run("bf16", init_std=0.2)
    for run in (here, there):
        train_and_score(run, 1)
    wanted, found = gradients(here), gradients(there)
    assert found.keys() == wanted.keys()
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    for name in (n for n in wanted if not n.endswith("to_qkv.bias")):  # that of a key bias is rounding error
        assert distance(found[name], wanted[name]) < 0.1, name


def test_a_checkpoint_and_what_is_published_do_not_depend_on_the_precision(tmp_path):
    run = _run("bf16", dropout=0.2)
    train_and_score(run, 3)
    checkpoint = save_checkpoint(run, CheckpointStore(tmp_path), Collectives())
    plain = open_run(config_of("two layers", dropout=0.2), checkpoint)
    saved = state_of(run)
    assert differing(saved, state_of(plain)) == []
    assert not any(value.dtype == torch.bfloat16 for value in saved.values())
    vectors = [encode_owned_items(r.model, r.table, r.catalogue, Collectives())[1] for r in (run, plain)]
    assert torch.equal(*vectors)


def test_tf32_is_on_where_it_was_asked_for_alone():
    found = []
    for precision in ("fp32", "tf32", "bf16", "tf32", "fp32"):
        _run(precision)
        found.append(torch.backends.cuda.matmul.allow_tf32)
    assert found == [False, True, False, True, False]


def test_another_precision_is_refused_by_name():
    with pytest.raises(ValueError, match="precision must be fp32, tf32 or bf16, got 'fp16'"):
        FreshetConfig(precision="fp16")
