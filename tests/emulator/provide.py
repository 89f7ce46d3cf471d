"""The emulated device behind ``device="cuda"``, for programs that tests start."""

from embstore.engines.cuda import status

from .device import EmulatedDevice


def provide():
    """Let ``device="cuda"`` be an emulated device; return it."""
    device = EmulatedDevice()
    status.PROVIDER = lambda name: device
    return device
