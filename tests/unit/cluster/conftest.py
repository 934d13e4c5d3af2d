"""Fixtures of tests of whole runs in memory."""

import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointStore


@pytest.fixture
def one_thread():
    """These models are so small that threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=50)
