"""Counts this node's accelerators."""

from __future__ import annotations

import contextlib

import structlog

log = structlog.get_logger(__name__)


def count() -> int:
    """Devices NVIDIA's driver shows; 0 where there is no driver, and on a CPU node."""
    try:
        import pynvml
    except ImportError:
        log.info("devices_counted", num_devices=0, source="none", reason="pynvml not installed")
        return 0
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.info("devices_counted", num_devices=0, source="nvml", reason=str(error))
        return 0
    try:
        num_devices = int(pynvml.nvmlDeviceGetCount())
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    log.info("devices_counted", num_devices=num_devices, source="nvml")
    return num_devices
