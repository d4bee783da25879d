"""What memory a stage's device has left, and what running out of it looks like."""

from __future__ import annotations

import gc
import resource
from pathlib import Path
from typing import Final

import torch

#: The limit and the use of the container this process is in: cgroup v2, then v1.
_LIMITS: Final = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def free_bytes(device: torch.device) -> int:
    """Bytes this process may still take: of the device, or of the machine and its container."""
    if device.type == "cuda":
        # What the allocator keeps for itself can be used again.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type == "xpu":
        return torch.xpu.mem_get_info(device)[0]
    return min(_available(), *_left_in_container(), *_left_of_own_limit())


def memory_name(device: torch.device) -> str:
    """Names the memory that ``free_bytes`` is of: stages with the same name share it."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_properties(device).uuid}"
    return "host" if device.type == "cpu" else str(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, which leaves everything else sound."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The processor's allocator has no exception of its own.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def release(device: torch.device) -> None:
    """Give back what is no longer referred to."""
    gc.collect()
    if device.type != "cpu":
        getattr(torch, device.type).empty_cache()


def _available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise RuntimeError("/proc/meminfo does not say MemAvailable")


def _left_in_container() -> list[int]:
    for limit, used in _LIMITS:
        if Path(limit).is_file() and (most := Path(limit).read_text().strip()).isdigit():
            return [max(0, int(most) - int(Path(used).read_text()))]
    return []


def _left_of_own_limit() -> list[int]:
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most == resource.RLIM_INFINITY:
        return []
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return [max(0, most - pages * resource.getpagesize())]
