"""Train a transmitter localiser with Lightning on real recordings, and record the run.

    python examples/lightning_localization.py --epochs 40 --output outputs

The recordings are those of examples/powder_rss_462mhz: the power at 29 receivers of a campus, of a handheld
radio whose position is known. The network predicts the position and its uncertainty; it is tested on map
squares that the training never saw. With --resume the script goes on where an earlier call was stopped, in
the same run.

The script is written for Lightning's own MLFlowLogger. The import of HeimdallLogger is the one line that
differs: with the stock logger it is `from lightning.pytorch.loggers import MLFlowLogger`.
"""

import argparse
import csv
import json
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import mlflow
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from heimdall_tracking import MLflowTracker, NotFoundError, initialize_mlflow, settings
from heimdall_tracking.lightning import HeimdallLogger as MLFlowLogger

RECORDINGS = Path(__file__).parent / "powder_rss_462mhz"
NOT_HEARD = -101.0
METRES_PER_DEGREE = 111_320.0
# Share of the training rows that decides which epoch is the best.
VALIDATION = 0.15


class Recordings(pl.LightningDataModule):
    """Rows of powers at the receivers, each with the position of the transmitter in metres."""

    def __init__(self, folder: str, test: str = "grid_test", batch_size: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["folder"])
        self.folder = Path(folder)
        self.receivers: list[str] = []
        self.centre = (0.0, 0.0)
        self.rows: dict[str, TensorDataset] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read the recordings, once."""
        if self.rows:
            return
        with (self.folder / "single_tx.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        positions = json.loads((self.folder / "receivers.json").read_text())
        self.receivers = [name for name in rows[0] if positions.get(name) is not None]
        held_out = set(json.loads((self.folder / "splits.json").read_text())[self.hparams["test"]])
        powers = torch.tensor([[float(row[name] or NOT_HEARD) for name in self.receivers] for row in rows])
        places = torch.tensor(
            [[float(row["tx_x_coord"]), float(row["tx_y_coord"])] for row in rows], dtype=torch.float64
        )
        is_test = torch.tensor([row["timestamp"] in held_out for row in rows])
        self.centre = tuple(places[~is_test].mean(0).tolist())
        data = {"test": is_test.nonzero().flatten()}
        rest = (~is_test).nonzero().flatten()
        order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(self.hparams["seed"]))
        validation = int(VALIDATION * len(rest))
        data["val"], data["train"] = rest[order[:validation]], rest[order[validation:]]
        metres = self.in_metres(places)
        self.rows = {
            name: TensorDataset(features(powers[chosen]), metres[chosen]) for name, chosen in data.items()
        }

    def in_metres(self, places: Tensor) -> Tensor:
        """Return positions as kilometres east and north of the centre of the training rows."""
        latitude, longitude = self.centre
        north = (places[:, 0] - latitude) * METRES_PER_DEGREE
        east = (places[:, 1] - longitude) * METRES_PER_DEGREE * math.cos(math.radians(latitude))
        return (torch.stack([east, north], 1) / 1000).float()

    def _loader(self, name: str, shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(self.rows[name], self.hparams["batch_size"], shuffle=shuffle, drop_last=shuffle)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the rows to train on, in another order each epoch."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the rows that decide which epoch is the best."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the rows of map squares that were never trained on."""
        return self._loader("test")


def features(powers: Tensor) -> Tensor:
    """Return the scaled powers, and beside each 1 where the receiver has heard the transmitter."""
    is_heard = (powers > NOT_HEARD).float()
    return torch.cat([(powers + 80) / 20 * is_heard, is_heard], 1)


class LocalizationNet(pl.LightningModule):
    """A small network that predicts a position and its uncertainty, in kilometres."""

    def __init__(self, inputs: int, width: int = 128, lr: float = 1e-3, weight_decay: float = 1e-4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(
            nn.Linear(inputs, width),
            nn.LayerNorm(width),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(width, width),
            nn.GELU(),
        )
        self.position = nn.Linear(width, 2)
        self.log_sigma = nn.Linear(width, 2)
        self.example_input_array = torch.zeros(2, inputs)
        self.errors: list[Tensor] = []

    def forward(self, powers: Tensor) -> tuple[Tensor, Tensor]:
        """Return position and standard deviation, each (batch, 2)."""
        hidden = self.body(powers)
        return self.position(hidden), self.log_sigma(hidden).clamp(-4, 2).exp()

    def _loss(self, batch: list[Tensor], name: str) -> Tensor:
        powers, truth = batch
        position, sigma = self(powers)
        loss: Tensor = (((truth - position) / sigma) ** 2 / 2 + sigma.log()).mean()
        distance = (truth - position).norm(dim=1) * 1000
        self.log_dict(
            {
                f"{name}/loss": loss,
                f"{name}/position_error_mean": distance.mean(),
                f"{name}/sigma_mean": sigma.mean(),
            },
            on_step=name == "train",
            on_epoch=name != "train",
            prog_bar=name == "val",
        )
        if name == "test":
            self.errors.append(distance.detach())
        return loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return self._loss(batch, "train")

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the loss of a batch that is not trained on."""
        self._loss(batch, "val")

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the loss of a batch that was held out."""
        self._loss(batch, "test")

    def configure_optimizers(self) -> Any:
        """Return AdamW with a cosine schedule."""
        rates = {"lr": self.hparams["lr"], "weight_decay": self.hparams["weight_decay"]}
        optimizer = torch.optim.AdamW(self.parameters(), **rates)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.trainer.max_epochs or 1)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def start(tracker: MLflowTracker, name: str, resume: bool) -> str:
    """Start the run, or go on with the one of that name, and return its id."""
    if resume:
        try:
            return tracker.resume(name)
        except NotFoundError:
            print(f"there is no run {name}: it is started")
    return tracker.start_run(name)


def main() -> None:
    """Train, test, record."""
    parser = argparse.ArgumentParser(description="Train a transmitter localiser with Lightning.")
    parser.add_argument("--name", default="lightning-localization", help="name of the run")
    parser.add_argument("--epochs", type=int, default=40, help="at most (default 40)")
    parser.add_argument("--width", type=int, default=128, help="units of a layer (default 128)")
    parser.add_argument("--patience", type=int, default=8, help="epochs without progress (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="decides everything that is drawn (default 0)")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs"), help="folder for files (default outputs)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run of that name")
    args = parser.parse_args()

    pl.seed_everything(args.seed, workers=True)
    torch.set_num_threads(1)
    tracker = initialize_mlflow(settings)
    mlflow.pytorch.autolog(log_models=False, checkpoint=False)

    data = Recordings(str(RECORDINGS), seed=args.seed)
    data.setup()
    model = LocalizationNet(2 * len(data.receivers), width=args.width)

    run_id = start(tracker, args.name, args.resume)
    tracker.log_params({"receivers": len(data.receivers), "rows/train": len(data.rows["train"])})
    tracker.log_dict({"receivers": data.receivers, "centre": list(data.centre)}, "recordings.json")

    logger = MLFlowLogger(
        experiment_name=tracker.experiment_name,
        tracking_uri=tracker.tracking_uri,
        run_id=run_id,
        log_model=True,
    )
    folder = args.output / "checkpoints"
    best = ModelCheckpoint(
        folder,
        "{epoch}-{step}",
        monitor="val/loss",
        save_top_k=3,
        save_last=True,
        enable_version_counter=False,
    )
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        logger=logger,
        callbacks=[best, EarlyStopping("val/loss", patience=args.patience), LearningRateMonitor("epoch")],
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=args.output,
        accelerator="cpu",
    )
    last = folder / "last.ckpt"
    trainer.fit(model, data, ckpt_path=str(last) if args.resume and last.exists() else None)

    (result,) = trainer.test(model, data, ckpt_path="best", weights_only=False)
    median = torch.cat(model.errors).median().item()
    tracker.log_metrics(
        {"final_test_loss": result["test/loss"], "final_test_error_median": median}, step=trainer.global_step
    )
    tracker.set_tag("epochs", trainer.current_epoch)
    tracker.end_run()
    print(f"median error on squares that were held out: {median:.0f} m")
    print(f"run      {args.name} ({run_id})")
    print(f"see it   mlflow ui --backend-store-uri {tracker.tracking_uri}")


if __name__ == "__main__":
    main()
