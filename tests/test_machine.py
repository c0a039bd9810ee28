"""The name of the machine in the records."""

import pytest
import torch

from maskformer_hf.machine import machine_name


@pytest.mark.parametrize(("threads", "words"), [(1, "1 thread of "), (3, "3 threads of ")])
def test_the_threads_are_named(monkeypatch, threads, words):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert machine_name().startswith(words)
    assert machine_name("cpu") == machine_name(torch.device("cpu"))


def test_a_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {torch.device(device).index}")
    assert machine_name("cuda:1") == "GPU 1"
