"""Searches of a version after any series of deltas, against a scan of the items that a model of them has."""

from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.deltas import new_items
from retrieval.indexes.ivf import IvfIndex
from tests.property.retrieval.test_search import IDS, check_results, vectors_of, version_of

POOL = st.integers(-3, 12) | IDS


@st.composite
def changes(draw):
    """Ids with vectors, and other ids that are deleted."""
    ids = draw(st.lists(POOL, max_size=8, unique=True))
    split = draw(st.integers(0, len(ids)))
    return np.array(ids[:split], np.int64), vectors_of(draw, split), np.array(ids[split:], np.int64)


@st.composite
def histories(draw):
    """Items of the full version, deltas, queries, excluded ids of each query, k."""
    ids = draw(st.lists(POOL, min_size=1, max_size=20, unique=True))
    queries = vectors_of(draw, draw(st.integers(0, 3)))
    exclude = [np.array(draw(st.lists(POOL, max_size=12)), np.int64) for _ in queries]
    deltas = draw(st.lists(changes(), max_size=6))
    return (
        np.array(ids, np.int64),
        vectors_of(draw, len(ids)),
        deltas,
        queries,
        exclude,
        draw(st.integers(1, 25)),
    )


@settings(max_examples=200, deadline=None)
@given(
    case=histories(),
    kind=st.sampled_from(["ivf_flat", "ivf_fp16"]),
    nlist=st.integers(1, 20),
    beside=st.booleans(),
    few=st.sampled_from([0, 3, 1024]),
    spare=st.sampled_from([1, 8]),
)
def test_after_any_deltas_a_search_of_all_lists_is_a_scan_of_the_items_that_are_left(
    case, kind, nlist, beside, few, spare
):
    ids, vectors, deltas, queries, exclude, k = case
    view = version_of(ids, vectors, kind, nlist, nlist)
    model = dict(zip(ids.tolist(), vectors, strict=True))
    views = [(view, dict(model))]
    with (
        mock.patch.object(new_items, "_FEW", few),
        mock.patch("retrieval.deltas.changed_items._SPARE", spare),
        mock.patch.object(IvfIndex, "lists", (lambda index: None) if beside else IvfIndex.lists),
    ):
        for changed, new_vectors, deleted in deltas:
            view = view.with_items(changed, new_vectors, deleted)
            model.update(zip(changed.tolist(), new_vectors, strict=True))
            model = {item: vector for item, vector in model.items() if item not in deleted.tolist()}
            views.append((view, dict(model)))
        for view, model in views:  # a later delta changes no earlier view
            check_view(view, model, queries, exclude, k)


def check_view(view, model, queries, exclude, k):
    assert view.size == len(model)
    ids, scores = view.search(queries, k, exclude)
    for q, excluded in enumerate(exclude):
        of_item = {item: float(vector @ queries[q]) for item, vector in model.items()}
        best = sorted((s for i, s in of_item.items() if i not in excluded.tolist()), reverse=True)[:k]
        check_results(ids[q], scores[q], of_item, len(best), excluded, k)
        assert scores[q, : len(best)].tolist() == best


@settings(max_examples=100, deadline=None)
@given(case=histories(), nlist=st.integers(1, 20), beside=st.booleans(), few=st.sampled_from([0, 1024]))
def test_after_any_deltas_a_search_of_few_lists_fills_k_with_what_is_left(case, nlist, beside, few):
    ids, vectors, deltas, queries, exclude, k = case
    view = version_of(ids, vectors, "ivf_flat", nlist, 1)
    model = dict(zip(ids.tolist(), vectors, strict=True))
    with (
        mock.patch.object(new_items, "_FEW", few),
        mock.patch.object(IvfIndex, "lists", (lambda index: None) if beside else IvfIndex.lists),
    ):
        for changed, new_vectors, deleted in deltas:
            view = view.with_items(changed, new_vectors, deleted)
            model.update(zip(changed.tolist(), new_vectors, strict=True))
            model = {item: vector for item, vector in model.items() if item not in deleted.tolist()}
        found, scores = view.search(queries, k, exclude)
    for q, excluded in enumerate(exclude):
        of_item = {item: float(vector @ queries[q]) for item, vector in model.items()}
        left = sum(item not in excluded.tolist() for item in model)
        check_results(found[q], scores[q], of_item, min(k, left), excluded, k)
