"""A DeepFM in numpy: factorization machine and a small network over the rows of the fields.

Guo et al., "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction", 2017. With
the rows v_f of a sample's fields, ``p = ((sum v_f)^2 - sum v_f^2) / 2`` holds, per column, the sum
of the products of all pairs of fields (Rendle, "Factorization Machines", 2010). The logit is the
sum of p plus a network 32-1 over the rows and p. There are no first-order terms.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

N_HIDDEN = 32
BLOCK_ROWS, BLOCK_PRODUCTS = 64, 1 << 18
BETA_1, BETA_2, EPS = 0.9, 0.999, 1e-8


class DeepFM:
    """The dense half of the model, trained by Adam on the mean loss of a batch.

    Parameters
    ----------
    n_fields, dim
        How many rows a sample has, and their length.
    lr
        Adam's learning rate.
    seed
        Of the initial weights, 0 to 2**32 - 1.
    """

    def __init__(self, n_fields: int, dim: int, lr: float = 2e-3, seed: int = 0) -> None:
        random = np.random.RandomState(seed)  # unlike Generator's, its stream never changes
        n_in = (n_fields + 1) * dim
        self.lr = lr
        self.n_steps = 0
        self.weights: dict[str, Floats] = {
            "hidden_weight": _glorot(random, n_in, N_HIDDEN),
            "hidden_bias": np.zeros(N_HIDDEN, np.float32),
            "output_weight": _glorot(random, N_HIDDEN, 1),
            "output_bias": np.zeros(1, np.float32),
        }
        self._moments = {
            name: (np.zeros_like(w), np.zeros_like(w)) for name, w in self.weights.items()
        }

    def forward(self, rows: Floats) -> Floats:
        """Return the logits (n,) of samples with rows (n, n_fields, dim)."""
        return self._forward(rows)[0]

    def train(self, rows: Floats, labels: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Take one step of Adam on a batch.

        Parameters
        ----------
        rows
            (n, n_fields, dim) float32.
        labels
            (n,) 0 or 1.

        Returns
        -------
        logits : (n,) float32
            As they were before the step.
        row_gradients : (n, n_fields, dim) float32
            Of the summed loss.
        """
        n, n_fields, dim = rows.shape
        logits, inputs, active = self._forward(rows)
        error = sigmoid(logits) - labels.astype(np.float32)
        back = error[:, None] * self.weights["output_weight"][:, 0]
        back *= active > 0
        gradients = {
            "hidden_weight": _matmul_transposed(inputs, back),
            "hidden_bias": back.sum(axis=0),
            "output_weight": _matmul_transposed(active, error[:, None]),
            "output_bias": error.sum(keepdims=True),
        }
        to_inputs = _matmul(back, self.weights["hidden_weight"].T)
        to_products = to_inputs[:, n_fields * dim :] + error[:, None]
        to_rows = to_inputs[:, : n_fields * dim].reshape(rows.shape)
        to_rows = to_rows + to_products[:, None, :] * (rows.sum(axis=1, keepdims=True) - rows)
        self._adam({name: gradient / np.float32(n) for name, gradient in gradients.items()})
        return logits, to_rows

    def _forward(self, rows: Floats) -> tuple[Floats, Floats, Floats]:
        total = rows.sum(axis=1)
        products = np.float32(0.5) * (total * total - (rows * rows).sum(axis=1))
        inputs = np.concatenate([rows.reshape(len(rows), -1), products], axis=1)
        hidden = _matmul(inputs, self.weights["hidden_weight"]) + self.weights["hidden_bias"]
        active = np.maximum(hidden, 0)
        deep = _matmul(active, self.weights["output_weight"]) + self.weights["output_bias"]
        return deep[:, 0] + products.sum(axis=1), inputs, active

    def _adam(self, gradients: Mapping[str, Floats]) -> None:
        self.n_steps += 1
        step_size = np.float32(self.lr / (1 - BETA_1**self.n_steps))
        correction = np.float32((1 - BETA_2**self.n_steps) ** 0.5)
        for name, gradient in gradients.items():
            mean, square = self._moments[name]
            mean += np.float32(1 - BETA_1) * (gradient - mean)
            square += np.float32(1 - BETA_2) * (gradient * gradient - square)
            deviation = np.sqrt(square) / correction + np.float32(EPS)
            self.weights[name] -= step_size * mean / deviation

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return copies of all that training changes, by name."""
        arrays: dict[str, npt.NDArray[np.generic]] = {"n_steps": np.array([self.n_steps])}
        for name, weight in self.weights.items():
            mean, square = self._moments[name]
            arrays |= {
                name: weight.copy(),
                f"{name}.mean": mean.copy(),
                f"{name}.square": square.copy(),
            }
        return arrays

    def load_state(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Continue from what `state` returned, of a model of the same shape."""
        self.n_steps = int(arrays["n_steps"][0])
        for name, weight in self.weights.items():
            mean, square = self._moments[name]
            for target, key in ((weight, name), (mean, f"{name}.mean"), (square, f"{name}.square")):
                target[...] = arrays[key]


def sigmoid(logits: Floats) -> Floats:
    """Return probabilities (n,) of logits (n,), without overflow."""
    half = np.float32(0.5)
    probabilities: Floats = half + half * np.tanh(half * logits)
    return probabilities


def _matmul(a: Floats, b: Floats) -> Floats:
    """Return ``a @ b`` in blocks of rows too small for BLAS to start its threads.

    Threads cost more here than they give, an order of magnitude on a busy machine, and the bits of
    a sum could depend on their number.
    """
    product = np.empty((len(a), b.shape[1]), np.float32)
    for rows in _blocks(len(a), b.size):
        np.matmul(a[rows], b, out=product[rows])
    return product


def _matmul_transposed(a: Floats, b: Floats) -> Floats:
    """Return ``a.T @ b``, block by block as `_matmul`."""
    total = np.zeros((a.shape[1], b.shape[1]), np.float32)
    for rows in _blocks(len(a), total.size):
        total += a[rows].T @ b[rows]
    return total


def _blocks(n_rows: int, n_products_a_row: int) -> Iterator[slice]:
    size = max(1, min(BLOCK_ROWS, BLOCK_PRODUCTS // n_products_a_row))
    return (slice(start, start + size) for start in range(0, n_rows, size))


def _glorot(random: np.random.RandomState, n_in: int, n_out: int) -> Floats:
    """Return uniform weights (n_in, n_out) of Glorot and Bengio, 2010, equation 16."""
    bound = (6 / (n_in + n_out)) ** 0.5
    return random.uniform(-bound, bound, (n_in, n_out)).astype(np.float32)
