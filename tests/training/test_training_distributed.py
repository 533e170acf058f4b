"""Training in two processes of torchrun on gloo: as one process with the doubled batch, in one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from heimdall_tracking import MLflowTracker

KINDS = ("module", "lightning", "batches")
# Each process has other weights at first: those of the first one count, as does its order of the rows.
SCRIPT = """
    import json, os, sys
    import lightning.pytorch as pl
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset
    from heimdall_tracking import MLflowTracker
    from heimdall_training import Trainer

    processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    inputs = torch.randn(640, 8, generator=torch.Generator().manual_seed(1))
    rows = TensorDataset(inputs, inputs[:, :2] * 3 + 1)

    class Module(pl.LightningModule):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def training_step(self, batch):
            loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
            self.log("train/loss", loss, on_step=False, on_epoch=True)
            return loss

        def validation_step(self, batch):
            self.log("val/loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def pairs(batches):
        return [tuple(map(torch.cat, zip(*pair))) for pair in zip(batches[::2], batches[1::2])]

    def train(kind, folder):
        torch.manual_seed(rank)
        net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
        module, loss = (Module(net), None) if kind == "lightning" else (net, "mse")
        data, val = DataLoader(rows, 32 // processes, shuffle=True), DataLoader(rows, 50)
        if kind == "batches":
            data = list(DataLoader(rows, 16))
            data = pairs(data) if processes == 1 else data
        torch.manual_seed(7 + rank)
        tracker = MLflowTracker(f"sqlite:///{folder}/mlflow.db", folder, experiment_name="two")
        trainer = Trainer(
            tracker=tracker, max_epochs=3, lr=1e-2, gradient_clip_val=1.0, enable_progress_bar=False,
            default_root_dir=folder + "/out", num_threads=1,
        )
        result = trainer.fit(module, data, val, loss=loss)
        tracker.flush()
        return {
            "weights": torch.cat([it.detach().flatten() for it in net.parameters()]).tolist(),
            "history": result.history,
            "last": str(result.last_model_path),
            "validated": trainer.validate(dataloaders=val),
        }

    for kind in sys.argv[2:]:
        folder = f"{sys.argv[1]}/{kind}-{processes}"
        os.makedirs(folder, exist_ok=True)
        with open(f"{folder}/{rank}.json", "w") as file:
            json.dump(train(kind, folder), file)
"""


def run(folder, processes):
    script = folder / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(script), str(folder), *KINDS]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HEIMDALL_DIR": str(folder / f".heimdall-{processes}")},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder with what one process and two processes have trained."""
    folder = tmp_path_factory.mktemp("distributed")
    for processes in (1, 2):
        run(folder, processes)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one_with_the_doubled_batch_in_one_run(trained, kind):
    alone = json.loads((trained / f"{kind}-1" / "0.json").read_text())
    first, second = (json.loads((trained / f"{kind}-2" / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["weights"] == pytest.approx(alone["weights"], rel=1e-6, abs=1e-6)
    assert len(first["history"]) == 3
    for mine, theirs in zip(first["history"], alone["history"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)
    assert first["validated"][0] == pytest.approx(alone["validated"][0], rel=1e-6)
    # One process writes and records.
    assert torch.load(first["last"], weights_only=True)["global_step"] == 60
    assert [path.name for path in (trained / f"{kind}-2" / "out").iterdir()] == ["version_0"]
    uri = f"sqlite:///{trained}/{kind}-2/mlflow.db"
    (recorded,) = MLflowTracker(uri, experiment_name="two").search_runs()
    assert recorded.status == "FINISHED"
    assert recorded.metrics["val/loss"] == pytest.approx(alone["history"][-1]["val/loss"], rel=1e-6)
