"""What a machine has that decides how an engine runs: system, container, CPU, GPU, driver, CUDA libraries, runtimes.

Libraries are asked through ctypes and packages through their metadata, so that nothing is imported and nothing fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import glob
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from engine.backend import backend_infos
from engine.hardware import cpu_flags, cpu_name

NOT_FOUND = "not found"
OTHER_PACKAGES = ("onnx", "polygraphy", "numpy")  # that take part in every backend's builds
CONTAINER_VARIABLES = ("NVIDIA_PRODUCT_NAME", "NVIDIA_TENSORRT_VERSION", "TENSORRT_VERSION", "NVIDIA_BUILD_ID")


def environment() -> dict[str, str]:
    """Return what was found, in the order of a report; what is not there is said as "not found"."""
    found = {
        "system": f"{_os_name()}, kernel {platform.release()}, {platform.machine()}",
        "container": container(),
        "Python": platform.python_version(),
        "CPU": f"{cpu_name()} ({', '.join(cpu_flags()) or 'flags unknown'}), {os.cpu_count()} threads",
        "GPU": gpu(),
        "driver": driver(),
        "CUDA (driver)": _dotted(_ask("libcuda.so.1", "cuDriverGetVersion")),
        "CUDA (runtime)": _dotted(_ask_any("cudart", "cudaRuntimeGetVersion")) or _package("nvidia-cuda-runtime"),
        "cuBLAS": _cublas() or _package("nvidia-cublas"),
        "cuDNN": _cudnn() or _package("nvidia-cudnn"),
    }
    infos = sorted(backend_infos().values(), key=lambda each: not each.uses_gpu)  # behind CUDA those that need it
    packages = {each.title: each.packages for each in infos} | {name: (name,) for name in OTHER_PACKAGES}
    found |= {word: _package(*names) for word, names in packages.items()}
    return {word: value or NOT_FOUND for word, value in found.items()}


def container() -> str:
    """Return what tells of a container, or that nothing does."""
    signs = [path for path in ("/.dockerenv", "/run/.containerenv") if Path(path).exists()]
    signs += [f"{name}={os.environ[name]}" for name in CONTAINER_VARIABLES if os.environ.get(name)]
    with contextlib.suppress(OSError):
        cgroup = Path("/proc/1/cgroup").read_text()
        signs += [word for word in ("docker", "kubepods", "containerd", "lxc") if word in cgroup]
    return ", ".join(signs) or "none seen"


def gpu() -> str | None:
    """Return name, compute capability and memory of every GPU."""
    return _nvidia_smi("name,compute_cap,memory.total") or _nvidia_smi("name,memory.total")


def driver() -> str | None:
    """Return the driver's version."""
    if version := _nvidia_smi("driver_version"):
        return version
    with contextlib.suppress(OSError):
        found = re.search(r"Kernel Module.*?(\d+\.\d+[.\d]*)", Path("/proc/driver/nvidia/version").read_text())
        return found[1] if found else None
    return None


def _nvidia_smi(fields: str) -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = dict.fromkeys(line.strip() for line in done.stdout.splitlines() if line.strip())
    return "; ".join(lines) if done.returncode == 0 and lines else None


def _os_name() -> str:
    with contextlib.suppress(OSError, AttributeError):
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    return platform.system()


def _package(*names: str) -> str | None:
    """Return the version of the first package installed, under its own name or with CUDA's major version behind it."""
    for name in names:
        for each in (name, f"{name}-cu13", f"{name}-cu12", f"{name}-cu11"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                return f"{importlib.metadata.version(each)}" + (f" ({each})" if each != names[0] else "")
    return None


def _library(stem: str) -> ctypes.CDLL | None:
    places = [ctypes.util.find_library(stem) or ""]
    for path in sys.path:
        places += sorted(glob.glob(f"{path}/nvidia/*/lib/lib{stem}.so*"), reverse=True)
    for place in filter(None, places):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(place)
    return None


def _ask(library: str, function: str) -> int | None:
    """Return the number that `int f(int*)` of a library gives."""
    with contextlib.suppress(OSError, AttributeError):
        number = ctypes.c_int()
        if getattr(ctypes.CDLL(library), function)(ctypes.byref(number)) == 0:
            return number.value
    return None


def _ask_any(stem: str, function: str) -> int | None:
    library = _library(stem)
    return _ask(library._name, function) if library is not None else None


def _dotted(number: int | None) -> str | None:
    """Return CUDA's number as a version: 12080 is 12.8."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def _cublas() -> str | None:
    library, parts = _library("cublas"), []
    with contextlib.suppress(AttributeError):
        for index in range(3):  # MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL
            number = ctypes.c_int()
            if library is None or library.cublasGetProperty(index, ctypes.byref(number)) != 0:
                return None
            parts.append(str(number.value))
        return ".".join(parts)
    return None


def _cudnn() -> str | None:
    library = _library("cudnn")
    with contextlib.suppress(AttributeError):
        if library is not None:
            library.cudnnGetVersion.restype = ctypes.c_size_t
            number = library.cudnnGetVersion()
            step = 10000 if number >= 90000 else 1000  # 9.1.0 is 90100, 8.9.7 is 8907
            return f"{number // step}.{number % step // 100}.{number % 100}"
    return None
