"""Weights move between our networks and torchvision's, in both directions and both kinds of files."""

from __future__ import annotations

import hashlib

import pytest
import torch
import torchvision

from heimdall_tracking.errors import ArtifactNotFoundError, InvalidInputError
from heimdall_tracking.training import (
    LocalizationNet,
    PretrainedWeightsNotFoundError,
    find_pretrained,
    load_weights,
    save_weights,
)
from heimdall_training import model_config, weights


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(3)
    return torchvision.models.convnext_tiny()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torch's cache of weights, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def released(theirs, tmp_path, monkeypatch):
    """A file as torchvision releases it: the name ends with the beginning of its hash."""
    made = tmp_path / "made.pth"
    torch.save(theirs.state_dict(), made)
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    file = made.rename(tmp_path / f"convnext_tiny-{digest[:8]}.pth")
    info = model_config.get_backbone_info("convnext_tiny")._replace(checkpoint=file.name)
    monkeypatch.setitem(model_config._BACKBONES, "convnext_tiny", info)
    return file


def backbone_of(net) -> dict[str, torch.Tensor]:
    parts = ((name.partition("backbone."), tensor) for name, tensor in net.state_dict().items())
    return {name: tensor for (before, prefix, name), tensor in parts if prefix and not before}


def assert_same(one, other) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_torchvision_become_ours_without_the_classes(theirs, tmp_path, suffix):
    file = tmp_path / f"theirs{suffix}"
    if suffix == ".pth":
        torch.save(theirs.state_dict(), file)
    else:
        from safetensors.torch import save_file

        save_file(theirs.state_dict(), file)
    net = LocalizationNet("convnext_tiny", weights=file)
    kept = {name: it for name, it in theirs.state_dict().items() if not name.startswith("classifier.2.")}
    assert_same(backbone_of(net), kept)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_ours_become_torchvisions(theirs, tmp_path, suffix):
    net = LocalizationNet("convnext_tiny", seed=5)
    file = save_weights(net, tmp_path / f"ours{suffix}", backbone_only=True)
    if suffix == ".pth":
        tensors = torch.load(file, weights_only=True)
    else:
        from safetensors.torch import load_file

        tensors = load_file(file)
    missing = torchvision.models.convnext_tiny().load_state_dict(tensors, strict=False)
    assert missing.missing_keys == ["classifier.2.weight", "classifier.2.bias"]
    assert missing.unexpected_keys == []


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_whole_network_comes_back_from_a_file(tmp_path, suffix):
    net = LocalizationNet("convnext_tiny", seed=5)
    other = LocalizationNet("convnext_tiny", seed=6)
    load_weights(other, save_weights(net, tmp_path / f"net{suffix}"))
    assert_same(other.state_dict(), net.state_dict())


def test_a_state_dict_is_the_network_itself():
    net = LocalizationNet("convnext_tiny")
    net.state_dict()["uncertainty_head.8.bias"].fill_(3.0)
    assert net.state_dict()["uncertainty_head.8.bias"].tolist() == [3.0, 3.0]
    assert not net.state_dict()["uncertainty_head.8.bias"].requires_grad


def test_files_that_do_not_fit_change_nothing(theirs, tmp_path):
    net = LocalizationNet("convnext_tiny")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    tensors = dict(theirs.state_dict())
    del tensors["features.7.2.block.5.bias"]
    torch.save(tensors, tmp_path / "short.pth")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in [
        ("short.pth", r"does not fit LocalizationNet.*features\.7\.2\.block\.5\.bias"),
        ("text.pth", "cannot be read as weights of torch"),
        ("list.pth", "must hold a state dict"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            load_weights(net, tmp_path / name)
    with pytest.raises(ArtifactNotFoundError, match=r"there is no file .*nowhere\.pth"):
        load_weights(net, tmp_path / "nowhere.pth")
    assert_same(net.state_dict(), before)


def test_pretrained_takes_the_file_in_the_cache(theirs, released, cache):
    file = released.rename(cache / released.name)
    assert find_pretrained("convnext_tiny") == file
    net = LocalizationNet("convnext_tiny", pretrained=True)
    name = "features.5.8.block.3.weight"
    assert torch.equal(backbone_of(net)[name], theirs.state_dict()[name])


def test_without_the_file_the_error_says_what_to_get_and_where_to_put_it(cache):
    for name in ("convnext_large", "vit_b_16"):
        checkpoint = model_config.get_backbone_info(name).checkpoint
        with pytest.raises(PretrainedWeightsNotFoundError) as caught:
            LocalizationNet(name, pretrained=True)
        text = str(caught.value)
        assert f"https://download.pytorch.org/models/{checkpoint}" in text
        assert str(cache / checkpoint) in text
        assert "weights=" in text
        assert "download=True" in text
    assert list(cache.iterdir()) == []


def test_a_file_with_another_hash_is_refused(cache):
    (cache / "convnext_tiny-983f1562.pth").write_bytes(b"half of it")
    with pytest.raises(InvalidInputError, match=r"begins with 79fc\w{4} and must begin with 983f1562"):
        LocalizationNet("convnext_tiny", pretrained=True)


def test_it_is_downloaded_where_that_is_allowed(released, cache, monkeypatch):
    monkeypatch.setattr(weights, "_URL", released.parent.as_uri() + "/")
    net = LocalizationNet("convnext_tiny", pretrained=True, download=True)
    assert [file.name for file in cache.iterdir()] == [released.name]
    assert net.num_features == 768
    monkeypatch.setattr(weights, "_URL", (released.parent / "gone").as_uri() + "/")
    (cache / released.name).unlink()
    with pytest.raises(PretrainedWeightsNotFoundError, match="it failed"):
        find_pretrained("convnext_tiny", download=True)


def test_every_url_and_fact_is_that_of_torchvision():
    for architecture in model_config.BackboneArchitecture:
        released = torchvision.models.get_model_weights(architecture.value).DEFAULT
        info = model_config.get_backbone_info(architecture)
        assert weights._URL + info.checkpoint == released.url
        assert info.params_millions == pytest.approx(released.meta["num_params"] / 1e6, abs=0.06)
        top1 = released.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert info.imagenet_top1 == pytest.approx(top1, abs=0.06)
