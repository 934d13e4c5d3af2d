import pytest
import torch.distributed as dist

from cluster.collectives import Collectives

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer"


@pytest.mark.parametrize("error", [RuntimeError(GLOO), dist.DistBackendError("NCCL: remote process exited")])
def test_that_another_rank_has_died_is_no_error_of_this_one(error):
    assert Collectives().explains(error)


def test_an_error_of_this_rank_is_its_own():
    assert not Collectives().explains(RuntimeError("a negative index"))
