"""The checkpoints of a module: the best ones and the last one, each written whole or not at all."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


class Checkpoints:
    """Keeps the checkpoints of the best epochs, and `last.ckpt`.

    Args:
        folder: Folder of the files; made with the first one.
        top: Checkpoints to keep besides the last one; 0 keeps the last one alone.
        mode: `min` where less of the monitored metric is better, `max` where more is.
        writes: False in a process that leaves the files to another one.
    """

    def __init__(self, folder: Path, top: int, mode: str, writes: bool = True) -> None:
        self.folder = folder
        self.best: dict[Path, float] = {}
        self._top = top
        self._sign = 1.0 if mode == "min" else -1.0
        self._writes = writes

    @property
    def last(self) -> Path:
        """Path of the checkpoint of the last epoch."""
        return self.folder / "last.ckpt"

    def save(self, content: dict[str, Any], epoch: int, step: int, score: float | None) -> None:
        """Write the checkpoint of an epoch; `score` is None where nothing is monitored."""
        if score is not None and self.wants(score):
            self.save_best(content, epoch, step, score)
            content["heimdall"]["best_k"] = self.state()
        self.save_last(content)

    def save_best(self, content: dict[str, Any], epoch: int, step: int, score: float) -> None:
        """Write one of the best checkpoints, and remove the one that no longer is."""
        path = self.folder / f"epoch={epoch}-step={step}.ckpt"
        self._write(content, path)
        ranked = sorted({**self.best, path: score}.items(), key=lambda it: self._sign * it[1])
        # A worse checkpoint is removed only after the better one is safe; those of an earlier training stay.
        for worse, _ in ranked[self._top :]:
            if self._writes and worse.parent == self.folder:
                worse.unlink(missing_ok=True)
        self.best = dict(ranked[: self._top])

    def save_last(self, content: dict[str, Any]) -> None:
        """Write the last checkpoint."""
        self._write(content, self.last)

    def wants(self, score: float) -> bool:
        """Return True for a score among the best."""
        if math.isnan(score):
            return False
        if len(self.best) < self._top:
            return True
        return any(self._sign * score < self._sign * other for other in self.best.values())

    def state(self) -> dict[str, float]:
        """Return the best checkpoints and their scores, for a training that goes on."""
        return {str(path.absolute()): score for path, score in self.best.items()}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on with the best checkpoints of an earlier training that are still there."""
        self.best = {Path(path): score for path, score in state.items() if Path(path).is_file()}

    def _write(self, content: dict[str, Any], path: Path) -> None:
        if self._writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            write(content, path)


def write(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whole, or leave the file as it is."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
