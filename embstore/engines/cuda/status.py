"""Whether the CUDA engine can run here, why not, and the way to a device by its name."""

import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType

from embstore.engines.cuda.device import Device
from embstore.errors import ArgumentError, DeviceError, ForkError

NAME = re.compile(r"cuda(?::(0|[1-9][0-9]{0,5}))?")
INSUFFICIENT_DRIVER, NO_DEVICE = 35, 100  # of cudaError_t
CUDA_MAJORS = (13, 12)  # for which there is a CuPy; the first is recommended

PROVIDER: Callable[[str], Device] | None = None
"""Where tests put what opens a device in place of a card; takes "cuda" or "cuda:N"."""


@dataclass(frozen=True)
class CudaDevice:
    """A card that CUDA sees.

    Examples
    --------
    >>> import embstore as es
    >>> [device.index for device in es.cuda_status().devices if device.index < 0]
    []
    """

    index: int
    name: str
    compute_capability: tuple[int, int]
    total_bytes: int


@dataclass(frozen=True)
class CudaStatus:
    """Whether tables can live on a card, and what is missing.

    Attributes
    ----------
    is_available
        Whether ``device="cuda"`` works.
    reason
        ``""``, or the first thing that is missing: ``"no-cupy"``, ``"broken-cupy"``,
        ``"no-driver"``, ``"old-driver"``, ``"no-device"``, ``"driver-error"`` or ``"no-nvrtc"``.
    message
        One line that says so, and what to install; empty if nothing is missing.
    cupy, driver, runtime, nvrtc
        The versions found, such as ``"14.2.0"`` and ``"13.0"``; empty where there is none.
        `driver` is the newest CUDA that the driver supports.
    devices
        The cards.

    Examples
    --------
    >>> import embstore as es
    >>> status = es.cuda_status()
    >>> status.is_available == (status.reason == "")
    True
    """

    is_available: bool
    reason: str
    message: str
    cupy: str = ""
    driver: str = ""
    runtime: str = ""
    nvrtc: str = ""
    devices: tuple[CudaDevice, ...] = ()


def _version(number: int) -> str:
    """Return a version of CUDA, 1000 major + 10 minor, as people write it; "" for 0."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""


def _extra(major: int) -> str:
    return f"pip install 'embstore[cuda{major}]'"


def _nvrtc_of(major: int) -> str:
    return "nvidia-cuda-nvrtc-cu12" if major == 12 else f"'nvidia-cuda-nvrtc>={major},<{major + 1}'"


def _devices(cupy: ModuleType) -> tuple[CudaDevice, ...]:
    found = []
    for index in range(cupy.cuda.runtime.getDeviceCount()):
        properties = cupy.cuda.runtime.getDeviceProperties(index)
        capability = (int(properties["major"]), int(properties["minor"]))
        name = properties["name"].decode(errors="replace")
        found.append(CudaDevice(index, name, capability, int(properties["totalGlobalMem"])))
    return tuple(found)


def _nvrtc() -> str:
    """Return the version of NVRTC, "" if there is none that can be loaded."""
    try:
        from cupy_backends.cuda.libs import nvrtc

        major, minor = nvrtc.getVersion()
    except Exception:  # what CuPy raises depends on how it looked for the library
        return ""
    return f"{major}.{minor}"


def _driver_fault(status: int, driver: str, runtime: str) -> tuple[str, str]:
    """Return reason and message of an error of the CUDA runtime."""
    if not driver:
        return "no-driver", "there is no NVIDIA driver (libcuda.so.1) on this machine"
    if status == INSUFFICIENT_DRIVER:
        older = [m for m in CUDA_MAJORS if m <= int(driver.partition(".")[0])]
        other = f", or {_extra(older[0])} in place of this CuPy" if older else ""
        return "old-driver", (
            f"the NVIDIA driver supports CUDA {driver}, this CuPy needs {runtime}; "
            f"update the driver{other}"
        )
    return (
        "no-device",
        "the NVIDIA driver sees no device; look at CUDA_VISIBLE_DEVICES and nvidia-smi",
    )


def cuda_status() -> CudaStatus:
    """Return whether tables can live on a card here, and if not, what is missing.

    It never raises and prints nothing. The first call imports CuPy, and starts CUDA: a child forked
    later cannot use it.

    Returns
    -------
    CudaStatus
        What was found.

    Examples
    --------
    >>> import embstore as es
    >>> status = es.cuda_status()
    >>> len(status.message.splitlines()) == (0 if status.is_available else 1)
    True
    """
    choices = " or ".join(_extra(major) for major in CUDA_MAJORS)
    try:
        import cupy
    except ImportError as error:
        if importlib.util.find_spec("cupy") is None:
            return CudaStatus(False, "no-cupy", f"CuPy is not installed; {choices}")
        return _broken(error)
    except Exception as error:
        return _broken(error)
    try:
        return _status_of(cupy)
    except Exception as error:  # a status is asked for when things are broken
        message = f"CUDA could not be asked: {_line(error)}"
        return CudaStatus(False, "driver-error", message, cupy.__version__)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _broken(error: Exception) -> CudaStatus:
    return CudaStatus(False, "broken-cupy", f"CuPy is installed but fails: {_line(error)}")


def _status_of(cupy: ModuleType) -> CudaStatus:
    runtime = cupy.cuda.runtime
    major = int(runtime.runtimeGetVersion()) // 1000
    found = CudaStatus(
        is_available=True,
        reason="",
        message="",
        cupy=str(cupy.__version__),
        driver=_version(int(runtime.driverGetVersion())),
        runtime=_version(int(runtime.runtimeGetVersion())),
        nvrtc=_nvrtc(),
    )
    fault = None
    try:
        found = replace(found, devices=_devices(cupy))
    except runtime.CUDARuntimeError as error:
        if found.driver and error.status not in (INSUFFICIENT_DRIVER, NO_DEVICE):
            raise
        fault = _driver_fault(error.status, found.driver, found.runtime)
    else:
        if not found.devices:
            fault = _driver_fault(NO_DEVICE, found.driver, found.runtime)
        elif not found.nvrtc:
            fault = "no-nvrtc", f"NVRTC is not installed; pip install {_nvrtc_of(major)}"
    if fault is None:
        return found
    return replace(found, is_available=False, reason=fault[0], message=fault[1])


def open_device(name: str) -> Device:
    """Return the device of a name, "cuda" (the current one) or "cuda:N".

    Raises
    ------
    ArgumentError
        If the name is neither.
    DeviceError
        If there is no such device, or embstore cannot run on it.
    ForkError
        If CUDA was begun before this process was forked.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise ArgumentError(f'device must be "cuda" or "cuda:0", "cuda:1", ..., got {name!r}')
    _check_fork(name)
    if PROVIDER is not None:
        return PROVIDER(name)
    status = cuda_status()
    if not status.is_available:
        raise DeviceError(f"device {name!r} cannot be used: {status.message}")
    from embstore.engines import kernels
    from embstore.engines.cuda.cupy_device import open_cupy_device

    index = _current_index() if match[1] is None else int(match[1])
    if index >= len(status.devices):
        names = ", ".join(f"cuda:{device.index}" for device in status.devices)
        raise DeviceError(f"device {name!r} is not there: this machine has {names}")
    major, minor = status.devices[index].compute_capability
    kernels.target_of(10 * major + minor)
    return open_cupy_device(index)


_PIDS: set[int] = set()  # of the process that has opened a device, and its parents


def _check_fork(name: str) -> None:
    """Raise if CUDA was begun by a process of which this is a forked child."""
    if _PIDS and os.getpid() not in _PIDS:
        raise ForkError(
            f"device {name!r} cannot be used: CUDA was begun before this process was forked; "
            f'start processes by "spawn"'
        )
    _PIDS.add(os.getpid())


def _current_index() -> int:
    import cupy

    return int(cupy.cuda.runtime.getDevice())
