"""Properties of the losses for any numbers, in float64."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model.losses import in_batch_softmax, info_nce, mimic, pointwise

ROUNDING = 1e-9


def _tensor(draw, *shape, low=-4.0, high=4.0):
    elements = st.floats(low, high, allow_subnormal=False)
    return torch.from_numpy(draw(arrays(np.float64, shape, elements=elements)))


def _bools(draw, *shape):
    return torch.from_numpy(draw(arrays(np.bool_, shape)))


@dataclass(frozen=True)
class Events:
    """Arguments of the two main losses."""

    scores_EM: torch.Tensor
    log_q_M: torch.Tensor
    target_E: torch.Tensor
    drop_EM: torch.Tensor
    weight_E: torch.Tensor
    count: float

    def softmax(self):
        return float(
            in_batch_softmax(
                self.scores_EM, self.log_q_M, self.target_E, self.drop_EM, self.weight_E, self.count
            )
        )

    def pointwise(self):
        return float(pointwise(self.scores_EM, self.target_E, self.drop_EM, self.weight_E, self.count))

    def some(self, events):
        """A part of the events, the count unchanged: what one rank has."""
        return replace(
            self,
            scores_EM=self.scores_EM[events],
            target_E=self.target_E[events],
            drop_EM=self.drop_EM[events],
            weight_E=self.weight_E[events],
        )

    def candidates(self, order):
        """The columns in another order, some of them again after the first time."""
        first_M = (order == torch.arange(self.log_q_M.shape[0]).unsqueeze(1)).to(torch.uint8).argmax(1)
        return replace(
            self,
            scores_EM=self.scores_EM[:, order],
            log_q_M=self.log_q_M[order],
            drop_EM=self.drop_EM[:, order],
            target_E=first_M[self.target_E],
        )


@st.composite
def events(draw, least=0):
    count, candidates = draw(st.integers(least, 4)), draw(st.integers(1, 6))
    target = torch.tensor(draw(st.lists(st.integers(0, candidates - 1), min_size=count, max_size=count)))
    drop = _bools(draw, count, candidates).scatter(1, target.long().view(-1, 1), False)
    weight = _tensor(draw, count, low=0.0)
    log_q = _tensor(draw, candidates, low=-8.0, high=0.0)
    return Events(
        _tensor(draw, count, candidates), log_q, target.long(), drop, weight, float(weight.sum()) + 1.0
    )


MAIN = pytest.mark.parametrize("loss", [Events.softmax, Events.pointwise])


@MAIN
@given(given_events=events())
def test_a_main_loss_is_finite_and_not_negative(loss, given_events):
    assert 0 <= loss(given_events) < np.inf


@MAIN
@given(given_events=events(), data=st.data())
def test_the_order_of_the_candidates_changes_no_main_loss(loss, given_events, data):
    order = torch.tensor(data.draw(st.permutations(range(given_events.log_q_M.shape[0]))))
    assert loss(given_events.candidates(order)) == pytest.approx(loss(given_events), abs=ROUNDING)


@MAIN
@given(given_events=events(), data=st.data())
def test_the_ranks_shares_of_a_main_loss_add_up(loss, given_events, data):
    rank = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=4, max_size=4)))
    shares = [
        loss(given_events.some(torch.nonzero(rank[: len(given_events.target_E)] == r)[:, 0]))
        for r in range(3)
    ]
    assert sum(shares) == pytest.approx(loss(given_events), abs=ROUNDING)


@MAIN
@given(given_events=events(), factor=st.floats(0.01, 100))
def test_scaling_the_weights_scales_a_main_loss_and_with_the_count_it_changes_nothing(
    loss, given_events, factor
):
    base, heavier = loss(given_events), replace(given_events, weight_E=given_events.weight_E * factor)
    assert loss(heavier) == pytest.approx(base * factor, abs=ROUNDING * factor + ROUNDING)
    assert loss(replace(heavier, count=given_events.count * factor)) == pytest.approx(base, abs=ROUNDING)


@MAIN
@given(given_events=events(least=1), copies=st.integers(1, 4))
def test_an_event_of_weight_n_is_n_events(loss, given_events, copies):
    heavy = given_events.some(torch.tensor([0]))
    many = given_events.some(torch.zeros(copies, dtype=torch.int64))
    assert loss(replace(heavy, weight_E=heavy.weight_E * copies)) == pytest.approx(loss(many), abs=ROUNDING)


@given(given_events=events(), shift=st.floats(-20, 20))
def test_a_shift_of_every_log_q_changes_no_softmax(given_events, shift):
    shifted = replace(given_events, log_q_M=given_events.log_q_M + shift)
    assert shifted.softmax() == pytest.approx(given_events.softmax(), abs=1e-8)


@given(given_events=events(), shift=st.floats(-20, 20))
def test_a_shift_of_every_score_changes_no_softmax(given_events, shift):
    shifted = replace(given_events, scores_EM=given_events.scores_EM + shift)
    assert shifted.softmax() == pytest.approx(given_events.softmax(), abs=1e-8)


@given(given_events=events(least=1))
def test_a_higher_score_of_the_target_lowers_both_main_losses(given_events):
    own = torch.nn.functional.one_hot(given_events.target_E, given_events.log_q_M.shape[0])
    better = replace(given_events, scores_EM=given_events.scores_EM + own)
    for loss in (Events.softmax, Events.pointwise):
        assert loss(better) <= loss(given_events) + ROUNDING


@given(given_events=events(), data=st.data())
def test_dropping_more_negatives_never_raises_the_softmax(given_events, data):
    more = given_events.drop_EM | _bools(data.draw, *given_events.drop_EM.shape)
    more = more.scatter(1, given_events.target_E.view(-1, 1), False)
    assert replace(given_events, drop_EM=more).softmax() <= given_events.softmax() + ROUNDING


@given(given_events=events())
def test_a_candidate_twice_never_lowers_the_softmax_and_every_negative_twice_changes_no_pointwise_loss(
    given_events,
):
    count = given_events.log_q_M.shape[0]
    for extra in range(count):
        assert (
            given_events.candidates(torch.tensor([*range(count), extra])).softmax()
            >= given_events.softmax() - ROUNDING
        )
    twice = given_events.candidates(torch.arange(count).repeat(2))
    # The target's second column is no negative of it.
    drop = twice.drop_EM.scatter(1, given_events.target_E.view(-1, 1) + count, True)
    assert replace(twice, drop_EM=drop).pointwise() == pytest.approx(given_events.pointwise(), abs=ROUNDING)


@given(given_events=events(least=1))
def test_the_softmax_gradient_raises_the_target_lowers_the_rest_and_sums_to_zero(given_events):
    scores = given_events.scores_EM.clone().requires_grad_()
    in_batch_softmax(
        scores,
        given_events.log_q_M,
        given_events.target_E,
        given_events.drop_EM,
        given_events.weight_E,
        given_events.count,
    ).backward()
    assert torch.allclose(scores.grad.sum(1), torch.zeros_like(given_events.weight_E), atol=ROUNDING)
    assert not scores.grad[given_events.drop_EM].any()
    own = scores.grad.gather(1, given_events.target_E.view(-1, 1))
    assert (own <= ROUNDING).all()
    assert (scores.grad.scatter(1, given_events.target_E.view(-1, 1), 0.0) >= -ROUNDING).all()


@st.composite
def heads(draw):
    count, dim = draw(st.integers(0, 4)), draw(st.integers(1, 5))
    other = _tensor(draw, count, dim) + 5.0  # Away from zero, which has no direction.
    return _tensor(draw, count, dim), other, _tensor(draw, count, low=0.0)


@given(heads(), st.floats(0.01, 100))
def test_mimic_does_not_see_the_length_of_the_other_vector(given_heads, factor):
    head, other, weight = given_heads
    assert float(mimic(head, other * factor, weight, 3.0)) == pytest.approx(
        float(mimic(head, other, weight, 3.0)), abs=ROUNDING
    )


@given(heads())
def test_mimic_is_between_zero_and_four_for_unit_heads_and_zero_only_for_the_target(given_heads):
    _, other, weight = given_heads
    count = max(float(weight.sum()), 1.0)
    target = torch.nn.functional.normalize(other, dim=1)
    assert float(mimic(target, other, weight, count)) == pytest.approx(0.0, abs=ROUNDING)
    assert float(mimic(-target, other, weight, count)) == pytest.approx(4 * float(weight.sum()) / count)
    assert 0 <= float(mimic(target.roll(1, 0), other, weight, count)) <= 4 + ROUNDING


@given(heads(), st.integers(0, 4))
def test_the_ranks_shares_of_mimic_add_up(given_heads, cut):
    shares = [mimic(*(x[part] for x in given_heads), 3.0) for part in (slice(cut), slice(cut, None))]  # type: ignore[call-arg]
    assert float(sum(shares)) == pytest.approx(float(mimic(*given_heads, 3.0)), abs=ROUNDING)  # type: ignore[call-arg]


@dataclass(frozen=True)
class Pairs:
    """Arguments of info_nce on one rank."""

    first: torch.Tensor
    second: torch.Tensor
    group: torch.Tensor
    temperature: float
    negative: torch.Tensor
    has: torch.Tensor

    def loss(self, anchors=slice(None), *, explicit=True):
        own = torch.arange(len(self.group))[anchors]
        same = self.group[own].unsqueeze(1) == self.group
        negatives = (self.negative[own], self.has[own]) if explicit else (None, None)
        return float(info_nce(self.first[own], self.second, own, same, self.temperature, *negatives))


@st.composite
def pairs(draw):
    count, dim = draw(st.integers(1, 5)), draw(st.integers(2, 4))
    group = torch.tensor(draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)))
    vectors = [_tensor(draw, count, dim) for _ in range(3)]
    # A vector without length has no direction.
    vectors = [torch.where(x.norm(dim=1, keepdim=True) < 0.1, 1.0, x) for x in vectors]
    return Pairs(*vectors[:2], group, draw(st.floats(0.05, 2.0)), vectors[2], _bools(draw, count))  # type: ignore[call-arg]


@given(pairs())
def test_info_nce_is_not_negative_and_no_more_than_the_worst_cosines_allow(given_pairs):
    bound = 2 / given_pairs.temperature + np.log(len(given_pairs.group) + 1)
    assert -ROUNDING <= given_pairs.loss() <= bound + ROUNDING


@given(pairs())
def test_an_explicit_negative_never_lowers_info_nce_and_none_is_like_having_none(given_pairs):
    without = given_pairs.loss(explicit=False)
    assert given_pairs.loss() >= without - ROUNDING
    nobody = replace(given_pairs, has=torch.zeros_like(given_pairs.has))
    assert nobody.loss() == pytest.approx(without, abs=ROUNDING)


@given(pairs(), st.floats(0.1, 50))
def test_info_nce_does_not_see_the_lengths_of_the_vectors(given_pairs, factor):
    longer = replace(given_pairs, first=given_pairs.first * factor, second=given_pairs.second / factor)
    longer = replace(longer, negative=given_pairs.negative * factor)
    assert longer.loss() == pytest.approx(given_pairs.loss(), abs=1e-7)


@given(pairs(), st.data())
def test_the_order_of_the_anchors_changes_no_info_nce(given_pairs, data):
    order = torch.tensor(data.draw(st.permutations(range(len(given_pairs.group)))))
    names = ("first", "second", "group", "negative", "has")
    shuffled = replace(given_pairs, **{name: getattr(given_pairs, name)[order] for name in names})
    assert shuffled.loss() == pytest.approx(given_pairs.loss(), abs=ROUNDING)


@given(pairs(), st.integers(0, 5))
def test_the_ranks_shares_of_info_nce_add_up(given_pairs, cut):
    shares = given_pairs.loss(slice(cut)) + given_pairs.loss(slice(cut, None))
    assert shares == pytest.approx(given_pairs.loss(), abs=ROUNDING)


@given(pairs())
def test_entities_that_are_all_the_same_have_nothing_to_tell_apart(given_pairs):
    alike = replace(given_pairs, group=torch.zeros_like(given_pairs.group))
    assert alike.loss(explicit=False) == pytest.approx(0.0, abs=ROUNDING)
    distinct = replace(given_pairs, group=torch.arange(len(given_pairs.group)))
    assert distinct.loss(explicit=False) >= given_pairs.loss(explicit=False) - ROUNDING
