"""Models, numbers and images on a GPU, and the GPU's own metrics. Skipped where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from heimdall_tracking import MLflowTracker
from support.helpers import wait_until

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.filterwarnings(
        "ignore:.*deprecated.*:DeprecationWarning", "ignore:.*deprecated:FutureWarning"
    ),
]


class Locator(nn.Module):
    """A position and its uncertainty from spectrograms: convolutions, norms, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.AdaptiveAvgPool2d(1))
        self.position = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(8, 2))
        self.sigma = nn.Sequential(nn.Flatten(), nn.Linear(8, 2), nn.Softplus())

    def forward(self, spectrograms):
        maps = self.maps(spectrograms)
        return self.position(maps), self.sigma(maps)


@pytest.fixture
def spectrograms() -> torch.Tensor:
    return torch.randn(5, 2, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def trained(spectrograms) -> Locator:
    """A network on the GPU in the middle of its training: with gradients and statistics of batches."""
    torch.manual_seed(4)
    torch.backends.cudnn.allow_tf32 = False
    model = Locator().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(3):
        positions, sigmas = model(spectrograms.cuda())
        (positions.square().mean() + sigmas.mean()).backward()
        optimizer.step()
    return model


def devices(model: nn.Module) -> set[str]:
    return {it.device.type for it in (*model.parameters(), *model.buffers())}


def close(theirs, ours) -> None:
    """The same within what the other order of a GPU's sums makes of single precision."""
    for expected, found in zip(theirs, ours, strict=True):
        torch.testing.assert_close(found.detach().cpu(), expected.detach().cpu(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("serialization", ["pickle", "torchscript"])
@pytest.mark.parametrize("example_on", ["cpu", "cuda"])
def test_a_model_in_training_is_logged_from_the_gpu_and_trains_on(
    tracker, trained, spectrograms, serialization, example_on
):
    with tracker.run():
        info = tracker.log_model(
            trained, input_example=spectrograms.to(example_on), serialization=serialization
        )
    assert devices(trained) == {"cuda"}
    assert trained.training
    assert all(parameter.grad is not None for parameter in trained.parameters())
    assert "tensor-spec" in info.signature["outputs"]
    expected = trained.eval()(spectrograms.cuda())
    close(expected, tracker.load_model(info.model_uri)(spectrograms))
    on_gpu = tracker.load_model(info.model_uri, device="cuda")
    assert devices(on_gpu) == {"cuda"}
    close(expected, on_gpu(spectrograms.cuda()))


def test_the_state_dict_goes_into_a_module_on_the_gpu_without_a_pickle(tracker, trained, spectrograms):
    with tracker.run():
        info = tracker.log_model(trained, input_example=spectrograms)
    loaded = tracker.load_model(info.model_uri, module=Locator(), device="cuda", allow_pickle=False)
    assert devices(loaded) == {"cuda"}
    close(trained.eval()(spectrograms.cuda()), loaded(spectrograms.cuda()))


def test_a_compiled_model_is_logged_as_what_was_compiled(tracker, trained, spectrograms):
    compiled = torch.compile(trained.eval())
    expected = compiled(spectrograms.cuda())
    with tracker.run():
        info = tracker.log_model(compiled, input_example=spectrograms)
    close(expected, tracker.load_model(info.model_uri)(spectrograms))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_keep_their_bits(tracker, trained, dtype):
    halved = trained.to(dtype).eval()
    with tracker.run():
        info = tracker.log_model(halved)
    loaded = tracker.load_model(info.model_uri)
    for name, weight in halved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.cpu()), name


def test_the_stock_client_loads_it_onto_the_gpu(tracker, trained, spectrograms, uri, monkeypatch):
    stock = pytest.importorskip("mlflow.pytorch")
    pyfunc = pytest.importorskip("mlflow.pyfunc")
    with tracker.run():
        info = tracker.log_model(
            trained, input_example=spectrograms.cuda(), registered_model_name="localization"
        )
    tracker.flush()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    expected = trained.eval()(spectrograms.cuda())
    for source in (info.model_uri, "models:/localization/1"):
        close(expected, stock.load_model(source)(spectrograms))
        close(expected, stock.load_model(source, map_location="cuda")(spectrograms.cuda()))
    said = pyfunc.load_model(info.model_uri).predict(spectrograms.numpy())
    close(expected, map(torch.as_tensor, said.values()))


def test_a_network_on_the_gpu_is_exported_to_onnx_and_stays_there(tracker, trained, spectrograms, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    with tracker.run():
        exported = tracker.export_onnx(
            trained,
            input_example=spectrograms,
            output_names=["positions", "uncertainties"],
            model_name=None,
            stage=None,
        )
    assert devices(trained) == {"cuda"}
    assert trained.training
    file = tracker.download_artifacts(exported.model_uri, "model.onnx", tmp_path)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    said = session.run(None, {session.get_inputs()[0].name: spectrograms.numpy()})
    close(trained.eval()(spectrograms.cuda()), map(torch.from_numpy, said))


def test_numbers_on_the_gpu_are_metrics_and_params(tracker):
    with tracker.run() as run:
        loss = torch.tensor(0.25, device="cuda", requires_grad=True)
        tracker.log_metric("loss", loss, step=0)
        tracker.log_metrics({"loss": loss.half(), "grad": (loss * 2).detach()}, step=1)
        tracker.log_params({"scale": torch.tensor(3, device="cuda").item()})
    tracker.flush()
    history = tracker.get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(0, 0.25), (1, 0.25)]
    assert tracker.get_run(run.run_id).metrics["grad"] == 0.5


def test_a_value_that_was_copied_behind_an_event_is_the_one_of_its_step(tracker):
    """The habit that docs/durability.md recommends, with steps that take the GPU a while."""
    rows = torch.randn(2048, 2048, device="cuda")
    host, copied = torch.empty((), pin_memory=True), torch.cuda.Event()
    steps = 20
    with tracker.run() as run:
        for step in range(steps + 1):
            for _ in range(20):
                rows = nn.functional.normalize(rows @ rows)
            loss = rows.sum() * 0 + step
            if step:
                copied.synchronize()
                tracker.log_metrics({"loss": host}, step=step - 1)
            host.copy_(loss.detach(), non_blocking=True)
            copied.record()
    tracker.flush()
    history = tracker.get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(step, step) for step in range(steps)]


def test_images_and_tables_take_what_lies_on_the_gpu(tracker, tmp_path):
    from PIL import Image

    pixels = torch.linspace(0, 1, 3 * 8 * 8).reshape(3, 8, 8)
    with tracker.run() as run:
        tracker.log_image(pixels.cuda(), "on-gpu.png")
        tracker.log_image(pixels, "on-cpu.png")
        tracker.log_dict({"sigma": torch.tensor([0.5, 1.5], device="cuda").tolist()}, "sigma.json")
    tracker.flush()
    folder = Path(tracker.download_artifacts(run.run_id, dst=tmp_path / "down"))
    ours, theirs = (np.asarray(Image.open(folder / f"on-{where}.png")) for where in ("gpu", "cpu"))
    assert np.array_equal(ours, theirs)
    assert json.loads((folder / "sigma.json").read_text()) == {"sigma": [0.5, 1.5]}


def test_system_metrics_tell_of_the_gpu(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    held = torch.zeros(1 << 28, device="cuda")  # 1 GiB
    tracker = MLflowTracker(uri, experiment_name="tests", system_metrics=True)
    with tracker.run() as run:
        key = "system/gpu_0_memory_usage_megabytes"
        wait_until(lambda: tracker.get_metric_history(run.run_id, key), "the GPU is seen")
    tracker.flush()
    metrics = tracker.get_run(run.run_id).metrics
    assert metrics[key] >= held.nbytes / 1e6
    assert 0 < metrics["system/gpu_0_memory_usage_percentage"] <= 100
    assert 0 <= metrics["system/gpu_0_utilization_percentage"] <= 100
    assert metrics["system/gpu_0_power_usage_watts"] > 0
