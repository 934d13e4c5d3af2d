"""The whole loop of a worker on the device: files to training, checkpoints, a kill, a version, recommendations."""

from dataclasses import replace

from cluster.audit.exactly_once import verify_exactly_once
from cluster.collectives import Collectives
from cluster.serving.recommender import Recommender
from cluster.training.worker import Worker
from tests.support.device_runs import data_set_of
from tests.support.worker_runs import config_of


def test_a_worker_trains_checkpoints_publishes_and_resumes(device, tmp_path):
    whole = config_of(data_set_of(tmp_path / "data", 900), tmp_path / "run")
    whole = replace(
        whole,
        device=device.type,
        progressive=replace(whole.progressive, sample_fraction=0.3, served_cpu_share=0.0),
        index=replace(whole.index, device="cpu"),  # test_index.py has the GPU's
    )
    part = replace(whole, train=replace(whole.train, stop_after_rows=300))
    first = Worker(part, Collectives(), device).train()
    assert 300 <= first["rows_read"] < 900
    last = Worker(whole, Collectives(), device).train()
    assert last["events_trained"] == 900
    assert verify_exactly_once(whole).exactly_once
    assert len(Recommender(whole).recommend(history=[1, 2, 3], k=5)) == 5
