"""Full ranking against a computation item by item."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from cluster.evaluation.config import OfflineConfig, ProtocolConfig
from cluster.evaluation.measuring.ranking import rank
from cluster.evaluation.protocol.data import prepare
from tests.support.data_tables import random_tables


@dataclass
class Rounded:
    """Scores that are a function of history and item, with many ties."""

    def encode_users(self, batch):
        rows = batch.to_pylist()
        return np.array(
            [[row["user_id"], sum(row["items"][: row["context_length"]])] for row in rows], np.float32
        )

    def encode_items(self, item_ids):
        return np.asarray(item_ids, np.float32)[:, None]

    def scores(self, users, items):
        return ((users[:, :1] * 7 + users[:, 1:] * 3 + items.T * 5) % 4).astype(np.float32)


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("kind", ["leave_one_out", "temporal"])
def test_ranks_are_those_of_a_loop_over_items(kind, exclude_seen):
    protocol = ProtocolConfig(kind=kind, targets="all", exclude_seen=exclude_seen)
    data = prepare(random_tables(events=350), replace(OfflineConfig(), protocol=protocol))
    interactions, queries = data.interactions, data.split.test
    found = rank(Rounded(), interactions, queries, data.item_ids, window=4, exclude_seen=exclude_seen)
    wanted = []
    for q in range(len(queries)):
        u, cut = queries.user_Q[q], queries.cut_Q[q]
        had = interactions.item_T[interactions.offset_U1[u] : interactions.offset_U1[u] + cut].tolist()
        user = np.array([[interactions.user_U[u], sum(had[-4:])]], np.float32)
        scores = Rounded().scores(user, Rounded().encode_items(data.item_ids))[0]
        for target in queries.target_G[queries.target_offset_Q1[q] : queries.target_offset_Q1[q + 1]]:
            own = scores[data.item_ids == target][0]
            rivals = [
                score
                for score, item in zip(scores, data.item_ids, strict=True)
                if item != target and not (exclude_seen and item in had)
            ]
            wanted.append(sum(s > own for s in rivals) + 0.5 * sum(s == own for s in rivals))
    assert found.rank_G.tolist() == wanted
    assert (
        found.query_G.tolist()
        == np.repeat(np.arange(len(queries)), np.diff(queries.target_offset_Q1)).tolist()
    )


def test_a_target_that_is_not_ranked_comes_last():
    data = prepare(random_tables(), OfflineConfig())
    target = data.split.test.target_G[0]
    others = data.item_ids[data.item_ids != target]
    found = rank(Rounded(), data.interactions, data.split.test, others, window=4, exclude_seen=False)
    missing = data.split.test.target_G == target
    assert (found.rank_G[missing] == len(others)).all()
    assert (found.rank_G[~missing] < len(others)).all()
