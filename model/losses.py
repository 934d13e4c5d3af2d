"""The losses of CL-EPIDTN. Each is a sum over local anchors divided by a global count, so ranks' losses add up.

Shape letters: E events, M candidates of all ranks, S local anchors, T anchors of all ranks, D columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.unit_norm import unit


def in_batch_softmax(
    scores_EM: Tensor,
    log_q_M: Tensor,
    target_E: Tensor,
    drop_EM: Tensor,
    weight_E: Tensor,
    global_events: float,
) -> Tensor:
    """Sampled softmax over the step's candidates, corrected for sampling bias (Eq. 25; logQ: Yi et al. 2019).

    L = −1/B Σ_e w_e log [ exp(s_e,t − log q_t) / Σ_{c ∉ drop_e} exp(s_e,c − log q_c) ]

    Args:
        scores_EM: float32, similarity / temperature.
        log_q_M: float32, natural log of each candidate's sampling probability, times the correction's strength.
        target_E: int64, the column of each event's positive.
        drop_EM: bool, negatives to leave out (items that the user is known to like); never the target.
        weight_E: float32, weight of each event.
        global_events: B, the sum of weights over all ranks.
    Returns:
        Scalar, in nats.
    """
    logits_EM = (scores_EM - log_q_M).masked_fill_(drop_EM, -torch.inf)
    nll_E = F.cross_entropy(logits_EM, target_E, reduction="none") if target_E.shape[0] else logits_EM.sum(1)
    return nll_E @ weight_E / max(global_events, 1e-12)


def pointwise(
    scores_EM: Tensor, target_E: Tensor, drop_EM: Tensor, weight_E: Tensor, global_events: float
) -> Tensor:
    """Cross-entropy of labels (Eq. 14): 1 for the target, 0 for every other candidate that is not dropped.

    L = −1/B Σ_e w_e [ log σ(s_e,t) + 1/n_e Σ_{c ∉ drop_e, c ≠ t} log(1 − σ(s_e,c)) ]

    An event's n_e negatives together weigh as much as its positive, as if one were drawn for each positive. So the
    loss does not grow with the number of candidates, and ranks need not exchange their numbers of pairs.

    Args:
        scores_EM: float32, similarity / temperature.
        target_E: int64, the column of each event's positive.
        drop_EM: bool, candidates without a label (items that the user is known to like); never the target.
        weight_E: float32, weight of each event.
        global_events: B, the sum of weights over all ranks.
    Returns:
        Scalar, in nats, without sampling correction.
    """
    target_E1 = target_E.unsqueeze(1)
    negative_EM = (~drop_EM).scatter(1, target_E1, False)
    wrong_E = (F.softplus(scores_EM) * negative_EM).sum(1) / negative_EM.sum(1).clamp_min(1)
    loss_E = F.softplus(-scores_EM.gather(1, target_E1).squeeze(1)) + wrong_E
    return (loss_E * weight_E).sum() / max(global_events, 1e-12)


def mimic(head_ED: Tensor, other_ED: Tensor, weight_E: Tensor, global_events: float) -> Tensor:
    """Squared distance of the augmented vectors from the other tower's output (Eqs. 4 and 5, with linear heads).

    L = 1/B Σ_e w_e ‖G(a_e) − sg(v_e)‖²

    Args:
        head_ED: float32, G(a), the head's output.
        other_ED: float32, the positive's vector in the other tower; normalised and detached here.
        weight_E: float32.
        global_events: B, the sum of weights over all ranks.
    """
    target_ED = unit(other_ED.detach())
    return (head_ED - target_ED).square().sum(1) @ weight_E / max(global_events, 1e-12)


def info_nce(
    first_SD: Tensor,
    second_TD: Tensor,
    positive_S: Tensor,
    same_ST: Tensor | None,
    temperature: float,
    negative_SD: Tensor | None = None,
    has_negative_S: Tensor | None = None,
    weight: float = 1.0,
) -> Tensor:
    """Agreement of two views of the same entity against other entities (Eqs. 19, 21–24), cosine similarity.

    L = −1/T Σ_i log [ exp(s(z'_i, z''_i)/τ) / (Σ_{j: j = i or j differs from i} exp(s(z'_i, z''_j)/τ)
                                                + exp(s(z'_i, z⁻_i)/τ)) ]

    Args:
        first_SD: float32, this rank's anchors in their first view.
        second_TD: float32, the second views of all ranks.
        positive_S: int64, the anchor's own place among T.
        same_ST: bool, pairs that are not negatives because the entities have the same attributes; None if none do.
        temperature: τ.
        negative_SD: float32, z⁻, an explicit negative of each anchor (Eq. 21); None without any.
        has_negative_S: bool, which anchors have one.
        weight: a factor of the loss.
    Returns:
        Scalar; 0 if no rank has an anchor.
    """
    if first_SD.shape[0] == 0:
        return first_SD.sum() * 0.0
    unit_SD = unit(first_SD)
    logits_ST = unit_SD @ unit(second_TD).T / temperature
    if same_ST is not None:
        is_positive_ST = torch.arange(second_TD.shape[0], device=positive_S.device) == positive_S.unsqueeze(1)
        logits_ST = logits_ST.masked_fill_(same_ST & ~is_positive_ST, -torch.inf)
    if negative_SD is not None and has_negative_S is not None:
        own_S = (unit_SD * unit(negative_SD)).sum(1) / temperature
        own_S1 = own_S.masked_fill(~has_negative_S, -torch.inf).unsqueeze(1)
        logits_ST = torch.cat([logits_ST, own_S1], dim=1)
    return F.cross_entropy(logits_ST, positive_S, reduction="sum") * (weight / second_TD.shape[0])
