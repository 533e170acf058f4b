"""The native network for spectrograms computes what torchvision's backbone with the same heads computes."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from heimdall_tracking.errors import ConfigurationError, InvalidInputError
from heimdall_tracking.training import (
    LocalizationNet,
    TorchLocalizationNet,
    as_module,
    get_backbone_info,
)
from heimdall_training.model_config import CONFIGS

FLOOR = 20.0 / 50_000.0


class Twin(nn.Module):
    """torchvision's ConvNeXt with the heads, written down a second time."""

    def __init__(self, name: str, features: int) -> None:
        super().__init__()
        self.backbone = getattr(torchvision.models, name)()
        del self.backbone.classifier[2]
        self.position_head = self.head(features)
        self.uncertainty_head = self.head(features)

    def head(self, features: int) -> nn.Sequential:
        first = (nn.Linear(features, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.3))
        second = (nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2))
        return nn.Sequential(*first, *second, nn.Linear(64, 2))

    def forward(self, spectrograms):
        features = self.backbone(spectrograms)
        mean = self.position_head(features)
        return mean, nn.functional.softplus(self.uncertainty_head(features)) + FLOOR


def randomise(tensors) -> None:
    """Give weights that hide nothing: the first ones make each block change a millionth of its input."""
    generator = torch.Generator().manual_seed(7)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        if "layer_scale" in name or "var" in name or tensor.dim() == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        else:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)


@pytest.fixture(scope="module")
def net() -> LocalizationNet:
    net = LocalizationNet("convnext_tiny")
    randomise(net.state_dict())
    return net


@pytest.fixture(scope="module")
def twin(net) -> Twin:
    twin = Twin("convnext_tiny", 768)
    twin.load_state_dict(net.state_dict())
    return twin


@pytest.fixture
def spectrograms() -> torch.Tensor:
    return torch.randn(3, 3, 128, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
def test_outputs_gradients_and_statistics_are_those_of_torchvision(net, twin, spectrograms, train):
    twin.load_state_dict(net.state_dict())
    twin.train(train)
    twin.zero_grad()
    for _, parameter in net.named_parameters():
        parameter.grad = None
    results = []
    for forward in (lambda it: net.forward(it, train=train), twin):
        # Dropout and stochastic depth draw the same numbers in the same order.
        torch.manual_seed(1)
        mean, sigma = forward(spectrograms)
        (mean.square().sum() + sigma.log().sum()).backward()
        results.append((mean.detach(), sigma.detach()))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    expected = dict(twin.named_parameters())
    found = dict(net.named_parameters())
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        largest = max(1.0, float(expected[name].grad.abs().max()))
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=0, atol=1e-5 * largest)
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "features"),
    [("convnext_tiny", 768), ("convnext_small", 768), ("convnext_base", 1024), ("convnext_large", 1536)],
)
def test_names_order_and_shapes_are_those_of_torchvision(name, features):
    with torch.device("meta"):
        twin = Twin(name, features)
    net = LocalizationNet(name)
    shapes = [(key, tuple(tensor.shape)) for key, tensor in net.state_dict().items()]
    assert shapes == [(key, tuple(tensor.shape)) for key, tensor in twin.state_dict().items()]
    assert net.num_features == features


def test_first_weights_are_spread_as_those_of_torchvision():
    ours = LocalizationNet("convnext_tiny").state_dict()
    theirs = Twin("convnext_tiny", 768).state_dict()
    for name, tensor in ours.items():
        if tensor.numel() > 4000 and tensor.is_floating_point():
            assert float(tensor.std()) == pytest.approx(float(theirs[name].std()), rel=0.1, abs=1e-9), name
    assert float(ours["backbone.features.1.0.layer_scale"].max()) == pytest.approx(1e-6)


def test_the_module_computes_the_same_and_has_the_same_tensors(net, spectrograms):
    module = net.module()
    for train in (False, True):
        module.train(train)
        torch.manual_seed(2)
        ours = net.forward(spectrograms, train=train)
        torch.manual_seed(2)
        for one, other in zip(ours, module(spectrograms), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert module.state_dict().keys() == net.state_dict().keys()
    before = net.state_dict()["position_head.8.bias"].clone()
    with torch.no_grad():
        module.position_head[8].bias += 1.0
    torch.testing.assert_close(net.state_dict()["position_head.8.bias"], before + 1.0)
    with torch.no_grad():
        module.position_head[8].bias -= 1.0


def test_a_prediction_is_in_degrees_and_metres_and_the_same_from_the_exported_form(net, spectrograms):
    positions, sigmas = net.predict(spectrograms)
    mean, sigma = (output.detach().double() for output in net.forward(spectrograms))
    torch.testing.assert_close(
        net.targets([tuple(row) for row in positions]).double(), mean, rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(sigmas, 50_000.0 * sigma, rtol=1e-6)
    with torch.no_grad():
        exported = as_module(net)(spectrograms)
    np.testing.assert_allclose(exported[0], positions, rtol=0, atol=1e-6)
    np.testing.assert_allclose(exported[1], sigmas, rtol=1e-5)
    assert net.predict(spectrograms.tolist())[0] == pytest.approx(positions)


def test_sigma_has_a_floor_in_metres_and_a_gradient_at_it(spectrograms):
    net = LocalizationNet(sigma_floor_m=30.0, sigma_init_m=31.0)
    assert net.predict(spectrograms)[1].min() >= 30.0
    _, sigma = net.forward(spectrograms)
    sigma.sum().backward()
    gradients = dict(net.named_parameters())
    assert float(gradients["uncertainty_head.8.bias"].grad.abs().min()) > 0


@pytest.mark.parametrize("backbone", ["convnext_tiny", "resnet50"])
def test_a_frozen_backbone_learns_nothing_and_keeps_its_statistics(backbone, spectrograms):
    net = LocalizationNet(backbone, freeze_backbone=True)
    if isinstance(net, TorchLocalizationNet):
        forward, parameters = net.train(), list(net.named_parameters())
    else:
        forward, parameters = lambda it: net.forward(it, train=True), net.named_parameters()
    before = copy.deepcopy(dict(net.state_dict()))
    mean, sigma = forward(spectrograms)
    (mean.sum() + sigma.sum()).backward()
    learned = {name for name, it in parameters if it.grad is not None}
    assert learned
    assert all("_head." in name for name in learned)
    changed = {name for name, it in net.state_dict().items() if not torch.equal(it, before[name])}
    assert changed
    assert all("_head." in name for name in changed)
    assert net.num_parameters == sum(it.numel() for name, it in parameters if name in learned)


@pytest.mark.parametrize("backbone", ["convnext_tiny", "efficientnet_b3"])
def test_wrong_batches_are_refused_and_say_why(backbone):
    net = LocalizationNet(backbone)
    forward = net if isinstance(net, TorchLocalizationNet) else lambda it: net.forward(it, train=True)
    with pytest.raises(InvalidInputError, match="at least 2 rows, because BatchNorm needs the variance"):
        forward(torch.zeros(1, 3, 128, 32))
    for shape in ((2, 1, 128, 32), (2, 3, 31, 128), (3, 128, 32)):
        with pytest.raises(InvalidInputError, match=r"must be \[rows, 3, height, width\]"):
            net.predict(torch.zeros(shape))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "convnext_huge"}, "backbone='convnext_huge' .* one of convnext_tiny"),
        ({"features": 512}, "features=512 .* 768"),
        ({"origin": (90.0, 0.0)}, r"origin=\(90"),
        ({"stochastic_depth": 1.0}, "stochastic_depth=1.* a probability below 1"),
        ({"head_dropout": (0.1, 2.0)}, "head_dropout=.*probabilit.* below 1"),
        ({"position_scale_m": 0.0}, "position_scale_m=0.* a number above 0"),
        ({"sigma_init_m": 1.0}, "sigma_init_m=1.* above sigma_floor_m"),
    ],
)
def test_settings_that_make_no_network_are_refused_by_both_kinds(settings, message):
    for make in (LocalizationNet, TorchLocalizationNet):
        arguments = {"backbone": "convnext_tiny", **settings}
        if make is TorchLocalizationNet and "features" in settings:
            continue
        with pytest.raises(ConfigurationError, match=message):
            make(arguments.pop("backbone"), **arguments)


def test_the_document_says_what_is_so(tmp_path, monkeypatch):
    document = (Path(__file__).parents[2] / "docs" / "localization-net.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(block, "localization-net.md", "exec"), names)
    assert names["mean"].shape == names["targets"].shape == (4, 2)
    rows = [
        [cell.strip("` ") for cell in line.split("|")[1:-1]] for line in re.findall(r"(?m)^\| `.*", document)
    ]
    for name, kind, features, millions, top1 in rows[:10]:
        info = get_backbone_info(name)
        native = "native" if name.startswith("convnext") else "torchvision"
        assert [kind, features, millions] == [native, str(info.features), str(info.params_millions)]
        assert top1 == f"{info.imagenet_top1} %"
    presets = {}
    for name, config in CONFIGS.items():
        weights = "ImageNet" if config.pretrained else "random"
        frozen = "frozen" if config.freeze_backbone else "trained"
        facts = [config.backbone.value, weights, frozen, config.learning_rate, config.num_training_steps]
        presets[name] = [str(fact) for fact in facts]
    assert {name: facts for name, *facts in rows[10:]} == presets
