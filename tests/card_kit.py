"""Which device the tests of the CUDA engine run on: EMBSTORE_TEST_DEVICE says so.

Unset, it is one that a CPU emulates (tests/emulator), and tests marked `card` are skipped. "cuda"
or "cuda:N" is a card: `make test-gpu`. "emulated" runs the tests marked `card` too, at tiny sizes,
to see whether they themselves are right.
"""

import os
from contextlib import contextmanager

import garbage

from embstore.engines.cuda import status

VARIABLE = "EMBSTORE_TEST_DEVICE"
EMULATED = "emulated"
WHY_SKIPPED = f"needs a card: make test-gpu ({VARIABLE} is not set)"


def asked_for():
    """Return the value of EMBSTORE_TEST_DEVICE: "", "emulated", "cuda" or "cuda:N"."""
    name = os.environ.get(VARIABLE, "")
    if name not in ("", EMULATED) and status.NAME.fullmatch(name) is None:
        raise ValueError(f'{VARIABLE} must be "cuda", "cuda:N" or "{EMULATED}", got {name!r}')
    return name


def is_real():
    """Return whether the tests run on a card."""
    return asked_for() not in ("", EMULATED)


@contextmanager
def emulated():
    """Let ``device="cuda"`` be an emulated device; raise where its memory was misused."""
    from emulator.device import EmulatedDevice

    device, before = EmulatedDevice(), status.PROVIDER
    status.PROVIDER = lambda name: device
    with garbage.of_its_own():
        try:
            yield device
        finally:
            status.PROVIDER = before
    device.allocations.release()
    assert device.violations == []


@contextmanager
def card():
    """Let ``device="cuda"`` be the card that is asked for; raise what its work has left."""
    device, before = status.open_device(asked_for()), status.PROVIDER
    status.PROVIDER = lambda name: device
    with garbage.of_its_own():
        try:
            yield device
        finally:
            status.PROVIDER = before
    with device.current():
        device.runtime.deviceSynchronize()
        device.cupy.get_default_memory_pool().free_all_blocks()


def device_under_test():
    """Return the context of the device that is asked for."""
    return card() if is_real() else emulated()
