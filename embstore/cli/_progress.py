"""Progress bars on standard error: of a training pass, and of work on a checkpoint."""

import sys
import time
from types import TracebackType
from typing import Any, Self

from embstore.cli._metrics import RunningAuc


class _Closing:
    """What closes its bar, where it has one, at the end of a block."""

    _bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class Bar(_Closing):
    """A bar on standard error; nothing where that is no terminal, or tqdm is absent."""

    def __init__(self, title: str, n_items: int | None, unit: str) -> None:
        if not sys.stderr.isatty():
            return
        try:
            from tqdm import tqdm
        except ImportError:
            return
        self._bar = tqdm(
            desc=title, total=n_items, unit=f" {unit}", unit_scale=True, mininterval=0.5
        )

    def update(self, n: int) -> None:
        """Move on by `n` items."""
        if self._bar is not None:
            self._bar.update(n)


class Progress(_Closing):
    """A bar on standard error; nothing where tqdm is absent or the bar is not wanted."""

    def __init__(self, title: str, n_rows: int, n_done: int = 0, is_shown: bool = True) -> None:
        if not is_shown:
            return
        try:
            from tqdm import tqdm
        except ImportError:
            print(
                f"{title}: no progress bar without tqdm (pip install embstore[cli])",
                file=sys.stderr,
            )
            return
        self._bar = tqdm(
            desc=title, total=n_rows, initial=n_done, unit=" rows", unit_scale=True, mininterval=0.5
        )

    def on_batch(self, n_rows: int, area: RunningAuc) -> None:
        """Move on by a batch."""
        if self._bar is not None and self._bar.update(n_rows):
            self._bar.set_postfix_str(f"AUC {area.value:.4f}")


class Countdown(_Closing):
    """A bar of the seconds that a command is to take, and what it has done; as `Progress`."""

    def __init__(self, title: str, seconds: float, is_shown: bool) -> None:
        self._seconds = seconds
        self._begin = time.monotonic()
        if not (is_shown and sys.stderr.isatty()):
            return
        try:
            from tqdm import tqdm
        except ImportError:
            return
        form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} of {total} s{postfix}"
        self._bar = tqdm(desc=title, total=round(seconds), bar_format=form, mininterval=0.5)

    def show(self, what: str) -> None:
        """Say what has been done by now."""
        if self._bar is not None:
            elapsed = min(self._seconds, time.monotonic() - self._begin)
            if self._bar.update(elapsed - self._bar.n):
                self._bar.set_postfix_str(what)
