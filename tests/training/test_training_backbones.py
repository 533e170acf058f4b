"""The heads on torchvision's other backbones, on a module of the user, compiled, and as a logged model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from heimdall_tracking.errors import ConfigurationError, InvalidInputError, MissingPackageError
from heimdall_tracking.training import (
    LocalizationNet,
    ModelConfig,
    TorchLocalizationNet,
    as_module,
    get_backbone_info,
    load_model,
    load_weights,
    save_model,
    save_weights,
)

OTHERS = ("resnet50", "resnet101", "vit_b_16", "vit_l_16", "efficientnet_b3", "efficientnet_b4")


class Small(nn.Module):
    """A backbone of the user."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 8, stride=8)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, spectrograms):
        return self.norm(self.conv(spectrograms)).relu().mean((2, 3))


@pytest.mark.parametrize("name", OTHERS)
def test_the_tensors_are_those_of_torchvision_without_the_classes(name):
    with torch.device("meta"):
        net = TorchLocalizationNet(name)
        theirs = getattr(torchvision.models, name)()
    head = get_backbone_info(name).head
    expected = {
        f"backbone.{key}": it.shape for key, it in theirs.state_dict().items() if not key.startswith(head)
    }
    found = {key: it.shape for key, it in net.state_dict().items() if key.startswith("backbone.")}
    assert found == expected
    assert net.state_dict()["position_head.0.weight"].shape == (128, get_backbone_info(name).features)


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b3", "vit_b_16"])
def test_the_features_are_those_of_torchvision(name):
    net = LocalizationNet(name, seed=1).eval()
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)().eval()
    tensors = {key.removeprefix("backbone."): tensor for key, tensor in net.state_dict().items()}
    theirs.load_state_dict(tensors, strict=False, assign=True)
    setattr(theirs, get_backbone_info(name).head.partition(".")[0], nn.Identity())
    spectrograms = torch.randn(1, 3, 128, 32)
    pictures = spectrograms
    if name == "vit_b_16":
        pictures = nn.functional.interpolate(spectrograms, (224, 224), mode="bilinear")
    with torch.no_grad():
        expected = net.position_head(theirs(pictures))
        torch.testing.assert_close(net(spectrograms)[0], expected, rtol=0, atol=1e-5)


def test_weights_of_torchvision_are_taken_without_the_classes(tmp_path):
    theirs = torchvision.models.efficientnet_b3()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    net = LocalizationNet("efficientnet_b3", weights=tmp_path / "theirs.pth")
    for name, tensor in theirs.state_dict().items():
        assert name.startswith("classifier.") or torch.equal(net.state_dict()[f"backbone.{name}"], tensor)


def test_a_module_of_the_user_is_a_backbone_and_learns():
    torch.manual_seed(0)
    net = LocalizationNet(Small(), features=8, origin=(45.0, 8.0), position_scale_m=1000.0)
    assert isinstance(net, TorchLocalizationNet)
    spectrograms, truth = torch.randn(16, 3, 64, 32), net.targets([(45.001, 8.002)] * 16)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        mean, sigma = net(spectrograms)
        loss = (((truth - mean) / sigma).square() / 2 + sigma.log()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    positions, sigmas = net.predict(spectrograms)
    assert positions.shape == sigmas.shape == (16, 2)
    assert net.training


def test_a_module_of_another_width_is_refused():
    net = TorchLocalizationNet(Small(), features=9)
    with pytest.raises(InvalidInputError, match=r"the backbone must give \[rows, 9\], not \[2, 8\]"):
        net(torch.zeros(2, 3, 64, 32))
    for features in (None, 0, True):
        with pytest.raises(ConfigurationError, match=r"features=.* the width of the output"):
            TorchLocalizationNet(Small(), features=features)
    with pytest.raises(ConfigurationError, match="pretrained=True"):
        TorchLocalizationNet(Small(), features=8, pretrained=True)


def test_first_weights_follow_from_the_seed_and_leave_torchs_numbers_alone():
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    nets = [TorchLocalizationNet(nn.Flatten(), features=32, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    first, second, third = (net.position_head[0].weight for net in nets)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_without_torchvision_the_error_names_it_and_convnext_needs_none(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision.models", None)
    with pytest.raises(MissingPackageError, match="the backbone resnet50 needs torchvision: pip install"):
        LocalizationNet("resnet50")
    with torch.device("meta"):
        assert TorchLocalizationNet("convnext_tiny").num_features == 768


def test_a_compiled_network_computes_the_same():
    net = TorchLocalizationNet(Small(), features=8).eval()
    spectrograms = torch.randn(4, 3, 64, 32)
    # The whole of Dynamo and AOTAutograd runs; only the generation of code, which takes a minute, does not.
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for one, other in zip(compiled(spectrograms), net(spectrograms), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["convnext_tiny", "resnet50"])
def test_a_saved_network_is_made_again(name, tmp_path):
    settings = {"origin": (44.0, 9.0), "sigma_floor_m": 5.0, "freeze_backbone": True, "seed": 4}
    net = LocalizationNet(name, **settings)
    folder = save_model(net, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == "heimdall-localization"
    assert config["origin"] == {"lat": 44.0, "lon": 9.0}
    again = load_model(folder)
    assert type(again) is type(net)
    assert {**again.hyper_parameters, "head_dropout": None} == {**net.hyper_parameters, "head_dropout": None}
    spectrograms = np.zeros((1, 3, 64, 32), np.float32)
    np.testing.assert_array_equal(again.predict(spectrograms)[0], net.predict(spectrograms)[0])


def test_a_network_on_a_module_of_the_user_keeps_its_weights_only(tmp_path):
    net = TorchLocalizationNet(Small(), features=8, seed=1)
    with pytest.raises(InvalidInputError, match="save its weights by save_weights"):
        save_model(net, tmp_path / "model")
    other = TorchLocalizationNet(Small(), features=8, seed=2)
    load_weights(other, save_weights(net, tmp_path / "net.safetensors"))
    assert torch.equal(other.position_head[0].weight, net.position_head[0].weight)


def test_a_preset_makes_its_network(tmp_path):
    config = ModelConfig("efficientnet_b3", pretrained=False, freeze_backbone=True, sigma_floor_m=7.0)
    net = LocalizationNet.from_config(config, seed=3)
    made = [net.hyper_parameters[name] for name in ("backbone", "freeze_backbone", "sigma_floor_m", "seed")]
    assert made == ["efficientnet_b3", True, 7.0, 3]


def test_the_exported_form_leaves_the_network_in_training():
    net = TorchLocalizationNet(Small(), features=8)
    module = as_module(net)
    assert net.training
    assert not module.training
    assert not module.backbone.training
    assert module.position_head[0].weight is net.position_head[0].weight


@pytest.mark.filterwarnings("ignore:.*deprecated.*:DeprecationWarning")
def test_a_logged_network_is_loaded_by_stock_mlflow_by_us_and_as_onnx(tracker, client):
    import mlflow

    net = LocalizationNet("convnext_tiny", origin=(45.0, 8.0))
    spectrograms = torch.randn(2, 3, 128, 32)
    expected = net.predict(spectrograms)
    with tracker.run() as run:
        tracker.log_model(net)
        exported = tracker.export_onnx(net, model_name=None)
    tracker.flush()
    folder = Path(client.get_run(run.run_id).info.artifact_uri.removeprefix("file://")) / "model"
    served = mlflow.pyfunc.load_model(str(folder)).predict(spectrograms.numpy())
    again = load_model(folder).predict(spectrograms)
    for index, name in enumerate(("positions", "uncertainties")):
        np.testing.assert_allclose(served[name], expected[index], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(again[index], expected[index])
    assert exported.metadata["backbone"] == "convnext_tiny"
    assert exported.metadata["model_type"] == "LocalizationNet"
    assert exported.metadata["input_shape"] == [1, 3, 128, 32]
    assert exported.metadata["output_names"] == ["positions", "uncertainties"]
