"""A catalogue with later records above it answers as one that applied them all, and its base never changes."""

import numpy as np
import pyarrow as pa

from streaming.catalogue.catalogue import Catalogue
from streaming.catalogue.overlaid import OverlaidCatalogue
from streaming.catalogue.records import CatalogueUpdate
from streaming.config import StreamConfig
from streaming.events.schema import ITEM_SCHEMA, USER_SCHEMA

CONFIG = StreamConfig(max_categories=2, user_attributes=["gender"])
IDS = np.arange(0, 60)


def _update(rng, items, users):
    item_ids, user_ids = rng.integers(1, 50, items), rng.integers(1, 50, users)
    gone_items, gone_users = rng.random(items) < 0.3, rng.random(users) < 0.3
    titles = [None if g else f"title {rng.integers(1000)}" for g in gone_items]
    categories = [[] if g else rng.integers(1, 9, rng.integers(0, 4)).tolist() for g in gone_items]
    attributes = [[0 if g else int(rng.integers(1, 9))] for g in gone_users]
    return CatalogueUpdate(
        pa.table(
            [pa.array(item_ids), pa.array(titles, pa.string()), categories, gone_items], schema=ITEM_SCHEMA
        ),
        pa.table([pa.array(user_ids), attributes, gone_users], schema=USER_SCHEMA),
    )


def _answers(catalogue):
    reads = (
        "categories",
        "knows",
        "is_deleted",
        "user_attributes",
        "knows_user",
        "is_deleted_user",
        "titles",
    )
    return {name: np.asarray(getattr(catalogue, name)(IDS)).tolist() for name in reads}


def test_every_view_answers_as_a_catalogue_that_applied_the_same_records():
    rng, base, whole = np.random.default_rng(1), Catalogue(CONFIG), Catalogue(CONFIG)
    first = _update(rng, 40, 40)
    base.apply(first)
    whole.apply(first)
    views, wanted = [OverlaidCatalogue(base)], [_answers(whole)]
    for _ in range(20):
        update = _update(rng, int(rng.integers(0, 12)), int(rng.integers(0, 12)))
        views.append(views[-1].with_update(update))
        whole.apply(update)
        wanted.append(_answers(whole))
    assert [_answers(view) for view in views] == wanted
    assert wanted[0] != wanted[-1]
    assert sum(len(level) for level in views[-1]._levels) <= 2 * 2 * 50
    assert all(view._base is base for view in views)


def test_an_item_known_only_from_events_is_known_and_a_change_of_nothing_keeps_the_view():
    view = OverlaidCatalogue(Catalogue(CONFIG))
    nothing = CatalogueUpdate(ITEM_SCHEMA.empty_table(), USER_SCHEMA.empty_table())
    assert view.with_update(nothing) is view
    seen = pa.table([[7], pa.array([None], pa.string()), [[]], [False]], schema=ITEM_SCHEMA)
    found = view.with_update(CatalogueUpdate(seen, nothing.users))
    assert found.knows(np.array([7, 8])).tolist() == [True, False]
    assert found.titles(np.array([7, 8])) == ["", ""]
