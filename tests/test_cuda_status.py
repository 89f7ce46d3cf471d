"""What `cuda_status` says where something is missing, and the way to a device by its name."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

import embstore as es
from embstore.engines import kernels
from embstore.engines.cuda import cupy_device, status

ROOT = Path(__file__).resolve().parent.parent


class CudaError(RuntimeError):
    """As CuPy raises it."""

    def __init__(self, number):
        super().__init__(f"cudaError {number}")
        self.status = number


def cupy_of(monkeypatch, driver=13000, nvrtc=(13, 5), devices=1, error=None):
    """Put a CuPy in place that finds what it is told."""

    def count():
        if error is not None:
            raise error
        return devices

    properties = {"major": 9, "minor": 0, "name": b"A Card", "totalGlobalMem": 80 << 30}
    runtime = types.SimpleNamespace(
        CUDARuntimeError=CudaError,
        runtimeGetVersion=lambda: 13020,
        driverGetVersion=lambda: driver,
        getDeviceCount=count,
        getDevice=lambda: devices - 1,
        getDeviceProperties=lambda index: properties,
    )
    cupy = types.SimpleNamespace(__version__="14.2.0", cuda=types.SimpleNamespace(runtime=runtime))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(status, "_nvrtc", lambda: ".".join(map(str, nvrtc)))


def one_line(found):
    assert found.is_available is False
    assert len(found.message.splitlines()) == 1
    return found.message


def test_without_cupy_it_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(status.importlib.util, "find_spec", lambda name: None)
    found = es.cuda_status()
    assert found.reason == "no-cupy"
    assert "pip install 'embstore[cuda13]'" in one_line(found)
    with pytest.raises(es.DeviceError, match="device 'cuda' cannot be used: CuPy is not installed"):
        status.open_device("cuda")


def test_with_a_broken_cupy_it_says_how(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(status.importlib.util, "find_spec", lambda name: "there")
    found = es.cuda_status()
    assert found.reason == "broken-cupy"
    assert "ModuleNotFoundError" in one_line(found)


def test_without_a_driver_it_says_so(monkeypatch):
    cupy_of(monkeypatch, driver=0, error=CudaError(35))
    found = es.cuda_status()
    assert (found.reason, found.cupy, found.runtime, found.driver) == (
        "no-driver",
        "14.2.0",
        "13.2",
        "",
    )
    assert "no NVIDIA driver" in one_line(found)


def test_with_an_old_driver_it_names_the_other_extra(monkeypatch):
    cupy_of(monkeypatch, driver=12040, error=CudaError(35))
    found = es.cuda_status()
    assert (found.reason, found.driver) == ("old-driver", "12.4")
    assert "supports CUDA 12.4, this CuPy needs 13.2" in one_line(found)
    assert "embstore[cuda12]" in found.message
    cupy_of(monkeypatch, driver=11040, error=CudaError(35))
    assert "embstore[" not in one_line(es.cuda_status())


@pytest.mark.parametrize(("devices", "error"), [(0, None), (1, CudaError(100))])
def test_without_a_device_it_says_so(devices, error, monkeypatch):
    cupy_of(monkeypatch, devices=devices, error=error)
    found = es.cuda_status()
    assert found.reason == "no-device"
    assert "CUDA_VISIBLE_DEVICES" in one_line(found)


@pytest.mark.parametrize("error", [CudaError(999), ValueError("two\nlines")])
def test_any_other_failure_is_told_and_not_raised(error, monkeypatch):
    cupy_of(monkeypatch, error=error)
    found = es.cuda_status()
    assert found.reason == "driver-error"
    assert type(error).__name__ in one_line(found)


def test_without_nvrtc_it_names_the_wheel(monkeypatch):
    cupy_of(monkeypatch, nvrtc=())
    found = es.cuda_status()
    assert found.reason == "no-nvrtc"
    assert "pip install 'nvidia-cuda-nvrtc>=13,<14'" in one_line(found)
    assert len(found.devices) == 1


def test_with_all_there_it_lists_the_cards(monkeypatch):
    cupy_of(monkeypatch, devices=2)
    found = es.cuda_status()
    assert found.is_available
    assert (found.reason, found.message, found.nvrtc, found.driver) == ("", "", "13.5", "13.0")
    assert found.devices[1] == es.CudaDevice(1, "A Card", (9, 0), 80 << 30)


def test_a_device_is_opened_by_its_name(monkeypatch):
    cupy_of(monkeypatch, devices=2)
    monkeypatch.setattr(cupy_device, "open_cupy_device", lambda index: f"opened {index}")
    monkeypatch.setattr(kernels, "target_of", lambda arch: arch)
    assert status.open_device("cuda") == "opened 1"
    assert status.open_device("cuda:0") == "opened 0"
    with pytest.raises(
        es.DeviceError, match="'cuda:2' is not there: this machine has cuda:0, cuda:1"
    ):
        status.open_device("cuda:2")


@pytest.mark.parametrize(
    "name", ["", "cpu", "cuda:", "cuda:-1", "cuda:01", "cuda:x", "CUDA", "cuda:1 "]
)
def test_any_other_name_is_an_error(name):
    with pytest.raises(es.ArgumentError, match='device must be "cuda" or "cuda:0"'):
        status.open_device(name)


def test_a_provider_stands_in_for_the_cards(monkeypatch):
    monkeypatch.setattr(status, "PROVIDER", lambda name: f"emulated {name}")
    assert status.open_device("cuda:3") == "emulated cuda:3"


def test_the_installed_cupy_is_asked_and_nothing_is_printed():
    pytest.importorskip("cupy", reason="CuPy is not installed: what it says here is not tried")
    code = "import embstore as es; s = es.cuda_status(); assert s.cupy; assert s.nvrtc or s.reason"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = es.cuda_status()
    assert found.reason in {"", "no-driver", "old-driver", "no-device", "no-nvrtc"}
    if not found.driver:
        assert "no NVIDIA driver" in one_line(found)
