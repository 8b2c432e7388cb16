"""How much memory is said to be free, what counts as having run out of it, and what a device cannot compute. CUDA and the container are stood in for."""

import argparse

import psutil
import pytest
import torch
from tiny import GB

from core import attention, device, load_pipeline
from core.attention import AttentionError
from core.compute import Compute
from core.device import DeviceError, MemoryShortage, ResourceError, choose_device, choose_dtype, memory_available, require_device, require_memory
from core.ladder import is_out_of_memory


def test_what_torch_keeps_of_freed_tensors_counts_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 50 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 20 * GB)
    assert memory_available("cuda:0") == 32 * GB


@pytest.mark.parametrize("limit, free", [(str(10 * GB), 7 * GB), ("max", 30 * GB), (str(2 * GB), 0)])
def test_files_that_the_container_has_read_count_as_free(tmp_path, monkeypatch, limit, free):
    monkeypatch.setattr(device, "_CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: argparse.Namespace(available=30 * GB))
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{9 * GB}\n")
    (tmp_path / "memory.stat").write_text(f"anon {3 * GB}\nfile {6 * GB}\nactive_file {2 * GB}\ninactive_file {4 * GB}\n")
    assert memory_available("cpu") == free


def test_a_shortage_is_told_in_numbers_and_is_an_error_of_memory(monkeypatch):
    monkeypatch.setattr(device, "memory_available", lambda _: GB)
    with pytest.raises(MemoryShortage, match=r"^The model takes 3.0 GB of memory and 1.0 GB are free \(cpu\)\.") as caught:
        require_memory(3 * GB, "cpu", "The model")
    assert isinstance(caught.value, ResourceError) and is_out_of_memory(caught.value)


@pytest.mark.parametrize("words, ran_out", [
    ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
    ("CUDA error: out of memory", True),
    ("CUDA error: an illegal memory access was encountered", False),
])  # fmt: skip
def test_workspaces_without_room_are_told_from_a_broken_device(words, ran_out):
    assert is_out_of_memory(RuntimeError(words)) == ran_out


def test_xformers_is_refused_where_it_would_not_compute(tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "available_backends", lambda: ["sdpa", "xformers"])
    monkeypatch.setattr(attention, "_backend", "sdpa")
    with pytest.raises(AttentionError, match="on CUDA alone, and the model is on cpu. Use sdpa."):
        load_pipeline("mira-nano", device="cpu", data_dir=tmp_path, compute=Compute(attention="xformers"))
    assert attention.get_attention_backend() == "sdpa"
    attention.set_attention_backend("xformers", "cuda:0")
    assert attention.get_attention_backend() == "xformers"


@pytest.mark.parametrize("count, found", [(0, "finds no cuda devices"), (1, "finds 1 cuda device on"), (2, "finds 2 cuda devices")])
def test_a_gpu_that_is_not_there_is_told_before_the_model_is_read(monkeypatch, tmp_path, count, found):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(DeviceError, match=f"no cuda:2 here.*{found}"):
        load_pipeline("no model", device="cuda:2", data_dir=tmp_path)
    require_device(torch.device("cpu"))
    for index in range(count):
        require_device(torch.device("cuda", index))


def test_words_that_are_no_device_and_no_dtype():
    with pytest.raises(DeviceError, match="Did you mean 'cuda'"):
        choose_device("cud")
    with pytest.raises(DeviceError, match="Did you mean 'fp16'"):
        choose_dtype("pf16", "cpu")
