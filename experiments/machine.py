"""What a measured figure was measured on."""

import os
import platform

import jax


def device_name() -> str:
    """The accelerator's kind and count, or the processor's model and its cores."""
    devices = jax.devices()
    if devices[0].platform != "cpu":
        return f"{devices[0].device_kind} x {len(devices)}"
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
