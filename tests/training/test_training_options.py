"""Options of the training of modules: rates, averages, precision, validations, evaluation, interruptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from heimdall_tracking import MLflowTracker
from heimdall_tracking.training import LocalizationNet, Trainer, TrainingError
from heimdall_training.errors import ConfigurationError, InvalidInputError

from .test_training_modules import are_close, batches, lightning_module, loaders, network, rows


class Opaque(nn.Module):
    """A network that only Python can run, with a place for random numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2))

    def forward(self, inputs):
        return self.layers(inputs)


@pytest.fixture
def trainer(tmp_path):
    def make(**settings):
        quiet = {"max_epochs": 1, "enable_progress_bar": False, "default_root_dir": tmp_path}
        return Trainer(**{**quiet, **settings})

    return make


@pytest.fixture
def pl():
    return import_module("lightning.pytorch")


def rates_of(trainer, **settings):
    """Return the learning rate of each of the 20 steps of a training."""
    seen: list[float] = []
    made: Any = None

    module = Opaque()
    hook = module.register_forward_pre_hook(lambda *_: seen.append(made.optimizers[0].param_groups[0]["lr"]))

    class Begin:
        def on_fit_start(self, steps, module):
            nonlocal made
            made = steps

    trainer(callbacks=[Begin()], **settings).fit(module, batches()[:20], loss="mse")
    hook.remove()
    return seen


def test_the_rate_warms_up_and_falls_along_a_cosine(trainer):
    rates = rates_of(trainer, lr=0.1, min_lr=0.01, warmup_steps=4, schedule="cosine")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=16, eta_min=0.01)
    expected = [0.025, 0.05, 0.075, 0.1]
    for _ in range(16):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates == pytest.approx(expected[:4] + expected[4:20], rel=1e-9)


def test_a_plateau_lowers_the_rate(trainer):
    module = Opaque()
    result = trainer(lr=1e-9, schedule="plateau", max_epochs=13, weight_decay=0.0).fit(
        module, batches()[:2], batches()[:2], loss=lambda outputs, target: outputs.sum() * 0 + 1
    )
    # Ten epochs without a better loss are waited for.
    assert [it["lr"] for it in result.history][:12] == [1e-9] * 12
    assert result.history[12]["lr"] == pytest.approx(1e-9, abs=1e-10)


def test_norms_and_biases_may_go_without_decay(trainer):
    module = nn.Sequential(nn.Linear(8, 2), nn.LayerNorm(2))
    before = [it.detach().clone() for it in module.parameters()]
    idle = trainer(lr=0.1, weight_decay=0.5, decay_norms_and_biases=False)
    idle.fit(module, batches()[:1], loss=lambda outputs, target: outputs.sum() * 0)
    after = list(module.parameters())
    assert torch.allclose(after[0], before[0] * 0.95)
    assert all(torch.equal(one, other) for one, other in zip(after[1:], before[1:], strict=True))


def test_averages_of_the_weights_are_those_of_torch(trainer, tmp_path):
    theirs = Opaque()
    averages = torch.optim.swa_utils.AveragedModel(
        theirs, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    averages.update_parameters(theirs)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.01)
    torch.manual_seed(5)
    for inputs, target in batches()[:20]:
        nn.functional.mse_loss(theirs(inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        averages.update_parameters(theirs)
    ours = Opaque()
    torch.manual_seed(5)
    result = trainer(lr=1e-2, ema_decay=0.9).fit(ours, batches()[:20], loss="mse")
    assert are_close(averages.module, ours, 1e-5)
    # A checkpoint opens with the averages, and a training that goes on has both.
    content = torch.load(result.last_model_path, weights_only=True)
    assert torch.equal(content["state_dict"]["layers.0.weight"], ours.layers[0].weight)
    weights = content["heimdall"]["weights"]["layers.0.weight"]
    assert torch.allclose(weights, theirs.layers[0].weight, rtol=1e-5, atol=1e-6)


def autocast_loop(module, data, kind, scaler):
    """The loop of mixed precision that everybody writes."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.01)
    for inputs, target in data:
        with torch.autocast("cpu", kind):
            loss = nn.functional.mse_loss(module(inputs), target)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_is_that_of_a_plain_loop(trainer, precision):
    kind = torch.bfloat16 if precision == "bf16-mixed" else torch.float16
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "16-mixed")
    theirs, ours = Opaque(), Opaque()
    torch.manual_seed(1)
    autocast_loop(theirs, batches()[:50], kind, scaler)
    torch.manual_seed(1)
    made = trainer(lr=1e-2, precision=precision, gradient_clip_val=1.0)
    result = made.fit(ours, batches()[:50], loss="mse")
    assert are_close(theirs, ours, 1e-5)
    assert all(it.dtype == torch.float32 for it in ours.parameters())
    if precision == "bf16-mixed":
        return
    # Both have left out steps whose gradients did not fit into 16 bits.
    content = torch.load(result.last_model_path, weights_only=True)
    assert content["heimdall"]["scaler"]["scale"] == scaler.get_scale() < 65536.0
    again = trainer(precision=precision, max_epochs=2, limit_train_batches=1)
    again.fit(Opaque(), batches()[:50], loss="mse", ckpt_path=result.last_model_path)
    assert again._steps.place.scaler.get_scale() == scaler.get_scale()


def test_64_bits_and_channels_last_reach_module_and_batches(trainer):
    seen = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 1))

        def forward(self, pictures):
            seen.append((pictures.dtype, pictures.is_contiguous(memory_format=torch.channels_last)))
            return self.layers(pictures)

    net = Net()
    data = [{"ignored": 1}] and [(torch.randn(4, 3, 8, 8), torch.zeros(4, 1))] * 2
    trainer(precision="64-true", channels_last=True).fit(net, data, loss="mse")
    assert seen == [(torch.float64, True)] * 2
    assert all(it.dtype == torch.float64 for it in net.parameters())


def test_a_compiled_module_trains_and_its_checkpoint_has_its_own_names(trainer):
    plain, given, told = Opaque(), Opaque(), Opaque()
    by_user = torch.compile(given, backend="eager")
    results = []
    for module, settings in ((plain, {}), (by_user, {}), (told, {"compile": "eager"})):
        torch.manual_seed(2)
        results.append(trainer(**settings).fit(module, batches()[:10], loss="mse"))
    assert are_close(plain, given, 1e-6)
    assert are_close(plain, told, 1e-6)
    for result in results:
        names = torch.load(result.last_model_path, weights_only=True)["state_dict"].keys()
        assert set(names) == set(plain.state_dict())
    assert told._compiled_call_impl is None


@pytest.mark.parametrize("interval", [5, 0.25])
def test_validations_come_every_so_many_batches(trainer, interval):
    module = network()
    made = trainer(val_check_interval=interval, save_top_k=2, max_epochs=2)
    result = made.fit(module, batches()[:20], batches()[:2], loss="mse")
    # Four validations in each epoch; the best two of eight are kept.
    assert len(result.best_k_models) == 2
    assert all(int(path.stem.rpartition("=")[2]) % 5 == 0 for path in result.best_k_models)
    assert result.best_model_score == min(result.best_k_models.values())
    assert "val/loss" in result.metrics


def test_patience_ends_in_the_middle_of_an_epoch(trainer):
    made = trainer(val_check_interval=2, patience=2, lr=1e-12, max_epochs=3)
    result = made.fit(Opaque(), batches()[:20], batches()[:1], loss=lambda *_: one())
    assert result.stopped == "val/loss has not improved for 2 validations"
    assert result.history[-1]["step"] == 6


def one():
    return torch.ones((), requires_grad=True) * 1.0


def test_the_rates_the_speed_and_the_gradient_are_recorded(trainer, uri, tmp_path):
    tracker = MLflowTracker(uri, str(tmp_path / "artifacts"), experiment_name="options")
    trainer(tracker=tracker, log_every_n_steps=5, lr=0.02).fit(Opaque(), batches()[:20], loss="mse")
    tracker.flush()
    (run,) = tracker.search_runs()
    assert run.metrics["lr-AdamW"] == 0.02
    assert run.metrics["train/samples_per_second"] > 0
    norms = tracker.get_metric_history(run.run_id, "train/grad_norm")
    assert [point.step for point in norms] == [4, 9, 14, 19]
    assert all(0 < point.value < 100 for point in norms)
    assert run.params["precision"] == "32-true"


def test_validate_test_and_predict_of_a_module(trainer):
    module = network()
    made = trainer(max_epochs=3)
    result = made.fit(module, batches()[:10], batches()[:4], loss="mse")
    (validated,) = made.validate(dataloaders=batches()[:4])
    assert validated["val/loss"] == pytest.approx(result.metrics["val/loss"], rel=1e-6)
    (tested,) = made.test(dataloaders=DataLoader(rows(64), 60))
    with torch.no_grad():
        outputs = module(rows(64).tensors[0])
    expected = nn.functional.mse_loss(outputs, rows(64).tensors[1]).item()
    # Batches of 60 and 4 rows count by their rows.
    assert tested == {"test/loss": pytest.approx(expected, rel=1e-5)}
    predicted = made.predict(dataloaders=[rows(64).tensors[0].split(32)[0], batches()[0]])
    assert torch.allclose(predicted[0], outputs[:32])
    assert predicted[1].shape == (16, 2)
    assert module.training
    assert not predicted[0].requires_grad

    other = network()
    (fresh,) = trainer().test(other, DataLoader(rows(64), 64), loss="mse", ckpt_path=result.last_model_path)
    assert fresh["test/loss"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(TrainingError, match="give one, or call fit"):
        trainer().validate(dataloaders=batches()[:1])
    with pytest.raises(InvalidInputError, match="not the class Linear"):
        trainer().test(nn.Linear, batches()[:1])
    with pytest.raises(InvalidInputError, match="loss must be"):
        trainer().test(network(), batches()[:1])


def test_lightning_modules_are_validated_tested_and_predict(pl, trainer):
    class Data(pl.LightningDataModule):  # type: ignore[name-defined]
        def test_dataloader(self):
            return DataLoader(rows(64), 32)

        predict_dataloader = val_dataloader = test_dataloader

    def test_step(self, batch, batch_idx):
        self.log("test/error", (self.layers(batch[0]) - batch[1]).abs().mean())

    module = lightning_module(pl, test_step=test_step, forward=lambda self, batch: self.layers(batch[0]))
    made = trainer()
    made.fit(module, *loaders())
    expected = pl.Trainer(
        logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu"
    )
    (theirs,) = expected.test(module, datamodule=Data(), verbose=False)
    (ours,) = made.test(datamodule=Data())
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert made.validate(datamodule=Data())[0].keys() == {"val/loss", "val/rows"}
    outputs = made.predict(datamodule=Data())
    assert [it.shape for it in outputs] == [(32, 2), (32, 2)]
    with pytest.raises(ConfigurationError, match="has no test_step"):
        made.test(lightning_module(pl, test_step=pl.LightningModule.test_step), DataLoader(rows(8), 8))


def test_a_network_for_spectrograms_is_tested_in_metres(trainer):
    net = LocalizationNet("convnext_tiny", origin=(45.0, 8.0))
    degrees = torch.tensor([[45.0, 8.0], [45.1, 8.1]], dtype=torch.float64)
    data = [(torch.randn(2, 3, 32, 32), degrees, ["a", "b"])]
    (tested,) = trainer().test(net, data)
    assert tested["test/position_error_mean"] >= 0
    assert 0 <= tested["test/within_1_sigma"] <= tested["test/within_2_sigma"] <= 1
    assert {"test/loss", "test/sigma_mean"} <= tested.keys()
    mean, sigma = trainer().predict(net, data)[0]
    assert mean.shape == sigma.shape == (2, 2)


def noisy_rows(batch_size=16):
    """A loader whose rows draw random numbers, as augmentation does."""

    class Noisy(torch.utils.data.Dataset):
        def __getitem__(self, index):
            inputs, target = rows(320)[index]
            return inputs + 0.1 * torch.randn(8), target

        def __len__(self):
            return 320

    return DataLoader(Noisy(), batch_size, shuffle=True)


class StopAt:
    """Ends a training in a step, as a fault would."""

    def __init__(self, step):
        self.step = step

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step == self.step:
            raise RuntimeError("the machine has failed")


@pytest.mark.parametrize("kind", ["module", "native", "averaged"])
def test_a_training_goes_on_in_the_middle_of_an_epoch_bit_by_bit(trainer, kind):
    settings = {"max_epochs": 3, "patience": 50, "schedule": "cosine", "warmup_steps": 10, "lr": 1e-2}
    if kind == "averaged":
        settings["ema_decay"] = 0.9
    make = network if kind == "native" else Opaque
    torch.manual_seed(9)
    whole = make()
    torch.manual_seed(9)
    expected = trainer(**settings).fit(whole, noisy_rows(), batches()[:2], loss="mse")

    torch.manual_seed(9)
    failing = trainer(**settings, save_every_n_steps=7, callbacks=[StopAt(33)])
    parted = make()
    torch.manual_seed(9)
    with pytest.raises(RuntimeError, match="machine has failed"):
        failing.fit(parted, noisy_rows(), batches()[:2], loss="mse")
    last = next(failing.default_root_dir.glob("version_1/checkpoints/last.ckpt"))
    content = torch.load(last, weights_only=True)
    assert (content["global_step"], content["epoch"], content["heimdall"]["batches"]) == (28, 1, 8)

    again = make()
    torch.rand(50)
    result = trainer(**settings).fit(again, noisy_rows(), batches()[:2], loss="mse", ckpt_path=last)
    assert are_close(whole, again, 0.0)
    names = ("val/loss",) if kind == "native" else ("val/loss", "train/loss")
    for name in names:
        ours, theirs = ([it[name] for it in history[-2:]] for history in (result.history, expected.history))
        assert ours == pytest.approx(theirs, rel=1e-6)
    assert result.best_model_score == expected.best_model_score


def test_a_training_that_goes_on_is_the_same_run(trainer, uri, tmp_path):
    tracker = MLflowTracker(uri, str(tmp_path / "artifacts"), experiment_name="options")
    settings = {"tracker": tracker, "max_epochs": 2, "log_every_n_steps": 1}
    made = trainer(**settings, save_every_n_steps=4, callbacks=[StopAt(14)])
    with pytest.raises(RuntimeError, match="machine has failed"):
        made.fit(Opaque(), batches()[:10], loss="mse")
    tracker.flush()
    (run,) = tracker.search_runs()
    assert run.status == "FAILED"
    last = next(tmp_path.glob("version_0/checkpoints/last.ckpt"))
    trainer(**settings).fit(Opaque(), batches()[:10], loss="mse", ckpt_path=last)
    tracker.flush()
    (run,) = tracker.search_runs()
    assert run.status == "FINISHED"
    points = tracker.get_metric_history(run.run_id, "train/loss_step")
    # Steps 12 and 13 were recorded before the fault, and are recorded anew.
    assert [point.step for point in points] == list(range(20))


SCRIPT = """
    import os, signal, sys
    import torch
    from torch import nn
    from heimdall_tracking import MLflowTracker
    from heimdall_training import Trainer

    # A test that runs in the background of a shell inherits that Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    class Net(nn.Linear):
        calls = 0
        def forward(self, inputs):
            Net.calls += 1
            if Net.calls == 26 and len(sys.argv) > 3:
                os.kill(os.getpid(), int(sys.argv[3]))
            return super().forward(inputs)

    torch.manual_seed(0)
    inputs = torch.randn(320, 8)
    data = list(zip(inputs.split(16), (inputs[:, :2] * 3).split(16)))
    torch.manual_seed(1)
    tracker = MLflowTracker(f"sqlite:///{sys.argv[1]}/mlflow.db", sys.argv[1], experiment_name="signals")
    trainer = Trainer(
        tracker=tracker, max_epochs=2, enable_progress_bar=False, default_root_dir=sys.argv[1] + "/out"
    )
    net = Net(8, 2)
    ckpt = sys.argv[2] if sys.argv[2] != "-" else None
    trainer.fit(net, data, loss="mse", ckpt_path=ckpt)
    print("weights", net.weight.detach().flatten().tolist())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_training_with_a_checkpoint_to_go_on_from(number, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))

    def train(folder, *arguments):
        return subprocess.run(
            [sys.executable, str(script), str(tmp_path / folder), *arguments],
            capture_output=True, text=True, timeout=120, cwd=tmp_path,
            env={**os.environ, "HEIMDALL_DIR": str(tmp_path / folder / ".heimdall")},
        )  # fmt: skip

    for folder in ("whole", "parted"):
        (tmp_path / folder).mkdir()
    whole = train("whole", "-")
    assert whole.returncode == 0, whole.stderr
    ended = train("parted", "-", str(int(number)))
    assert ended.returncode in (-number, 1), ended.stderr
    assert ("KeyboardInterrupt" in ended.stderr) == (number == signal.SIGINT), ended.stderr
    last = tmp_path / "parted" / "out" / "version_0" / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    assert (content["epoch"], content["global_step"], content["heimdall"]["batches"]) == (1, 26, 6)
    again = train("parted", str(last))
    assert again.returncode == 0, again.stderr
    assert again.stdout == whole.stdout
    tracker = MLflowTracker(f"sqlite:///{tmp_path}/parted/mlflow.db", experiment_name="signals")
    (run,) = tracker.search_runs()
    assert run.status == "FINISHED"


def test_progress_is_a_line_an_epoch_in_a_file_and_one_place_in_a_terminal(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
        import torch
        from torch import nn
        from heimdall_training import Trainer
        net = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
        data = [(torch.ones(4, 8), torch.ones(4, 2))] * 5
        Trainer(max_epochs=3, default_root_dir="out").fit(net, data, loss="mse")
        """)
    )
    in_file = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)
    lines = in_file.stdout.splitlines()
    assert [line[:11] for line in lines[-3:]] == ["epoch   1/3", "epoch   2/3", "epoch   3/3"]
    assert lines[:3] == ["0           Linear             36", "1           Linear             10",
                         "Sequential                     46  46 learn, 0.0 MB"]  # fmt: skip
    import pty

    parent, child = pty.openpty()
    process = subprocess.Popen([sys.executable, str(script)], stdout=child, stderr=child, cwd=tmp_path)
    os.close(child)
    seen = b""
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:
            break
        if not part:
            break
        seen += part
    process.wait()
    os.close(parent)
    drawn = seen.decode().split("MB")[1]
    # One line, drawn again and again, and left at the end.
    assert drawn.strip("\r\n").count("\n") == 0
    assert drawn.count("\r") >= 3
    assert "epoch   3/3" in drawn.rsplit("\r\x1b", 1)[-1] or "epoch   3/3" in drawn
