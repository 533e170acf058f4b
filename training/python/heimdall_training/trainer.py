"""The trainer that users call, with Lightning's names. The loop itself is native."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import EllipsisType
from typing import Any, Literal, overload

import numpy as np
import torch

from . import _devices, _display, _distributed, _evaluation, _native, _random, module_training, plots
from ._native import RssDataset, RssLocalizationNet, __version__
from ._plan import NOT_RECORDED, Plan
from .errors import InvalidInputError, TrainingError
from .localization_net import LocalizationNet
from .models import save_model
from .results import Baseline as Baseline
from .results import FitResult as FitResult
from .results import ModuleFitResult
from .results import TestResult as TestResult
from .tracking import Recorder, Tracker, logger


def baselines(dataset: RssDataset) -> list[Baseline]:
    """Score the baselines that a network has to beat on the test rows.

    Args:
        dataset: The recordings. The baselines know the training and validation rows.

    Returns:
        `mean_position` (of all known rows), `power_centroid` (of the receivers, weighted by
        received milliwatts) and `nearest_neighbours` (mean of the 5 known rows that are closest in
        decibels).
    """
    return [Baseline(*scores) for scores in _native.baselines(dataset)]


class Trainer:
    """Trains a network and tests it, and records both.

    The network is a `RssLocalizationNet`, any `torch.nn.Module` with a loss, or a Lightning module with
    automatic optimisation. The loop is native. It does the arithmetic of `torch.optim.AdamW` itself, and runs
    a `nn.Sequential` of common layers without Python.

    Args:
        tracker: Tracker that records parameters, metrics and files; None records nothing. Where it has no
            active run, `fit` starts one. A failing tracker is reported once on the Python logger
            `heimdall_training` and never ends the training.
        max_epochs: Times the training rows are gone through, at most.
        batch_size: Rows in a batch, at least 2. Rows left over after the last whole batch sit the
            epoch out; they are others in each epoch.
        lr: Highest learning rate of AdamW.
        min_lr: Learning rate at the end of the cosine.
        warmup_steps: Steps in which the learning rate rises linearly; None is 5 % of all steps for a
            `RssLocalizationNet`, and none for a module.
        weight_decay: Weight decay of matrices. Biases and scales of normalisations do not decay, except those
            of a module with `decay_norms_and_biases`.
        gradient_clip_val: Bound on the norm of the whole gradient; None is no bound. Default 1.0 for a
            `RssLocalizationNet`, none for a module.
        drop_receivers: Augmentation, mean share of receivers that go silent in a training row, 0…1.
        noise_db: Augmentation, standard deviation of noise on each power in dB.
        gain_db: Augmentation, standard deviation of a change that the powers of a row share, in dB.
        patience: Epochs without a better `val/loss` after which training stops; None never stops. Default 20
            for a `RssLocalizationNet`, None for a module.
        save_top_k: Checkpoints to keep besides the last one, at least 1 (of a module at least 0).
        seed: Decides the order of rows, dropout and augmentation (the first weights follow from the
            seed of the model). The same seed gives the same training bit by bit on one machine, as
            long as no other thread draws from torch's default generator, which is seeded with it. None is 0
            for a `RssLocalizationNet`, and leaves the generators of torch, NumPy and Python as they are for a
            module.
        num_threads: Threads that share one operation. Default 1 for a `RssLocalizationNet`, whose operations
            are too short to be shared, and what torch has for a module.
        default_root_dir: Folder in which each `fit` makes a folder `version_0`, `version_1`, … of
            its own.
        enable_progress_bar: Show the progress: in one place in a terminal and in a notebook, and as a line
            for each epoch in a file.
        accumulate_grad_batches: Batches of a module whose gradients are averaged for one step.
        callbacks: Objects with methods of Lightning's names, such as `on_train_epoch_end(trainer, module)`,
            for a module. Lightning's own callbacks are refused, as they need its loops.
        log_every_n_steps: Steps of a module after which the values of a step are recorded.
        limit_train_batches: Batches of an epoch, as a number or (below 1.0) as a share; None is all.
        limit_val_batches: The same for the validation.
        limit_test_batches: The same for a test.
        check_val_every_n_epoch: Epochs of a module from one validation to the next.
        val_check_interval: Validate a module after so many batches of an epoch (or, as a float, after such a
            share of it), and not at its end.
        monitor: Metric of a module by which checkpoints are the best and training stops; default `val/loss`
            or `val_loss`, where one of them is logged.
        mode: `min` where less of it is better, `max` where more is.
        accelerator: Device of a module: `auto` (CUDA, else Apple's GPU, else the CPU), `cpu`, `cuda`,
            `cuda:<n>` or `mps`. The module stays there.
        devices: Processes on this machine, which `torchrun` has started, or `auto`.
        precision: `32-true`, `64-true`, `bf16-mixed` or `16-mixed` (with a scaler of gradients), of a module.
        schedule: Learning rate of a plain module: `constant`, `cosine` (falls to `min_lr`) or `plateau` (a
            tenth after 10 epochs without a better monitored metric).
        decay_norms_and_biases: False leaves the vectors of a plain module without weight decay.
        ema_decay: Average the weights of a module over the steps with this factor, such as 0.999.
            Validations, checkpoints and the module at the end have the averages.
        channels_last: Keep the pictures of a module in this memory format.
        compile: Compile the calls of a module by `torch.compile`; a text names the backend.
        save_every_n_steps: Steps of a module from one `last.ckpt` to the next, besides those after each
            epoch.
        enable_model_summary: Print the parts of a module and their parameters; default as the progress bar.

    Example:
        >>> from heimdall_training import RssDataset, RssLocalizationNet, Trainer
        >>> dataset = RssDataset.load("examples/powder_rss_462mhz")
        >>> trainer = Trainer(max_epochs=1, enable_progress_bar=False, default_root_dir=folder)
        >>> result = trainer.fit(RssLocalizationNet(dataset.receivers), dataset)
        >>> sorted(path.name for path in result.best_k_models)
        ['epoch=0-step=29.ckpt']
    """

    def __init__(
        self,
        *,
        tracker: Tracker | None = None,
        max_epochs: int = 40,
        batch_size: int = 128,
        lr: float = 2e-3,
        min_lr: float = 0.0,
        warmup_steps: int | None = None,
        weight_decay: float = 0.01,
        gradient_clip_val: float | EllipsisType | None = ...,
        drop_receivers: float = 0.03,
        noise_db: float = 0.0,
        gain_db: float = 0.0,
        patience: int | EllipsisType | None = ...,
        save_top_k: int = 3,
        seed: int | None = None,
        num_threads: int | None = None,
        default_root_dir: str | Path = "outputs",
        enable_progress_bar: bool = True,
        accumulate_grad_batches: int = 1,
        callbacks: Sequence[Any] = (),
        log_every_n_steps: int = 50,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        check_val_every_n_epoch: int = 1,
        val_check_interval: int | float | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        accelerator: str = "auto",
        devices: int | str = "auto",
        precision: str | int = "32-true",
        schedule: Literal["constant", "cosine", "plateau"] = "constant",
        decay_norms_and_biases: bool = True,
        ema_decay: float | None = None,
        channels_last: bool = False,
        compile: bool | str = False,
        save_every_n_steps: int | None = None,
        enable_model_summary: bool | None = None,
    ) -> None:
        self.hyper_parameters: dict[str, Any] = {
            "max_epochs": max_epochs,
            "batch_size": batch_size,
            "lr": lr,
            "min_lr": min_lr,
            "warmup_steps": warmup_steps,
            "weight_decay": weight_decay,
            "gradient_clip_val": 1.0 if gradient_clip_val is ... else gradient_clip_val,
            "drop_receivers": drop_receivers,
            "noise_db": noise_db,
            "gain_db": gain_db,
            "patience": 20 if patience is ... else patience,
            "save_top_k": save_top_k,
            "seed": 0 if seed is None else seed,
            "num_threads": 1 if num_threads is None else num_threads,
        }
        self._plan = Plan(
            max_epochs=max_epochs,
            lr=lr,
            min_lr=min_lr,
            weight_decay=weight_decay,
            decay_norms_and_biases=decay_norms_and_biases,
            schedule=schedule,
            warmup_steps=warmup_steps or 0,
            accumulate_grad_batches=accumulate_grad_batches,
            gradient_clip_val=None if gradient_clip_val is ... else gradient_clip_val,
            ema_decay=ema_decay,
            seed=seed,
            num_threads=torch.get_num_threads() if num_threads is None else num_threads,
            accelerator=accelerator,
            devices=devices,
            precision=precision,
            channels_last=channels_last,
            compile=compile,
            log_every_n_steps=log_every_n_steps,
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            check_val_every_n_epoch=check_val_every_n_epoch,
            val_check_interval=val_check_interval,
            monitor=monitor,
            mode=mode,
            patience=None if patience is ... else patience,
            save_top_k=save_top_k,
            save_every_n_steps=save_every_n_steps,
            show=print if enable_progress_bar else None,
            callbacks=list(callbacks),
        )
        _devices.check(accelerator, devices, precision)
        self.default_root_dir = Path(default_root_dir)
        self.enable_progress_bar = enable_progress_bar
        self._shows_summary = enable_progress_bar if enable_model_summary is None else enable_model_summary
        self._tracker = tracker
        self._recorder = Recorder(tracker)
        self._fitted: tuple[RssLocalizationNet, RssDataset, FitResult] | None = None
        self._steps: Any = None
        self._module: tuple[Any, Any, ModuleFitResult] | None = None

    @property
    def log_dir(self) -> Path | None:
        """Folder of the files of the last `fit`, or None before the first."""
        return self._fitted[2].log_dir if self._fitted else None

    @overload
    def fit(self, model: RssLocalizationNet, train_dataloaders: RssDataset) -> FitResult: ...

    @overload
    def fit(
        self,
        model: torch.nn.Module | LocalizationNet,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: str | Path | None = None,
        *,
        loss: str | Callable[..., torch.Tensor] | None = None,
        optimizer: str | torch.optim.Optimizer | None = None,
        scheduler: Any = None,
    ) -> ModuleFitResult: ...

    def fit(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: str | Path | None = None,
        *,
        loss: str | Callable[..., torch.Tensor] | None = None,
        optimizer: str | torch.optim.Optimizer | None = None,
        scheduler: Any = None,
    ) -> FitResult | ModuleFitResult:
        """Train a network.

        Ctrl-C ends it with KeyboardInterrupt; the checkpoints written by then are recorded. For a module,
        the step under way is finished and `last.ckpt` written first, on SIGTERM as well; a second Ctrl-C
        ends it at once. Afterwards the network has the weights of the last epoch; `test` gives a
        `RssLocalizationNet` those of the best.

        Recorded are the hyperparameters, the metrics of each epoch under the number of optimiser
        steps (for a `RssLocalizationNet` `train/…` and `val/…`, `lr-AdamW` of its last step, `epoch`), the
        checkpoints and, for a `RssLocalizationNet`, the loss curve.

        Args:
            model: The network: a `RssLocalizationNet` made for the receivers of the dataset, a
                `LocalizationNet`, a `torch.nn.Module` or a Lightning module.
            train_dataloaders: For a `RssLocalizationNet` a `RssDataset`. For a module batches to iterate over
                in each epoch, such as a `DataLoader`; a plain module takes pairs of inputs and targets, a
                `LocalizationNet` spectrograms and latitudes and longitudes in degrees, `[rows, 2]`.
            val_dataloaders: Batches of the validation of a module.
            datamodule: A Lightning data module, in place of both.
            ckpt_path: Checkpoint of a module to go on from, in the middle of an epoch as well, and in its run
                where the tracker has no active one.
            loss: Loss of a plain module (of a `LocalizationNet`, the Gaussian negative log-likelihood unless
                another one is given): a function of outputs and targets, or `mse`, `l1`, `huber`,
                `cross_entropy` or `bce_with_logits`.
            optimizer: Optimiser of a plain module: `adamw` (default), `sgd` (with Nesterov's momentum of 0.9)
                or an object.
            scheduler: Scheduler of its learning rate, which takes a step after each epoch.

        Returns:
            The checkpoints and the metrics of each epoch.

        Raises:
            ConfigurationError: A setting cannot work, or a Lightning module needs what is not supported.
            InvalidInputError: The network was made for other receivers, or something is no module, no loss or
                no batches.
            CheckpointNotFoundError: `ckpt_path` does not exist or is of another module.
            TrainingError: The loss is not finite (with epoch and step), or a checkpoint cannot be
                written.

        Example:
            >>> import torch
            >>> from heimdall_training import Trainer
            >>> inputs = torch.linspace(-1, 1, 64).reshape(-1, 1)
            >>> batches = list(zip(inputs.split(8), (3 * inputs).split(8)))
            >>> trainer = Trainer(max_epochs=20, lr=0.1, enable_progress_bar=False, default_root_dir=folder)
            >>> result = trainer.fit(torch.nn.Sequential(torch.nn.Linear(1, 1)), batches, loss="mse")
            >>> result.metrics["train/loss"] < 0.01
            True
        """
        if not isinstance(model, RssLocalizationNet):
            data = module_training.Data(
                train_dataloaders, val_dataloaders, datamodule, ckpt_path, loss, optimizer, scheduler
            )
            return self._fit_module(model, data)
        if not isinstance(train_dataloaders, RssDataset):
            raise InvalidInputError(
                f"a RssLocalizationNet is trained on a RssDataset, not on {type(train_dataloaders).__name__}"
            )
        with self._run():
            return self._fit_rss(model, train_dataloaders)

    def _fit_module(self, module: Any, data: module_training.Data) -> ModuleFitResult:
        if self._plan.seed is not None:
            _random.seed(self._plan.seed)
        world, make = module_training.prepared(module, data, self._plan)
        original, _ = module_training.bare(module, self._plan)
        if not world.is_first:
            log_dir = world.agree(None)
            self._steps, result = module_training.fit(make, data, Recorder(None), log_dir)
            self._module = (module, data.loss, result)
            return result
        with self._run(data.ckpt_path) as run_id:
            log_dir = world.agree(self._new_log_dir())
            self._recorder.log_params(self._module_params(original))
            if self._shows_summary:
                print(_display.summary(original))
            data = replace(data, run_id=run_id)
            self._steps, result = module_training.fit(make, data, self._recorder, log_dir)
        self._module = (module, data.loss, result)
        if result.stopped and self.enable_progress_bar:
            print(f"stopped: {result.stopped}")
        return result

    @property
    def plan(self) -> Plan:
        """The settings of a training of a module."""
        return self._plan

    @property
    def global_step(self) -> int:
        """Steps of the optimiser that the last training of a module has done."""
        return 0 if self._steps is None else int(self._steps.global_step)

    @property
    def callback_metrics(self) -> dict[str, float]:
        """The newest value of everything that a module has logged."""
        return {} if self._steps is None else dict(self._steps.callback_metrics)

    @contextmanager
    def _run(self, ckpt_path: str | Path | None = None) -> Iterator[str | None]:
        """Start a run where the tracker has none, or go on with that of a checkpoint.

        `test` records into it as well.
        """
        tracker: Any = self._tracker
        if tracker is None or getattr(tracker, "active_run_id", "") is not None:
            yield getattr(tracker, "active_run_id", None)
            return
        of_checkpoint = None if ckpt_path is None else module_training.run_of(Path(ckpt_path))
        try:
            run = begun(tracker, of_checkpoint)
        except Exception as error:
            # Training never ends because tracking fails.
            self._recorder.report(error)
            yield None
            return
        self._recorder = Recorder(run)
        with ending(run):
            yield run.run_id

    def _module_params(self, module: Any) -> dict[str, Any]:
        given = getattr(module, "hparams", None) or getattr(module, "hyper_parameters", None) or {}
        return {
            **{name: value for name, value in vars(self._plan).items() if name not in NOT_RECORDED},
            **{f"model/{name}": value for name, value in dict(given).items()},
            "model/name": type(module).__name__,
            "model/num_parameters": getattr(module, "num_parameters", None)
            or sum(it.numel() for it in module.parameters()),
            "torch_version": torch.__version__,
            "heimdall_training_version": __version__,
        }

    def _fit_rss(self, model: RssLocalizationNet, dataset: RssDataset) -> FitResult:
        log_dir = self._new_log_dir()
        self._recorder.log_params(self._params(model, dataset))
        checkpoint_dir = log_dir / "checkpoints"
        try:
            fitted = _native.fit(
                model,
                dataset,
                **self.hyper_parameters,
                checkpoint_dir=checkpoint_dir,
                log_metrics=self._recorder.log_metrics,
                print_line=print if self.enable_progress_bar else None,
            )
        finally:
            # A training that was interrupted or diverged has checkpoints, too.
            for path in sorted(checkpoint_dir.glob("*.ckpt")):
                self._recorder.log_artifact(path, "checkpoints")
        best = dict(fitted["best"])
        best_path, best_score = fitted["best"][0]
        result = FitResult(
            history=fitted["history"],
            best_model_path=best_path,
            best_model_score=best_score,
            best_k_models=best,
            last_model_path=fitted["last"],
            stopped=fitted["stopped"],
            seconds=fitted["seconds"],
            log_dir=log_dir,
        )
        self._fitted = (model, dataset, result)
        if result.stopped and self.enable_progress_bar:
            print(f"stopped: {result.stopped}")
        self._recorder.log_artifact(plots.loss_curve(log_dir / "loss.png", result.history), "plots")
        return result

    def validate(
        self,
        model: torch.nn.Module | LocalizationNet | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        datamodule: Any = None,
        *,
        loss: str | Callable[..., torch.Tensor] | None = None,
    ) -> list[dict[str, float]]:
        """Measure a module on validation batches.

        Args:
            model: The module; default the one that was fitted.
            dataloaders: The batches; default those of the data module or of the Lightning module.
            ckpt_path: Checkpoint whose weights the module gets: `"best"`, `"last"` or a path; default none.
            datamodule: A Lightning data module, in place of `dataloaders`.
            loss: Loss of a plain module; default that of `fit`.

        Returns:
            One dict of metrics, in a list as Lightning returns it. The metrics are recorded.

        Raises:
            TrainingError: There is no module: none was given or fitted.
            InvalidInputError: Something is no module, no batches or no loss.
            CheckpointNotFoundError: The checkpoint does not exist or is of another module.
        """
        return self._evaluate("val", model, dataloaders, ckpt_path, datamodule, loss)

    @overload
    def test(self, model: Literal["best", "last"] | Path = "best") -> TestResult: ...

    @overload
    def test(  # type: ignore[overload-overlap]
        self, *, ckpt_path: Literal["best", "last"] | str | Path
    ) -> TestResult: ...

    @overload
    def test(
        self,
        model: torch.nn.Module | LocalizationNet | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        datamodule: Any = None,
        *,
        loss: str | Callable[..., torch.Tensor] | None = None,
    ) -> list[dict[str, float]]: ...

    def test(
        self,
        model: Any = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        datamodule: Any = None,
        *,
        loss: str | Callable[..., torch.Tensor] | None = None,
    ) -> TestResult | list[dict[str, float]]:
        """Test the fitted network on the test rows, or a module on test batches.

        A `RssLocalizationNet` gets the weights of a checkpoint, and keeps them. Recorded are the metrics,
        `final_test_loss`, `final_test_mae` and `best_val_loss`, the predictions (`predictions.csv`), a map of
        them (`plots/map.png`) and the network (folder `model`, for `load_model`, for registering it and for
        MLflow). Of a module, the metrics are recorded.

        Args:
            model: A module; default what was fitted. Of a fitted `RssLocalizationNet`, `ckpt_path` may stand
                here.
            dataloaders: Test batches of a module; default those of the data module or Lightning module.
            ckpt_path: `"best"` (least `val/loss`, or best monitored metric of a module), `"last"`, or the
                path of a checkpoint. Default `"best"` for a `RssLocalizationNet`; a module keeps its weights.
            datamodule: A Lightning data module, in place of `dataloaders`.
            loss: Loss of a plain module; default that of `fit`.

        Returns:
            For a `RssLocalizationNet` metrics and predictions; `print` it for a table beside the baselines.
            For a module one dict of metrics, in a list as Lightning returns it.

        Raises:
            TrainingError: Nothing has been fitted, or no module was given.
            InvalidInputError: Something is no module, no batches or no loss.
            CheckpointNotFoundError: The checkpoint does not exist or cannot be read.
        """
        if isinstance(model, (str, Path)) and ckpt_path is None:
            model, ckpt_path = None, model
        is_rss = self._fitted is not None and (model is None or model is self._fitted[0])
        if is_rss and dataloaders is None and datamodule is None:
            return self._test_rss("best" if ckpt_path is None else ckpt_path)
        return self._evaluate("test", model, dataloaders, ckpt_path, datamodule, loss)

    def predict(
        self,
        model: torch.nn.Module | LocalizationNet | None = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: str | Path | None = None,
    ) -> list[Any]:
        """Return the outputs of a module for each batch.

        Args:
            model: The module; default the one that was fitted. A Lightning module runs its `predict_step`.
            dataloaders: Batches of inputs; of a tuple or list, the first part is the inputs.
            datamodule: A Lightning data module, in place of `dataloaders`.
            ckpt_path: As for `validate`.

        Raises:
            TrainingError: There is no module: none was given or fitted.
            InvalidInputError: Something is no module or no batches.
            CheckpointNotFoundError: The checkpoint does not exist or is of another module.
        """
        module, _ = self._prepared(model, ckpt_path)
        return _evaluation.predict(module, dataloaders, datamodule, self._plan)

    def _evaluate(
        self, part: str, model: Any, batches: Any, ckpt_path: Any, datamodule: Any, loss: Any
    ) -> list[dict[str, float]]:
        module, fitted_loss = self._prepared(model, ckpt_path)
        loss = fitted_loss if loss is None else loss
        metrics = _evaluation.evaluate(part, module, batches, datamodule, loss, self._plan)
        if _distributed.rank() == 0:
            self._record_evaluation(metrics)
        return [metrics]

    def _record_evaluation(self, metrics: Mapping[str, float]) -> None:
        if self._steps is not None:
            self._recorder.log_metrics(metrics, self._steps.global_step)
            return
        with self._run():
            self._recorder.log_metrics(metrics, 0)

    def _prepared(self, model: Any, ckpt_path: str | Path | None) -> tuple[Any, Any]:
        """Return a module with the weights of a checkpoint, and the loss of its training."""
        if model is None and self._module is None:
            raise TrainingError("there is no module yet: give one, or call fit() first")
        module = self._module[0] if model is None and self._module is not None else model
        _evaluation.check_module(module if not isinstance(module, LocalizationNet) else module.module())
        if ckpt_path is not None:
            named = {}
            if self._module is not None:
                result = self._module[2]
                named = {"best": result.best_model_path or result.last_model_path}
                named["last"] = result.last_model_path
            original, _ = module_training.bare(module, self._plan)
            module_training.load_weights(original, named.get(str(ckpt_path), Path(ckpt_path)))
        is_fitted = self._module is not None and module is self._module[0]
        return module, self._module[1] if is_fitted and self._module is not None else None

    def _test_rss(self, ckpt_path: str | Path) -> TestResult:
        if self._fitted is None:
            raise TrainingError("there is nothing to test yet: call fit() first")
        model, dataset, fitted = self._fitted
        named = {"best": fitted.best_model_path, "last": fitted.last_model_path}
        checkpoint = named.get(str(ckpt_path), Path(ckpt_path))
        metrics, (positions, sigmas), errors = _native.evaluate(model, dataset, "test", ckpt_path=checkpoint)
        scored = baselines(dataset)
        for baseline in scored:
            metrics[f"test/baseline_{baseline.name}_median"] = baseline.median_m
            metrics[f"test/baseline_{baseline.name}_mean"] = baseline.mean_m
        result = TestResult(
            metrics=metrics,
            baselines=scored,
            positions=positions,
            sigmas=sigmas,
            errors=np.array(errors),
            split=dataset.hyper_parameters["test"],
            model_dir=save_model(model, fitted.log_dir / "model"),
        )
        self._record_test(model, dataset, fitted, result)
        return result

    def _record_test(
        self,
        model: RssLocalizationNet,
        dataset: RssDataset,
        fitted: FitResult,
        result: TestResult,
    ) -> None:
        summary = {
            "final_test_loss": result.metrics["test/loss"],
            "final_test_mae": result.metrics["test/mae"],
            "best_val_loss": fitted.best_model_score,
        }
        self._recorder.log_metrics({**result.metrics, **summary}, int(fitted.history[-1]["step"]))
        predictions = _write_predictions(fitted.log_dir / "predictions.csv", dataset, result)
        self._recorder.log_artifact(predictions, "predictions")
        median = result.metrics["test/position_error_median"]
        picture = plots.prediction_map(
            fitted.log_dir / "map.png",
            truth=dataset.positions("test"),
            predicted=result.positions,
            sigmas=result.sigmas,
            errors=result.errors,
            receivers=model.receivers,
            origin=model.origin,
            title=f"{result.split}: median error {median:.0f} m over {len(result.errors)} rows",
        )
        self._recorder.log_artifact(picture, "plots")
        self._recorder.log_model(model, result.model_dir, "model")

    def _new_log_dir(self) -> Path:
        self.default_root_dir.mkdir(parents=True, exist_ok=True)
        version = 0
        while True:
            folder = self.default_root_dir / f"version_{version}"
            try:
                folder.mkdir()
            except FileExistsError:
                version += 1
            else:
                return folder

    def _params(self, model: RssLocalizationNet, dataset: RssDataset) -> Mapping[str, Any]:
        return {
            **self.hyper_parameters,
            "optimizer": "AdamW",
            "model/name": type(model).__name__,
            **{f"model/{name}": value for name, value in model.hyper_parameters.items()},
            "model/receivers": len(model.receivers),
            "model/num_parameters": model.num_parameters,
            "data/path": str(dataset.path),
            **{f"data/{name}": value for name, value in dataset.hyper_parameters.items()},
            **{f"data/{part}_rows": len(dataset.rows(part)) for part in ("train", "val", "test")},
            "torch_version": torch.__version__,
            "heimdall_training_version": __version__,
        }


def _write_predictions(path: Path, dataset: RssDataset, result: TestResult) -> Path:
    columns = ["timestamp", "true_lat", "true_lon", "lat", "lon"]
    columns += ["sigma_east_m", "sigma_north_m", "error_m"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        truth = dataset.positions("test")
        rows = zip(
            dataset.timestamps("test"), truth, result.positions, result.sigmas, result.errors, strict=True
        )
        for timestamp, true, predicted, sigma, error in rows:
            degrees = [f"{value:.7f}" for value in (*true, *predicted)]
            writer.writerow([timestamp, *degrees, *(f"{value:.2f}" for value in (*sigma, error))])
    return path


def begun(tracker: Any, of_checkpoint: tuple[str, int] | None, **named: Any) -> Any:
    """Start a run, or go on with that of a checkpoint; what it has of later steps is recorded anew.

    Args:
        tracker: The tracker.
        of_checkpoint: The run and the step of a checkpoint, or None.
        **named: Name and tags, as for `MLflowTracker.run`.
    """
    if of_checkpoint is not None:
        run_id, step = of_checkpoint
        try:
            run = tracker.run(run_id=run_id, **named)
            run.__enter__()
        except Exception as error:
            # The run may have been deleted, or be in another store.
            logger.warning("the run %s of the checkpoint cannot be gone on with: %s", run_id, error)
        else:
            tracker.resume(run_id, from_step=step)
            return run
    run = tracker.run(**named)
    run.__enter__()
    return run


@contextmanager
def ending(run: Any) -> Iterator[None]:
    """End a run as a `with` block would: by what happens in this block."""
    try:
        yield
    except BaseException as error:
        run.__exit__(type(error), error, error.__traceback__)
        raise
    run.__exit__(None, None, None)
