"""Networks as ONNX: exported from models, versions and checkpoints, as of the run that made them."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from heimdall_tracking import (
    ArtifactNotFoundError,
    InvalidInputError,
    MLflowTracker,
    NotFoundError,
)
from support.networks import SPECTROGRAMS, LocalizationNet, expected_of, said_by


@pytest.fixture
def came_from(tracker):
    def came_from(export) -> list[str | None]:
        """The three places that name the run of the training."""
        tags = tracker.get_run(export.run_id).tags
        return [export.source_run_id, export.metadata["mlflow_run_id"], tags.get("mlflow.parentRunId")]

    return came_from


def test_a_traced_model_is_exported_from_its_uri(tracker, net, folder_of, came_from):
    with tracker.run():
        info = tracker.log_model(
            net, input_example=SPECTROGRAMS, serialization="torchscript", registered_model_name="trained"
        )
    for source in (info.model_uri, info.model_uri.replace("runs:/", "runs://"), info.run_id):
        done = tracker.export_onnx(source, model_name=None)
        assert done.metadata["model_type"] == "LocalizationNet"
        assert came_from(done) == [info.run_id] * 3
        np.testing.assert_allclose(
            said_by(folder_of(done), SPECTROGRAMS)[0], expected_of(net)[0], rtol=0, atol=1e-5
        )


def test_a_version_is_exported_as_of_the_run_that_made_it(tracker, came_from):
    made = []
    for stage in ("Production", "Staging"):
        with tracker.run() as run:
            info = tracker.log_model(nn.Linear(4, 2), registered_model_name="m")
        tracker.transition_model_stage("m", info.registered_model_version, stage)
        made.append(run.run_id)
    tracker.set_model_alias("m", "champion", "1")
    for uri, run_id in [
        ("models:/m/1", made[0]),
        ("models:/m/2", made[1]),
        ("models:/m@champion", made[0]),
        ("models:/m@latest", made[1]),
        ("models:/m/latest", made[1]),
        ("models:/m/Production", made[0]),
        ("models:/m/staging/", made[1]),
    ]:
        done = tracker.export_onnx(uri, input_example=torch.ones(1, 4), model_name=None)
        assert came_from(done) == [run_id] * 3, uri
    for missing in ("models:/m/3", "models:/m/Archived", "models:/m@nobody", "models:/nothing/1"):
        with pytest.raises(NotFoundError):
            tracker.export_onnx(missing, model_name=None)


def test_a_checkpoint_inside_a_version_is_exported_as_of_its_run(tracker, net, tmp_path, came_from):
    torch.save(net.state_dict(), tmp_path / "last.ckpt")
    with tracker.run() as run:
        tracker.log_artifact(tmp_path / "last.ckpt", "kept")
    tracker.register_model("m", f"runs:/{run.run_id}/kept")
    done = tracker.export_onnx("models:/m/1/last.ckpt", module=LocalizationNet, model_name=None)
    assert came_from(done) == [run.run_id] * 3


def test_a_version_whose_run_is_deleted_or_of_another_store_is_exported_below_no_run(
    tracker, client, came_from, folder_of, tmp_path
):
    with tracker.run() as run:
        info = tracker.log_model(nn.Linear(4, 2), registered_model_name="m")
    elsewhere = shutil.copytree(folder_of(info), tmp_path / "elsewhere")
    described = (elsewhere / "MLmodel").read_text()
    (elsewhere / "MLmodel").write_text(described.replace(run.run_id, "0" * 32))
    tracker.register_model("m", elsewhere)
    client.delete_run(run.run_id)
    for version, run_id in (("1", run.run_id), ("2", "0" * 32)):
        done = tracker.export_onnx(f"models:/m/{version}", input_example=torch.ones(1, 4), model_name=None)
        assert came_from(done) == [run_id, run_id, None]


@pytest.mark.filterwarnings("ignore")
def test_a_logged_model_of_mlflow_3_is_exported_as_of_its_run(tracker, fluent, came_from):
    fluent.set_experiment("tests")
    with fluent.start_run() as run:
        logged = fluent.pytorch.log_model(nn.Linear(4, 2), name="model", serialization_format="pickle")
    source = f"models:/{logged.model_id}"
    done = tracker.export_onnx(source, input_example=torch.ones(1, 4), model_name=None)
    assert came_from(done) == [run.info.run_id] * 3


@pytest.mark.parametrize("form", ["file:{}", "file://{}"])
def test_a_local_model_and_a_local_checkpoint_are_exported_by_their_file_uris(
    tracker, net, folder_of, tmp_path, form
):
    with tracker.run():
        folder = folder_of(tracker.log_model(net, input_example=SPECTROGRAMS))
    checkpoint = tmp_path / "last 1.ckpt"
    torch.save(net.state_dict(), checkpoint)
    escaped = str(checkpoint).replace(" ", "%20")
    for source, module in [(form.format(folder), None), (form.format(escaped), LocalizationNet)]:
        done = tracker.export_onnx(source, module=module, model_name=None)
        assert done.source_run_id is None
        np.testing.assert_allclose(
            said_by(folder_of(done), SPECTROGRAMS)[0], expected_of(net)[0], rtol=0, atol=1e-5
        )
    with pytest.raises(ArtifactNotFoundError, match="no run, checkpoint or folder"):
        tracker.export_onnx(form.format("/gone.ckpt"))


def test_what_a_tracking_server_keeps_is_exported_by_its_artifact_uri(tracking_server, net):
    tracker = MLflowTracker(tracking_server, experiment_name="exports")
    with tracker.run() as run:
        tracker.log_model(net, input_example=SPECTROGRAMS)
    tracker.flush()
    place = tracker.get_run(run.run_id).artifact_uri
    assert place.startswith("mlflow-artifacts:/")
    done = tracker.export_onnx(f"{place}/model", model_name=None)
    session = tracker.load_model(f"{tracker.get_run(done.run_id).artifact_uri}/onnx")
    found = session.run(["positions"], {"mel_spectrogram": SPECTROGRAMS.numpy()})[0]
    np.testing.assert_allclose(found, expected_of(net)[0], rtol=0, atol=1e-5)


def test_a_lightning_checkpoint_is_exported_with_the_network_it_is_of(tracker, net, folder_of, tmp_path):
    lightning: Any = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self, width: int = 4, lr: float = 0.1):
            super().__init__()
            self.save_hyperparameters()
            self.net = LocalizationNet(width)

        def forward(self, rows):
            return self.net(rows)

        def training_step(self, batch, _):
            return self(batch[0])[0].square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), self.hparams.lr)

    model = Module(width=2, lr=0.01)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(SPECTROGRAMS), batch_size=3)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, enable_checkpointing=False, **quiet
    )
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with tracker.run() as run:
        tracker.log_artifact(tmp_path / "last.ckpt", "checkpoints")
    tracker.flush()
    # The class, whose width the checkpoint knows; the module inside; and the same from the run.
    for source, module in [
        (tmp_path / "last.ckpt", Module),
        (tmp_path / "last.ckpt", LocalizationNet(2)),
        (run.run_id, Module),
    ]:
        done = tracker.export_onnx(source, module=module, model_name=None)
        for found, expected in zip(said_by(folder_of(done), SPECTROGRAMS), expected_of(model), strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    with pytest.raises(InvalidInputError, match="give it by module="):
        tracker.export_onnx(tmp_path / "last.ckpt")
    with pytest.raises(InvalidInputError, match="not those of LocalizationNet"):
        tracker.export_onnx(tmp_path / "last.ckpt", module=LocalizationNet(8))
