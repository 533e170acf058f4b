"""Progress of a training, in a terminal, a notebook or a file; and a summary of its module."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from torch import nn

# Seconds between two drawings of a bar.
EVERY = 0.1
WIDTH = 20


class Display:
    """Shows the progress of a training in one place; where the output is a file, one line for each epoch.

    Args:
        epochs: Most epochs.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._drawn = 0.0
        self._cell = _cell()
        self._is_in_place = self._cell is not None or sys.stdout.isatty()
        self._begun = time.monotonic()

    def batch(self, epoch: int, batches: int, of: int | None, values: Mapping[str, float]) -> None:
        """Show how far an epoch is, but only so often that no step waits for it."""
        now = time.monotonic()
        if not self._is_in_place or now - self._drawn < EVERY:
            return
        self._drawn = now
        share = "" if not of else f" {_bar(batches / of)} {batches}/{of}"
        self._draw(f"epoch {epoch + 1}/{self._epochs}{share}  {_told(values)}")

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        """Show the values of an epoch."""
        line = f"epoch {epoch + 1:>3}/{self._epochs}  {_told(values)}"
        if not self._is_in_place:
            print(line)
            return
        left = (time.monotonic() - self._begun) / (epoch + 1) * (self._epochs - epoch - 1)
        self._drawn = 0.0
        self._draw(f"{line}  {left:.0f} s left")

    def close(self) -> None:
        """Leave the last line where it is."""
        if self._is_in_place and self._cell is None and self._drawn >= 0:
            print(file=sys.stdout, flush=True)

    def _draw(self, text: str) -> None:
        if self._cell is not None:
            self._cell.update({"text/plain": text}, raw=True)
            return
        columns = _columns()
        print(f"\r{text[: columns - 1]}\x1b[K", end="", file=sys.stdout, flush=True)


def _told(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def _bar(share: float) -> str:
    full = round(WIDTH * min(share, 1.0))
    return "█" * full + "░" * (WIDTH - full)


def _columns() -> int:
    import shutil

    return max(shutil.get_terminal_size().columns, 20)


def _cell() -> Any:
    """Return the handle of an output in a notebook, or None elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    show: Any = display
    return show({"text/plain": ""}, raw=True, display_id=True)


def summary(module: nn.Module) -> str:
    """Return a table of the parts of a module and their parameters."""
    rows = []
    for name, child in module.named_children():
        count = sum(it.numel() for it in child.parameters())
        learning = sum(it.numel() for it in child.parameters() if it.requires_grad)
        rows.append((name, type(child).__name__, count, "" if learning == count else f"{learning:,} learn"))
    total = sum(it.numel() for it in module.parameters())
    learning = sum(it.numel() for it in module.parameters() if it.requires_grad)
    megabytes = sum(it.nbytes for it in module.parameters()) / 1e6
    rows.append((type(module).__name__, "", total, f"{learning:,} learn, {megabytes:.1f} MB"))
    names = max(len(row[0]) for row in rows)
    kinds = max(len(row[1]) for row in rows)
    return "\n".join(
        f"{name:<{names}}  {kind:<{kinds}}  {count:>13,}  {more}".rstrip() for name, kind, count, more in rows
    )
