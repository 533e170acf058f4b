"""Networks as ONNX: what is logged, registered and staged, and who loads it."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from heimdall_tracking import (
    MLflowTracker,
)
from support.networks import SPECTROGRAMS, LocalizationNet, expected_of, said_by


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
