"""Users as queries: their whole history, one placeholder event, in the schema of a training batch."""

import numpy as np

from cluster.queries.query_batch import AFTER_ALL_MS, history_batch, query_batch
from cluster.training.steps.candidates import Runs
from model.config import ModelConfig
from model.features import KeyCollector, query_inputs
from streaming.events.schema import TRAINING_BATCH_SCHEMA
from streaming.histories.history import UserStore


class Attributes:
    def user_attributes(self, users):
        return np.stack([users * 10, users * 10 + 1], axis=1)


def _users():
    users = UserStore(4, 8)
    users.append(
        np.array([7, 9]),
        np.array([0, 1], np.int32),
        np.array([0, 6, 8]),
        np.array([1, 2, 3, 4, 5, 6, 70, 80]),
        np.arange(8) + 100,
    )
    return users


def test_a_query_holds_the_last_items_then_a_placeholder_and_unknown_users_have_an_empty_history():
    batch = query_batch(np.array([9, 1234, 7]), _users(), Attributes(), history_length=4)
    assert batch.schema == TRAINING_BATCH_SCHEMA
    assert batch["user_id"].to_pylist() == [9, 1234, 7]
    assert batch["items"].to_pylist() == [[70, 80, 0], [0], [3, 4, 5, 6, 0]]
    end = AFTER_ALL_MS
    assert batch["times_ms"].to_pylist() == [[106, 107, end], [end], [102, 103, 104, 105, end]]
    assert batch["context_length"].to_pylist() == [2, 0, 4]
    assert batch["events_before"].to_pylist() == [2, 0, 6]
    assert batch["attributes"].to_pylist() == [[90, 91], [12340, 12341], [70, 71]]
    assert batch["seen"].to_pylist() == [[70, 80], [], [3, 4, 5, 6]]
    assert batch["weight"].to_pylist() == [[1.0]] * 3
    batch.validate(full=True)


def test_each_query_is_one_event_whose_history_the_model_sees_without_the_placeholder():
    batch = query_batch(np.array([9, 1234, 7]), _users(), Attributes(), history_length=4)
    assert Runs.of(batch).run_E.tolist() == [0, 1, 2]
    config = ModelConfig(dim=8, history_length=4)
    queries = query_inputs(
        batch, lambda items: np.zeros((items.shape[0], 1), np.int64), KeyCollector(), config
    )
    assert queries.sequence_E.tolist() == [0, 1, 2]
    assert queries.position_E.tolist() == [2, 0, 4]


def test_no_users_make_an_empty_batch():
    batch = query_batch(np.zeros(0, np.int64), _users(), Attributes(), history_length=4)
    assert batch.num_rows == 0
    assert batch.schema == TRAINING_BATCH_SCHEMA


def test_histories_given_by_the_caller_need_no_attributes():
    batch = history_batch(
        np.array([1, 2]),
        np.array([0, 2]),
        np.array([5, 6]),
        np.array([10, 20]),
        np.array([0, 9]),
        np.zeros((2, 0), np.int64),
    )
    assert batch["items"].to_pylist() == [[0], [5, 6, 0]]
    assert batch["attributes"].to_pylist() == [[], []]
    assert batch["events_before"].to_pylist() == [0, 9]
