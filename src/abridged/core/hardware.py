"""What this machine is fast at."""

import ctypes
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any


def fast_bf16() -> bool:
    """Whether matmuls in bf16 are faster than in FP32: CUDA from Ampere on, CPUs with AMX or AVX-512's BF16."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return _cpu_has("amx_tile") or _cpu_has("avx512_bf16")


def _cpu_has(feature: str) -> bool:
    """Whether torch finds a feature of the processor; False where this torch does not tell."""
    import torch

    return bool(getattr(torch.cpu, f"_is_{feature}_supported", lambda: False)())


def can_compile() -> bool:
    """Whether torch.compile will find what it needs: on a CPU a C++ compiler."""
    import torch

    return torch.cuda.is_available() or any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def describe() -> dict[str, object]:
    """The hardware that numbers were measured on, for records."""
    import torch

    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "amx": _cpu_has("amx_tile"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def peak_memory() -> int:
    """Bytes that this process has held at most: of the GPU where there is one, else of host memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # What getrusage says begins, on Linux, at what the parent held.
    high = next((line.split()[1] for line in _lines("/proc/self/status") if line.startswith("VmHWM:")), None)
    if high is not None:
        return 1024 * int(high)
    if os.name == "nt":
        return int(_process().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def resident_memory() -> int:
    """Bytes of host memory that this process holds now."""
    return int(_process().rss)


def _process() -> Any:
    """What psutil, which accelerate brings along, says of this process's memory."""
    import psutil

    return psutil.Process().memory_info()


def give_back_memory() -> None:
    """Return what was freed to the system, where its allocator keeps it (glibc's does)."""
    with suppress(OSError, AttributeError, TypeError):  # Windows has no CDLL(None)
        ctypes.CDLL(None).malloc_trim(0)


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def free_memory() -> int:
    """Bytes that a run may still take: of the GPU where there is one, else of host memory, within the control group's
    limit."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    free = [int(psutil.virtual_memory().available)]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        most, now = (next(iter(_lines(path)), "") for path in (limit, used))
        if most.isdigit() and now.isdigit():
            free.append(int(most) - int(now))
    return max(0, min(free))
