"""The device under test behind ``device="cuda"``, for programs that tests start."""

import card_kit

from embstore.engines.cuda import status

from .device import EmulatedDevice


def provide():
    """Let ``device="cuda"`` be an emulated device, or the card that is asked for; return it."""
    is_real = card_kit.is_real()
    device = status.open_device(card_kit.asked_for()) if is_real else EmulatedDevice()
    status.PROVIDER = lambda name: device
    return device
