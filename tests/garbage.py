"""Collect the garbage of a test, and not look at all that was there before it."""

import gc
from contextlib import contextmanager


@contextmanager
def of_its_own():
    """Collect what is dropped within, at each ``gc.collect()`` and at the end.

    What was there before is set aside meanwhile: with the tests themselves and a framework, half a
    million objects, and a collection that looks at them takes longer than most tests.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()
