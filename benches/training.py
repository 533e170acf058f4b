"""Seconds of a training by our loop, beside a plain PyTorch loop and Lightning, in the same process.

Run it with `make bench`, or `python benches/training.py [--quick]`. All train on one thread, from the same
weights on the same batches in memory; bars, loggers and checkpoints of Lightning are off. They take turns.
The medians of the rounds are shown.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from heimdall_tracking.training import Trainer  # noqa: E402

QUICK = "--quick" in sys.argv
ROUNDS, STEPS = (1, 40) if QUICK else (5, 1000)


class Batches:
    """Batches in memory. Lightning takes a list for several loaders."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(STEPS, 32, 32, generator=generator)
        self.pairs = list(zip(inputs, torch.randn(STEPS, 32, 2, generator=generator), strict=True))

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter(self.pairs)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


class Opaque(nn.Module):
    """The same network as a module of its own class, which Python runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(inputs)


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()

    def training_step(self, batch, batch_idx):
        inputs, target = batch
        return nn.functional.mse_loss(self.layers(inputs), target)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def plain(data: Batches, fused: bool = False) -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    for inputs, target in data:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), target).backward()
        optimizer.step()


def by_lightning(data: Batches) -> None:
    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Module(), data)


def ours(model: nn.Module, data: Batches, loss: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=1, lr=1e-3, enable_progress_bar=False, default_root_dir=folder, save_top_k=0
        )
        trainer.fit(model, data, loss=loss)


WAYS: dict[str, Callable[[Batches], None]] = {
    "nn.Sequential, our loop": lambda data: ours(mlp(), data, loss="mse"),
    "module, our loop": lambda data: ours(Opaque(), data, loss="mse"),
    "Lightning module, our Trainer": lambda data: ours(Module(), data),
    "plain PyTorch": plain,
    "plain PyTorch, fused AdamW": lambda data: plain(data, fused=True),
    "lightning.Trainer": by_lightning,
}


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data = Batches()
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for round in range(ROUNDS + 1):
        for name, train in WAYS.items():
            begun = time.perf_counter()
            train(data)
            if round > 0 or QUICK:
                taken[name].append((time.perf_counter() - begun) / STEPS * 1e6)
    print(f"{'µs per step, MLP 32-64-64-2, batch 32':<40}{'median':>10}{'min':>10}{'max':>10}")
    for name, times in taken.items():
        print(f"{name:<40}{statistics.median(times):>10.1f}{min(times):>10.1f}{max(times):>10.1f}")


if __name__ == "__main__":
    main()
