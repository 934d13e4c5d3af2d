"""The work of one rank in its Ray Train worker.

The driver imports this module as well, so the functions import what needs torch themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray.train

from cluster.checkpoints.claim import StorageTaken, signs_of_life
from cluster.checkpoints.manifest import CheckpointError
from cluster.config import FreshetConfig
from cluster.device import resolve_device
from cluster.launching import ray_logging
from cluster.launching.stop_note import note_stop, stop_reason
from cluster.launching.stopping import StopWatcher, stop_is_asked
from retrieval.storage.opening import open_storage
from streaming.dead_letters.writer import DeadLettersDelayed, DeadLettersLost
from streaming.sources.kafka_source import BrokerRefused, PositionLost, TopicMissing
from streaming.sources.parquet_source import ParquetUnusable


def train_on_rank(settings: dict[str, Any]) -> None:
    """Train as one rank of the group, which resumes from the newest checkpoint.

    Args:
        settings: `config`, `run_id`, and whether each checkpoint `reports` to Ray Train (no).
    """
    ray_logging.quiet()  # before Faiss is imported; on a joined cluster, no setup hook ran
    from cluster.collectives import Collectives
    from cluster.training.control import NoStop
    from cluster.training.steps.quarantine import PoisonedTraining
    from cluster.training.worker import Worker

    config: FreshetConfig = settings["config"]
    storage, run_id = Path(config.storage_path), settings["run_id"]
    if stop_reason(storage, run_id) is not None:
        return  # Ray restarts the group after any failure; this failure would only repeat
    if stop_is_asked(run_id):
        return
    comm = Collectives()
    notice = StopWatcher(run_id) if comm.rank == 0 else NoStop()
    try:
        worker = Worker(
            config,
            comm,
            resolve_device(config.device, ray.train.get_context().get_local_rank()),
            run_id=run_id,
            on_checkpoint=_report if settings.get("reports") else lambda metrics: None,
            stop=notice,
        )
        with ExitStack() as signs:
            if comm.rank == 0:  # in addition to the driver's: the run is alive as long as either is
                for place in config.claimed_locations:
                    signs.enter_context(signs_of_life(open_storage(place), run_id))
            worker.train()
    except StorageTaken as error:
        if error.by != run_id:  # a group of this run that was cut off ends; the run continues
            note_stop(storage, run_id, error)
        ray_logging.quiet_traceback()
        raise
    except DeadLettersDelayed:
        ray_logging.quiet_traceback()
        raise  # unreachable brokers may come back
    except (
        BrokerRefused,
        CheckpointError,
        DeadLettersLost,
        TopicMissing,
        PositionLost,
        PoisonedTraining,
        ParquetUnusable,
        ValueError,
    ) as error:
        # Without its process group, a rank would get a ValueError of torch that says nothing about the settings.
        if not (comm.lost and isinstance(error, ValueError)):
            note_stop(storage, run_id, error)
        ray_logging.quiet_traceback()
        raise
    except Exception as error:
        if comm.explains(error):
            ray_logging.quiet_traceback()
        raise


def _report(metrics: Mapping[str, Any]) -> None:
    ray.train.report(dict(metrics))


def refresh_on_rank(settings: dict[str, Any]) -> None:
    """Refresh as one rank of the group.

    Args:
        settings: `config`, and the locations `checkpoint` and `report`.
    """
    ray_logging.quiet()
    from cluster.collectives import Collectives
    from cluster.training.refresh import refresh_from

    config: FreshetConfig = settings["config"]
    refresh_from(
        config,
        Collectives(),
        resolve_device(config.device, ray.train.get_context().get_local_rank()),
        checkpoint_path=settings["checkpoint"],
        report_path=Path(settings["report"]),
    )
