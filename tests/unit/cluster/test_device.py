"""The devices of workers, from the settings and the cluster's resources."""

import logging
from dataclasses import replace

import pytest
import torch

from cluster.config import FreshetConfig
from cluster.device import device_of_group, process_group_backend
from cluster.publishing import index_device
from cluster.publishing.index_device import index_settings, with_room
from retrieval import gpu
from retrieval.config import IndexConfig
from retrieval.gpu import IndexDeviceError


@pytest.mark.parametrize(
    ("device", "workers", "gpus", "given"),
    [
        ("auto", 2, 0, "cpu"),
        ("auto", 2, 1, "cpu"),
        ("auto", 2, 2, "cuda"),
        ("auto", 1, 8, "cuda"),
        ("cuda", 2, 2, "cuda"),
        ("cpu", 1, 8, "cpu"),
    ],
)
def test_a_group_gets_gpus_if_there_is_one_for_each_worker(device, workers, gpus, given):
    assert device_of_group(device, workers, gpus) == given


def test_one_gpu_for_two_workers_is_said_and_asking_for_it_is_refused(caplog):
    with caplog.at_level(logging.WARNING):
        device_of_group("auto", 2, 1)
    assert "train.workers=1 for GPUs" in caplog.text
    with pytest.raises(ValueError, match=r"2 workers needs a GPU, but the cluster has 1; set train\.workers"):
        device_of_group("cuda", 2, 1)
    assert device_of_group("cuda", 2, 1, may_grow=True) == "cuda"


def test_rows_travel_over_nccl_and_ids_over_gloo():
    assert (process_group_backend("cuda"), process_group_backend("cpu")) == ("cpu:gloo,cuda:nccl", "gloo")


@pytest.mark.parametrize(
    ("towers", "gpus_of_faiss", "wanted"),
    [("cpu", 1, ("cpu", 0)), ("cuda:1", 2, ("cuda", 1)), ("cuda:0", 0, ("cpu", 0))],
)
def test_the_index_follows_the_towers_unless_faiss_has_no_gpu(monkeypatch, towers, gpus_of_faiss, wanted):
    monkeypatch.setattr(index_device, "resolve_device", lambda device: torch.device(towers))
    monkeypatch.setattr(index_device, "visible_gpus", lambda: gpus_of_faiss)
    found = index_settings(FreshetConfig())
    assert (found.device, found.gpu) == wanted
    asked = replace(FreshetConfig(), index=IndexConfig(device="cuda", gpu=1))
    assert index_settings(asked) == asked.index


def test_an_index_that_the_gpu_has_no_room_for_is_built_on_the_cpu(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (2 << 30, 80 << 30))
    monkeypatch.setattr(gpu, "visible_gpus", lambda: 1)
    config = IndexConfig(device="cuda")
    assert with_room(config, 1_000_000, 64) == config
    assert with_room(config, 50_000_000, 64).device == "cpu"
    assert "index.device" in caplog.text


def test_an_index_on_several_gpus_needs_a_share_of_its_memory_on_each(monkeypatch, caplog):
    free = [8 << 30, 2 << 30]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (free[gpu], 80 << 30))
    monkeypatch.setattr(gpu, "visible_gpus", lambda: 2)
    both = IndexConfig(device="cuda", gpus=2)
    assert with_room(both, 15_000_000, 64) == both
    assert with_room(replace(both, gpu=1, gpus=1), 15_000_000, 64).device == "cpu"
    assert with_room(both, 50_000_000, 64).device == "cpu"
    assert "GPU 1, which has 2.1 GB free" in caplog.text
    with pytest.raises(IndexDeviceError, match=r"index\.gpus ask for GPU 2"):
        with_room(replace(both, gpu=1), 10, 64)
    # Faiss has the lists of this kind on the CPU only.
    assert with_room(replace(both, kind="ivf_pqfs"), 50_000_000, 64).device == "cuda"
