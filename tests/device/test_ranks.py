"""Several ranks, each with a device of its own: rows and gradients travel between devices, ids between hosts."""

from tests.device.pretended_device import PretendedDevice
from tests.support.device_runs import assert_ranks_train_what_one_trains, config_of, steps_of_a_rank
from tests.support.ranks import run_on_ranks
from tests.support.unit_runs import CPU


def _on_a_device(rank: int) -> dict:
    with PretendedDevice() as gpu:
        return steps_of_a_rank(rank, gpu.device, config_of("the defaults"))


def test_two_ranks_on_devices_train_what_one_trains_on_the_cpu():
    alone = steps_of_a_rank(0, CPU, config_of("the defaults"))
    assert_ranks_train_what_one_trains(alone, run_on_ranks(_on_a_device, 2))
