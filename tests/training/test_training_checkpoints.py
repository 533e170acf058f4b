"""Checkpoints and saved models are files that plain PyTorch reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heimdall_tracking.errors import ArtifactNotFoundError, ConfigurationError, InvalidInputError
from heimdall_tracking.training import (
    CheckpointNotFoundError,
    RssLocalizationNet,
    load_model,
    save_model,
)
from support.torch_twin import TorchTwin


@pytest.fixture
def fitted(dataset, model, make_trainer):
    trainer = make_trainer(max_epochs=3, save_top_k=2)
    return trainer, trainer.fit(model, dataset)


def test_the_best_and_the_last_are_kept(fitted):
    _, result = fitted
    folder = result.log_dir / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {
        "last.ckpt",
        *(path.name for path in result.best_k_models),
    }
    by_loss = sorted(result.history, key=lambda epoch: epoch["val/loss"])
    names = [f"epoch={epoch['epoch']:.0f}-step={epoch['step']}.ckpt" for epoch in by_loss[:2]]
    assert [path.name for path in result.best_k_models] == names
    assert result.best_model_path.name == names[0]


def test_a_checkpoint_opens_with_plain_torch(fitted, model):
    _, result = fitted
    checkpoint = torch.load(result.last_model_path, weights_only=True)
    assert checkpoint["epoch"] == 2
    assert checkpoint["global_step"] == result.history[-1]["step"]
    assert checkpoint["hyper_parameters"]["trainer"]["lr"] == 2e-3
    assert len(checkpoint["hyper_parameters"]["model"]["receivers"]) == 29
    assert checkpoint["metrics"]["val/loss"] == result.history[-1]["val/loss"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(checkpoint["state_dict"][name], tensor), name


def test_a_torch_module_takes_the_weights_and_predicts_the_same(fitted, dataset, model):
    _, result = fitted
    twin = TorchTwin(dataset.receivers).eval()
    checkpoint = torch.load(result.last_model_path, weights_only=True)
    twin.load_state_dict(checkpoint["state_dict"], strict=True)
    positions, sigmas = model.predict(dataset.rss("test"))
    with torch.no_grad():
        mean, sigma = twin(torch.from_numpy(dataset.rss("test")))
    np.testing.assert_allclose(positions, twin.to_degrees(mean), rtol=0, atol=1e-7)
    np.testing.assert_allclose(sigmas / 1000, sigma, rtol=0, atol=1e-5)


def test_torchs_adamw_takes_the_optimiser_state(fitted, dataset):
    _, result = fitted
    checkpoint = torch.load(result.last_model_path, weights_only=True)
    twin = TorchTwin(dataset.receivers)
    matrices = [p for p in twin.parameters() if p.ndim > 1]
    vectors = [p for p in twin.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": matrices}, {"params": vectors}])
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    for parameter in twin.parameters():
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
        assert optimizer.state[parameter]["step"] == result.history[-1]["step"]


def test_a_test_takes_the_weights_of_the_checkpoint_it_names(fitted, model):
    trainer, result = fitted
    last = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer.test()
    best = torch.load(result.best_model_path, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, best[name]) for name, tensor in model.state_dict().items())
    trainer.test(ckpt_path=result.last_model_path)
    assert all(torch.equal(tensor, last[name]) for name, tensor in model.state_dict().items())
    assert trainer.test("last").metrics == trainer.test(result.last_model_path).metrics


def test_a_checkpoint_that_is_not_there_is_named(fitted, tmp_path):
    trainer, _ = fitted
    with pytest.raises(CheckpointNotFoundError, match=r"gone\.ckpt: there is no such file") as caught:
        trainer.test(tmp_path / "gone.ckpt")
    assert isinstance(caught.value, FileNotFoundError)
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointNotFoundError, match=r"broken\.ckpt: it cannot be read"):
        trainer.test(broken)


def test_a_saved_model_is_the_same_again(dataset, tmp_path):
    model = RssLocalizationNet(dataset.receivers, hidden=(16, 8), sigma_floor_m=5.0, seed=9)
    again = load_model(save_model(model, tmp_path / "deep" / "model"))
    assert again.hyper_parameters == model.hyper_parameters
    assert again.receivers == model.receivers
    for ours, theirs in zip(
        model.predict(dataset.rss("val")), again.predict(dataset.rss("val")), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ArtifactNotFoundError, match=r"it has no config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"format": "onnx"}')
    (tmp_path / "weights.pt").touch()
    with pytest.raises(InvalidInputError, match="describes 'onnx'"):
        load_model(tmp_path)


def test_readings_may_say_not_heard_in_any_way(dataset, model):
    rss = dataset.rss("test")[:3]
    as_nan = np.where(rss <= -101, np.nan, rss)
    as_low = np.where(rss <= -101, -200.0, rss)
    expected = model.predict(rss)
    for other in (as_nan, as_low, as_nan.tolist(), torch.from_numpy(rss)):
        np.testing.assert_array_equal(model.predict(other), expected)


@pytest.mark.parametrize("shape", [(29,), (3, 28), (0,), (2, 2, 29)])
def test_readings_of_another_shape_are_refused(model, shape):
    with pytest.raises(InvalidInputError, match=r"rss must be \[rows, 29\], not"):
        model.predict(np.zeros(shape))


def test_a_state_dict_of_another_network_changes_nothing(dataset, model):
    before = model.state_dict()
    other = RssLocalizationNet(dataset.receivers, hidden=(64,)).state_dict()
    with pytest.raises(InvalidInputError, match="state dict"):
        model.load_state_dict(other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("hidden", ()),
        ("dropout", 1.0),
        ("head_dropout", (0.0, -0.1)),
        ("rss_scale_db", 0.0),
        ("sigma_init_m", 1.0),
    ],
)
def test_a_setting_that_makes_no_network_is_named(dataset, setting, value):
    with pytest.raises(ConfigurationError, match=f"^{setting}="):
        RssLocalizationNet(dataset.receivers, **{setting: value})
