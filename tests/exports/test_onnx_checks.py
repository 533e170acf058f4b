"""Networks as ONNX: compared with torch, or an error and nothing of it; and the command."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from heimdall_tracking import (
    ArtifactNotFoundError,
    ExportError,
    InvalidInputError,
    MissingPackageError,
    NotFoundError,
)
from heimdall_tracking.models import export
from heimdall_tracking.training import RssDataset, RssLocalizationNet, Trainer
from support.networks import SPECTROGRAMS, LocalizationNet, expected_of, said_by

RECORDINGS = Path(__file__).parents[2] / "examples" / "powder_rss_462mhz"


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
    """Returns another number at each call, which the exporter makes a constant."""

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


def test_the_command_exports_the_best_run_and_a_checkpoint(tracker, client, net, uri, tmp_path, heimdall):
    with tracker.run() as run:
        tracker.log_metric("val/loss", 0.25)
        tracker.log_model(net, input_example=SPECTROGRAMS)
    tracker.flush()
    done = heimdall(
        *("export", "--json", "--experiment", "tests"),
        MLFLOW_TRACKING_URI=uri,
        HEIMDALL_DIR=tmp_path / "cli",
    )
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(done.stdout)
    assert (record["mlflow_run_id"], record["model_version"]) == (run.run_id, "1")
    assert client.get_model_version("heimdall-localization-onnx", "1").current_stage == "Staging"

    (tmp_path / "makes.py").write_text(MAKES)
    torch.save(nn.Linear(6, 2).state_dict(), tmp_path / "weights.pt")
    options = ["--module", "makes:network", "--input-shape", "6", "--name", "lines", "--stage", "Production"]
    options += ["--uri", uri, "--experiment", "tests"]
    done = heimdall("export", "weights.pt", *options, HEIMDALL_DIR=tmp_path / "cli")
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
def test_a_command_that_fails_says_why(uri, tmp_path, heimdall, arguments, words):
    done = heimdall(*arguments, MLFLOW_TRACKING_URI=uri, HEIMDALL_DIR=tmp_path / "cli")
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
