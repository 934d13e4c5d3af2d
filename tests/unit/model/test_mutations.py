"""The checks of tests/support/equations.py are effective: each fails on a model with one mutation.

A mutation replaces a piece of one function's source and swaps the function's compiled code, so that modules that have
imported the function run the mutant. If a piece is no longer in the source, its test fails and must be updated.
"""

import __future__

import inspect
import textwrap
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest

from model import (
    augmentation,
    contrastive,
    features,
    losses,
    metrics,
    token_rows,
    towers,
    transformer,
    two_tower,
)
from model.cl_epidtn import CLEPIDTN
from model.contrastive import ContrastiveLosses
from tests.support import equations
from tests.support.equations import CONFIG


@dataclass(frozen=True)
class Mutation:
    """`old` becomes `new` in the one function of `owner` (a class or a module) that has it."""

    what: str
    owner: object
    old: str
    new: str
    check: str
    arguments: tuple = ()
    settings: dict = field(default_factory=dict)

    @property
    def check_id(self):
        return " ".join([self.check, *self.arguments, *(f"{k}={v}" for k, v in self.settings.items())])

    def run_check(self):
        config = (replace(CONFIG, **self.settings),) if self.settings else ()
        getattr(equations, self.check)(*self.arguments, *config)


def _functions(owner):
    """A function itself, those of a class, or those of a module, methods included."""
    if inspect.isfunction(owner):
        yield owner
        return
    module = owner if inspect.ismodule(owner) else inspect.getmodule(owner)
    for value in vars(owner).values():
        if inspect.isfunction(value) and value.__code__.co_filename == module.__file__:
            yield value
        elif inspect.isclass(value) and value.__module__ == module.__name__:
            yield from _functions(value)


@contextmanager
def mutated(owner, old, new):
    """The function of `owner` whose source holds `old`, with `new` instead, until the end of the block."""
    found = [f for f in _functions(owner) if old in inspect.getsource(f)]
    assert len(found) == 1, f"{old!r} is in {len(found)} functions of {owner.__name__}"
    function = found[0]
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{old!r} is {source.count(old)} times in {function.__qualname__}"
    flags = __future__.annotations.compiler_flag
    code = compile(source.replace(old, new), f"mutant of {function.__qualname__}", "exec", flags, True)
    namespace = {}
    exec(code, function.__globals__, namespace)
    whole = function.__code__
    function.__code__ = namespace[function.__name__].__code__
    try:
        yield
    finally:
        function.__code__ = whole


def _of(check, owner, *rows, **settings):
    return [Mutation(what, owner, old, new, check, settings=settings) for what, old, new in rows]


COUNT = "max(global_events, 1e-12)"

IN_BATCH_SOFTMAX = _of(
    "check_softmax",
    losses.in_batch_softmax,
    ("log q is added", "scores_EM - log_q_M", "scores_EM + log_q_M"),
    ("no log q", "scores_EM - log_q_M", "scores_EM"),
    ("known items are negatives", ".masked_fill_(drop_EM, -torch.inf)", ""),
    (
        "the target is not in the denominator",
        'F.cross_entropy(logits_EM, target_E, reduction="none")',
        "(logits_EM.scatter(1, target_E.unsqueeze(1), -torch.inf).logsumexp(1)"
        " - logits_EM.gather(1, target_E.unsqueeze(1)).squeeze(1))",
    ),
    ("another event's target", "target_E, reduction", "target_E.roll(1), reduction"),
    ("no weight", "nll_E @ weight_E", "nll_E.sum()"),
    ("mean over this rank's events", COUNT, "nll_E.shape[0]"),
    ("not divided", f" / {COUNT}", ""),
    ("sign", "nll_E @ weight_E", "-nll_E @ weight_E"),
)
POINTWISE = _of(
    "check_pointwise",
    losses.pointwise,
    ("known items are negatives", "(~drop_EM)", "torch.ones_like(drop_EM)"),
    ("the target is its own negative", ".scatter(1, target_E1, False)", ""),
    ("sign of the positive", "F.softplus(-scores_EM", "F.softplus(scores_EM"),
    ("sign of the negatives", "(F.softplus(scores_EM)", "(F.softplus(-scores_EM)"),
    ("no negatives", " + wrong_E", ""),
    ("no positive", "F.softplus(-scores_EM.gather(1, target_E1).squeeze(1)) + ", ""),
    ("sum over negatives", " / negative_EM.sum(1).clamp_min(1)", ""),
    ("hinge", "(F.softplus(scores_EM)", "(F.relu(scores_EM)"),
    ("no weight", "(loss_E * weight_E)", "loss_E"),
    ("mean over this rank's events", COUNT, "loss_E.shape[0]"),
)
MIMIC = _of(
    "check_mimic",
    losses.mimic,
    ("the other tower is trained", "other_ED.detach()", "other_ED"),
    ("the target keeps its length", "unit(other_ED.detach())", "other_ED.detach()"),
    ("mean over columns", ".sum(1)", ".mean(1)"),
    ("away from the target", "head_ED - target_ED", "head_ED + target_ED"),
    ("absolute error", ".square()", ".abs()"),
    ("no weight", ".sum(1) @ weight_E", ".sum()"),
    ("mean over this rank's events", COUNT, "weight_E.shape[0]"),
    ("the head is not trained", "(head_ED - ", "(head_ED.detach() + 0 * head_ED - "),
)
INFO_NCE = _of(
    "check_info_nce",
    losses.info_nce,
    ("the same entity is a negative", ".masked_fill_(same_ST & ~is_positive_ST, -torch.inf)", ""),
    ("the positive is not in the denominator", "same_ST & ~is_positive_ST", "same_ST"),
    ("no temperature", "unit(second_TD).T / temperature", "unit(second_TD).T"),
    ("multiplied by the temperature", "unit(second_TD).T / temperature", "unit(second_TD).T * temperature"),
    ("first view keeps its length", "unit_SD = unit(first_SD)", "unit_SD = first_SD"),
    ("second view keeps its length", "unit(second_TD)", "second_TD"),
    ("second view is frozen", "unit(second_TD)", "unit(second_TD.detach())"),
    ("first view is frozen", "unit(first_SD)", "unit(first_SD.detach())"),
    (
        "another anchor's positive",
        "logits_ST, positive_S, reduction",
        "logits_ST, positive_S.roll(1), reduction",
    ),
    ("not divided", "(weight / second_TD.shape[0])", "weight"),
    ("divided twice", 'reduction="sum"', 'reduction="mean"'),
)
EXPLICIT_NEGATIVE = _of(
    "check_info_nce_with_explicit_negatives",
    losses.info_nce,
    ("no explicit negative", "torch.cat([logits_ST, own_S1], dim=1)", "logits_ST"),
    ("explicit negative without temperature", ".sum(1) / temperature", ".sum(1)"),
    ("explicit negative keeps its length", "unit(negative_SD)", "negative_SD"),
    ("explicit negative where there is none", "own_S.masked_fill(~has_negative_S, -torch.inf)", "own_S"),
    (
        "another anchor's explicit negative",
        "unit(negative_SD)",
        "unit(negative_SD.roll(1, 0))",
    ),
    ("explicit negative is frozen", "unit(negative_SD)", "unit(negative_SD.detach())"),
)
WEIGHTED_SUM = [
    *_of(
        "check_terms",
        CLEPIDTN,
        ("no lambda 1", "weighted(user, config.mimic_user_weight)", "user"),
        ("no lambda 2", "weighted(other, config.mimic_item_weight)", "other"),
        ("lambda 2 for lambda 1", "config.mimic_user_weight", "config.mimic_item_weight"),
        (
            "mimic of any candidate",
            "F.embedding(targets.target_E, augmented_MA)",
            "augmented_MA[: queries.weight_E.shape[0]]",
        ),
        ("mimic of the own tower", "mimic(head_ED, query.vectors_ED", "mimic(head_ED, target_ED"),
        (
            "main loss sees masked tokens",
            "[input_mask(key, queries, input_mask_ratio)]",
            "[queries.history.sequence_RL < -1]",
        ),
        (
            "no mimic in the sum",
            "main, *mimics, *contrastive",
            "main, *(0 * m for m in mimics), *contrastive",
        ),
    ),
    *_of(
        "check_terms",
        two_tower,
        ("main alone", "[main, *rest]", "[main]"),
        ("one term is lost", "[main, *rest]", "[main, *rest[:-1]]"),
        ("no temperature", "scores_EM / self.config.temperature", "scores_EM"),
        ("full log q", "weighted(targets.log_q_M, self.config.logq_strength)", "targets.log_q_M"),
    ),
    *_of(
        "check_terms",
        two_tower,
        ("softmax instead of labels", 'self.config.loss == "pointwise"', "False"),
        loss="pointwise",
    ),
    *_of(
        "check_terms",
        ContrastiveLosses,
        ("no alpha", "alpha = config.contrastive_weight", "alpha = 1.0"),
        ("no sub-weight", "alpha * config.contrastive_item_weight", "alpha"),
        (
            "weights of sequence and attributes are swapped",
            "zip(weights, views",
            "zip((weights[1], weights[0], weights[2]), views",
        ),
        ("temperature of the main loss", "self._config.contrastive_temperature", "self._config.temperature"),
    ),
]
VIEWS = [
    *_of(
        "check_terms",
        CLEPIDTN,
        ("explicit negatives are not read", "if queries.negatives.token_RL.shape[0]:", "if False:"),
        (
            "no mean in the sequence view",
            "torch.split(read_Q2D,",
            "torch.split(torch.cat([read_Q2D[:events], read_Q2D[events:]"
            " * torch.arange(2 * config.dim).ge(config.dim)]),",
        ),
        (
            "no last state in the sequence view",
            "torch.split(read_Q2D,",
            "torch.split(torch.cat([read_Q2D[:events], read_Q2D[events:]"
            " * torch.arange(2 * config.dim).lt(config.dim)]),",
        ),
        (
            "the sequence view hides nothing",
            "sequence_masks(key, queries, config.sequence_mask_ratio)",
            "sequence_masks(key, queries, 0.0)",
        ),
        (
            "no dropout on attributes",
            "factor_VD[:of_users]",
            "plan.kept_V[:of_users, None].expand(-1, config.dim)",
        ),
        (
            "no dropout on items",
            "factor_VD[of_users:]",
            "plan.kept_V[of_users:, None].expand(-1, config.dim)",
        ),
        ("uniform negatives are anchors", 'self.config.contrastive_items == "candidates"', "True"),
    ),
    *_of(
        "check_terms",
        contrastive,
        ("attributes are not masked", "kept_SF.flatten()", "torch.ones_like(kept_SF).flatten()"),
        (
            "the item's id is not masked",
            "[keep_id_T, keep_category_T]",
            "[torch.ones_like(keep_id_T), keep_category_T]",
        ),
        (
            "the item's categories are not masked",
            "[keep_id_T, keep_category_T]",
            "[keep_id_T, torch.ones_like(keep_id_T)]",
        ),
    ),
    *_of(
        "check_terms",
        CLEPIDTN,
        ("users of equal attributes are negatives", "plan.user_S, plan.group_S", "plan.user_S, plan.user_S"),
        user_id_embedding=False,
    ),
    *_of(
        "check_terms",
        features,
        (
            "the newer half is the negative",
            "self.within_T < half_N[self.row_T]",
            "self.within_T >= (self.length_N - half_N)[self.row_T]",
        ),
        ("a third is the negative", "self.length_N // 2", "self.length_N // 3"),
        ("short rows have a negative too", "self.length_N >= 4", "self.length_N >= 2"),
        ("explicit negatives all the same", 'config.negative_sequence == "older_half"', "False"),
        negative_sequence="older_half",
    ),
    *_of(
        "check_terms",
        augmentation,
        ("a whole sequence may be hidden", "(uniform_RL < largest_N[of_token].view_as(uniform_RL)) & ", ""),
        sequence_mask_ratio=0.95,
    ),
    *_of(
        "check_terms",
        augmentation,
        (
            "all attributes may be hidden",
            "kept_EF.scatter(1, uniform_EF.argmax(dim=1, keepdim=True), True)",
            "kept_EF",
        ),
        attribute_mask_ratio=0.95,
    ),
    *_of(
        "check_terms",
        augmentation,
        ("ids are hidden twice as often", "return uniform_E >= ratio / 2", "return uniform_E >= ratio"),
        ("dropout changes the mean", "np.float32(scale)", "np.float32(1.0)"),
        item_mask_ratio=0.9,
    ),
    *_of(
        "check_two_views_are_two_augmentations",
        contrastive,
        ("both sequence views are one", "SEQUENCE_VIEW + view", "SEQUENCE_VIEW"),
        ("both attribute views are one", "ATTRIBUTE_VIEW + view", "ATTRIBUTE_VIEW"),
        ("both item views are one", "ITEM_VIEW + view", "ITEM_VIEW"),
    ),
    *_of(
        "check_gradients_flow",
        ContrastiveLosses,
        (
            "the other views are frozen",
            "torch.cat([views.second_SD, *bits",
            "torch.cat([views.second_SD.detach(), *bits",
        ),
    ),
    *_of(
        "check_gradients_flow",
        CLEPIDTN,
        ("sequence views do not train items", "read(item_ID, plan.rows", "read(item_ID.detach(), plan.rows"),
        (
            "explicit negatives are frozen",
            "sequence_views[len(VIEWS)] if",
            "sequence_views[len(VIEWS)].detach() if",
        ),
        (
            "item views do not train rows",
            "with_views(fields_X2D,",
            "with_views(torch.cat([fields_X2D[:candidates], fields_X2D[candidates:].detach()]),",
        ),
        (
            "attribute views do not train rows",
            "with_views(fields_XFD,",
            "with_views(torch.cat([fields_XFD[:events], fields_XFD[events:].detach()]),",
        ),
    ),
]
ITEM_TOWER = [
    *_of(
        "check_item_tower",
        towers.ItemTower,
        ("no residual path", " + fields_C2D.sum(1)", ""),
        ("no category in the residual path", "fields_C2D.sum(1)", "fields_C2D[:, 0]"),
        (
            "no augmented vector",
            "torch.cat([joined, augmented], dim=1)",
            "torch.cat([joined, 0 * augmented], dim=1)",
        ),
    ),
    *_of("check_item_tower", towers.sum_of_rows, ("mean of categories", 'mode="sum"', 'mode="mean"')),
    *_of("check_item_tower", CLEPIDTN, ("no unit norm", "unit(vectors) if", "vectors if")),
    *_of(
        "check_pav_input_is_detached",
        towers.ItemTower,
        ("the input of a_i is not detached", "joined.detach()", "joined"),
    ),
]
USER_TOWER = [
    *_of(
        "check_pav_input_is_detached",
        towers.AttributeTower,
        ("the input of a_u is not detached", "joined.detach()", "joined"),
    ),
    *_of(
        "check_user_tower",
        towers.AttributeTower,
        (
            "no augmented vector",
            "torch.cat([joined, augmented], dim=1)",
            "torch.cat([joined, 0 * augmented], dim=1)",
        ),
    ),
    *_of(
        "check_user_tower",
        towers,
        (
            "mean and last are swapped",
            "[attribute_ED, history_E2D]",
            "[attribute_ED, history_E2D.roll(attribute_ED.shape[1], 1)]",
        ),
        ("the skip has no weight", "torch.addcmul(out, self.skip, last_ED)", "out + last_ED"),
        ("no sources", "out + source_ED", "out"),
        ("one weight for all sources", "F.embedding(distance_LL,", "F.embedding(0 * distance_LL,"),
        ("sources of later items", "outside_LL | rows", "outside_LL.tril() | rows"),
        ("sources of other users", "outside_LL | rows.strange_RLL", "outside_LL"),
        ("no categories in the sequence", "queries.rows_IK", "queries.rows_IK[:, :1]"),
        ("no categories in the sources", "queries.source_rows_IK", "queries.source_rows_IK[:, :1]"),
    ),
    *_of(
        "check_user_tower",
        transformer,
        ("attention sees what comes later", "masked_fill(outside_LL,", "masked_fill(outside_LL.tril(),"),
        (
            "attention sees beyond the window",
            "masked_fill(outside_LL,",
            "masked_fill(distances(length, self.window + 1, self.bias_HW.device)[1],",
        ),
        ("attention sees other users", "scores_RHLL += apart_R1LL", "pass"),
        ("attention without its scale", " * query.shape[3] ** -0.5", ""),
        ("attention without positions", "F.embedding(distance_LL,", "0.0 * F.embedding(distance_LL,"),
        ("no norm before attention", "self.attention_norm(x_RLD)", "x_RLD"),
        ("no norm before the feed-forward part", "self.feed_forward_norm(x_RLD)", "x_RLD"),
        ("no residual path", "return x_RLD + self._drop", "return self._drop"),
        ("another activation", "F.gelu(", "F.relu("),
        ("no norm of the input", "self.input_norm(token_RLD)", "token_RLD"),
        ("no norm of the output", "self.output_norm(state_RLD)", "state_RLD"),
        ("mean over all states", "inside(length, window,", "inside(length, 2 * window,"),
        ("mean of other users' states too", "inside_LL.masked_fill(rows.strange_RLL, 0.0)", "inside_LL"),
    ),
    *_of(
        "check_user_tower",
        token_rows,
        ("mean of more than there are", "position_Q.clamp(1, window)", "window"),
        ("mean of fewer than there are", "position_Q.clamp(1, window)", "position_Q.clamp_min(1)"),
        ("a state too early", "+ position_Q - 1).clamp_min(0)", "+ position_Q - 2).clamp_min(0)"),
        ("an event without history reads a state", "[mean_Q, some_Q]", "[mean_Q, torch.ones_like(some_Q)]"),
    ),
    *_of(
        "check_scores",
        CLEPIDTN,
        ("dot product where cosine is meant", 'self.config.similarity == "cosine"', "False"),
    ),
]
DROPOUT = [
    *_of(
        "check_dropout",
        transformer,
        (
            "no dropout after attention",
            "self._drop(self._attend(self.attention_norm(x_RLD), apart_R1LL))",
            "self._attend(self.attention_norm(x_RLD), apart_R1LL)",
        ),
        ("no dropout after the feed-forward part", "self._drop(self.narrow(hidden))", "self.narrow(hidden)"),
        (
            "no dropout inside the feed-forward part",
            "self._drop(F.gelu(self.widen(self.feed_forward_norm(x_RLD))))",
            "F.gelu(self.widen(self.feed_forward_norm(x_RLD)))",
        ),
        (
            "no dropout on the input",
            "dropout(self.input_norm(token_RLD), self.dropout, self.training)",
            "self.input_norm(token_RLD)",
        ),
        ("none in the second block", "block(state_RLD", "block.train(block is self.blocks[0])(state_RLD"),
        (
            "dropout on the residual path",
            "return x_RLD + self._drop(",
            "return self._drop(x_RLD) + self._drop(",
        ),
        (
            "dropout on the states",
            "out: Tensor = self.output_norm(state_RLD)",
            "out: Tensor = dropout(self.output_norm(state_RLD), self.dropout, self.training)",
        ),
    ),
    *_of(
        "check_dropout",
        towers,
        ("no dropout in the MLPs", "Dropout(dropout), ", "nn.Identity(), "),
        ("dropout on the MLPs' outputs", "outputs))", "outputs), Dropout(dropout))"),
        ("no dropout on the sources", "self.dropout(last_states(", "(last_states("),
    ),
]
ROUTES = [
    Mutation(what, owner, old, new, "check_routes", arguments=(term,))
    for what, owner, old, new, term in (
        ("mimic reaches user rows", towers.AttributeTower, "joined.detach()", "joined", "mimic_user"),
        ("mimic reaches item rows", towers.ItemTower, "joined.detach()", "joined", "mimic_item"),
        ("mimic reaches the user tower", losses.mimic, "other_ED.detach()", "other_ED", "mimic_item"),
        (
            "main does not train the user's augmentation",
            towers.AttributeTower,
            "[joined, augmented]",
            "[joined, augmented.detach()]",
            "main",
        ),
        (
            "main does not train the item's augmentation",
            towers.ItemTower,
            "[joined, augmented]",
            "[joined, augmented.detach()]",
            "main",
        ),
        (
            "main does not train items",
            CLEPIDTN,
            "return item_MD, augmented_MA",
            "return item_MD.detach(), augmented_MA",
            "main",
        ),
    )
]
METRICS = [
    *_of(
        "check_recall",
        metrics,
        (
            "share of N",
            "_divided(hits_per_query(rank_G, query_G, queries, n), targets_Q.astype(np.float64))",
            "hits_per_query(rank_G, query_G, queries, n) / n",
        ),
        ("hits beyond N", "query_G, rank_G < n,", "query_G, rank_G < n + 1,"),
        (
            "ideal of a single test item",
            "ideal_N1[np.minimum(targets_Q, n)]",
            "ideal_N1[np.minimum(targets_Q, 1)]",
        ),
        ("ideal beyond N", "np.arange(n) + 2.0))])", "np.arange(n) + 1.5))])"),
    ),
    *_of("check_hit_rate", metrics.hit_rate, ("one place too many", "rank_E < n", "rank_E <= n")),
    *_of(
        "check_one_test_item_each",
        metrics.ndcg,
        ("one place too many", "rank_E < n", "rank_E <= n"),
        ("discount of the place after", "rank_E + 2.0", "rank_E + 3.0"),
        ("natural logarithm", "np.log2", "np.log"),
    ),
]
ALL = {
    "in-batch softmax": IN_BATCH_SOFTMAX,
    "pointwise": POINTWISE,
    "mimic": MIMIC,
    "InfoNCE": INFO_NCE,
    "explicit negative": EXPLICIT_NEGATIVE,
    "weighted sum": WEIGHTED_SUM,
    "views": VIEWS,
    "item tower": ITEM_TOWER,
    "user tower": USER_TOWER,
    "dropout": DROPOUT,
    "routes": ROUTES,
    "metrics": METRICS,
}


@pytest.mark.parametrize(
    "mutation",
    [pytest.param(m, id=f"{part}: {m.what}") for part, mutations in ALL.items() for m in mutations],
)
def test_a_wrong_term_or_path_makes_its_check_fail(mutation):
    with mutated(mutation.owner, mutation.old, mutation.new), pytest.raises(AssertionError):
        mutation.run_check()


@pytest.mark.parametrize(
    "mutation",
    [pytest.param(m, id=name) for name, m in {m.check_id: m for ms in ALL.values() for m in ms}.items()],
)
def test_afterwards_the_same_check_passes_on_the_model_as_it_is(mutation):
    mutation.run_check()


def test_a_mutation_whose_text_is_gone_is_an_error():
    with pytest.raises(AssertionError, match="in 0 functions"), mutated(losses, "no such text", ""):
        pass
