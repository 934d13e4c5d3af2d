"""The simulated device, one per test."""

from collections.abc import Iterator

import pytest

from tests.device.pretended_device import PretendedDevice


@pytest.fixture
def gpu() -> Iterator[PretendedDevice]:
    """A device that refuses what CUDA would refuse."""
    with PretendedDevice() as device:
        yield device
