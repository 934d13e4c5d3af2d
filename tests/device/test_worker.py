"""The whole loop of one worker on the device, from a folder of files: nothing of it needs a broker."""

from dataclasses import replace

from cluster.collectives import Collectives
from cluster.publishing.serving import Recommender
from cluster.training.accounting import verify_exactly_once
from cluster.training.worker import Worker
from tests.device_runs import data_set_of
from tests.worker_runs import config_of


def test_a_worker_trains_checkpoints_publishes_and_resumes(gpu, tmp_path):
    stream = data_set_of(tmp_path / "data", 300)
    whole = config_of(stream, tmp_path / "run")
    whole = replace(whole, evaluation=replace(whole.evaluation, sample_fraction=0.3))
    part = replace(whole, train=replace(whole.train, stop_after_rows=120))
    first = Worker(part, Collectives(), gpu.device).train()
    assert 120 <= first["rows_read"] < 300
    last = Worker(whole, Collectives(), gpu.device).train()
    assert last["events_trained"] == 300
    assert verify_exactly_once(whole).exactly_once
    recommender = Recommender(whole)
    assert [r.title for r in recommender.recommend(history=[1, 2, 3], k=2)] != ["", ""]
