"""A network of Lightning that trains in a moment."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch


def network(package: str = "lightning.pytorch", **hyperparameters: Any) -> Any:
    """A network whose losses at validation are 4, 2, 3, 1, 5, ... epoch by epoch."""
    pl: Any = import_module(package)

    class Net(pl.LightningModule):
        def __init__(self, **given: Any) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(4, 2)
            self.fails_in: int | None = None
            self.error: BaseException = RuntimeError("the network is broken")

        def forward(self, x):
            return self.layer(x)

        def training_step(self, batch, batch_idx):
            if self.current_epoch == self.fails_in:
                raise self.error
            loss = self.layer(batch).square().mean()
            self.log("train/loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", (4.0, 2.0, 3.0, 1.0, 5.0, 6.0)[self.current_epoch % 6])

        def test_step(self, batch, batch_idx):
            self.log("test/loss", 0.5)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.ones(6, 4), batch_size=2)

        def val_dataloader(self):
            return torch.utils.data.DataLoader(torch.ones(2, 4), batch_size=2)

        test_dataloader = val_dataloader

    return Net(**hyperparameters)
