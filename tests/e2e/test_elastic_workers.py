"""A range of workers: the group adapts to the cluster's resources, through Ray Train."""

import pytest

from cluster.audit.exactly_once import verify_exactly_once
from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.observability.progress_file import read_progress
from tests.support.local_ray import LocalRay, wait_until
from tests.support.worker_runs import config_of, events, produce

pytestmark = pytest.mark.timeout(600)

ROWS = 900
PATIENCE_S = 240.0


def test_nodes_that_join_and_are_lost_change_the_number_of_workers_and_no_event_is_lost_or_trained_twice(
    stream_config, tmp_path
):
    config = config_of(
        stream_config,
        tmp_path / "run",
        workers="1..3",
        resize_check_s=2.0,
        checkpoint_every_s=3.0,
        bounded=False,
        stop_after_rows=ROWS,
    )
    sizes = []

    def reached(workers, rows_read):
        said = read_progress(tmp_path / "run") or {}
        now = said.get("workers", 0) if said.get("state") == "training" else 0
        sizes.extend([now] if now and sizes[-1:] != [now] else [])
        return now == workers and said["rows_read"] >= rows_read

    with LocalRay(cpus=1) as ray, ray.train(config) as trainer:
        produce(stream_config, events(300))
        wait_until(lambda: reached(1, 300), trainer, PATIENCE_S)
        node = ray.add_node(cpus=2)
        produce(stream_config, events(200, first=300))
        wait_until(lambda: reached(3, 500), trainer, PATIENCE_S)
        produce(stream_config, events(200, first=500))
        wait_until(lambda: reached(3, 700), trainer, PATIENCE_S)
        ray.lose(node)
        wait_until(lambda: reached(1, 0), trainer, PATIENCE_S)
        produce(stream_config, events(200, first=700))
        wait_until(lambda: trainer.exit_status() == 0, trainer, PATIENCE_S)
    assert sizes == [1, 3, 1]
    accounting = verify_exactly_once(config)
    assert accounting.exactly_once, accounting
    assert accounting.events_in_topic == accounting.rows_read == ROWS
    newest = CheckpointStore(config.checkpoint_location).newest()
    assert newest is not None
    assert newest.manifest["workers"] == 1
