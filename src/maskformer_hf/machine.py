"""The machine that a measurement was made on."""

import platform
import re
from pathlib import Path

import torch


def machine_name(device: str | torch.device = "cpu") -> str:
    """What a model runs on, for the records: the name of the GPU, or that of the processor and the threads used."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
        name = found[1] if found else name
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''} of {name}"
