"""The logger itself, without the base class, which each of Lightning's two packages has one of."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import sys
import warnings
from argparse import Namespace
from collections.abc import Mapping, MutableMapping
from importlib import import_module
from typing import Any, Literal

from .. import _outcome
from .._plain_settings import DEFAULTS, found
from .._uris import same_store
from ..bridge.attached import trackers, trackers_of_store
from ..errors import HeimdallError, InvalidInputError, WrongTypeError
from ..settings import initialize_mlflow, values_of
from ..tracker import RUN_NAME_TAG, MLflowTracker
from . import callback, job
from .checkpoints import Checkpoints, log_best

log = logging.getLogger("heimdall_tracking")

# Module with the trainer, by the package that is installed.
MODULES = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}
# Experiment of the stock logger where none is named.
EXPERIMENT_NAME = "lightning_logs"
STATUSES = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED", "aborted": "KILLED"}
LOG_MODEL = (True, False, "all", "best")
# MLflow's limit for the value of a param; longer ones are in this file as well.
PARAM_LENGTH = 6000
LONG_PARAMS = "hyperparameters.json"
# The stock logger leaves these characters out of the keys of metrics.
NOT_IN_KEYS = re.compile("[^a-zA-Z0-9_/. -]+")
# Lightning's function that asks each logger for its experiment, so that the run begins.
SETUP = "_call_setup_hook"
# Frames that are searched for the trainer, from the logger's caller outwards.
DEPTH = 60


class LoggerMethods:
    """Logs a training of Lightning into a tracker: in place of `MLFlowLogger`, with its arguments.

    The logger joins the run that is active in the tracker, and leaves it open. Where none is active it starts
    a run when one is first needed, and ends it. It is the tracker's active run, so calls of
    `tracker.log_metrics` and others log to it as well.

    A training that was stopped goes on in its run, which each checkpoint names. So does a job that is started
    again: tags `heimdall.job…` of a run name the job, by `SLURM_JOB_ID` or `TORCHELASTIC_RUN_ID`, and its
    command. A run that has finished is not resumed by the checkpoint of another job; `run_id` does that.

    Args:
        experiment_name: Experiment. Default: that of the tracker or the settings, and `lightning_logs` where
            only `tracking_uri` is given.
        run_name: Name of the run that is started; it wins over the tag `mlflow.runName`.
        tracking_uri: Store of the runs, as `MLflowTracker` takes it. Default: the settings.
        tags: Tags of the run.
        save_dir: Local folder below which Lightning writes checkpoints. Default: the trainer's
            `default_root_dir`. Where no store is named anywhere, the database is `mlflow.db` in this folder.
        log_model: Checkpoints that are logged, each in the background as soon as it is written: `best` or
            True for those that `ModelCheckpoint` keeps, of which those that it gives up are removed from the
            store; `all` for all that it writes. At the end of the training the best is logged as an MLflow
            model, `model`. False logs neither.
        prefix: Beginning of the keys of metrics; a dash follows.
        artifact_location: Place for the artifacts of an experiment that is created.
        run_id: Run to go on with.
        synchronous: Accepted for the stock logger's sake, without effect: calls return when the value is in
            the journal.
        checkpoint_path_prefix: Folder of the checkpoints among the run's artifacts. Default: `checkpoints`.
        tracker: Tracker to log to. Default: one of this process for the same store and experiment, else a new
            one.
        settings: Settings of a new tracker, as `initialize_mlflow` takes them. Where neither these nor
            `tracking_uri` or `experiment_name` are given, they are `heimdall_tracking.settings`.
        registered_model_name: Name to register the best model under.
        resume: False starts a new run where one of the same job or the checkpoint's would be gone on with.

    Raises:
        InvalidInputError: `log_model` has another value, or `settings` and `tracker` are both given.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from heimdall_tracking.lightning import HeimdallLogger
        >>> tracker = MLflowTracker("sqlite:///mlflow.db")
        >>> trainer = Trainer(logger=HeimdallLogger(tracker=tracker, log_model="best"))
        >>> trainer.logger.run_id == tracker.active_run_id
        True
    """

    LOGGER_JOIN_CHAR = "-"
    # The module of the base class; that of the trainer once it is known.
    _package = "lightning.pytorch"

    def __init__(
        self,
        experiment_name: str | None = None,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, Any] | None = None,
        save_dir: str | os.PathLike[str] | None = None,
        log_model: Literal["best", "all"] | bool = False,
        prefix: str = "",
        artifact_location: str | None = None,
        run_id: str | None = None,
        synchronous: bool | None = None,
        checkpoint_path_prefix: str | None = None,
        tracker: MLflowTracker | None = None,
        settings: Any = None,
        registered_model_name: str | None = None,
        resume: bool = True,
    ) -> None:
        super().__init__()
        register(type(self))
        if log_model not in LOG_MODEL:
            raise InvalidInputError(
                f"log_model={log_model!r} is not valid: it must be 'best', 'all', True or False"
            )
        if tracker is not None and settings is not None:
            raise InvalidInputError("settings are for a new tracker: give either tracker or settings")
        self._experiment_name = experiment_name
        self._run_name = run_name
        self._tracking_uri = tracking_uri
        self.tags = tags
        self._save_dir = None if save_dir is None else os.fspath(save_dir)
        self._log_model = log_model
        self._prefix = prefix
        self._artifact_location = artifact_location
        self._run_id = run_id
        self._checkpoint_path_prefix = checkpoint_path_prefix
        self._settings = settings
        self._registered_model_name = registered_model_name
        self._resume = resume
        self._is_given = run_id is not None
        # The logger has started or resumed the run, so it ends it.
        self._is_own = False
        # Somebody else has, and does.
        self._is_joined = False
        self._has_begun = False
        self._last_step = -1
        self._has_rewound = False
        self._default_root_dir: str | None = None
        self._forget(tracker)

    def _forget(self, tracker: MLflowTracker | None) -> None:
        """Begin without what only this process can have."""
        self._tracker = tracker
        self._log: Any = None
        self._checkpoints: Checkpoints | None = None
        self._prefixed: dict[str, str] = {}

    # The run

    @property
    def tracker(self) -> MLflowTracker:
        """The tracker that the logger logs to. On a rank that is not zero it is made as well."""
        if self._tracker is None:
            self._tracker = self._find_tracker()
        return self._tracker

    @property
    def experiment(self) -> Any:
        """The stock `MlflowClient` for the same store; the tracker where mlflow is not installed.

        The run has begun then. Ranks that are not zero have a dummy, as with all loggers of Lightning.
        """
        setup = sys._getframe(1)
        is_setup = setup.f_code.co_name == SETUP
        trainer, path = self._trainer_and_checkpoint(setup) if is_setup else (None, None)
        if trainer is not None:
            self._attach(trainer)
        if _rank() > 0:
            return import_module(f"{self._package}.loggers.logger").DummyExperiment()
        self._begin(trainer, path)
        # Lightning throws the client away when it sets up: there is no need to import mlflow for it.
        if is_setup or not _has_mlflow():
            return self.tracker
        return self.tracker.client

    @property
    def _mlflow_client(self) -> Any:
        return self.experiment

    @property
    def run_id(self) -> str | None:
        """Id of the run, which begins with this if it has not begun. None on ranks that are not zero."""
        if _rank() == 0:
            self._begin()
        return self._run_id

    @property
    def _known_run_id(self) -> str | None:
        return self._run_id if self._has_begun else None

    @property
    def experiment_id(self) -> str | None:
        """Id of the run's experiment, which begins with this. None on ranks that are not zero."""
        if _rank() > 0:
            return None
        self._begin()
        if self._is_given and self._run_id is not None:
            return self.tracker.get_run(self._run_id).experiment_id
        return self.tracker.experiment_id

    @property
    def name(self) -> str | None:
        """Id of the experiment, as with the stock logger."""
        return self.experiment_id

    @property
    def version(self) -> str | None:
        """Id of the run, as with the stock logger."""
        return self.run_id

    @property
    def save_dir(self) -> str | None:
        """Folder below which Lightning writes checkpoints; None before a trainer without `save_dir` runs."""
        return self._default_root_dir if self._save_dir is None else self._save_dir

    def _begin(self, trainer: Any = None, checkpoint: Any = None) -> None:
        """Join, resume or start the run, once; resume it where it was ended and a trainer goes on."""
        tracker = self.tracker
        if self._has_begun:
            if trainer is not None and self._is_own and self._log is None and tracker.active_run_id is None:
                assert self._run_id is not None
                tracker.start_run(run_id=self._run_id)
            self._rewind(tracker, checkpoint)
            self._log = tracker.log_metrics
            return
        if trainer is None:
            trainer, checkpoint = self._trainer_and_checkpoint(sys._getframe(1))
        is_fit = trainer is not None and getattr(trainer.state.fn, "value", None) in (None, "fit")
        if self._is_joined:
            # The process that has pickled this logger has the run, and ends it.
            pass
        elif self._run_id is None or self._is_own:
            self._choose(tracker, checkpoint if is_fit else None)
        else:
            self._go_on(tracker, self._run_id, self._step_of(checkpoint) if is_fit else None)
        self._has_begun = True
        self._log = tracker.log_metrics

    def _choose(self, tracker: MLflowTracker, checkpoint: Any) -> None:
        if self._run_id is not None:
            # The process that has pickled this logger has begun the run.
            self._enter(tracker, self._run_id, None)
            return
        active = tracker.active_run_id
        if active is not None:
            self._run_id, self._is_joined = active, True
            self._rewind(tracker, checkpoint)
            if self.tags:
                tracker.set_tags(self.tags, run_id=active)
            return
        resumed = None
        if self._resume and tracker.status().mode != "silent":
            if checkpoint is not None:
                resumed = job.run_of_checkpoint(tracker, checkpoint)
            if resumed is None and (found := job.run_of_job(tracker, self._run_name)) is not None:
                resumed = job.Resumed(found, self._step_of(checkpoint, found))
        if resumed is not None:
            self._enter(tracker, *resumed)
            self._run_id = resumed.run_id
            log.info("the training goes on in run %s", resumed.run_id)
            return
        tags = {**(self.tags or {}), **job.tags()}
        if self._run_name is not None:
            tags.pop(RUN_NAME_TAG, None)
        self._is_own = True
        self._run_id = tracker.start_run(self._run_name, tags=tags)

    def _go_on(self, tracker: MLflowTracker, run_id: str, from_step: int | None) -> None:
        """Go on with the run that the user has named."""
        self._enter(tracker, run_id, from_step)
        if self.tags:
            tracker.set_tags(self.tags, run_id=run_id)

    def _enter(self, tracker: MLflowTracker, run_id: str, from_step: int | None) -> None:
        """Resume a run where none is active; else only log to it."""
        if tracker.active_run_id is not None:
            self._is_joined = not self._is_own
            self._rewind_to(tracker, run_id, from_step)
            return
        if from_step is None or tracker.status().mode == "silent":
            tracker.start_run(run_id=run_id)
        else:
            self._has_rewound = True
            tracker.resume(run_id, from_step=from_step)
        self._is_own = True
        if tags := job.tags():
            tracker.set_tags(tags, run_id=run_id)
            tracker.delete_tag(job.REQUEUED_TAG, run_id=run_id)

    def _rewind(self, tracker: MLflowTracker, checkpoint: Any) -> None:
        """Have the points behind a checkpoint of this run recorded anew, if this process has logged none."""
        if checkpoint is not None and self._last_step < 0 and self._run_id is not None:
            self._rewind_to(tracker, self._run_id, self._step_of(checkpoint))

    def _rewind_to(self, tracker: MLflowTracker, run_id: str, from_step: int | None) -> None:
        if from_step is None or self._has_rewound or tracker.status().mode == "silent":
            return
        self._has_rewound = True
        try:
            tracker.resume(run_id, from_step=from_step)
        except HeimdallError as error:
            # The training goes on: another run may be active, or the store be away.
            log.warning("the points of run %s from step %d on stay as they are: %s", run_id, from_step, error)

    def _step_of(self, checkpoint: Any, run_id: str | None = None) -> int | None:
        """Return the step that a checkpoint of the run goes on from."""
        mark = None if checkpoint is None else job.read_mark(checkpoint)
        return mark.from_step if mark is not None and mark.run_id in (run_id, self._run_id) else None

    def _find_tracker(self) -> MLflowTracker:
        """Return a tracker of this process for the same store and experiment, else a new one."""
        name, uri = self._experiment_name, self._tracking_uri
        values: dict[str, str | None] = {}
        if self._settings is not None:
            values = values_of(self._settings)
            uri = uri or values["mlflow_tracking_uri"]
            name = name or values["mlflow_experiment_name"]
        has_named = uri is not None or name is not None or self._save_dir is not None
        if has_named and uri is None:
            uri = self._default_uri()
        known = trackers() if uri is None else trackers_of_store(uri)
        known = [it for it in known if name is None or it.experiment_name == name]
        for tracker in known:
            if tracker.active_run_id is not None:
                return tracker  # type: ignore[no-any-return]
        for tracker in known:
            return tracker  # type: ignore[no-any-return]
        if not has_named:
            return initialize_mlflow()
        if values:
            values |= {"mlflow_tracking_uri": uri, "mlflow_experiment_name": name}
            if self._artifact_location is not None:
                values["mlflow_artifact_uri"] = self._artifact_location
            return initialize_mlflow(values)
        assert uri is not None
        return MLflowTracker(uri, self._artifact_location, experiment_name=name or EXPERIMENT_NAME)

    def _default_uri(self) -> str:
        variables = found()
        if "mlflow_tracking_uri" in variables:
            return variables["mlflow_tracking_uri"][0]
        if self._save_dir is None:
            return DEFAULTS["mlflow_tracking_uri"]
        os.makedirs(self._save_dir, exist_ok=True)  # noqa: PTH103
        return f"sqlite:///{os.path.abspath(self._save_dir)}/mlflow.db"  # noqa: PTH100

    # The trainer

    def _trainer_and_checkpoint(self, frame: Any) -> tuple[Any, Any]:
        """Return the trainer that is being set up with this logger, and the checkpoint that it will load.

        Lightning tells a logger neither, and it loads the checkpoint after it has asked for the run. So they
        are looked up in the calls that this one was made by: those of `Trainer.fit` and of its `_run`.
        """
        for _ in range(DEPTH):
            if frame is None:
                break
            names = frame.f_code.co_varnames
            if "self" in names and "ckpt_path" in names:
                local = frame.f_locals
                loggers = getattr(local.get("self"), "loggers", None)
                if isinstance(loggers, list) and any(logger is self for logger in loggers):
                    path = local.get("ckpt_path")
                    return local["self"], None if path in ("best", "last", "hpc", "registry") else path
            frame = frame.f_back
        return None, None

    def _attach(self, trainer: Any) -> None:
        self._default_root_dir = trainer.default_root_dir
        self._package = callback.package_of(trainer) or self._package
        callback.attach(trainer, self)

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Do nothing: MLflow has no form for a graph. A model is logged by `log_model`."""
        trainer = getattr(model, "_trainer", None)
        if trainer is not None:
            self._attach(trainer)

    def save(self) -> None:
        """Do nothing: what was logged is in the journal already."""

    def _fitted(self, trainer: Any, module: Any) -> None:
        if self._log_model is not False and self._run_id is not None and _rank() == 0:
            log_best(self.tracker, self._run_id, trainer, module, self._registered_model_name)

    # What is logged

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics of the run.

        Args:
            metrics: Numbers by key. A text is left out with a warning, as by the stock logger.
            step: Step of the metrics; default 0.
        """
        if _zero.rank:
            return
        if self._log is None:
            self._begin()
        if step is None:
            step = 0
        elif step > self._last_step:
            self._last_step = step
        if self._prefix:
            metrics = self._with_prefix(metrics)
        try:
            self._log(metrics, step, None, self._run_id)
        except (InvalidInputError, WrongTypeError):
            self._log(self._acceptable(metrics), step, None, self._run_id)

    def _with_prefix(self, metrics: Mapping[str, float]) -> dict[str, float]:
        known = self._prefixed
        try:
            return {known[key]: value for key, value in metrics.items()}
        except KeyError:
            for key in metrics:
                known[key] = f"{self._prefix}{self.LOGGER_JOIN_CHAR}{key}"
            return {known[key]: value for key, value in metrics.items()}

    def _acceptable(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Return the metrics as the stock logger changes them, so that MLflow takes them."""
        taken: dict[str, float] = {}
        for key, value in metrics.items():
            if isinstance(value, str):
                log.warning("the metric %s is left out, as its value is a text: %r", key, value)
                continue
            if key != (name := NOT_IN_KEYS.sub("", key)):
                warnings.warn(
                    f"MLflow takes '_', '/', '.', '-' and ' ' as special characters in metric name: {key} is "
                    f"logged as {name}",
                    RuntimeWarning,
                    stacklevel=3,
                )
            taken[name] = float(value) if isinstance(value, bool) else value
        return taken

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """Log hyperparameters as params of the run, each with all of its text.

        A param over MLflow's 6,000 characters is cut there, and whole in the artifact `hyperparameters.json`.
        In a run that goes on, a param that has another value now keeps the first one, with a warning.

        Args:
            params: Values by name; those of nested ones have a slash between the names.
            args: Ignored, as by the stock logger.
            kwargs: Ignored.
        """
        if _zero.rank:
            return
        texts = {key: str(value) for key, value in flattened(params).items()}
        if not texts:
            return
        self._begin()
        tracker, run_id = self.tracker, self._run_id
        try:
            tracker.log_params(texts, run_id=run_id)
        except InvalidInputError:
            for key, text in texts.items():
                try:
                    tracker.log_param(key, text, run_id=run_id)
                except InvalidInputError as error:
                    log.warning("a hyperparameter is left out: %s", error)
        long = {key: text for key, text in texts.items() if len(text) > PARAM_LENGTH}
        if long:
            tracker.log_dict(long, LONG_PARAMS, run_id=run_id)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Log the checkpoints that were written, where `log_model` asks for it; the upload goes on behind it.

        Args:
            checkpoint_callback: The `ModelCheckpoint` that has written them.
        """
        if self._log_model is False or _zero.rank:
            return
        self._begin()
        if self._checkpoints is None:
            assert self._run_id is not None
            self._checkpoints = Checkpoints(
                self.tracker, self._run_id, self._checkpoint_path_prefix, self._log_model == "all"
            )
        self._checkpoints.saved(checkpoint_callback)

    def finalize(self, status: str = "success") -> None:
        """End the run if this logger has started or resumed it. A run that it has joined is left open.

        Args:
            status: `success` or `finished` for FINISHED, `failed` for FAILED, or KILLED where Ctrl-C or
                SIGTERM was the reason, `aborted` for KILLED, or a status of MLflow.
        """
        if _zero.rank or not self._has_begun or self._run_id is None:
            return
        if not self._is_own:
            return
        ended = STATUSES.get(status.lower(), status.upper())
        if ended == "FAILED":
            ended = _outcome_of(sys.exc_info()[1])
        if ended not in ("FINISHED", "FAILED", "KILLED"):
            ended = "FAILED"
        if status == "finished" and job.job() is not None:
            # Lightning says so before it has Slurm start the job again.
            self.tracker.set_tag(job.REQUEUED_TAG, "true", run_id=self._run_id)
        self.tracker._end(self._run_id, ended)
        self._log = None

    # Copies in other processes

    def __getstate__(self) -> dict[str, Any]:
        from multiprocessing.context import get_spawning_popen

        # A pickle for a process that is being started has all; any other one has no passwords.
        is_for_child = get_spawning_popen() is not None
        if is_for_child and _rank() == 0:
            # All processes log to one run, and this one knows it then as well.
            self._begin()
        state = {name: value for name, value in self.__dict__.items() if name not in ("_log", "_checkpoints")}
        tracker = state.pop("_tracker")
        if tracker is not None:
            state["_tracking_uri"] = tracker._uris()[0] if is_for_child else tracker.tracking_uri
            state["_experiment_name"] = tracker.experiment_name
            state["_settings"] = None
        elif state["_tracking_uri"] is not None and not is_for_child:
            from .._native import without_credentials

            state["_tracking_uri"] = without_credentials(state["_tracking_uri"])
        # The run is entered anew where the pickle is read.
        state["_has_begun"] = False
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget(None)
        uri, variables = self._tracking_uri, found()
        if uri is not None and "mlflow_tracking_uri" in variables:
            here = variables["mlflow_tracking_uri"][0]
            if same_store(uri, here) and "***" in uri:
                self._tracking_uri = here


# The object by which Lightning's packages know the rank of a process; both have the same one.
_zero: Any = import_module("lightning_utilities.core.rank_zero").rank_zero_only


def register(cls: type) -> None:
    """Make a class one of the loggers of each package that is imported, for `isinstance`.

    The two packages have the same classes twice. Code that expects the stock `MLFlowLogger` accepts this one.
    """
    for module in MODULES.values():
        if (loggers := sys.modules.get(f"{module}.loggers")) is not None:
            loggers.Logger.register(cls)
            loggers.MLFlowLogger.register(cls)


def _rank() -> int:
    return getattr(_zero, "rank", 0) or 0


def _has_mlflow() -> bool:
    from importlib.util import find_spec

    return "mlflow" in sys.modules or find_spec("mlflow") is not None


def _outcome_of(error: BaseException | None) -> str:
    if type(error).__name__ == "SIGTERMException":
        return "KILLED"
    return "FAILED" if error is None else _outcome.of(error)


def flattened(params: Any, parent: str = "") -> dict[str, Any]:
    """Return hyperparameters as one dict, whose keys are the names with slashes between them."""
    if params is None:
        return {}
    if isinstance(params, Namespace):
        params = vars(params)
    elif dataclasses.is_dataclass(params) and not isinstance(params, type):
        params = dataclasses.asdict(params)
    flat: dict[str, Any] = {}
    for key, value in params.items():
        name = f"{parent}/{key}" if parent else str(key)
        is_record = dataclasses.is_dataclass(value) and not isinstance(value, type)
        if is_record or isinstance(value, (Namespace, MutableMapping)):
            flat.update(flattened(value, name))
        else:
            flat[name] = value
    return flat
