"""Processes and imports that a run on one machine does without."""

import subprocess
import sys

import pytest
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cluster.launching.group import GroupTrainer, OneMachineConfig


def test_what_the_controller_imports_of_a_run_leaves_torch_and_kafka_out():
    code = "import sys, cluster.config, cluster.launching.group; sys.exit(bool({'torch', 'kafka'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_driver_leaves_torch_out():
    code = "import sys, cluster.launching.launcher; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_process_is_started_for_ray_data_and_none_to_clean_up_after_the_controller():
    trainer = GroupTrainer(lambda: None, backend_config=OneMachineConfig())
    default = {type(callback).__name__ for callback in DataParallelTrainer._create_default_callbacks(trainer)}
    kept = {type(callback).__name__ for callback in trainer._create_default_callbacks()}
    assert default - kept == {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    assert kept - default == {"_QuietController"}


@pytest.fixture
def started(monkeypatch):
    """Scaling policies of the controllers that were to be started."""
    policies = []
    monkeypatch.setattr(
        DataParallelTrainer,
        "_initialize_and_run_controller",
        lambda trainer, scaling_policy: policies.append(scaling_policy),
    )
    return policies


def test_a_group_of_fixed_size_on_one_machine_asks_no_autoscaler_for_room(started):
    scaling = ScalingConfig(num_workers=3)
    trainer = GroupTrainer(lambda: None, backend_config=OneMachineConfig(), scaling_config=scaling)
    trainer._initialize_and_run_controller(scaling_policy=FixedScalingPolicy(scaling))
    [policy] = started
    policy.after_controller_start(None)  # would start the coordinator, and Ray with it
    assert policy.make_decision_for_non_running_worker_group().num_workers == 3
    policy._cancel_resource_request()


@pytest.mark.parametrize(
    ("backend", "policy"), [(None, FixedScalingPolicy), (OneMachineConfig(), ElasticScalingPolicy)]
)
def test_a_cluster_that_is_joined_and_a_range_of_workers_keep_rays_own_policy(started, backend, policy):
    scaling = ScalingConfig(num_workers=(1, 2) if policy is ElasticScalingPolicy else 2)
    trainer = GroupTrainer(lambda: None, backend_config=backend, scaling_config=scaling)
    asked = policy(scaling)
    trainer._initialize_and_run_controller(scaling_policy=asked)
    assert started == [asked]
