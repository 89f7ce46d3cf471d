"""The progress bar of a command: of a pass, rows and the area under the curve so far."""

import sys
from types import TracebackType
from typing import Any

from embstore.cli._metrics import RunningAuc


class Progress:
    """A bar on standard error; nothing where tqdm is absent or the bar is not wanted."""

    def __init__(
        self,
        title: str,
        total: float,
        n_done: int = 0,
        is_shown: bool = True,
        unit: str = " rows",
    ) -> None:
        self._bar: Any = None
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
            desc=title, total=total, initial=n_done, unit=unit, unit_scale=True, mininterval=0.5
        )

    def advance(self, amount: float, text: str) -> None:
        """Move on, and say what has been done."""
        if self._bar is not None and self._bar.update(amount):
            self._bar.set_postfix_str(text)

    def on_batch(self, n_rows: int, area: RunningAuc) -> None:
        """Move on by a batch."""
        if self._bar is not None and self._bar.update(n_rows):
            self._bar.set_postfix_str(f"AUC {area.value:.4f}")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
