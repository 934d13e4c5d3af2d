"""The reference for the model: docs/model.md in NumPy float64, one event at a time.

Written from the equations. It shares with the model only the names of weights and tables, and the salts of keyed random
numbers.

Shape letters: E events, M candidates, S anchors, T sequence tokens, A augmented width, D columns.
"""

from dataclasses import dataclass
from math import erf, floor, log2
from typing import Any

import numpy as np

from model.augmentation import ATTRIBUTE_VIEW, DROPOUT_VIEW, INPUT_MASK, ITEM_VIEW, SEQUENCE_VIEW
from model.features import ACTIVITY, CATEGORY, ITEM, SOURCE, SOURCE_CATEGORY, USER, attribute_table

_BITS = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_erf = np.vectorize(erf, otypes=[np.float64])


def unit(x):
    """x / ‖x‖ along the last axis."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def item_categories(ids):
    """Up to two categories of an item; every seventh item has none."""
    first = np.where(ids % 7 == 0, 0, ids % 5 + 1)
    second = np.where(ids % 3 == 0, ids % 4 + 10, 0)
    return np.stack([first, second], axis=1)


# --- losses ---------------------------------------------------------------------------------------------------------


def mimic_loss(head_ED, other_ED, weight_E, count):
    """(4), (5): ‖G(a) − v‖², a sum over columns, a mean over positives."""
    return (
        sum(w * ((g - unit(v)) ** 2).sum() for g, v, w in zip(head_ED, other_ED, weight_E, strict=True))
        / count
    )


def pointwise_loss(scores_EM, target_E, drop_EM, weight_E, count):
    """(14): −log q of the positive, and the mean of −log(1 − q) over the event's negatives."""
    total = 0.0
    for scores, target, drop, weight in zip(scores_EM, target_E, drop_EM, weight_E, strict=True):
        # −log σ(s) = log(1 + e^−s) and −log(1 − σ(s)) = log(1 + e^s), which no score overflows.
        wrong = [np.logaddexp(0.0, s) for c, s in enumerate(scores) if c != target and not drop[c]]
        total += weight * (np.logaddexp(0.0, -scores[target]) + (np.mean(wrong) if wrong else 0.0))
    return total / count


def softmax_loss(scores_EM, log_q_M, target_E, drop_EM, weight_E, count):
    """(25) with logQ: the dropped candidates are not in the denominator."""
    total = 0.0
    for scores, target, drop, weight in zip(scores_EM, target_E, drop_EM, weight_E, strict=True):
        corrected = np.exp(scores - log_q_M)
        total -= weight * np.log(corrected[target] / corrected[~drop].sum())
    return total / count


def info_nce_loss(first_SD, second_SD, same_SS, temperature, negative_SD=None):
    """(19), (21)–(24): own second view against those of others; entry s of `negative_SD` may be None."""
    total = 0.0
    for s, first in enumerate(first_SD):
        agreement = np.exp(unit(second_SD) @ unit(first) / temperature)
        others = [agreement[j] for j in range(len(second_SD)) if j == s or not same_SS[s][j]]
        if negative_SD is not None and negative_SD[s] is not None:
            others.append(np.exp(unit(negative_SD[s]) @ unit(first) / temperature))
        total -= np.log(agreement[s] / sum(others))
    return total / len(second_SD)


# --- metrics --------------------------------------------------------------------------------------------------------


def top(scores_I, seen, n):
    """The n best items that the user has not had, best first; no two scores are equal."""
    order = sorted(range(len(scores_I)), key=lambda i: -scores_I[i])
    return [i for i in order if i not in seen][:n]


def hit_rate_at(users, n):
    """(26) Σ_u |Top-N(u) ∩ T_u| / Σ_u |T_u|; a user is (scores, seen items, test items)."""
    hits = sum(len({*top(scores, seen, n)} & test) for scores, seen, test in users)
    return hits / sum(len(test) for *_, test in users)


def recall_at(users, n):
    """(27) mean_u |Top-N(u) ∩ T_u| / |T_u|."""
    return float(np.mean([len({*top(scores, seen, n)} & test) / len(test) for scores, seen, test in users]))


def ndcg_at(users, n):
    """Mean over users of DCG / the DCG of a perfect ranking, gains of 1."""
    out = []
    for scores, seen, test in users:
        gain = sum(1 / log2(k + 2) for k, item in enumerate(top(scores, seen, n)) if item in test)
        out.append(gain / sum(1 / log2(k + 2) for k in range(min(n, len(test)))))
    return float(np.mean(out))


# --- layers ---------------------------------------------------------------------------------------------------------


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def two_layers(x, weights, name, dropped=1.0):
    """Dropout, a factor here, is on the hidden layer."""
    return linear(dropped * np.maximum(linear(x, weights, f"{name}.0"), 0.0), weights, f"{name}.3")


def layer_norm(x_TD, weights, name):
    centred = x_TD - x_TD.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x):
    return x * 0.5 * (1.0 + _erf(x / np.sqrt(2.0)))


def attention(x_TD, weights, name, heads, window):
    """Token i sees tokens i−W+1..i, with a learned bias per head and distance."""
    query, key, value = np.split(linear(x_TD, weights, f"{name}.to_qkv"), 3, axis=1)
    width = x_TD.shape[1] // heads
    mixed_TD = np.zeros_like(x_TD)
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        for i in range(len(x_TD)):
            seen = range(max(0, i - window + 1), i + 1)
            bias = weights[f"{name}.bias.bias_HW"][head]
            logit = np.array([query[i, own] @ key[j, own] / np.sqrt(width) + bias[i - j] for j in seen])
            share = np.exp(logit) / np.exp(logit).sum()
            mixed_TD[i, own] = sum(p * value[j, own] for p, j in zip(share, seen, strict=True))
    return linear(mixed_TD, weights, f"{name}.to_out")


def transformer(token_TD, weights, name, config, dropped=1.0):
    """Pre-LN blocks between two LayerNorms; dropout, a factor, on the input, the hidden layers and what each adds."""
    x_TD = dropped * layer_norm(token_TD, weights, f"{name}.input_norm")
    for k in range(config.layers):
        block = f"{name}.blocks.{k}"
        normed = layer_norm(x_TD, weights, f"{block}.attention_norm")
        x_TD = x_TD + dropped * attention(normed, weights, block, config.heads, config.history_length)
        normed = layer_norm(x_TD, weights, f"{block}.feed_forward_norm")
        hidden = dropped * gelu(linear(normed, weights, f"{block}.widen"))
        x_TD = x_TD + dropped * linear(hidden, weights, f"{block}.narrow")
    return layer_norm(x_TD, weights, f"{name}.output_norm")


# --- keyed random numbers -------------------------------------------------------------------------------------------


def _mix(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _BITS
    return x ^ (x >> 31)


def keyed_uniform(seed, step, salt, entity, position):
    """splitmix64 of (seed, step, salt, entity, position) in Python integers, its top 24 bits as a number in [0, 1)."""
    base = _mix(_mix(_mix(seed & _BITS) + step * _GOLDEN & _BITS) + salt * _GOLDEN & _BITS)
    return (_mix(_mix(entity + base & _BITS) + position * _GOLDEN & _BITS) >> 40) / 2**24


# --- the model ------------------------------------------------------------------------------------------------------


@dataclass
class Reference:
    """The towers and the whole loss on a list of `tests.support.training_batches.Run`."""

    config: Any
    weights: dict
    """Of the model, by name, float64."""
    rows: dict
    """(table, id) to float64 (D,)."""
    seed: int = 0
    step: int = 0
    dropped: float = 1.0
    """The factor that replaces dropout for all elements, as in the model under test."""

    def _mlp(self, x, name):
        return two_layers(x, self.weights, name, self.dropped)

    def row(self, table, key):
        return self.rows[table, key]

    def categories_of(self, item, table=CATEGORY):
        """The sum of an item's category rows."""
        own = [int(c) for c in item_categories(np.array([item]))[0] if c]
        return sum((self.row(table, c) for c in own), np.zeros(self.config.dim))

    def item_fields(self, item):
        """e_id and e_cat."""
        return self.row(ITEM, item), self.categories_of(item)

    def item_augmented(self, id_D, category_D):
        """(7)"""
        return self._mlp(np.concatenate([id_D, category_D]), "item_tower.augment")

    def item_output(self, id_D, category_D, augmented_A=None):
        """(10), (11); with another a_i where one is given."""
        z = [id_D, category_D]
        if self.config.augmented_vectors:
            z.append(self.item_augmented(id_D, category_D) if augmented_A is None else augmented_A)
        return self._mlp(np.concatenate(z), "item_tower.combine") + id_D + category_D

    def history(self, run, k):
        """The items before the k-th event, or before the first event of its time."""
        at = len(run.context) + k
        if self.config.history_before == "time" and run.times is not None:
            at = run.times.index(run.times[at])
        return (run.context + run.targets)[:at]

    def user_fields(self, run, k):
        """[user id,] activity as of the k-th event, attributes: (F, D); an unknown attribute is zero."""
        fields = [self.row(USER, run.user)] if self.config.user_id_embedding else []
        fields.append(self.row(ACTIVITY, activity(len(self.history(run, k)))))
        for f, value in enumerate(run.attributes):
            fields.append(self.row(attribute_table(f), value) if value else np.zeros(self.config.dim))
        return np.stack(fields)

    def user_augmented(self, fields_FD):
        """(6)"""
        return self._mlp(fields_FD.reshape(-1), "user_tower.attributes.augment")

    def attribute_output(self, fields_FD, augmented_A=None):
        """MLP_user(z_u) with (8); with another a_u where one is given."""
        z = fields_FD.reshape(-1)
        if self.config.augmented_vectors:
            z = np.concatenate([z, self.user_augmented(fields_FD) if augmented_A is None else augmented_A])
        return self._mlp(z, "user_tower.attributes.combine")

    def tokens(self, items, hidden=()):
        """(9): e_id + e_cat of each, MASK where hidden, (T, D)."""
        mask = self.weights["user_tower.history.mask_D"]
        return np.stack([mask if t in hidden else sum(self.item_fields(i)) for t, i in enumerate(items)])

    def sequence_output(self, items, hidden=()):
        """Mean over the last W states and the last state; zero without history."""
        if not len(items):
            return np.zeros(self.config.dim), np.zeros(self.config.dim)
        state_TD = self.tokens(items, hidden)
        if self.config.transformer:
            name = "user_tower.history.encoder"
            state_TD = transformer(state_TD, self.weights, name, self.config, self.dropped)
        return state_TD[-self.config.history_length :].mean(0), state_TD[-1]

    def user_output(self, run, k, hidden=()):
        """(12) and the skips."""
        history = self.history(run, k)
        mean_D, last_D = self.sequence_output(history, hidden)
        joined = np.concatenate([self.attribute_output(self.user_fields(run, k)), mean_D, last_D])
        out = linear(joined, self.weights, "user_tower.project")
        if self.config.state_skip:
            out = out + self.weights["user_tower.skip"] * last_D
        for b, item in enumerate(history[::-1][: self.config.source_items]):
            source = self.row(SOURCE, item)
            if self.config.source_categories:
                source = source + self.categories_of(item, SOURCE_CATEGORY)
            out = out + self.dropped * self.weights["user_tower.sources.weight_B"][b] * source
        return out

    def scaled(self, p):
        """v of (13): unit norm with cosine."""
        return unit(p) if self.config.similarity == "cosine" else p

    def input_mask(self, run):
        """Tokens of a run that the main loss does not see."""
        return self._hidden(run, INPUT_MASK, self.config.input_mask_ratio, keep_one=False)

    def _uniform(self, salt, entity, position):
        return keyed_uniform(self.seed, self.step, salt, entity, position)

    def _hidden(self, run, salt, ratio, keep_one):
        u = [self._uniform(salt, run.user, t) for t in range(len(run.context + run.targets))]
        return {t for t, value in enumerate(u) if value < ratio and not (keep_one and value == max(u))}

    def _dropout(self, x_D, salt, entity):
        ratio = self.config.view_dropout
        kept = [self._uniform(DROPOUT_VIEW + salt, entity, d) >= ratio for d in range(len(x_D))]
        return x_D * np.array(kept) / (1.0 - ratio)

    def sequence_view(self, run, view):
        """(17), (18), (21): random masking, then [mean ⊕ last]."""
        hidden = self._hidden(run, SEQUENCE_VIEW + view, self.config.sequence_mask_ratio, keep_one=True)
        return np.concatenate(self.sequence_output(run.context + run.targets, hidden))

    def attribute_view(self, run, view):
        """(17), (18), (23): whole attributes masked, at least one kept, then dropout, then MLP_user."""
        salt, fields_FD = ATTRIBUTE_VIEW + view, self.user_fields(run, len(run.targets) - 1)
        u = [self._uniform(salt, run.user, f) for f in range(len(fields_FD))]
        kept = [value >= self.config.attribute_mask_ratio or value == max(u) for value in u]
        masked = fields_FD * np.array(kept)[:, None]
        return self.attribute_output(
            self._dropout(masked.reshape(-1), salt, run.user).reshape(fields_FD.shape)
        )

    def item_view(self, item, view):
        """(17), (18), (24): id or categories masked, never both, then dropout, then the item tower."""
        salt, ratio = ITEM_VIEW + view, self.config.item_mask_ratio
        id_D, category_D = self.item_fields(item)
        u = self._uniform(salt, item, 0)
        fields = np.concatenate([id_D * (u >= ratio / 2), category_D * (not ratio / 2 <= u < ratio)])
        return self.item_output(*np.split(self._dropout(fields, salt, item), 2))

    def group(self, run):
        """The attribute tower's input for a user's last event."""
        own = (activity(len(self.history(run, len(run.targets) - 1))), *run.attributes)
        return (run.user, *own) if self.config.user_id_embedding else own

    def negative_sequence(self, run):
        """The items of h⁻: those that the user disliked, or the older half of four or more that the run holds."""
        if self.config.negative_sequence == "explicit":
            return list(run.negatives)
        items = run.context + run.targets
        return items[: len(items) // 2] if len(items) >= 4 else []

    def contrastive_losses(self, runs, items):
        """(21)–(24) before any weight, on the last run of each user and on distinct items."""
        last = list({run.user: run for run in runs}.values())
        tau = self.config.contrastive_temperature
        unwanted = [self.negative_sequence(run) for run in last]
        negatives = [np.concatenate(self.sequence_output(own)) if own else None for own in unwanted]
        groups = [self.group(run) for run in last]

        def agreement(view, of, same, explicit=None):
            first, second = (np.stack([view(entity, k) for entity in of]) for k in (0, 1))
            return info_nce_loss(first, second, same, tau, explicit)

        return {
            "contrastive_sequence": agreement(self.sequence_view, last, np.eye(len(last)), negatives),
            "contrastive_attribute": agreement(
                self.attribute_view, last, [[a == b for b in groups] for a in groups]
            ),
            "contrastive_item": agreement(self.item_view, items, np.eye(len(items))),
        }

    def terms(self, runs, items, is_target, targets):
        """Every weighted term of (20) and their sum."""
        config = self.config
        weight = np.array([w for run in runs for w in run.weights])
        users = np.stack(
            [self.user_output(r, k, self.input_mask(r)) for r in runs for k in range(len(r.targets))]
        )
        outputs = np.stack([self.item_output(*self.item_fields(item)) for item in items])
        target, drop = targets.target_E.numpy(), targets.drop_EM.numpy()
        scores = self.scaled(users) @ self.scaled(outputs).T / config.temperature  # (3), (13)
        if config.loss == "pointwise":
            main = pointwise_loss(scores, target, drop, weight, targets.global_events)
        else:
            log_q = targets.log_q_M.numpy().astype(np.float64) * config.logq_strength
            main = softmax_loss(scores, log_q, target, drop, weight, targets.global_events)
        out = {"main": main, "mimic_user": 0.0, "mimic_item": 0.0}
        if config.augmented_vectors:
            a_u = [self.user_augmented(self.user_fields(r, k)) for r in runs for k in range(len(r.targets))]
            a_i = [self.item_augmented(*self.item_fields(t)) for r in runs for t in r.targets]
            head_u, head_i = (
                linear(np.stack(a), self.weights, f"mimic_{name}_head")
                for a, name in ((a_u, "user"), (a_i, "item"))
            )
            count = targets.global_events
            out["mimic_user"] = config.mimic_user_weight * mimic_loss(head_u, outputs[target], weight, count)
            out["mimic_item"] = config.mimic_item_weight * mimic_loss(head_i, users, weight, count)
        chosen = [
            i for i, t in zip(items, is_target, strict=True) if t or config.contrastive_items == "candidates"
        ]
        for name, value in self.contrastive_losses(runs, chosen).items():
            out[name] = config.contrastive_weight * getattr(config, f"{name}_weight") * value
        return {"total": sum(out.values()), **out}


def activity(before):
    """min(20, ⌊2 log2(max(1, n))⌋)"""
    return min(20, floor(2 * log2(max(1, before))))
