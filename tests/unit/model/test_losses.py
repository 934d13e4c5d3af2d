"""Each loss against its equation in float64 loops."""

import numpy as np
import pytest
import torch

from model.losses import in_batch_softmax, info_nce, mimic


def _random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def test_in_batch_softmax_is_equation_25_with_weights_and_dropped_negatives():
    scores, log_q = _random(4, 6) * 3, _random(6, seed=1) - 2
    target, weight = torch.tensor([2, 0, 2, 5]), torch.tensor([1.0, 0.5, 2.0, 1.0])
    drop = torch.zeros(4, 6, dtype=torch.bool)
    drop[0, 1] = drop[2, 3] = drop[2, 4] = True
    want = 0.0
    for e in range(4):
        logit = scores[e].double() - log_q.double()
        kept = [c for c in range(6) if not drop[e, c]]
        denominator = sum(np.exp(float(logit[c])) for c in kept)
        want -= float(weight[e]) * np.log(np.exp(float(logit[target[e]])) / denominator)
    got = in_batch_softmax(scores, log_q, target, drop, weight, 9.0)
    assert float(got) == pytest.approx(want / 9.0, rel=1e-6)


def test_in_batch_softmax_without_events_is_zero_and_can_be_differentiated():
    scores = torch.zeros(0, 3, requires_grad=True)
    none = torch.zeros(0)
    loss = in_batch_softmax(
        scores, torch.zeros(3), none.long(), torch.zeros(0, 3, dtype=torch.bool), none, 4.0
    )
    loss.backward()
    assert float(loss) == 0.0
    assert scores.grad is not None


def test_mimic_is_a_sum_over_columns_against_a_unit_target_that_gets_no_gradient():
    head, other = _random(3, 5).requires_grad_(), (_random(3, 5, seed=1) * 4).requires_grad_()
    weight = torch.tensor([1.0, 2.0, 3.0])
    loss = mimic(head, other, weight, 6.0)
    unit = other.detach().double() / other.detach().double().norm(dim=1, keepdim=True)
    want = ((head.detach().double() - unit).square().sum(1) * weight.double()).sum() / 6
    loss.backward()
    assert float(loss) == pytest.approx(float(want), rel=1e-6)
    assert other.grad is None
    assert head.grad is not None


def test_info_nce_leaves_the_same_entity_out_of_the_negatives_and_keeps_the_positive():
    first, second = _random(3, 4), _random(5, 4, seed=1)
    positive = torch.tensor([4, 0, 2])
    same = torch.zeros(3, 5, dtype=torch.bool)
    same[0, 4] = same[1, 0] = same[2, 2] = same[0, 3] = True
    want = 0.0
    for i in range(3):
        a = first[i].double() / first[i].double().norm()
        similarity = [float(a @ (second[j].double() / second[j].double().norm())) / 0.5 for j in range(5)]
        kept = [j for j in range(5) if j == positive[i] or not same[i, j]]
        want -= similarity[positive[i]] - np.log(sum(np.exp(similarity[j]) for j in kept))
    assert float(info_nce(first, second, positive, same, 0.5)) == pytest.approx(want / 5, rel=1e-6)


def test_info_nce_without_anchors_is_zero():
    nobody = torch.zeros(0, 4, requires_grad=True)
    loss = info_nce(nobody, _random(5, 4), torch.zeros(0).long(), torch.zeros(0, 5, dtype=torch.bool), 0.5)
    loss.backward()
    assert float(loss) == 0.0
