"""Processes and imports that a run on one machine does without."""

import subprocess
import sys
from typing import Any

import pytest
from ray import cloudpickle
from ray.actor import ActorHandle
from ray.train import ScalingConfig
from ray.train.torch.config import TorchConfigContextManager
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import state, worker_group
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cluster.launching.group import GroupTrainer, OneMachineConfig


def test_what_the_controller_imports_of_a_run_leaves_torch_and_kafka_out():
    code = "import sys, cluster.config, cluster.launching.group; sys.exit(bool({'torch', 'kafka'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_driver_leaves_torch_out_also_once_it_has_made_what_its_ranks_run():
    made = "GroupTrainer(lambda: None, backend_config=OneMachineConfig())._get_train_func()"
    imports = "import sys, cluster.launching.launcher; from cluster.launching.group import *"
    subprocess.run([sys.executable, "-c", f"{imports}; {made}; sys.exit('torch' in sys.modules)"], check=True)


def test_what_ranks_run_has_torchs_context_and_can_be_sent_to_them(monkeypatch):
    entered = []
    monkeypatch.setattr(TorchConfigContextManager, "__enter__", lambda context: entered.append(context))
    trainer = GroupTrainer(lambda: "done", backend_config=OneMachineConfig())
    assert cloudpickle.loads(cloudpickle.dumps(trainer._get_train_func()))() == "done"
    assert len(entered) == 1


def test_no_process_is_started_for_ray_data_and_none_to_clean_up_after_the_controller():
    trainer = GroupTrainer(lambda: None, backend_config=OneMachineConfig())
    default = {type(callback).__name__ for callback in DataParallelTrainer._create_default_callbacks(trainer)}
    kept = {type(callback).__name__ for callback in trainer._create_default_callbacks()}
    assert default - kept == {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    assert kept - default == {"_QuietController", "_WithoutMeetingPlace"}


def test_a_cluster_that_is_joined_keeps_the_actor_where_ranks_meet_to_report():
    trainer = GroupTrainer(lambda: None)
    assert "_WithoutMeetingPlace" not in {type(c).__name__ for c in trainer._create_default_callbacks()}


def test_a_group_on_one_machine_starts_no_actor_where_ranks_meet(monkeypatch):
    for module, name in ((worker_group, "SynchronizationActor"), (state, "_shutdown_sync_actor")):
        monkeypatch.setattr(module, name, getattr(module, name))  # taken back after the test
    trainer = GroupTrainer(lambda: None, backend_config=OneMachineConfig())
    [without] = [c for c in trainer._create_default_callbacks() if type(c).__name__ == "_WithoutMeetingPlace"]
    without.after_controller_start(None)
    place: Any = worker_group
    actor = place.SynchronizationActor.options(label_selector={}).remote(timeout_s=1, warn_interval_s=1)
    assert not isinstance(actor, ActorHandle)
    group = state.WorkerGroupStateBuilder().with_sync_actor(actor)
    group.shutdown()  # kills the actor, if it is one
    assert group.sync_actor is None


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
