"""What the contract asks of the adapter of a framework: one embedding over one table, in numpy.

To put an adapter under the contract, write a subclass beside `torch_adapter.py` and name it in
`ADAPTERS`; what its framework lacks it says by `has_*`.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple


class Adapter(ABC):
    """An embedding module and an embedding bag of one table, and the optimizer of both.

    Ids go in as numpy arrays of any shape, rows come out as numpy arrays, float32 throughout. The
    step is 0 at first, and each `apply` moves it by one.
    """

    has_no_grad = True  # there is a way to look up in a training module without gradients
    has_backward_alone = True  # gradients wait for `apply`; else the table is trained in `backward`
    refused: tuple[type[Exception], ...] = ()  # what its framework raises, beside embstore's errors

    @abstractmethod
    def __init__(self, table, padding_id=None):
        """Take a table that has an optimizer."""

    @property
    @abstractmethod
    def step(self):
        """The step of the next training lookup."""

    @abstractmethod
    def lookup(self, ids):
        """Look up in training, and return rows (*ids.shape, dim)."""

    @abstractmethod
    def read(self, ids):
        """Look up in inference, and return rows."""

    def read_without_gradients(self, ids):
        """Look up in training while gradients are switched off."""
        raise NotImplementedError

    @abstractmethod
    def backward(self, ids, output_grads):
        """Look up in training, and give the gradients (*ids.shape, dim) of what came out."""

    @abstractmethod
    def apply(self):
        """Train the table with the gradients since the last time, if that has not happened yet."""

    @abstractmethod
    def forget(self):
        """Give up the gradients since the last `apply`."""

    @abstractmethod
    def read_bags(self, ids, offsets, mode, weights=None):
        """Pool in inference; ids (n,), offsets (n_bags + 1,)."""

    @abstractmethod
    def backward_bags(self, ids, offsets, output_grads, mode, weights=None):
        """Pool in training, and give the gradients (n_bags, dim) of what came out."""

    def train(self, ids, output_grads):
        """Do a whole step."""
        self.backward(ids, output_grads)
        self.apply()

    def train_bags(self, ids, offsets, output_grads, mode, weights=None):
        """Do a whole step with bags."""
        self.backward_bags(ids, offsets, output_grads, mode, weights)
        self.apply()


class Place(NamedTuple):
    """Where an adapter is found: the package that must be there, its class, Keras's backend."""

    framework: str
    module: str
    name: str
    backend: str | None = None  # of KERAS_BACKEND, which holds for a whole process


ADAPTERS = {
    "torch": Place("torch", "torch_adapter", "TorchAdapter"),
    "torch-fused": Place("torch", "torch_adapter", "FusedTorchAdapter"),
    "tensorflow": Place("tensorflow", "tensorflow_adapter", "TensorflowAdapter"),
    "tensorflow-fallback": Place("tensorflow", "tensorflow_adapter", "FallbackTensorflowAdapter"),
    "tensorflow-fused": Place("tensorflow", "tensorflow_adapter", "FusedTensorflowAdapter"),
    "jax": Place("jax", "jax_adapter", "JaxAdapter"),
    "jax-embed": Place("jax", "jax_adapter", "EmbedJaxAdapter"),
    "jax-fallback": Place("jax", "jax_adapter", "FallbackJaxAdapter"),
    **{
        f"keras-{backend}": Place(backend, "keras_adapter", "KerasAdapter", backend)
        for backend in ("tensorflow", "torch", "jax")
    },
}
