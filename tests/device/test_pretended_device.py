"""The simulated device behaves like CUDA, as far as that can be checked without one."""

import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.transfer import to_device, to_host
from tests.device.pretended_device import DeviceTensor, Refused, host


def test_it_computes_what_the_cpu_computes_with_gradients(gpu):
    torch.manual_seed(1)
    here = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 3))
    there = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 3)).to(gpu.device)
    there.load_state_dict(here.state_dict())
    x, target = torch.randn(4, 5), torch.tensor([0, 2, 1, 1])
    F.cross_entropy(here(x), target).backward()
    F.cross_entropy(there(x.to(gpu.device)), target.to(gpu.device)).backward()
    for mine, theirs in zip(here.parameters(), there.parameters(), strict=True):
        assert isinstance(theirs.grad, DeviceTensor)
        assert torch.equal(mine.grad, host(theirs.grad))


@pytest.mark.parametrize(
    "mixes",
    [
        lambda there, here: there + here,
        lambda there, here: here @ there,
        lambda there, here: torch.cat([there, here]),
        lambda there, here: there.add_(here),
        lambda there, here: torch.where(here > 0, there, there),
        lambda there, here: F.embedding(here.long(), there),
        lambda there, here: there.index_select(0, torch.tensor([0])),
        lambda there, here: there[torch.tensor([0, 1])],
        lambda there, here: here[torch.zeros(2, dtype=torch.int64).to(there.device)],
        lambda there, here: there.index_copy_(0, torch.tensor([0]).to(there.device), here[:1]),
    ],
)
def test_tensors_of_two_devices_are_refused_together(gpu, mixes):
    with pytest.raises(Refused, match="same device"):
        mixes(torch.ones(3, 3, device=gpu.device), torch.ones(3, 3))


def test_a_number_on_the_host_goes_with_elementwise_operations_only(gpu):
    there, number = torch.ones(3, device=gpu.device), torch.tensor(2.0)
    assert host(there * number).tolist() == [2, 2, 2]
    assert host(number * there).tolist() == [2, 2, 2]
    with pytest.raises(Refused, match="same device"):
        torch.stack([there[0], number])


@pytest.mark.parametrize("reads", [lambda x: x.numpy(), np.asarray, lambda x: x.detach().numpy()])
def test_numpy_cannot_see_the_device(gpu, reads):
    with pytest.raises(Refused, match=r"\.cpu\(\) first"):
        reads(torch.ones(3, device=gpu.device))


def test_copies_waits_and_launches_are_counted(gpu):
    with gpu.measured() as counts:
        x = torch.arange(4.0).to(gpu.device)
        y = (x * 2 + 1).view(2, 2)
    assert counts.figures() == {"launches": 2, "copies_to": 1, "copies_back": 0, "waits": 0}
    with gpu.measured() as counts:
        y.cpu().numpy()
        y.copy_(torch.ones(2, 2))
    assert counts.figures() == {"launches": 0, "copies_to": 1, "copies_back": 1, "waits": 0}
    for waiting in (
        lambda: float(y.sum()),
        lambda: bool((y > 0).all()),
        lambda: y.tolist(),
        lambda: y[y > 0],
        lambda: y.nonzero(),
        lambda: torch.unique(y),
        lambda: torch.equal(y, y),
    ):
        with gpu.measured() as counts:
            waiting()
        assert counts.waits == 1, list(counts.places)
    with gpu.measured() as counts:
        y[torch.zeros(1, dtype=torch.int64, device=gpu.device)]
        y.masked_fill(y > 0, 0.0)
    assert counts.waits == 0


def test_views_share_memory_as_they_do_on_the_cpu(gpu):
    x = torch.zeros(3, 2, device=gpu.device)
    x[1:].add_(1)
    ones = torch.ones(4, 2, device=gpu.device)
    torch.index_select(ones, 0, torch.tensor([2]).to(gpu.device), out=x[:1])
    assert host(x).tolist() == [[1, 1], [1, 1], [1, 1]]


def test_many_tensors_take_one_launch_where_cuda_takes_one(gpu):
    tensors = [torch.ones(2, device=gpu.device).requires_grad_() for _ in range(20)]
    for tensor in tensors:
        tensor.grad = torch.ones(2, device=gpu.device)
    with gpu.measured() as counts:
        norm = nn.utils.clip_grad_norm_(tensors, 1.0)
    assert host(norm).item() == pytest.approx(40**0.5)
    assert counts.launches < 20


def test_it_is_there_in_threads_too(gpu):
    made = []
    thread = threading.Thread(target=lambda: made.append(torch.ones(2).to(gpu.device) + 1))
    thread.start()
    thread.join()
    assert host(made[0]).tolist() == [2, 2]


def test_tensors_without_elements_travel_too(gpu):
    strange = torch.from_numpy(np.ones(3, np.int64)[:0]).as_strided((0,), (0,))
    there, other = to_device((strange, torch.arange(2)), gpu.device)
    assert there.shape == (0,)
    assert host(other).tolist() == [0, 1]
    assert [part.tolist() for part in to_host([torch.ones(2, 1).to(gpu.device), there.float()])] == [
        [[1], [1]],
        [],
    ]
