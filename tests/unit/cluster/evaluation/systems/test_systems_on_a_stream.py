"""Every named system learns from the batches that a stream gives."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.systems.overrides import with_settings
from cluster.evaluation.systems.systems import SYSTEMS, create
from streaming.batches.batcher import Batcher
from streaming.catalogue.catalogue import Catalogue
from streaming.histories.history import UserStore
from tests.support.memory_source import MemorySource, NoDeadLetters
from tests.support.unit_runs import LOG, PARTITIONS, POPULATION, QUOTA, small_config

ITEM_IDS = np.arange(1, POPULATION.items + 1)


@pytest.fixture(autouse=True)
def _one_thread():
    """The tensors are tiny: a second thread costs more than it computes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _batches(config, catalogue, count):
    stream = config.stream
    users = UserStore(stream.history_length, stream.seen_length, PARTITIONS)
    batcher = Batcher(stream, MemorySource(LOG, range(PARTITIONS)), users, catalogue, NoDeadLetters())
    return [batcher.next_batch(QUOTA) for _ in range(count)]


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_trains_on_a_batchers_batches_and_encodes_them(name):
    sizes = {"fit.warmup_steps": 1, "wals.factors": 4, "wals.iterations": 2}
    config = SYSTEMS[name].settings_of(with_settings(OfflineConfig(**vars(small_config())), sizes), {}, {})
    catalogue = Catalogue(config.stream)
    catalogue.apply(replace(POPULATION, attributes=len(config.stream.user_attributes)).catalogue())
    system = create(SYSTEMS[name], config, catalogue, ITEM_IDS, torch.device("cpu"))
    *read, last = _batches(config, catalogue, 5)
    # Rows without a history and rows with one.
    asked = pa.concat_batches([read[0], last])
    assert 0 < np.count_nonzero(asked["context_length"]) < asked.num_rows

    def scores():
        return system.scores(system.encode_users(asked), system.encode_items(ITEM_IDS))

    before = scores()
    terms = [system.train_on(batch) for batch in read]
    system.end_pass()
    after = scores()
    assert after.shape == (len(asked["weight"].flatten()), POPULATION.items)
    assert np.isfinite(after).all()
    assert all(np.isfinite(list(each.values())).all() for each in terms)
    assert not np.allclose(after, before, atol=1e-4)
    # What was taken often is what is predicted: 32 events a batch of a few items make that safe.
    taken = np.bincount(np.concatenate([_targets(batch) for batch in read]), minlength=POPULATION.items + 1)[
        1:
    ]
    gained = (after - before).mean(0)
    assert gained[np.argsort(taken)[-5:]].mean() > gained.mean()


def _targets(batch):
    return np.concatenate([row["items"][row["context_length"] :] for row in batch.to_pylist()])
