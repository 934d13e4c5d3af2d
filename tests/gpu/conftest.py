"""The device under test: a GPU, or the CPU in a rehearsal (FRESHET_TEST_DEVICE=cpu)."""

import os

import pytest
import torch

DEVICE = torch.device(os.environ.get("FRESHET_TEST_DEVICE", "cuda"))
REHEARSAL = DEVICE.type == "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> torch.device:
    """Where everything is compared with the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return DEVICE


@pytest.fixture
def real_gpu(device: torch.device) -> torch.device:
    """For what no CPU can stand in for; a rehearsal reports such a test as one that could not run."""
    if REHEARSAL:
        pytest.skip("needs a GPU")
    return device
