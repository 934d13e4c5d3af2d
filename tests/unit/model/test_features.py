"""Index tensors compared with a plain loop over the batch."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.queries.query_batch import history_batch
from model.config import ModelConfig
from model.features import (
    ACTIVITY,
    CATEGORY,
    ITEM,
    SOURCE,
    SOURCE_CATEGORY,
    USER,
    KeyCollector,
    activity_bucket,
    attribute_table,
    item_inputs,
    query_inputs,
)


def _key_names(keys):
    tables, ids = keys.keys()
    return {k + 1: pair for k, pair in enumerate(zip(tables.tolist(), ids.tolist(), strict=True))}


def _tokens(rows, n):
    """The tokens of the n-th sequence."""
    start = int(rows.start_N[n])
    return rows.token_RL.reshape(-1)[start : start + int(rows.length_N[n])].tolist()


def test_activity_buckets_are_two_per_doubling_and_stop_at_twenty():
    assert activity_bucket(np.array([0, 1, 2, 3, 4, 6, 8, 1024, 10**9])).tolist() == [
        0, 0, 2, 3, 4, 5, 6, 20, 20,
    ]  # fmt: skip


def test_a_key_has_one_row_however_often_it_is_added_and_an_invalid_one_has_the_padding_row():
    keys = KeyCollector()
    first = keys.add(ITEM, np.array([[7, 8], [7, 9]]))
    second = keys.add(CATEGORY, np.array([7, 0, 7]), np.array([True, False, True]))
    assert first.tolist() == [[1, 2], [1, 3]]
    assert second.tolist() == [4, 0, 4]
    assert keys.keys()[1].tolist() == [7, 8, 9, 7]


def test_every_event_points_at_its_row_its_history_and_its_features(
    runs_of, batch_of, item_categories, config
):
    runs = runs_of(3, 7, 6)
    keys = KeyCollector()
    inputs = query_inputs(batch_of(runs), item_categories, keys, config)
    names = _key_names(keys)
    event = 0
    for n, run in enumerate(runs):
        whole = run.context + run.targets
        tokens = _tokens(inputs.history, n)
        assert [names[int(inputs.item_row_I[t])] for t in tokens] == [(ITEM, item) for item in whole]
        assert [names[int(inputs.source_rows_IK[t, 0])] for t in tokens] == [(SOURCE, item) for item in whole]
        for token, own in zip(tokens, item_categories(np.array(whole)).tolist(), strict=True):
            for table, rows in (
                (CATEGORY, inputs.rows_IK[:, 1:]),
                (SOURCE_CATEGORY, inputs.source_rows_IK[:, 1:]),
            ):
                assert [names.get(r) for r in rows[token].tolist()] == [
                    (table, c) if c else None for c in own
                ]
        assert int(inputs.first_position_N[n]) == run.events_before - len(run.context)
        for k in range(len(run.targets)):
            position = len(run.context) + k
            assert (int(inputs.sequence_E[event]), int(inputs.position_E[event])) == (n, position)
            activity = names[int(inputs.activity_row_E[event])]
            assert activity == (ACTIVITY, int(activity_bucket(np.array([run.events_before + k]))[0]))
            assert names[int(inputs.user_row_E[event])] == (USER, run.user)
            for f, value in enumerate(run.attributes):
                row = int(inputs.attribute_row_EF[event, f])
                assert names.get(row) == ((attribute_table(f), value) if value else None)
            assert float(inputs.weight_E[event]) == run.weight
            event += 1
    assert inputs.key_E.unique().shape[0] == event
    assert (inputs.history.token_RL != 0).sum() == sum(len(run.context + run.targets) for run in runs)
    assert [*inputs.rows_IK[0].tolist(), *inputs.source_rows_IK[0].tolist()] == [0] * 6


@pytest.mark.parametrize(
    ("off", "absent"),
    [
        ({"source_items": 0}, {SOURCE, SOURCE_CATEGORY}),
        ({"source_categories": False}, {SOURCE_CATEGORY}),
    ],
)
def test_what_is_switched_off_asks_for_no_row(runs_of, batch_of, item_categories, config, off, absent):
    keys = KeyCollector()
    inputs = query_inputs(batch_of(runs_of(3, 7, 6)), item_categories, keys, replace(config, **off))
    assert not absent & set(keys.keys()[0].tolist())
    assert inputs.source_rows_IK.shape[1] == 1
    assert {ITEM, CATEGORY} <= set(keys.keys()[0].tolist())


def test_explicit_negatives_are_sequences_of_their_own_that_share_the_items(
    run_class, batch_of, item_categories, config
):
    runs = [run_class(1, [3], [4]), run_class(2, [], [5]), run_class(3, [6], [7])]
    batch = batch_of(runs)
    assert query_inputs(batch, item_categories, KeyCollector(), config).negatives.length_N.tolist() == [
        0,
        0,
        0,
    ]
    negatives = pa.array([[4, 8, 9], [], [8]], pa.list_(pa.int64()))
    if "negatives" in batch.schema.names:
        batch = batch.drop_columns(["negatives"])
    keys = KeyCollector()
    inputs = query_inputs(batch.append_column("negatives", negatives), item_categories, keys, config)
    names = _key_names(keys)
    got = [[names[int(inputs.item_row_I[t])] for t in _tokens(inputs.negatives, n)] for n in range(3)]
    assert got == [[(ITEM, 4), (ITEM, 8), (ITEM, 9)], [], [(ITEM, 8)]]
    assert [len(_tokens(inputs.history, n)) for n in range(3)] == [2, 1, 2]
    assert inputs.position_E.tolist() == [1, 0, 1]


def test_the_anchor_of_a_user_with_two_rows_is_the_last_row_and_its_last_event(
    run_class, batch_of, item_categories, config
):
    runs = [run_class(9, [], [1, 2]), run_class(4, [1], [3]), run_class(9, [1, 2], [5, 6, 7])]
    inputs = query_inputs(batch_of(runs), item_categories, KeyCollector(), config)
    anchors = dict(zip(inputs.anchor_sequence_S.tolist(), inputs.anchor_event_S.tolist(), strict=True))
    assert anchors == {1: 2, 2: 5}


def test_a_batch_without_rows_gives_empty_tensors_and_no_keys(batch_of, item_categories, config):
    keys = KeyCollector()
    inputs = query_inputs(batch_of([]), item_categories, keys, config)
    assert inputs.history.token_RL.shape == inputs.negatives.token_RL.shape == (0, 1)
    assert inputs.sequence_E.shape == inputs.weight_E.shape == (0,)
    assert len(keys.keys()[0]) == 0


def test_a_slice_of_a_batch_gives_what_the_slice_alone_would(runs_of, batch_of, item_categories, config):
    runs = runs_of(4, 6, 6)
    sliced = query_inputs(batch_of(runs).slice(2, 3), item_categories, KeyCollector(), config)
    alone = query_inputs(batch_of(runs[2:5]), item_categories, KeyCollector(), config)
    assert torch.equal(sliced.history.token_RL, alone.history.token_RL)
    assert torch.equal(sliced.history.start_N, alone.history.start_N)
    assert torch.equal(sliced.attribute_row_EF, alone.attribute_row_EF)
    assert torch.equal(sliced.position_E, alone.position_E)


def test_rows_with_different_numbers_of_attributes_are_refused(run_class, batch_of, item_categories, config):
    runs = [run_class(1, [], [1], (1, 2)), run_class(2, [], [1], (1,))]
    with pytest.raises(ValueError, match=r"stream\.user_attributes"):
        query_inputs(batch_of(runs), item_categories, KeyCollector(), config)


def test_without_the_user_id_embedding_users_with_equal_attributes_are_one_group(
    run_class, batch_of, item_categories
):
    runs = [run_class(1, [], [1]), run_class(2, [], [1]), run_class(3, [], [1], (2, 2))]
    for with_id, groups in ((True, 3), (False, 2)):
        settings = ModelConfig(user_id_embedding=with_id)
        keys = KeyCollector()
        inputs = query_inputs(batch_of(runs), item_categories, keys, settings)
        assert inputs.group_E.unique().shape[0] == groups
        assert (USER in keys.keys()[0].tolist()) == with_id


def test_only_targets_are_left_of_the_candidates_when_asked(item_categories):
    items = item_inputs(np.array([3, 4, 5]), item_categories, KeyCollector(), np.array([True, False, True]))
    assert items.id_C[items.target_T].tolist() == [3, 5]


def test_the_paper_s_negative_sequence_is_the_older_half_of_the_row(
    run_class, batch_of, item_categories, config
):
    runs = [run_class(1, [3, 4, 5], [6, 7]), run_class(2, [8], [9, 3]), run_class(3, [1, 2], [4, 5])]
    keys = KeyCollector()
    inputs = query_inputs(
        batch_of(runs), item_categories, keys, replace(config, negative_sequence="older_half")
    )
    names = _key_names(keys)
    negatives = inputs.negatives
    assert negatives.length_N.tolist() == [2, 0, 2]
    for n, items in ((0, [3, 4]), (2, [1, 2])):
        start = int(negatives.start_N[n])
        tokens = negatives.token_RL.reshape(-1)[start : start + 2]
        assert [names[int(inputs.item_row_I[t])] for t in tokens] == [(ITEM, item) for item in items]


def test_a_basket_s_events_read_what_was_before_the_basket_when_history_ends_before_their_time(
    run_class, batch_of, item_categories, config
):
    batch = batch_of([run_class(1, [4, 5], [6, 7, 8, 9]), run_class(2, [], [4, 5, 6])])
    times = [[10, 20, 20, 30, 30, 40], [40, 40, 50]]
    place = batch.schema.get_field_index("times_ms")
    batch = batch.set_column(place, batch.schema.field(place), pa.array(times, pa.list_(pa.int64())))
    settings = replace(config, history_before="time")
    inputs = query_inputs(batch, item_categories, KeyCollector(), settings)
    # 6 is of one time with 5, which is context; the second user's 4 and 5 have nothing before them.
    assert inputs.position_E.tolist() == [1, 3, 3, 5, 0, 0, 2]
    names = KeyCollector()
    activity = query_inputs(batch, item_categories, names, settings).activity_row_E.tolist()
    before = [0 if row == 0 else dict(_key_names(names))[row][1] for row in activity]
    assert before == activity_bucket(np.array([1, 3, 3, 5, 0, 0, 2])).tolist()
    plain = query_inputs(batch, item_categories, KeyCollector(), config)
    assert plain.position_E.tolist() == [2, 3, 4, 5, 0, 1, 2]


def test_a_query_s_placeholder_comes_after_its_whole_history(item_categories, config):
    one = np.array([3])
    batch = history_batch(
        one, np.array([2]), np.array([4, 5]), np.array([7, 7]), np.array([2]), np.zeros((1, 0), np.int64)
    )
    inputs = query_inputs(batch, item_categories, KeyCollector(), replace(config, history_before="time"))
    assert inputs.position_E.tolist() == [2]
