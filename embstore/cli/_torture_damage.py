"""Damage: whatever is changed in a checkpoint's files, verify says so with a typed error."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import embstore as es
from embstore.checkpoint import verify
from embstore.cli import _torture_saves as saves
from embstore.cli._torture_program import new_store, train
from embstore.cli._torture_report import Tally

N_KEYS = 40

Files = dict[str, bytes]


def files_of(path: Path) -> Files:
    """Return the bytes of a checkpoint's files by name."""
    return {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.name != "lock"}


class Damage:
    """A small checkpoint with files of every kind, another of the step after, and their ruin."""

    def __init__(self, folder: Path) -> None:
        store = new_store()
        self.path = folder / "damaged"
        others = folder / "of-another-step"
        for step in range(1, 14):
            train(store, step, N_KEYS)
            if step == 12:
                saves.save(store, self.path, step, "full")
        saves.save(store, others, 13, "full")
        self.files, self.foreign = files_of(self.path), files_of(others)

    def verdict(self, changed: dict[str, bytes | None]) -> str | None:
        """Verify with some files replaced (None: removed); return what is wrong with the answer."""
        for name, data in changed.items():
            self._put(name, data)
        try:
            verify(self.path)
            fault: str | None = "not detected"
        except es.CheckpointError:
            fault = None
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        if fault is None:
            for name in changed:
                self._put(name, self.files.get(name))
        return fault

    def _put(self, name: str, data: bytes | None) -> None:
        file = self.path / name
        if data is None:
            file.unlink(missing_ok=True)
            return
        with file.open("r+b" if file.exists() else "wb") as opened:
            opened.write(data)
            if len(data) < os.fstat(opened.fileno()).st_size:
                opened.truncate()  # only then: file systems flush what is cut off and written anew

    def flips(self, tally: Tally, seed: int) -> None:
        """Change random bytes by random masks, one at a time, until the time is over."""
        rng = random.Random(seed)
        names = sorted(self.files)
        sizes = [len(self.files[name]) for name in names]
        while not (tally.is_due or tally.failures):
            (name,) = rng.choices(names, sizes)
            data = bytearray(self.files[name])
            place, mask = rng.randrange(len(data)), rng.randint(1, 255)
            data[place] ^= mask
            fault = self.verdict({name: bytes(data)})
            tally.judge(fault, f"{self.path / name}, byte {place} ^ {mask}")

    def truncations(self, tally: Tally, seed: int) -> None:
        """Cut files at random lengths, or add to them, until the time is over."""
        rng = random.Random(seed)
        while not (tally.is_due or tally.failures):
            name = rng.choice(sorted(self.files))
            data = self.files[name]
            n_bytes = rng.randrange(len(data) + len(data) // 10 + 1)
            if n_bytes == len(data):
                continue
            cut = data[:n_bytes] + rng.randbytes(max(0, n_bytes - len(data)))
            fault = self.verdict({name: cut})
            tally.judge(fault, f"{self.path / name}, {n_bytes} bytes of {len(data)}")

    def exchanges(self, tally: Tally, seed: int) -> None:
        """Drop, swap, double and replace files, every way there is, until the time is over."""
        cases = list(self._exchanges())
        random.Random(seed).shuffle(cases)
        for what, changed in cases:
            tally.judge(self.verdict(changed), f"{self.path}: {what}")
            if tally.is_due or tally.failures:
                return

    def _exchanges(self) -> Iterator[tuple[str, dict[str, bytes | None]]]:
        for name, data in self.files.items():
            yield f"{name} removed", {name: None}
            yield f"{name} of another step", {name: self.foreign[name]}
            yield f"{name} empty", {name: b""}
            yield f"{name} twice over", {name: data + data}
            others = {other: found for other, found in self.files.items() if other != name}
            for other, found in others.items():
                yield f"{other} in the place of {name}", {name: found}
                if other > name:
                    yield f"{name} and {other} swapped", {name: found, other: data}
        data_files = {name: data for name, data in self.foreign.items() if name != "manifest.json"}
        yield "all data files of another step", dict(data_files)
