"""How good predictions are: the area under the ROC curve, exact and running."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def auc(labels: npt.NDArray[np.uint8], scores: Floats) -> float:
    """Return the area under the ROC curve: the chance that a positive outscores a negative.

    Parameters
    ----------
    labels
        (n,) 0 or 1.
    scores
        (n,); a tie counts one half.

    Returns
    -------
    float
        NaN where all labels are the same.
    """
    is_positive = labels > 0
    n_positive = int(is_positive.sum())
    n_negative = len(labels) - n_positive
    if n_positive == 0 or n_negative == 0:
        return float("nan")
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2
    rank_sum = float(mean_rank[place][is_positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


class RunningAuc:
    """The area under the ROC curve of all predictions so far, from histograms of `n_bins`."""

    def __init__(self, n_bins: int = 4096) -> None:
        self.n_bins = n_bins
        self.counts = np.zeros((2, n_bins), np.int64)

    def update(self, labels: npt.NDArray[np.uint8], probabilities: Floats) -> None:
        """Count a batch: labels (n,) 0 or 1, probabilities (n,) in [0, 1]."""
        place = np.minimum(
            (probabilities * np.float32(self.n_bins)).astype(np.int64), self.n_bins - 1
        )
        joint = np.bincount(
            place + self.n_bins * labels.astype(np.int64), minlength=2 * self.n_bins
        )
        self.counts += joint.reshape(2, self.n_bins)

    @property
    def value(self) -> float:
        """The area, to about 1e-4; NaN while all labels are the same."""
        negative, positive = self.counts.astype(np.float64)
        n_pairs = negative.sum() * positive.sum()
        if n_pairs == 0:
            return float("nan")
        below = np.cumsum(negative) - negative / 2
        return float((positive * below).sum() / n_pairs)
