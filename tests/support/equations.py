"""The statements of docs/model.md as checks, each a function that fails if the model does not satisfy it.

`tests/unit/model/test_equations.py` calls them on the model, `test_mutations.py` on models that are broken on purpose.
Everything is accessed through its module, so that mutations take effect.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
import torch

from model import dropout, losses, metrics, transformer
from model.cl_epidtn import CLEPIDTN
from model.config import ModelConfig
from model.features import ITEM, ItemInputs, KeyCollector, QueryInputs, item_inputs, query_inputs
from model.two_tower import Targets
from tests.support.reference_model import (
    Reference,
    hit_rate_at,
    info_nce_loss,
    item_categories,
    mimic_loss,
    ndcg_at,
    pointwise_loss,
    recall_at,
    softmax_loss,
)
from tests.support.training_batches import Run, to_batch

CONFIG = ModelConfig(
    dim=8,
    heads=2,
    layers=2,
    history_length=4,
    augmented_dim=4,
    source_items=3,
    dropout=0.0,
    temperature=0.3,
    logq_strength=0.8,
    mimic_user_weight=0.7,
    mimic_item_weight=1.4,
    contrastive_weight=0.5,
    contrastive_every=1,
    contrastive_sequence_weight=0.9,
    contrastive_attribute_weight=1.2,
    contrastive_item_weight=0.6,
    contrastive_temperature=0.4,
    input_mask_ratio=0.3,
)
"""No two weights are equal, so that a mix-up is detected."""

RUNS = [
    Run(5, [], [3, 14], attributes=(1, 2), weights=[1.0, 2.0], times=[7, 7]),
    Run(
        6,
        [3, 8, 21],
        [5, 8, 3],
        attributes=(2, 0),
        weights=[1.0, 1.0, 0.5],
        negatives=(40,),
        times=[1, 2, 3, 3, 3, 4],
    ),
    Run(7, [9, 4, 4, 10, 2, 17, 30], [6], attributes=(0, 3), weights=[3.0]),
    Run(8, [12], [3], attributes=(1, 2), weights=[1.0], negatives=(3, 42)),
    Run(
        6,
        [3, 8, 21, 5, 8, 3],
        [11, 23],
        attributes=(2, 0),
        weights=[0.5, 1.0],
        negatives=(40, 41, 44),
        times=[1, 2, 3, 3, 3, 4, 5, 5],
    ),
]
"""No history, a history longer than W, an item twice, a user twice, users of equal attributes (5 and 8), events of one
time (also with the last of the history)."""


# --- a small step ---------------------------------------------------------------------------------------------------


@dataclass
class Step:
    """One process's arguments of `CLEPIDTN.forward`, and the reference with the same weights and rows."""

    config: ModelConfig
    model: CLEPIDTN
    reference: Reference
    rows_UD: torch.Tensor
    keys: list[tuple[int, int]]
    queries: QueryInputs
    items: ItemInputs
    item_ids: list[int]
    targets: Targets

    def terms(self):
        return self.model(
            self.rows_UD,
            self.queries,
            self.items,
            self.targets,
            seed=self.reference.seed,
            step=self.reference.step,
        )

    def touched(self) -> set[tuple[int, int]]:
        """The (table, id) whose row has a gradient."""
        if self.rows_UD.grad is None:
            return set()
        moved = self.rows_UD.grad[1:].abs().sum(1) > 0
        return {key for key, on in zip(self.keys, moved.tolist(), strict=True) if on}

    def trained(self) -> set[str]:
        """The parameters that have a gradient."""
        return {n for n, p in self.model.named_parameters() if p.grad is not None and bool(p.grad.any())}


def targets_of(runs: list[Run], candidates: list[int]) -> Targets:
    """Each event drops the items that its user had before it or takes in the same run, never its target."""
    place = {item: m for m, item in enumerate(candidates)}
    target_E = [t for run in runs for t in run.targets]
    known_E = [{*run.context, *run.targets} for run in runs for _ in run.targets]
    drop = [[i in known and i != t for i in candidates] for known, t in zip(known_E, target_E, strict=True)]
    return Targets(
        torch.tensor([place[t] for t in target_E], dtype=torch.int64),
        torch.log(torch.tensor([0.02 + (7 * i % 10) / 15 for i in candidates])),
        torch.tensor(drop, dtype=torch.bool).view(len(target_E), len(candidates)),
        float(sum(w for run in runs for w in run.weights)),
    )


def small_step(
    config: ModelConfig = CONFIG, runs: list[Run] = RUNS, *, seed: int = 3, step: int = 17
) -> Step:
    """A model with larger weights than the initial ones, so that every path has a visible effect."""
    targeted = sorted({t for run in runs for t in run.targets})
    candidates = [*targeted, 8000, 8001, 8003]
    keys = KeyCollector()
    queries = query_inputs(to_batch(runs), item_categories, keys, config)
    flags = np.isin(candidates, targeted)
    items = item_inputs(np.array(candidates), item_categories, keys, flags)
    tables, ids = keys.keys()
    names = list(zip(tables.tolist(), ids.tolist(), strict=True))
    rows = [np.random.default_rng(key).normal(0, 0.4, config.dim).astype(np.float32) for key in names]
    torch.manual_seed(seed)
    model = CLEPIDTN(config, 2).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    reference = Reference(
        config,
        {name: p.detach().numpy().astype(np.float64) for name, p in model.named_parameters()},
        {key: row.astype(np.float64) for key, row in zip(names, rows, strict=True)},
        seed,
        step,
    )
    rows_UD = torch.from_numpy(np.stack([np.zeros(config.dim, np.float32), *rows])).requires_grad_()
    return Step(
        config, model, reference, rows_UD, names, queries, items, candidates, targets_of(runs, candidates)
    )


def close(got, want, *, rtol=2e-5, atol=2e-5):
    """Float32 of the model against float64 of the reference."""
    if isinstance(got, torch.Tensor):
        got = got.detach().numpy()
    np.testing.assert_allclose(got, np.asarray(want), rtol=rtol, atol=atol)


def slope(function: Callable[[np.ndarray], float], x: np.ndarray) -> np.ndarray:
    """The gradient of a function by central differences."""
    out = np.zeros_like(x)
    for at in np.ndindex(*x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[at] += 1e-6
        behind[at] -= 1e-6
        out[at] = (function(ahead) - function(behind)) / 2e-6
    return out


def gradients_match(
    function: Callable[..., torch.Tensor], reference: Callable[..., float], *inputs: np.ndarray
):
    """Autograd in float64 against central differences, input by input."""
    tensors = [torch.from_numpy(x).requires_grad_() for x in inputs]
    function(*tensors).backward()
    for k, tensor in enumerate(tensors):
        want = slope(lambda x, k=k: reference(*inputs[:k], x, *inputs[k + 1 :]), inputs[k])
        got = np.zeros_like(want) if tensor.grad is None else tensor.grad.numpy()
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


# --- the losses on numbers ------------------------------------------------------------------------------------------

_TARGET = np.array([2, 0, 2, 5])
_WEIGHT = np.array([1.0, 0.5, 2.0, 1.5])


def _numbers(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape)


def _drop():
    drop = np.zeros((4, 6), np.bool_)
    drop[0, 1] = drop[2, 3] = drop[2, 4] = drop[3, 0] = True
    return drop


def check_softmax():
    """(25): value and gradient."""
    scores, log_q = _numbers(4, 6, scale=2.0), _numbers(6, seed=1) - 2
    target, drop, weight = torch.from_numpy(_TARGET), torch.from_numpy(_drop()), torch.from_numpy(_WEIGHT)

    def got(s, q):
        return losses.in_batch_softmax(s, q, target, drop, weight, 9.0)

    def want(s, q):
        return softmax_loss(s, q, _TARGET, _drop(), _WEIGHT, 9.0)

    close(got(torch.from_numpy(scores), torch.from_numpy(log_q)), want(scores, log_q), rtol=1e-12)
    gradients_match(got, want, scores, log_q)


def check_pointwise():
    """(14): value and gradient; if all negatives of an event are dropped, its positive remains."""
    scores, drop = _numbers(4, 6, scale=2.0), _drop()
    drop[1, 1:] = True

    def got(s):
        return losses.pointwise(
            s, torch.from_numpy(_TARGET), torch.from_numpy(drop), torch.from_numpy(_WEIGHT), 9.0
        )

    def want(s):
        return pointwise_loss(s, _TARGET, drop, _WEIGHT, 9.0)

    close(got(torch.from_numpy(scores)), want(scores), rtol=1e-12)
    gradients_match(got, want, scores)


def check_mimic():
    """(4), (5): value, the gradient of the head, and none of the other tower."""
    head, other, weight = _numbers(3, 5), _numbers(3, 5, seed=1, scale=4.0), np.array([1.0, 2.0, 0.5])

    def got(h):
        return losses.mimic(h, torch.from_numpy(other), torch.from_numpy(weight), 6.0)

    def want(h):
        return mimic_loss(h, other, weight, 6.0)

    close(got(torch.from_numpy(head)), want(head), rtol=1e-12)
    gradients_match(got, want, head)
    tower = torch.from_numpy(other).requires_grad_()
    losses.mimic(torch.from_numpy(head).requires_grad_(), tower, torch.from_numpy(weight), 6.0).backward()
    assert tower.grad is None or not tower.grad.any()


def _anchors():
    """Five anchors of which 0 and 3 are the same entity and 1 and 2 too."""
    group = np.array([7, 8, 8, 7, 9])
    return _numbers(5, 4), _numbers(5, 4, seed=1), group[:, None] == group


def check_info_nce():
    """(19), (22)–(24): value and the gradients of both views."""
    first, second, same = _anchors()

    def got(a, b):
        return losses.info_nce(a, b, torch.arange(5), torch.from_numpy(same), 0.5)

    def want(a, b):
        return info_nce_loss(a, b, same, 0.5)

    close(got(torch.from_numpy(first), torch.from_numpy(second)), want(first, second), rtol=1e-12)
    gradients_match(got, want, first, second)


def check_info_nce_with_explicit_negatives():
    """(21): value and gradients where some anchors have one."""
    (first, second, same), negative = _anchors(), _numbers(5, 4, seed=2)
    has = np.array([True, False, True, True, False])

    def got(a, b, c):
        return losses.info_nce(a, b, torch.arange(5), torch.from_numpy(same), 0.5, c, torch.from_numpy(has))

    def want(a, b, c):
        return info_nce_loss(a, b, same, 0.5, [x if h else None for x, h in zip(c, has, strict=True)])

    views = (first, second, negative)
    close(got(*map(torch.from_numpy, views)), want(*views), rtol=1e-12)
    gradients_match(got, want, *views)


# --- metrics --------------------------------------------------------------------------------------------------------


def _users(test_items, count=12, items=20):
    """Users with distinct scores, some seen items and `test_items(k)` test items, none of them seen."""
    random = np.random.default_rng(4)
    users = []
    for k in range(count):
        order = random.permutation(items).tolist()
        test, seen = set(order[: test_items(k)]), set(order[8 : 8 + k % 5])
        users.append((random.permutation(items).astype(np.float32), seen, test))
    return users


def _ranks(users):
    """The rank of each test item and its user, as the model's metrics take them."""
    pairs = [(k, item) for k, (_, _, test) in enumerate(users) for item in sorted(test)]
    scores = np.stack([users[k][0] for k, _ in pairs])
    drop = np.array([[i in users[k][1] for i in range(scores.shape[1])] for k, _ in pairs])
    ranks = metrics.full_ranks(scores, np.array([item for _, item in pairs]), drop)
    return ranks, np.array([k for k, _ in pairs])


def check_hit_rate():
    """(26): all test items of all users in the denominator."""
    users = _users(lambda k: 1 + k % 4)
    for n in (1, 5, 10):
        close(metrics.hit_rate(_ranks(users)[0], n), hit_rate_at(users, n), rtol=1e-12)


def check_recall():
    """(27): the mean over users of their own shares, and NDCG likewise; a user without test items has none."""
    users = _users(lambda k: 1 + k % 4)
    ranks, owner = _ranks(users)
    for n in (1, 3, 10):
        recall = metrics.recall_per_query(ranks, owner, len(users) + 1, n)
        ndcg = metrics.ndcg_per_query(ranks, owner, len(users) + 1, n)
        close(recall[:-1].mean(), recall_at(users, n), rtol=1e-12)
        close(ndcg[:-1].mean(), ndcg_at(users, n), rtol=1e-12)
        assert np.isnan([recall[-1], ndcg[-1]]).all()
        assert abs(recall_at(users, n) - hit_rate_at(users, n)) > 1e-3


def check_one_test_item_each():
    """(26), (27): with one test item per user HR is Recall; NDCG of one relevant item."""
    users = _users(lambda k: 1)
    ranks = _ranks(users)[0]
    for n in (1, 5, 10):
        close(metrics.hit_rate(ranks, n), recall_at(users, n), rtol=1e-12)
        close(metrics.ndcg(ranks, n), ndcg_at(users, n), rtol=1e-12)


# --- the towers -----------------------------------------------------------------------------------------------------


def check_item_tower(config: ModelConfig = CONFIG):
    """(2), (7), (10), (11), (13): item vectors and their augmented ones."""
    step = small_step(config)
    encoding = step.model.encode_items(step.rows_UD, step.items)
    fields = [step.reference.item_fields(item) for item in step.item_ids]
    close(encoding.vectors_CD, [step.reference.scaled(step.reference.item_output(*f)) for f in fields])
    if config.augmented_vectors:
        close(encoding.augmented_CA, [step.reference.item_augmented(*f) for f in fields])
    else:
        assert encoding.augmented_CA is None


def check_user_tower(config: ModelConfig = CONFIG):
    """(1), (6), (8), (9), (12), (13): query vectors and their augmented ones, nothing hidden."""
    step = small_step(config)
    encoding = step.model.encode_queries(step.rows_UD, step.queries)
    events = [(run, k) for run in RUNS for k in range(len(run.targets))]
    close(encoding.vectors_ED, [step.reference.scaled(step.reference.user_output(*e)) for e in events])
    if config.augmented_vectors:
        close(
            encoding.augmented_EA,
            [step.reference.user_augmented(step.reference.user_fields(*e)) for e in events],
        )
    else:
        assert encoding.augmented_EA is None


def check_scores():
    """(3), (13): the cosine of the raw outputs, or their inner product."""
    for similarity in ("cosine", "dot"):
        step = small_step(replace(CONFIG, similarity=similarity))
        query = step.model.encode_queries(step.rows_UD, step.queries).vectors_ED
        item = step.model.encode_items(step.rows_UD, step.items).vectors_CD
        raw_u = [step.reference.user_output(run, k) for run in RUNS for k in range(len(run.targets))]
        raw_i = [step.reference.item_output(*step.reference.item_fields(i)) for i in step.item_ids]
        want = np.array([[u @ i for i in raw_i] for u in raw_u])
        if similarity == "cosine":
            want /= np.outer(np.linalg.norm(raw_u, axis=1), np.linalg.norm(raw_i, axis=1))
            assert np.abs(want).max() <= 1
        close(step.model.scores(query, item), want)


def check_pav_input_is_detached():
    """(6), (7): the tables' gradient is that of towers whose augmented vectors are constants."""
    step = small_step()
    pull = _numbers(CONFIG.dim)
    reference = step.reference

    tower = step.model.item_tower.double()
    fields = reference.item_fields(3)
    augmented = reference.item_augmented(*fields)

    def item(id_D, category_D):
        fields_12D = torch.stack([id_D, category_D]).unsqueeze(0)
        return (tower(fields_12D)[0][0] * torch.from_numpy(pull)).sum()

    gradients_match(item, lambda *f: pull @ reference.item_output(*f, augmented), *fields)  # type: ignore[call-arg]

    attributes = step.model.user_tower.attributes.double()
    fields = reference.user_fields(RUNS[0], 1)
    augmented = reference.user_augmented(fields)

    def user(fields_FD):
        return (attributes(fields_FD.unsqueeze(0))[0][0] * torch.from_numpy(pull)).sum()

    gradients_match(user, lambda f: pull @ reference.attribute_output(f, augmented), fields)


# --- the whole loss -------------------------------------------------------------------------------------------------


def check_terms(config: ModelConfig = CONFIG, runs: list[Run] = RUNS):
    """(4), (5), (14), (15), (17)–(25): every weighted term and the sum (20), with masks and views."""
    _terms_match(small_step(config, runs), runs)


def _terms_match(step: Step, runs: list[Run]):
    got = step.terms().detached()
    want = step.reference.terms(runs, step.item_ids, step.items.is_target_C.tolist(), step.targets)
    assert set(got) == set(want)
    for name, value in want.items():
        np.testing.assert_allclose(float(got[name]), value, rtol=1e-4, atol=1e-6, err_msg=name)


def check_dropout():
    """Dropout is on the history's input, on hidden layers, and on what a sublayer or the sources add; nowhere else.

    In place of zeros at random it multiplies all elements by one factor, here and in the reference.
    """

    def doubled(x, ratio, training):
        return x * (1.0 + 2.0 * ratio) if training else x

    step = small_step(replace(CONFIG, dropout=0.5))
    step.reference.dropped = 2.0
    with mock.patch.object(dropout, "dropout", doubled), mock.patch.object(transformer, "dropout", doubled):
        _terms_match(step, RUNS)


def check_views_come_from_the_main_encoders():
    """(18): with nothing hidden a view is what the encoders say, and both views agree."""
    config = replace(
        CONFIG, sequence_mask_ratio=0.0, attribute_mask_ratio=0.0, item_mask_ratio=0.0, view_dropout=0.0
    )
    step = small_step(config)
    reference, last = step.reference, list({run.user: run for run in RUNS}.values())
    sequence, attribute, item = _views(step)
    users = sequence.id_S.tolist()
    by_user = {run.user: run for run in last}
    close(
        sequence.first_SD,
        [np.concatenate(reference.sequence_output(by_user[u].context + by_user[u].targets)) for u in users],
    )
    fields = [reference.user_fields(by_user[u], len(by_user[u].targets) - 1) for u in attribute.id_S.tolist()]
    close(attribute.first_SD, [reference.attribute_output(f) for f in fields])
    close(item.first_SD, [reference.item_output(*reference.item_fields(i)) for i in item.id_S.tolist()])
    for views in (sequence, attribute, item):
        close(views.second_SD, views.first_SD.detach().numpy())


def check_two_views_are_two_augmentations():
    """(17): h and g are not the same."""
    step = small_step()
    for views in _views(step):
        assert ((views.first_SD - views.second_SD).abs().amax(1) > 1e-3).float().mean() > 0.6


def _views(step: Step):
    plan = step.model.plan(step.queries, step.items, seed=step.reference.seed, step=step.reference.step)
    return step.model.encode_step(step.rows_UD, step.queries, step.items, plan).views


# --- where gradients stop and where they flow (docs/model.md) ---------------------------------------------------------

HEADS = ("mimic_user_head.", "mimic_item_head.")
AUGMENT = ("user_tower.attributes.augment.", "item_tower.augment.")
ROUTES = {
    "mimic_user": ("mimic_user_head.", "user_tower.attributes.augment."),
    "mimic_item": ("mimic_item_head.", "item_tower.augment."),
    "main": ("user_tower.", "item_tower."),
    "contrastive_sequence": ("user_tower.history.",),
    "contrastive_attribute": ("user_tower.attributes.",),
    "contrastive_item": ("item_tower.",),
}
"""Exactly the parameters that a term trains, by their beginnings."""
TABLES = {
    "mimic_user": set(),
    "mimic_item": set(),
    "main": {0, 1, 2, 3, 4, 5, 16, 17},
    "contrastive_sequence": {0, 1},
    "contrastive_attribute": {2, 3, 16, 17},
    "contrastive_item": {0, 1},
}
"""Exactly the tables that a term trains."""


def check_routes(term: str):
    """A term's gradient reaches what docs/model.md says (gradient flow) and nothing else."""
    step = small_step()
    getattr(step.terms(), term).backward()
    assert step.trained() == {n for n, _ in step.model.named_parameters() if n.startswith(ROUTES[term])}
    assert {table for table, _ in step.touched()} == TABLES[term]


def check_one_item_table():
    """The item as a target, in a history and as a candidate is one row, and each use trains it."""
    step = small_step()
    item = 3
    row = 1 + step.keys.index((ITEM, item))
    assert step.keys.count((ITEM, item)) == 1
    assert row in step.queries.item_row_I.tolist()
    assert row in step.items.item_row_C.tolist()
    for vectors in (
        step.model.encode_queries(step.rows_UD, step.queries).vectors_ED,
        step.model.encode_items(step.rows_UD, step.items).vectors_CD,
    ):
        step.rows_UD.grad = None
        (vectors * torch.randn_like(vectors)).sum().backward()
        assert (ITEM, item) in step.touched()


def check_heads_are_training_only():
    """What is served does not depend on G_u and G_i."""
    step = small_step()

    def served():
        query = step.model.encode_queries(step.rows_UD, step.queries).vectors_ED
        return torch.cat([query, step.model.encode_items(step.rows_UD, step.items).vectors_CD])

    before = served()
    with torch.no_grad():
        for name, parameter in step.model.named_parameters():
            if name.startswith(HEADS):
                parameter.add_(1.0)
    assert torch.equal(served(), before)


def check_gradients_flow():
    """Main and contrastive losses differentiate everything that they read: a random direction, central differences.

    Of the tables only without augmented vectors, which see them detached (check_pav_input_is_detached).
    """
    for augmented in (False, True):
        step = small_step(replace(CONFIG, augmented_vectors=augmented))
        terms = step.terms()
        along = np.random.default_rng(5)
        weights = {name: along.normal(size=p.shape) for name, p in step.model.named_parameters()}
        rows = {key: along.normal(size=CONFIG.dim) * (not augmented) for key in step.keys}
        sources = [step.rows_UD, *step.model.parameters()]
        directions = [
            torch.from_numpy(np.stack([np.zeros(CONFIG.dim), *rows.values()])),
            *(torch.from_numpy(d) for d in weights.values()),
        ]
        ahead, behind = (_moved(step, weights, rows, size) for size in (1e-6, -1e-6))
        for name in ("main", "contrastive_sequence", "contrastive_attribute", "contrastive_item"):
            gradients = torch.autograd.grad(
                getattr(terms, name), sources, retain_graph=True, allow_unused=True
            )
            got = sum(
                float((g.double() * d).sum())
                for g, d in zip(gradients, directions, strict=True)
                if g is not None
            )
            want = (ahead[name] - behind[name]) / 2e-6
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4, err_msg=f"{name}, {augmented=}")


def _moved(step: Step, weights: dict, rows: dict, size: float) -> dict[str, float]:
    reference = replace(
        step.reference,
        weights={name: x + size * weights[name] for name, x in step.reference.weights.items()},
        rows={key: x + size * rows[key] for key, x in step.reference.rows.items()},
    )
    return reference.terms(RUNS, step.item_ids, step.items.is_target_C.tolist(), step.targets)


def check_order_changes_nothing():
    """Neither the order of the rows nor that of the candidates changes a term."""
    step = small_step()
    forward = step.terms().detached()
    order = torch.arange(len(step.item_ids)).flip(0)
    mirrored = small_step(runs=RUNS[:1] + RUNS[3:0:-1] + RUNS[4:])
    turned = {n: value[order] for n, value in vars(mirrored.items).items() if n != "target_T"}
    mirrored.items = ItemInputs(**turned, target_T=turned["is_target_C"].nonzero()[:, 0])
    mirrored.targets = targets_of(RUNS[:1] + RUNS[3:0:-1] + RUNS[4:], step.item_ids[::-1])
    backward = mirrored.terms().detached()
    for name, value in forward.items():
        np.testing.assert_allclose(float(backward[name]), float(value), rtol=1e-5, err_msg=name)
