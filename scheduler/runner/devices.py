"""Counts this node's accelerators, says what they are, and reads how busy the node is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import structlog

from scheduler.rpc import plait_pb2 as pb

log = structlog.get_logger(__name__)

#: What a node without accelerators computes on.
CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Devices:
    """The accelerators of one node; several products count as the first."""

    count: int
    kind: str


def look() -> Devices:
    """What NVIDIA's driver shows; a CPU node where there is no driver."""
    with _nvml() as (nvml, reason):
        count = int(nvml.nvmlDeviceGetCount()) if nvml is not None else 0
        kind = _product(nvml, _handle(nvml, 0)) if count else CPU
    source = "nvml" if nvml is not None else "none"
    log.info("devices_counted", num_devices=count, source=source, reason=reason)
    return Devices(count, kind)


def read() -> pb.NodeState:
    """How busy the node is now: devices, processors and memory. It may take a while.

    The processors' use is that since the call before; the first says 0.
    """
    memory = psutil.virtual_memory()
    with _nvml() as (nvml, _):
        count = int(nvml.nvmlDeviceGetCount()) if nvml is not None else 0
        devices = [_read_device(nvml, index) for index in range(count)]
    return pb.NodeState(
        devices=devices,
        cpu_ratio=psutil.cpu_percent() / 100,
        memory_used_bytes=memory.total - memory.available,
        memory_total_bytes=memory.total,
    )


def _read_device(nvml: Any, index: int) -> pb.Device:
    handle = _handle(nvml, index)
    device = pb.Device(index=index, kind=_product(nvml, handle))
    # A device that is cut in parts, or has fallen off its bus, does not tell everything.
    with contextlib.suppress(nvml.NVMLError):
        device.busy_ratio = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    with contextlib.suppress(nvml.NVMLError):
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        device.memory_used_bytes, device.memory_total_bytes = memory.used, memory.total
    return device


@contextlib.contextmanager
def _nvml() -> Iterator[tuple[Any, str]]:
    """NVIDIA's library, ready; or None, and why there is none."""
    try:
        import pynvml
    except ImportError:
        yield None, "pynvml not installed"
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield None, str(error)
        return
    try:
        yield pynvml, ""
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _handle(nvml: Any, index: int) -> Any:
    return nvml.nvmlDeviceGetHandleByIndex(index)


def _product(nvml: Any, handle: Any) -> str:
    name = nvml.nvmlDeviceGetName(handle)
    return name.decode() if isinstance(name, bytes) else str(name)
