"""The main job: one pass over click data in time order, each batch predicted, then trained.

Embeddings are updated on the summed loss of a batch, the dense weights on its mean loss. `step` is
the number of the batch, from 0 in the first run, and goes on where a run is resumed.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import embstore as es
from embstore.cli._deepfm import DeepFM, sigmoid
from embstore.cli._metrics import RunningAuc, auc
from embstore.cli._tables import DynamicTables, FeatureKeys, Sizes, TableOptions, Tables
from embstore.data import Batch, DataError, Feature, ParquetReader, Ragged

WINDOWS = {"auc_last_60_percent": 0.6, "auc_last_8_percent": 0.08}
N_SAMPLES = 200

OnBatch = Callable[[int, RunningAuc], None]


@dataclass(frozen=True)
class JobConfig:
    """What is trained; a resumed run must have the same."""

    features: tuple[Feature, ...]
    label: str
    batch_size: int
    dense_lr: float
    tables: TableOptions

    @property
    def names(self) -> list[str]:
        """The features' names, which are the tables' names."""
        return [feature.name for feature in self.features]

    @property
    def columns(self) -> list[str]:
        """The columns to read, each once."""
        wanted = (column for feature in self.features for column in feature.columns)
        return list(dict.fromkeys((*wanted, self.label)))

    def keys(self, batch: Batch) -> FeatureKeys:
        """Return the keys of all features in a batch."""
        return {feature.name: feature.keys(batch) for feature in self.features}

    def describe(self) -> dict[str, Any]:
        """Return the configuration as JSON holds it."""
        return {
            "features": self.names,
            "label": self.label,
            "batch_size": self.batch_size,
            "dense_lr": self.dense_lr,
            **self.tables.describe(),
        }


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    n_rows: int
    seconds: float
    n_peak_rows: int
    sizes: Sizes
    areas: dict[str, float]

    @property
    def rows_per_s(self) -> float:
        """Rows trained in a second by this process."""
        return self.n_rows / self.seconds if self.seconds else float("nan")

    def describe(self) -> dict[str, Any]:
        """Return the outcome as JSON holds it."""
        return {
            **self.areas,
            **self.sizes.describe(),
            "n_peak_rows": self.n_peak_rows,
            "rows_per_s": self.rows_per_s,
        }


class Job:
    """A model in training: tables, dense weights, predictions so far, and where the data stand."""

    def __init__(self, config: JobConfig, reader: ParquetReader, tables: Tables) -> None:
        self.config = config
        self.reader = reader
        self.tables = tables
        self.model = DeepFM(
            len(config.features), config.tables.dim, config.dense_lr, _seed32(config)
        )
        self.step = 0
        self.n_peak_rows = 0
        self.n_done = 0
        self.logits = np.zeros(reader.n_rows, np.float32)
        self.labels = np.zeros(reader.n_rows, np.uint8)
        self.samples: list[list[int]] = []
        self._running = RunningAuc()
        self._n_trained, self._seconds = 0, 0.0

    def run(self, stop_after: int | None = None, on_batch: OnBatch | None = None) -> None:
        """Train to the end of the pass, or for `stop_after` batches.

        Parameters
        ----------
        stop_after
            Batches of this call.
        on_batch
            Called after each batch with its rows and the running area under the curve.
        """
        if self.is_complete:
            return
        started = time.perf_counter()
        with iter(self.reader) as batches:
            for number, batch in enumerate(batches, start=1):
                n_rows = self.train(batch)
                if on_batch is not None:
                    on_batch(n_rows, self._running)
                if number == stop_after:
                    break
        self._seconds += time.perf_counter() - started

    @property
    def is_complete(self) -> bool:
        """Whether the pass has come to its end."""
        return self.reader.epoch > 0 or self.reader.row == self.reader.n_rows

    def train(self, batch: Batch) -> int:
        """Predict a batch, then train it; return its rows."""
        labels = _labels(batch[self.config.label], self.config.label, self.n_done)
        rows = self.tables.find_or_insert(self.config.keys(batch), self.step)
        logits, gradients = self.model.train(rows, labels)
        self.tables.apply_gradients(gradients, self.step)
        self._record(labels, logits)
        return len(labels)

    def predict(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Return the logits (n,) of a batch; nothing changes."""
        return self.model.forward(self.tables.find(self.config.keys(batch)))

    def outcome(self) -> Outcome:
        """Return what came of the run so far; the windows are of the rows done."""
        areas = {}
        for name, share in WINDOWS.items():
            window = slice(self.n_done - round(share * self.n_done), self.n_done)
            areas[name] = auc(self.labels[window], self.logits[window])
        return Outcome(self._n_trained, self._seconds, self.n_peak_rows, self.tables.sizes(), areas)

    def _record(self, labels: npt.NDArray[np.uint8], logits: npt.NDArray[np.float32]) -> None:
        window = slice(self.n_done, self.n_done + len(labels))
        self.logits[window], self.labels[window] = logits, labels
        self._running.update(labels, sigmoid(logits))
        self.step += 1
        self.n_done += len(labels)
        self._n_trained += len(labels)
        self.n_peak_rows = max(self.n_peak_rows, self.tables.n_rows())
        if self.n_done * N_SAMPLES >= (len(self.samples) + 1) * self.reader.n_rows:
            sizes = self.tables.sizes()
            self.samples.append([self.n_done, sizes.n_live, sizes.n_pending])

    def save(self, folder: "str | os.PathLike[str]") -> None:
        """Write a checkpoint from which `resume` continues to the bit; of dynamic tables only."""
        assert isinstance(self.tables, DynamicTables)
        dense = {f"dense.{name}": array for name, array in self.model.state().items()}
        progress = {
            "step": self.step,
            "n_peak_rows": self.n_peak_rows,
            "n_done": self.n_done,
            "is_complete": self.is_complete,
        }
        extra = {
            "job": self.config.describe(),
            "reader": self.reader.state_dict(),
            "progress": progress,
            "logits": self.logits[: self.n_done],
            "labels": self.labels[: self.n_done],
            "samples": np.array(self.samples, np.int64).reshape(-1, 3),
            **dense,
        }
        self.tables.store.save(folder, extra=extra)

    @classmethod
    def resume(
        cls, folder: "str | os.PathLike[str]", config: JobConfig, reader: ParquetReader
    ) -> "Job":
        """Continue a saved run where it stopped.

        Its data are read from where they stood. If they had been read to their end, other data may
        follow, and start at their first row.

        Raises
        ------
        DataError
            If the checkpoint is not of this job, or stopped in the middle of other data.
        CheckpointError
            If there is no sound checkpoint.
        """
        store = es.Store.load(folder, device=config.tables.device)
        extra = store.extra or {}
        _check_same_job(extra, config, folder)
        job = cls(config, reader, DynamicTables(store, config.names))
        prefix = "dense."
        dense = {
            name.removeprefix(prefix): extra[name] for name in extra if name.startswith(prefix)
        }
        job.model.load_state(dense)
        job.step = int(extra["progress"]["step"])
        job._place(extra, folder)
        return job

    def _place(self, extra: Mapping[str, Any], folder: "str | os.PathLike[str]") -> None:
        """Take up the position and the predictions of a saved run, if it was on these data."""
        saved, here = extra["reader"], self.reader.state_dict()
        if saved["data"] != here["data"]:
            if not extra["progress"]["is_complete"]:
                raise DataError(
                    f"{os.fspath(folder)} stopped at row {saved['row']:,} of other data; "
                    "resume with those"
                )
            self.n_peak_rows = self.tables.n_rows()
            return
        self.reader.load_state_dict(saved)
        n_done = self.n_done = int(extra["progress"]["n_done"])
        self.n_peak_rows = int(extra["progress"]["n_peak_rows"])
        self.logits[:n_done], self.labels[:n_done] = extra["logits"], extra["labels"]
        self.samples = np.asarray(extra["samples"]).tolist()
        self._running.update(self.labels[:n_done], sigmoid(self.logits[:n_done]))


def _check_same_job(
    extra: Mapping[str, Any], config: JobConfig, folder: "str | os.PathLike[str]"
) -> None:
    if "job" not in extra:
        raise DataError(f"{os.fspath(folder)} was not written by 'embstore train'")
    saved, given = extra["job"], config.describe()
    for name, value in given.items():
        if saved.get(name) != value:
            raise DataError(
                f"{os.fspath(folder)} was trained with {name} = {saved.get(name)}, not {value}; "
                "resume with the options of the first run"
            )


def _labels(column: object, name: str, n_before: int) -> npt.NDArray[np.uint8]:
    if isinstance(column, Ragged):
        raise DataError(f"the label {name!r} is a column of lists, not of 0 and 1")
    values = np.asarray(column)
    is_label = (values == 0) | (values == 1)
    if not is_label.all():
        row = int(np.argmin(is_label))
        raise DataError(
            f"the label {name!r} is {values[row]} at row {n_before + row}; labels are 0 or 1"
        )
    return values.astype(np.uint8)


def _seed32(config: JobConfig) -> int:
    return config.tables.seed % 2**32
