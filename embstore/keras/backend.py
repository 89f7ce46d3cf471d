"""Which lookups serve the layers: those of the framework that Keras runs on."""

from types import ModuleType

import keras

from embstore import ArgumentError


def lookups_of_backend() -> ModuleType:
    """Return the module that looks up on Keras's backend, as embstore/_keras/layer.py asks it."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        from embstore.tensorflow import lookups

        return lookups
    if backend == "torch":
        from embstore.keras import on_torch

        return on_torch
    if backend == "jax":
        from embstore.keras import on_jax

        return on_jax
    raise ArgumentError(
        f"embstore.keras needs Keras on tensorflow, torch or jax; it runs on {backend} "
        f"(KERAS_BACKEND)"
    )
