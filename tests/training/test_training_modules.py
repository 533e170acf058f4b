"""Modules of PyTorch and of Lightning in the native loop: numbers, files, runs, and what is refused."""

from __future__ import annotations

import math
from importlib import import_module
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from heimdall_tracking import MLflowTracker
from heimdall_tracking.training import CheckpointNotFoundError, LocalizationNet, Trainer, TrainingError
from heimdall_training.errors import ConfigurationError, InvalidInputError

STEPS = 200


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def pl(request):
    return import_module(request.param)


@pytest.fixture
def train(tmp_path):
    """Train by our loop, with the arguments of the trainer and of `fit`."""

    def train(module, data, val=None, *, datamodule=None, ckpt_path=None, loss=None, optimizer=None,
              scheduler=None, tracker=None, **settings):  # fmt: skip
        settings = {"max_epochs": 1, "enable_progress_bar": False, "default_root_dir": tmp_path, **settings}
        trainer = Trainer(tracker=tracker, **settings)
        given = {"loss": loss, "optimizer": optimizer, "scheduler": scheduler}
        result = trainer.fit(module, data, val, datamodule, ckpt_path, **given)
        return trainer, result

    return train


def rows(number=640, kind=torch.float32):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(number, 8, generator=generator, dtype=kind)
    weights = torch.randn(8, 2, generator=generator, dtype=kind)
    return TensorDataset(inputs, inputs @ weights + 0.1)


def batches(kind=torch.float32, epochs=1):
    """Batches for `STEPS` steps in so many epochs."""
    dataset = rows(16 * STEPS // epochs, kind)
    return list(zip(dataset.tensors[0].split(16), dataset.tensors[1].split(16), strict=True))


def network(kind=torch.float32):
    torch.manual_seed(0)
    layers = [nn.Linear(8, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 2)]
    return nn.Sequential(*layers).to(kind)


class Opaque(nn.Module):
    """The same network in a class that only Python can run."""

    def __init__(self, kind):
        super().__init__()
        self.layers = network(kind)

    def forward(self, inputs):
        return self.layers(inputs)


def plain(module, data, epochs=1, clip=None, accumulate=1, scheduler=None):
    """The loop that everybody writes; returns the losses of the steps and the optimiser."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = scheduler(optimizer) if scheduler else None
    losses = []
    for _ in range(epochs):
        for index, (inputs, target) in enumerate(data):
            loss = nn.functional.mse_loss(module(inputs), target)
            losses.append(loss.item())
            (loss / accumulate).backward()
            if (index + 1) % accumulate == 0 or index + 1 == len(data):
                if clip:
                    nn.utils.clip_grad_norm_(module.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
        if schedule:
            schedule.step()
    return losses, optimizer


def noted(losses):
    """A loss that is noted, so that Python runs the module."""

    def loss(outputs, target):
        value = nn.functional.mse_loss(outputs, target)
        losses.append(value.item())
        return value

    return loss


def are_close(one, other, tolerance):
    """Return whether weights agree, relative to their size."""
    return all(
        torch.allclose(a, b, rtol=tolerance, atol=tolerance * a.abs().max().item())
        for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_each_loss_of_a_module_is_that_of_a_plain_loop(train, kind, tolerance):
    theirs, ours, losses = Opaque(kind), Opaque(kind), []
    expected, optimizer = plain(theirs, batches(kind))
    mine = torch.optim.AdamW(ours.parameters(), lr=3e-3, weight_decay=0.1)
    train(ours, batches(kind), loss=noted(losses), optimizer=mine)
    assert len(losses) == STEPS
    assert losses == pytest.approx(expected, rel=tolerance)
    state, other = optimizer.state_dict()["state"], mine.state_dict()["state"]
    assert state.keys() == other.keys()
    for index, values in state.items():
        assert values["step"] == other[index]["step"] == STEPS
        for name in ("exp_avg", "exp_avg_sq"):
            size = values[name].abs().max().item()
            assert torch.allclose(values[name], other[index][name], rtol=1e-5, atol=1e-5 * size)


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("loss", [nn.MSELoss(), "mse", nn.functional.mse_loss])
def test_a_sequential_runs_without_python_and_ends_where_a_plain_loop_ends(train, kind, tolerance, loss):
    theirs, ours = network(kind), network(kind)
    before = list(ours.parameters())
    expected, _ = plain(theirs, batches(kind, epochs=4), epochs=4)
    calls = []
    ours.__dict__["forward"] = lambda *_: calls.append("forward")
    _, result = train(ours, batches(kind, epochs=4), max_epochs=4, loss=loss, lr=3e-3, weight_decay=0.1)
    assert calls == []
    assert are_close(theirs, ours, tolerance)
    # The parameters are the same objects, with memory of their own and without gradients.
    assert all(one is other for one, other in zip(before, ours.parameters(), strict=True))
    assert all(it.grad is None and it.untyped_storage().nbytes() == it.nbytes for it in before)
    means = [sum(expected[at : at + 50]) / 50 for at in range(0, STEPS, 50)]
    assert [it["train/loss"] for it in result.history] == pytest.approx(means, rel=max(tolerance, 1e-6))


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_clipping_and_accumulation_are_those_of_a_plain_loop(train, clip, accumulate):
    theirs, ours = network(), network()
    data = batches()[:50]
    plain(theirs, data, clip=clip, accumulate=accumulate)
    given = {"gradient_clip_val": clip, "accumulate_grad_batches": accumulate}
    _, result = train(ours, data, loss="mse", lr=3e-3, weight_decay=0.1, **given)
    assert are_close(theirs, ours, 1e-5)
    assert result.history[-1]["step"] == math.ceil(50 / accumulate)


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
        lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, amsgrad=True),
        lambda parameters: torch.optim.AdamW(
            [
                {"params": parameters[:3], "lr": 1e-2, "weight_decay": 0.0},
                {"params": parameters[3:], "lr": 1e-3, "betas": (0.8, 0.9)},
            ]
        ),
        lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3),
    ],
)
def test_an_optimiser_of_the_user_s_moves_as_in_a_plain_loop(train, make):
    theirs, ours = network(), network()
    optimizer = make(list(theirs.parameters()))
    for inputs, target in batches()[:50]:
        optimizer.zero_grad()
        nn.functional.mse_loss(theirs(inputs), target).backward()
        optimizer.step()
    train(ours, batches()[:50], loss="mse", optimizer=make(list(ours.parameters())))
    assert are_close(theirs, ours, 1e-5)


def test_a_scheduler_of_the_user_s_sets_the_rate_of_each_epoch(train):
    def schedule(optimizer):
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    theirs, ours = network(), network()
    plain(theirs, batches()[:20], epochs=3, scheduler=schedule)
    optimizer = torch.optim.AdamW(ours.parameters(), lr=3e-3, weight_decay=0.1)
    given = {"optimizer": optimizer, "scheduler": schedule(optimizer), "loss": "mse"}
    _, result = train(ours, batches()[:20], max_epochs=3, **given)
    assert are_close(theirs, ours, 1e-5)
    assert [it["lr"] for it in result.history] == pytest.approx([3e-3, 1.5e-3, 0.75e-3])


def lightning_module(pl, interval="epoch", **more):
    class Module(pl.LightningModule):  # type: ignore[name-defined]
        def __init__(self, width=32, rate=1e-2):
            super().__init__()
            self.save_hyperparameters()
            self.layers = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 2))
            self.losses = []

        def training_step(self, batch, batch_idx):
            loss = nn.functional.mse_loss(self.layers(batch[0]), batch[1])
            self.losses.append(loss.item())
            self.log("train/loss", loss, on_step=True, on_epoch=True)
            return loss

        def validation_step(self, batch):
            loss = nn.functional.mse_loss(self.layers(batch[0]), batch[1])
            self.log_dict({"val/loss": loss, "val/rows": float(len(batch[0]))})

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.rate)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
                optimizer, 200 if interval == "step" else 10
            )
            return [optimizer], [{"scheduler": schedule, "interval": interval}]

    for name, value in more.items():
        setattr(Module, name, value)
    pl.seed_everything(3, verbose=False)
    return Module()


def loaders():
    return DataLoader(rows(), 32, shuffle=True), DataLoader(rows(80), 32)


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_lightning_module_has_the_losses_of_lightning_s_trainer(pl, train, interval, tmp_path):
    theirs = lightning_module(pl, interval)
    trainer = pl.Trainer(
        max_epochs=10, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(theirs, *loaders())
    ours = lightning_module(pl, interval)
    mine, _ = train(ours, *loaders(), max_epochs=10)
    assert len(ours.losses) == STEPS
    assert ours.losses == pytest.approx(theirs.losses, rel=2e-6)
    expected = {name: float(value) for name, value in trainer.callback_metrics.items()}
    # The name without an ending is the newest of the two there.
    expected.pop("train/loss", None)
    assert mine.callback_metrics == pytest.approx(expected, rel=1e-5)


def test_a_data_module_gives_the_batches(pl, train):
    class Data(pl.LightningDataModule):  # type: ignore[name-defined]
        def setup(self, stage):
            self.dataset = rows()

        def train_dataloader(self):
            return DataLoader(self.dataset, 32)

        def val_dataloader(self):
            return DataLoader(self.dataset, 320)

    module = lightning_module(pl)
    _, result = train(module, None, datamodule=Data())
    assert {"train/loss_epoch", "val/loss"} <= result.metrics.keys()


def test_hooks_come_in_lightning_s_order(pl, train):
    names = [
        "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start",
        "on_train_batch_end", "on_validation_start", "on_validation_epoch_start", "on_validation_batch_start",
        "on_validation_batch_end", "on_validation_epoch_end", "on_validation_end", "on_train_epoch_end",
        "on_train_end", "on_fit_end",
    ]  # fmt: skip

    def orders(run):
        seen = []
        hooks = {name: (lambda self, *_, name=name: seen.append(name)) for name in names}
        run(lightning_module(pl, **hooks))
        return seen

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    lightning = pl.Trainer(
        max_epochs=2, num_sanity_val_steps=0, enable_model_summary=False, accelerator="cpu", **quiet
    )
    assert orders(lambda it: train(it, *loaders(), max_epochs=2)) == orders(
        lambda it: lightning.fit(it, *loaders())
    )


def test_a_callback_sees_the_trainer_and_may_end_the_training(train):
    class Stops:
        def on_train_epoch_end(self, trainer, module):
            seen.append((trainer.current_epoch, trainer.global_step, type(module)))
            trainer.should_stop = trainer.current_epoch == 1

    seen = []
    _, result = train(network(), batches()[:5], loss="mse", max_epochs=5, callbacks=[Stops()])
    assert seen == [(0, 5, nn.Sequential), (1, 10, nn.Sequential)]
    assert result.stopped == "a callback has set should_stop"


def test_the_best_checkpoints_and_the_last_are_kept_and_training_stops(train):
    data, val = batches()[:20], batches()[20:25]
    _, result = train(network(), data, val, loss="mse", lr=0.3, max_epochs=40, save_top_k=2, patience=3)
    losses = [it["val/loss"] for it in result.history]
    best = sorted(losses)[:2]
    assert list(result.best_k_models.values()) == best
    assert result.best_model_score == best[0]
    assert "has not improved for 3 epochs" in result.stopped
    found = {path.name for path in (result.log_dir / "checkpoints").iterdir()}
    assert found == {path.name for path in result.best_k_models} | {"last.ckpt"}


def test_a_checkpoint_opens_by_torch_and_by_lightning(pl, train):
    module = lightning_module(pl)
    _, result = train(module, *loaders(), max_epochs=2)
    content = torch.load(result.last_model_path, weights_only=True)
    assert (content["epoch"], content["global_step"]) == (1, 40)
    again = type(module).load_from_checkpoint(result.last_model_path)
    assert again.hparams == module.hparams
    assert are_close(again, module, 0.0)
    # A file of a parameter has that parameter alone, not the buffer of all of them.
    assert result.last_model_path.stat().st_size < 60_000


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_training_that_goes_on_is_bit_by_bit_one_that_was_not_interrupted(pl, train, optimizer):
    def module():
        more = {}
        if optimizer == "sgd":
            more["configure_optimizers"] = lambda self: torch.optim.SGD(
                self.parameters(), lr=0.01, momentum=0.9
            )
        return lightning_module(pl, **more)

    whole = module()
    train(whole, *loaders(), max_epochs=4)
    _, first = train(module(), *loaders(), max_epochs=2)
    parted = module()
    torch.rand(100)
    _, second = train(parted, *loaders(), max_epochs=4, ckpt_path=first.last_model_path)
    assert [it["epoch"] for it in second.history] == [2, 3]
    assert second.history[-1]["step"] == 80
    assert parted.losses == whole.losses[40:]
    assert are_close(whole, parted, 0.0)


def test_a_checkpoint_of_another_module_is_refused(train, tmp_path):
    _, result = train(network(), batches()[:2], loss="mse")
    with pytest.raises(CheckpointNotFoundError, match="cannot be used for this module"):
        train(nn.Sequential(nn.Linear(8, 2)), batches()[:2], loss="mse", ckpt_path=result.last_model_path)
    with pytest.raises(CheckpointNotFoundError, match=r"nothing\.ckpt does not exist"):
        train(network(), batches()[:2], loss="mse", ckpt_path=tmp_path / "nothing.ckpt")


def test_everything_is_recorded_in_one_run(train, uri, tmp_path):
    tracker = MLflowTracker(uri, str(tmp_path / "artifacts"), experiment_name="modules")
    train(
        network(), batches()[:6], batches()[6:8], loss="mse", max_epochs=3, tracker=tracker,
        log_every_n_steps=2,
    )  # fmt: skip
    assert tracker.active_run_id is None
    [run] = tracker.search_runs()
    assert run.status == "FINISHED"
    assert (run.params["model/name"], run.params["max_epochs"]) == ("Sequential", "3")
    points = [(it.step, it.value) for it in tracker.get_metric_history(run.run_id, "val/loss")]
    assert [step for step, _ in points] == [5, 11, 17]
    assert all(later < earlier for (_, earlier), (_, later) in pairwise(points))
    files = {it.path for it in tracker.list_artifacts("checkpoints", run.run_id)}
    assert "checkpoints/last.ckpt" in files


def test_the_run_of_the_user_s_is_joined_and_left_open(train, uri, tmp_path):
    tracker = MLflowTracker(uri, str(tmp_path / "artifacts"), experiment_name="modules")
    with tracker.run("mine") as run:
        train(network(), batches()[:2], loss="mse", tracker=tracker)
        assert tracker.active_run_id == run.run_id
    assert len(tracker.search_runs()) == 1


def test_a_loss_that_is_no_number_names_the_place(train):
    data = batches()[:6]
    data[3] = (data[3][0] * math.nan, data[3][1])
    with pytest.raises(TrainingError, match=r"train/loss.*NaN.*epoch 0.*step 3"):
        train(network(), data, loss="mse")


def test_parameters_without_a_gradient_stay_as_they_are(train):
    class Half(Opaque):
        def __init__(self):
            super().__init__(torch.float32)
            self.unused = nn.Linear(3, 3)
            self.layers[0].requires_grad_(False)

    module = Half()
    unused = module.unused.weight.detach().clone()
    frozen = module.layers[0].weight.detach().clone()
    train(module, batches()[:10], loss="mse")
    assert torch.equal(module.unused.weight, unused)
    assert torch.equal(module.layers[0].weight, frozen)


def test_a_limit_of_batches_and_rare_validations_are_kept(train):
    _, result = train(
        network(), batches()[:10], batches()[10:20], loss="mse", max_epochs=4, limit_train_batches=3,
        limit_val_batches=0.5, check_val_every_n_epoch=2,
    )  # fmt: skip
    assert result.history[-1]["step"] == 12
    assert ["val/loss" in it for it in result.history] == [False, True, False, True]


def two_optimisers(self):
    return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.parameters(), lr=0.1)]


REFUSED = {
    "a class": (lambda: nn.Linear, {}, InvalidInputError, r"not its class: write Linear\(…\)"),
    "no module": (lambda: "net", {}, InvalidInputError, "a LightningModule, not str"),
    "no parameters": (lambda: nn.ReLU(), {}, InvalidInputError, "no parameters that can learn"),
    "no loss": (network, {"loss": None}, InvalidInputError, "loss must be a function"),
    "another loss": (network, {"loss": "focal"}, InvalidInputError, "'mse'.*not 'focal'"),
    "a class of a loss": (network, {"loss": nn.MSELoss}, InvalidInputError, r"write MSELoss\(\)"),
    "no optimiser": (network, {"optimizer": "adam"}, InvalidInputError, "'sgd' or a torch.*not 'adam'"),
    "no epochs": (network, {"max_epochs": 0}, ConfigurationError, "max_epochs must be at least 1, not 0"),
    "another mode": (network, {"mode": "best"}, ConfigurationError, "'min' or 'max', not 'best'"),
    "another device": (network, {"accelerator": "tpu"}, ConfigurationError, "one of .*'cpu'.*not 'tpu'"),
    "no such device": (network, {"accelerator": "mps"}, ConfigurationError, "finds no such device here"),
    "two devices": (network, {"devices": 2}, ConfigurationError, "torchrun --nproc-per-node 2"),
    "no devices": (network, {"devices": 0}, ConfigurationError, "devices must be a number from 1 on"),
    "half precision": (network, {"precision": "16-true"}, ConfigurationError, "not '16-true'"),
    "no such schedule": (network, {"schedule": "step"}, ConfigurationError, "'cosine'.*not 'step'"),
    "a long warm-up": (network, {"warmup_steps": 3}, ConfigurationError, "at most the 2 steps"),
    "a plateau warms up": (
        network,
        {"schedule": "plateau", "warmup_steps": 1},
        ConfigurationError,
        "plateau",
    ),
    "a negative rate": (network, {"lr": -1.0}, ConfigurationError, "lr must be a number above 0, not -1.0"),
    "no average": (network, {"ema_decay": 1.0}, ConfigurationError, "between 0 and 1 or None, not 1.0"),
    "no interval": (network, {"val_check_interval": 0}, ConfigurationError, "from 1 on.*not 0"),
    "no patience": (network, {"patience": 0}, ConfigurationError, "patience must be at least 1, not 0"),
    "no batches": (network, {"data": torch.ones(2, 2)}, InvalidInputError, "such as a .*DataLoader"),
    "an iterator": (network, {"data": iter([])}, InvalidInputError, "used up after one"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_misuse_is_an_error_that_says_what_is_right_and_leaves_nothing_behind(train, uri, tmp_path, name):
    make, more, error, text = REFUSED[name]
    tracker = MLflowTracker(uri, str(tmp_path / "artifacts"), experiment_name="modules")
    given = {"loss": "mse", "data": batches()[:2], **more}
    with pytest.raises(error, match=text):
        train(make(), given.pop("data"), tracker=tracker, default_root_dir=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
    assert tracker.search_runs() == []


def test_a_batch_that_is_no_pair_is_named(train):
    with pytest.raises(InvalidInputError, match="pair of inputs and targets, not list of 3"):
        train(Opaque(torch.float32), [[torch.ones(2, 8)] * 3], loss="mse")


def test_a_loss_that_depends_on_nothing_is_named(train):
    with pytest.raises(InvalidInputError, match="the loss must be one floating-point number"):
        train(network(), batches()[:2], loss=lambda outputs, target: torch.ones(3))


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"automatic_optimization": False}, "automatic_optimization must be True"),
        ({"optimizer_step": lambda self, *_: None}, r"Module\.optimizer_step is not supported"),
        ({"configure_optimizers": two_optimisers}, "must give one optimiser, not 2"),
        ({"configure_optimizers": lambda self: None}, "must give a torch.optim.Optimizer, not NoneType"),
    ],
)
def test_what_is_not_supported_of_lightning_is_refused_by_name(pl, train, more, text):
    with pytest.raises(ConfigurationError, match=text):
        train(lightning_module(pl, **more), *loaders())


def test_callbacks_of_lightning_are_refused_by_name(pl, train):
    with pytest.raises(ConfigurationError, match=r"EarlyStopping of Lightning.*patience"):
        train(lightning_module(pl), *loaders(), callbacks=[pl.callbacks.EarlyStopping("val/loss")])


@pytest.mark.parametrize("backbone", ["convnext_tiny", "resnet50"])
def test_a_network_for_spectrograms_learns_and_is_measured_in_metres(train, backbone, uri, tmp_path):
    torch.manual_seed(0)
    # The position is in the level of the first channel.
    spectrograms = torch.zeros(12, 3, 32, 32)
    degrees = torch.tensor([[45.0 + 0.1 * (row % 3), 8.0] for row in range(12)], dtype=torch.float64)
    spectrograms[:, 0] = (degrees[:, :1, None] - 45.1) * 10
    names = [f"row {row}" for row in range(12)]
    data = [(spectrograms[at : at + 4], degrees[at : at + 4], names[at : at + 4]) for at in (0, 4, 8)]
    net = LocalizationNet(
        backbone, origin=(45.1, 8.0), position_scale_m=10_000.0, sigma_init_m=10_000.0, freeze_backbone=True
    )
    tracker = MLflowTracker(uri, str(tmp_path / "artifacts"), experiment_name="modules")
    before = net.predict(spectrograms)[0]
    _, result = train(net, data, data[:1], max_epochs=4, lr=1e-2, tracker=tracker, save_top_k=0)
    assert result.history[-1]["train/loss"] < result.history[0]["train/loss"]
    named = {"val/position_error_mean", "val/position_error_median", "val/within_1_sigma", "val/sigma_mean"}
    assert named <= result.metrics.keys()
    # The network has the weights of its module, and its errors are the distances on the sphere.
    predicted, _ = net.predict(spectrograms[:4])
    assert not (predicted == before[:4]).all()
    metres = math.radians(6_371_000.0)
    north = (predicted[:, 0] - degrees[:4, 0].numpy()) * metres
    east = (predicted[:, 1] - degrees[:4, 1].numpy()) * metres * math.cos(math.radians(45.1))
    distances = [math.hypot(*pair) for pair in zip(north, east, strict=True)]
    assert result.metrics["val/position_error_mean"] == pytest.approx(sum(distances) / 4, rel=0.01)
    [run] = tracker.search_runs()
    assert run.params["model/backbone"] == backbone
