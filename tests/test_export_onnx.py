"""Networks as ONNX: compared with torch, logged, registered, staged, or an error and nothing of it."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from heimdall_tracking import (
    ArtifactNotFoundError,
    ExportError,
    InvalidInputError,
    MissingPackageError,
    MLflowTracker,
    NotFoundError,
)
from heimdall_tracking.models import export
from heimdall_tracking.training import RssDataset, RssLocalizationNet, Trainer
from support.helpers import clean_environment

pytestmark = [
    pytest.mark.training,
    pytest.mark.filterwarnings(
        "ignore:.*deprecated.*:DeprecationWarning", "ignore:.*deprecated:FutureWarning"
    ),
]
RECORDINGS = Path(__file__).parents[1] / "examples" / "powder_rss_462mhz"


class Block(nn.Module):
    """A block of a ConvNeXt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, maps):
        rows = self.norm(self.mix(maps).permute(0, 2, 3, 1))
        rows = self.scale * self.narrow(nn.functional.gelu(self.wide(rows)))
        return maps + rows.permute(0, 3, 1, 2)


def head(width: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(width, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.3)),
        *(nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2)),
        nn.Linear(64, 2),
    )


class LocalizationNet(nn.Module):
    """The documented shapes: spectrograms in, positions and sigmas out, on a trunk like ConvNeXt's."""

    backbone_name = "convnext_atto"

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        layers, before = [nn.Conv2d(3, width, 4, 4), Block(width)], width
        for after in (2 * width, 4 * width, 8 * width):
            layers += [nn.Conv2d(before, after, 2, 2), Block(after)]
            before = after
        self.trunk = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(before)
        self.position_head, self.uncertainty_head = head(before), head(before)

    def forward(self, spectrogram):
        features = self.norm(self.trunk(spectrogram).mean((2, 3)))
        sigma = nn.functional.softplus(self.uncertainty_head(features)).clamp(0.01, 1.0)
        return self.position_head(features), sigma


SPECTROGRAMS = torch.randn(3, 3, 128, 32, generator=torch.Generator().manual_seed(9))


@pytest.fixture
def net() -> LocalizationNet:
    torch.manual_seed(3)
    net = LocalizationNet()
    # Statistics that are not those of the start.
    net(torch.randn(16, 3, 128, 32))
    return net


@pytest.fixture
def folder_of(tracker):
    def folder_of(export) -> Path:
        tracker.flush()
        run_id, path = export.model_uri.removeprefix("runs:/").split("/", 1)
        return Path(tracker.get_run(run_id).artifact_uri.removeprefix("file://")) / path

    return folder_of


def said_by(folder: Path, rows) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: np.asarray(rows)})


def expected_of(net: nn.Module, rows=SPECTROGRAMS) -> list[np.ndarray]:
    training = net.training
    with torch.no_grad():
        outputs = [output.numpy() for output in net.eval()(rows)]
    net.train(training)
    return outputs


def test_a_module_is_exported_with_the_names_shapes_and_opset_that_inference_expects(tracker, net, folder_of):
    done = tracker.export_onnx(net)
    graph = onnx.load(folder_of(done) / "model.onnx")
    assert [(it.domain, it.version) for it in graph.opset_import] == [("", 14)]

    def shapes(values):
        return [
            (it.name, [dim.dim_param or dim.dim_value for dim in it.type.tensor_type.shape.dim])
            for it in values
        ]

    assert shapes(graph.graph.input) == [("mel_spectrogram", ["batch", 3, 128, 32])]
    assert shapes(graph.graph.output) == [("positions", ["batch", 2]), ("uncertainties", ["batch", 2])]
    for rows in (SPECTROGRAMS, SPECTROGRAMS[:1]):
        for found, expected in zip(said_by(folder_of(done), rows), expected_of(net, rows), strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_module_is_as_it_was(tracker, net):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    tracker.export_onnx(net, model_name=None)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_version_is_staged_and_says_what_it_is(tracker, client, net):
    done = tracker.export_onnx(net, description="for the field", tags={"accuracy": 0.92})
    assert (done.model_name, done.version, done.stage) == ("heimdall-localization-onnx", "1", "Staging")
    version = client.get_model_version(done.model_name, "1")
    assert (version.current_stage, version.run_id) == ("Staging", done.run_id)
    assert version.description == "for the field"
    assert version.tags == {
        "framework": "pytorch",
        "format": "onnx",
        "input_shape": "1,3,128,32",
        "output_count": "2",
        "accuracy": "0.92",
    }


def test_inference_downloads_a_folder_with_the_file_by_stage(tracker, net, fluent, tmp_path):
    tracker.export_onnx(net)
    local = fluent.artifacts.download_artifacts(
        "models:/heimdall-localization-onnx/Staging", dst_path=str(tmp_path)
    )
    found = said_by(Path(local), SPECTROGRAMS)
    np.testing.assert_allclose(found[0], expected_of(net)[0], rtol=0, atol=1e-5)


def test_the_metadata_is_stored_and_true(tracker, net, folder_of):
    done = tracker.export_onnx(net)
    folder = folder_of(done)
    record = json.loads((folder / "metadata.json").read_text())
    assert record == done.metadata
    content = (folder / "model.onnx").read_bytes()
    total = sum(parameter.numel() for parameter in net.parameters())
    metrics = record.pop("inference_metrics")
    assert record == {
        "model_type": "LocalizationNet",
        "format": "onnx",
        "backbone": "convnext_atto",
        "input_shape": [1, 3, 128, 32],
        "output_names": ["positions", "uncertainties"],
        "output_shapes": {"positions": [1, 2], "uncertainties": [1, 2]},
        "opset": 14,
        "export_date": record["export_date"],
        "onnx_file_size_bytes": len(content),
        "onnx_file_size_mb": len(content) / 2**20,
        "onnx_file_sha256": hashlib.sha256(content).hexdigest(),
        "mlflow_run_id": None,
        "pytorch_params": {"total": total, "trainable": total, "frozen": 0},
    }
    assert datetime.fromisoformat(record["export_date"]).utcoffset() == timedelta(0)
    assert metrics["positions_mae"] < 1e-5
    assert metrics["uncertainties_mae"] < 1e-5
    assert metrics["passed"] is True
    speedup = metrics["inference_time_pytorch_ms"] / metrics["inference_time_onnx_ms"]
    assert metrics["speedup"] == pytest.approx(speedup)
    assert tracker.get_run(done.run_id).metrics["onnx/speedup"] == pytest.approx(speedup)


def test_the_stock_flavours_load_the_folder(tracker, net, folder_of):
    import mlflow

    folder = folder_of(tracker.export_onnx(net))
    proto = mlflow.onnx.load_model(str(folder))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    served = mlflow.pyfunc.load_model(str(folder)).predict(SPECTROGRAMS.numpy())
    for name, expected in zip(("positions", "uncertainties"), expected_of(net), strict=True):
        by_session = session.run([name], {"mel_spectrogram": SPECTROGRAMS.numpy()})[0]
        np.testing.assert_allclose(by_session, expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(served[name], expected, rtol=0, atol=1e-5)


def test_our_own_loader_gives_a_session(tracker, net):
    done = tracker.export_onnx(net)
    session = tracker.load_model(f"models:/{done.model_name}/Staging")
    found = session.run(["positions"], {"mel_spectrogram": SPECTROGRAMS.numpy()})[0]
    np.testing.assert_allclose(found, expected_of(net)[0], rtol=0, atol=1e-5)


def test_an_export_to_s3_and_postgresql_is_loaded_by_stage(postgres_uri, s3_bucket, s3_server, fluent, net):
    tracker = MLflowTracker(postgres_uri, f"s3://{s3_bucket}/runs", experiment_name="exports")
    done = tracker.export_onnx(net)
    assert (done.model_name, done.version, done.stage) == ("heimdall-localization-onnx", "1", "Staging")
    folder = done.model_uri.replace(f"runs:/{done.run_id}", f"runs/{done.run_id}/artifacts")
    assert {"MLmodel", "metadata.json", "model.onnx"} <= s3_server.objects(s3_bucket, folder).keys()
    fluent.set_tracking_uri(postgres_uri)
    source = "models:/heimdall-localization-onnx/Staging"
    proto = fluent.onnx.load_model(source)
    stock = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for session in (stock, tracker.load_model(source)):
        found = session.run(["positions", "uncertainties"], {"mel_spectrogram": SPECTROGRAMS.numpy()})
        for output, expected in zip(found, expected_of(net), strict=True):
            np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)


def test_the_best_run_is_exported_and_stays_as_it_has_ended(tracker, net):
    torch.manual_seed(4)
    others = [LocalizationNet(), LocalizationNet()]
    runs = {}
    for loss, model in zip((0.5, 0.1, 0.9), (others[0], net, others[1]), strict=True):
        with tracker.run() as run:
            tracker.log_metric("val/loss", loss)
            tracker.log_model(model, input_example=SPECTROGRAMS)
        runs[loss] = run.run_id
    tracker.flush()
    before = tracker.get_run_info(runs[0.1])
    done = tracker.export_onnx()
    assert done.source_run_id == done.metadata["mlflow_run_id"] == runs[0.1]
    assert done.metadata["model_type"] == "LocalizationNet"
    assert tracker.get_run_info(runs[0.1]) == before
    assert tracker.get_run(done.run_id).tags["mlflow.parentRunId"] == runs[0.1]
    assert tracker.export_onnx(compare_fn=max, model_name=None).source_run_id == runs[0.9]
    session = tracker.load_model(done.model_uri)
    np.testing.assert_allclose(
        session.run(None, {"mel_spectrogram": SPECTROGRAMS.numpy()})[0],
        expected_of(net)[0],
        rtol=0,
        atol=1e-5,
    )


def test_an_active_run_gets_the_export(tracker, net):
    with tracker.run() as run:
        done = tracker.export_onnx(net, model_name=None)
    assert (done.run_id, done.version, done.stage) == (run.run_id, None, None)


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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The network of the training wheel, trained for two epochs; and what was written."""
    torch.set_num_threads(1)
    dataset = RssDataset.load(RECORDINGS)
    model = RssLocalizationNet(dataset.receivers, seed=1)
    folder = tmp_path_factory.mktemp("trained")
    trainer = Trainer(max_epochs=2, enable_progress_bar=False, default_root_dir=folder)
    return model, dataset.rss("test"), trainer.fit(model, dataset)


def test_the_network_of_the_training_wheel_is_exported_from_itself_a_checkpoint_and_a_run(
    tracker, trained, folder_of
):
    model, rss, result = trained
    with tracker.run() as logged:
        tracker.log_model(model)
    with tracker.run() as kept:
        tracker.log_artifacts_dir(result.log_dir / "checkpoints", "checkpoints")
    tracker.flush()
    best = RssLocalizationNet(model.receivers)
    best.load_state_dict(torch.load(result.best_model_path, weights_only=True)["state_dict"])
    rows = np.where(rss <= -101, np.nan, rss).astype(np.float32)
    for source, network in [
        (model, model),
        (result.last_model_path, model),
        (logged.run_id, model),
        (kept.run_id, best),
    ]:
        done = tracker.export_onnx(source, model_name="rss-onnx")
        folder = folder_of(done)
        graph = onnx.load(folder / "model.onnx").graph
        assert [it.name for it in (*graph.input, *graph.output)] == ["rss", "positions", "uncertainties"]
        positions, sigmas = network.predict(rss)
        found = said_by(folder, rows)
        np.testing.assert_allclose(found[0], positions, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found[1], sigmas, rtol=1e-4)
        assert done.metadata["input_shape"] == [1, 29]
        assert done.metadata["model_type"] == "RssLocalizationNet"


def shift(file: Path, output: str, distance: np.ndarray) -> None:
    """Have the network in a file give one of its outputs off by a distance."""
    model = onnx.load(file)
    (node,) = [it for it in model.graph.node if output in it.output]
    node.output[:] = [f"{it}_before" if it == output else it for it in node.output]
    model.graph.initializer.append(onnx.numpy_helper.from_array(distance, f"{output}_off"))
    added = onnx.helper.make_node("Add", [f"{output}_before", f"{output}_off"], [output])
    model.graph.node.append(added)
    onnx.save(model, file)


@pytest.mark.parametrize("output", ["positions", "uncertainties"])
@pytest.mark.parametrize("scale_m", [1_000.0, 100.0])
def test_degrees_and_metres_are_compared_in_the_unit_of_the_network(
    tracker, trained, monkeypatch, output, scale_m
):
    model = RssLocalizationNet(trained[0].receivers, position_scale_m=scale_m, seed=1)
    north = math.radians(6_371_000)
    east = north * math.cos(math.radians(model.origin[0]))
    metre = np.array([1 / north, 1 / east] if output == "positions" else [1.0, 1.0])
    written = export._write

    def export_off_by(units: float):
        def write(*arguments):
            written(*arguments)
            shift(arguments[-1], output, units * scale_m * metre)

        monkeypatch.setattr(export, "_write", write)
        return tracker.export_onnx(model, model_name=None)

    # It is recorded in the unit of the output.
    measured = export_off_by(0.8e-5).metadata["inference_metrics"][f"{output}_mae"]
    assert measured == pytest.approx(0.8e-5 * scale_m * metre.mean(), rel=0.1)
    with pytest.raises(ExportError, match=rf"{output}' differs by 1\.[12]\d*e-05 .* 1e-05 is allowed"):
        export_off_by(1.2e-5)


def test_other_names_of_the_outputs_change_nothing_of_how_they_are_compared(tracker, trained):
    done = tracker.export_onnx(trained[0], output_names=["where", "how_sure"], model_name=None)
    assert done.metadata["inference_metrics"]["passed"] is True


class Counting(nn.Module):
    """What the exporter freezes: another number at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.calls = 0

    def forward(self, rows):
        self.calls += 1
        return self.linear(rows) + self.calls


class Unexportable(nn.Module):
    def forward(self, rows):
        return torch.linalg.eigvals(rows @ rows.T).real


class OneSize(nn.Module):
    def forward(self, rows):
        return rows.reshape(2, 4) * 2


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Counting(), "the exported network is another: 'output' differs by"),
        (Unexportable(), "Unexportable cannot be exported to ONNX"),
        (OneSize(), "fixed batch size|does not run"),
    ],
)
def test_what_does_not_say_the_same_is_an_error_and_nothing_is_registered(tracker, client, model, words):
    with pytest.raises(ExportError, match=words):
        tracker.export_onnx(model, input_example=torch.ones(2, 4), model_name="never")
    tracker.flush()
    assert client.search_registered_models() == []
    assert tracker.search_runs() == []


def test_a_tolerance_that_nothing_meets_is_an_error(tracker, net):
    with pytest.raises(ExportError, match="1e-12 is allowed; nothing was logged"):
        tracker.export_onnx(net, tolerance=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_of_half_precision_is_exported_in_single(tracker, dtype, folder_of):
    model = nn.Linear(4, 2).to(dtype)
    done = tracker.export_onnx(model, input_example=torch.ones(1, 4), model_name=None)
    assert model.weight.dtype == dtype
    graph = onnx.load(folder_of(done) / "model.onnx").graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize(
    ("source", "options", "error", "words"),
    [
        (None, {}, NotFoundError, "has the metric 'val/loss'"),
        ("0" * 32, {}, NotFoundError, ""),
        ("gone.ckpt", {}, ArtifactNotFoundError, r"gone\.ckpt"),
        (3, {}, InvalidInputError, "not int"),
        (nn.Linear(1, 1), {"opset": 21}, InvalidInputError, "opset=21"),
        (nn.Linear(1, 1), {}, InvalidInputError, "fails with the input_example"),
    ],
)
def test_what_cannot_be_exported_is_named(tracker, source, options, error, words):
    with pytest.raises(error, match=words or None):
        tracker.export_onnx(source, **options)


def test_a_run_without_a_model_is_named(tracker):
    with tracker.run() as run:
        tracker.log_metric("val/loss", 0.1)
    with pytest.raises(NotFoundError, match="no model and no checkpoint"):
        tracker.export_onnx(run.run_id)


def test_a_checkpoint_that_would_run_code_is_refused(tracker, tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": {"path": Path("/")}}, tmp_path / "bad.ckpt")
    with pytest.raises(InvalidInputError, match="weights_only=True"):
        tracker.export_onnx(tmp_path / "bad.ckpt", module=LocalizationNet)


def test_without_onnx_it_is_said_what_to_install(tracker, net, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match="pip install onnxruntime"):
        tracker.export_onnx(net)


def test_an_onnx_file_or_proto_is_logged_as_it_is(tracker, net, tmp_path, folder_of):
    exported = folder_of(tracker.export_onnx(net, model_name=None)) / "model.onnx"
    proto = onnx.load(exported)
    # It takes the numbers out of what it is given.
    apart = {"save_as_external_data": True, "location": "weights", "size_threshold": 0}
    onnx.save(onnx.load(exported), tmp_path / "apart.onnx", **apart)
    for model in (exported, str(exported), proto, tmp_path / "apart.onnx"):
        with tracker.run():
            info = tracker.log_model(model, "network", input_example=SPECTROGRAMS.numpy())
        found = said_by(folder_of(info), SPECTROGRAMS)
        np.testing.assert_allclose(found[0], expected_of(net)[0], rtol=0, atol=1e-5)
        assert [it["name"] for it in json.loads(info.signature["outputs"])] == ["positions", "uncertainties"]
    (tmp_path / "text.onnx").write_text("no network")
    with tracker.run(), pytest.raises(InvalidInputError, match=r"no ONNX file|not valid ONNX"):
        tracker.log_model(tmp_path / "text.onnx")


MAKES = """
import torch
def network():
    torch.manual_seed(0)
    return torch.nn.Linear(6, 2)
"""


def heimdall(folder: Path, *arguments: object, **variables: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [Path(sys.executable).with_name("heimdall"), *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        env=clean_environment(HEIMDALL_DIR=folder / "cli", **variables),
    )


def test_the_command_exports_the_best_run_and_a_checkpoint(tracker, client, net, uri, tmp_path):
    with tracker.run() as run:
        tracker.log_metric("val/loss", 0.25)
        tracker.log_model(net, input_example=SPECTROGRAMS)
    tracker.flush()
    done = heimdall(tmp_path, "export", "--json", "--experiment", "tests", MLFLOW_TRACKING_URI=uri)
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(done.stdout)
    assert (record["mlflow_run_id"], record["model_version"]) == (run.run_id, "1")
    assert client.get_model_version("heimdall-localization-onnx", "1").current_stage == "Staging"

    (tmp_path / "makes.py").write_text(MAKES)
    torch.save(nn.Linear(6, 2).state_dict(), tmp_path / "weights.pt")
    options = ["--module", "makes:network", "--input-shape", "6", "--name", "lines", "--stage", "Production"]
    done = heimdall(tmp_path, "export", "weights.pt", "--uri", uri, "--experiment", "tests", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert "registered as lines, version 1, stage Production" in done.stdout
    assert client.get_model_version("lines", "1").current_stage == "Production"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "gone.ckpt"], "no run, checkpoint or folder"),
        (["export", "x", "--module", "makes"], "package.module:Name"),
        (["export", "x", "--module", "nowhere:Net"], "cannot be imported"),
        (["export", "x", "--input-shape", "3,a"], "--input-shape"),
        (["export"], "has the metric"),
    ],
)
def test_a_command_that_fails_says_why(uri, tmp_path, arguments, words):
    done = heimdall(tmp_path, *arguments, MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
