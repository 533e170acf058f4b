"""The tracker, with the parts that are Python's own: texts, figures, images, tables, other libraries."""

from __future__ import annotations

import os
import sys

from . import _native, _outcome, _start
from ._progress import waited
from ._recorder import Recorder
from ._uris import PREFIX
from .active_run import ActiveRun
from .heimdall_defaults import EXPERIMENT_NAME, ONNX_MODEL_NAME
from .runs import RunList

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from os import PathLike
    from typing import Any, Literal

    import mlflow
    from typing_extensions import Self

    from .models.export import OnnxExport
    from .models.history import Histories
    from .versions import VersionList


S3_KEYS = ("MLFLOW_S3_ACCESS_KEY_ID", "MLFLOW_S3_SECRET_ACCESS_KEY")
RUN_NAME_TAG = "mlflow.runName"
# Names of the constructor that are no arguments, and arguments that may have keys and passwords.
NOT_PICKLED = {
    "__class__",
    "cls",
    "tracking_uri",
    "artifact_uri",
    "backend_store_uri",
    "registry_uri",
    "mirrors",
    "s3_access_key_id",
    "s3_secret_access_key",
}
# Functions that are called with each tracker that stock MLflow may use.
when_bridged: list[Callable[[MLflowTracker], None]] = []


class MLflowTracker(Recorder):
    """Records runs of one experiment so that a stock MLflow reads them as its own.

    Calls that log something check their arguments, append to a journal on local disk and return; a thread
    delivers in the background, in order, and tries again for as long as the store is away. A value that a
    call has accepted survives the end of the process: the next tracker with the same `HEIMDALL_DIR` delivers
    it, or `heimdall sync` does. Calls that ask something deliver first and wait for the answer.

    A store that cannot be reached is waited for at construction for 5 s (`HEIMDALL_CONNECT_TIMEOUT`); then
    training goes on, and all that is recorded arrives when the store is there.

    All methods may be called from any thread and any asyncio task. A run belongs to the thread or task that
    has started it, and to the threads, calls of thread pools and tasks that are started there while it is
    active: their calls log to it. All others log to the outermost run. So every thread of a search may
    start a nested run of its own. `run_id=` names another run for one call, and a block's run
    (`with tracker.run() as run`) has the methods that log to it from everywhere.

    After a fork the child goes on with the tracker: values that the child logs land in the same run, which
    only the parent ends. A spawned process makes a tracker of its own.

    The start of a run returns once the store has the run, and its end once the store has all of it, so that
    other programs find it there. Both waits are bounded, by `HEIMDALL_CONNECT_TIMEOUT` and
    `HEIMDALL_END_TIMEOUT` (10 s), and left out while the store is known to be away.

    Args:
        tracking_uri: Store of the runs: a SQLite database, `sqlite:///<path>` (relative) or
            `sqlite:////<path>` (absolute), which is created if it does not exist; a PostgreSQL database,
            `postgresql://user:password@host:5432/database`, which must exist and gets MLflow's tables if it
            is empty; or an MLflow server, `http://host:5000` or `https://host/prefix`.
        artifact_uri: Place for the artifacts of the experiment, if it has to be created: a local folder,
            `s3://bucket/prefix`, `gs://…`, `wasbs://container@account.blob.core.windows.net/…`; default
            `mlruns` beside the database. The experiment has it as it is spelt, but with an absolute path. An
            experiment that exists keeps the location it has.
        backend_store_uri: Database behind the tracking URI; if given, it must be the same database.
        registry_uri: Registry of the models; default the tracking URI.
        s3_endpoint_url: Endpoint of an S3 store that is not AWS, such as `http://minio:9000`; default
            `MLFLOW_S3_ENDPOINT_URL`.
        s3_access_key_id: Access key of the S3 store. Never shown. Default: `AWS_ACCESS_KEY_ID`,
            `AWS_PROFILE`, a web identity, the container or the instance.
        s3_secret_access_key: Secret key of the S3 store. Never shown.
        experiment_name: Experiment, 1 to 256 characters; created if it does not exist.
        mode: `offline` records into the journal alone and never tries a store; `heimdall sync` delivers.
            Default: `HEIMDALL_MODE`, else `online`.
        mirrors: URIs of further destinations for the same runs, each delivered to at its own pace. Default:
            `MLFLOW_MIRROR_URIS`, separated by commas or blanks, else none.
        ranks: Ranks of a distributed training (torchrun, Slurm, Lightning's DDP, MPI) that record: `zero`,
            where calls on the others check their arguments and do nothing more; `all`, where the others
            record into rank 0's run and are named by its tags `heimdall.rank.<n>`; or `each`, where each rank
            records runs of its own. A process is a rank where the number of processes is above 1. Tasks of
            Slurm are ranks where Lightning, DeepSpeed or Accelerate is imported, `torch.distributed` is
            initialised or `MASTER_ADDR` is set; other tasks are trainings of their own. Default:
            `HEIMDALL_RANKS`, else `zero`.
        durability: Failure that a logged value survives once the call has returned: `process`, the end of the
            process, however it comes; or `power`, a power cut as well, for which each call waits for the
            disk. Default: `HEIMDALL_DURABILITY`, else `process`.
        system_metrics: True records MLflow's system metrics in active runs, such as
            `system/cpu_utilization_percentage`: processor, memory, disk, network and, where NVIDIA's driver
            is installed, GPUs. A thread that never holds the GIL samples them every 10 s. As in MLflow,
            `MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`, `MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING` and
            `MLFLOW_SYSTEM_METRICS_NODE_ID` set how often and under which name.
            Default: `MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING`, else False.
        environment: True records the environment of each run that starts: tags `heimdall.python`,
            `heimdall.hostname`, `heimdall.command_line`, `heimdall.git.branch`, `heimdall.git.dirty` and
            `heimdall.git.remote`, and artifacts `environment/packages.txt`, `environment/system.json` and,
            where the source differs from its last commit, `environment/git_diff.patch` (up to 1 MiB). Text
            that looks like a password, token or key is masked, and environment variables are not recorded.
            All but the first three tags are found in the background; the end of the run waits for them, at
            most 10 s.
            Default: `HEIMDALL_LOG_ENVIRONMENT`, else False.
        set_environment: True sets the variables that stock MLflow and boto3 in this process read, where they
            are not set: `MLFLOW_TRACKING_URI`, `MLFLOW_REGISTRY_URI`, `MLFLOW_S3_ENDPOINT_URL` and the S3
            keys as `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`. Processes that this one starts have them
            as well. Default: `HEIMDALL_SET_ENVIRONMENT`, else True.
        default_tags: Tags of every run that starts, unless the run sets others. Default: none.
            `initialize_mlflow` gives the tags of the Heimdall team.
        run_name_prefix: Beginning of the name of a run that is given none; the local time follows, as in
            `rf-localization_20251108_093000`. Default: none, such a run has a random name.
            `initialize_mlflow` gives the prefix of its settings.
        bridge: True lets stock MLflow in this process write through this tracker's journal, and read after
            it: `mlflow.log_metric`, `MlflowClient`, autologging and the loggers of other libraries, for the
            same store. The tracker's active run is `mlflow.active_run()`, and a run of
            `mlflow.start_run` is the tracker's active run. Default: `HEIMDALL_BRIDGE`, else True.
        strict: True raises where a value cannot be recorded, before anything of the call is. False never
            ends a training for data: such a value costs its own key alone, is told once, counted by
            `status().unrecorded` and kept readable in `HEIMDALL_DIR/dead_letter`; a key that MLflow
            forbids is recorded under another spelling (`acc@1` as `acc_1`). The errors of data that a
            method lists are raised by a strict tracker alone. `docs/data.md` has a table.
            Default: `HEIMDALL_STRICT`, else False.

    `copy.copy` and `copy.deepcopy` return the tracker itself. A pickle has its arguments without keys and
    passwords: in another process it becomes a tracker of its own for the same stores, which reads these
    from the environment.

    A relative path in a URI and `HEIMDALL_DIR` are below the folder where the process started, wherever it
    works by then. Variables that the process does not have are read from a `.env` file, as `Settings`
    documents.

    Raises:
        ConfigurationError: A URI has an unknown scheme or cannot be opened, the file is no MLflow
            database, the experiment is deleted, a variable of the environment makes no sense.
        PermissionDeniedError: The store knows us and does not let us, or does not know us.
        InvalidInputError: The experiment name is empty or too long.

    Example:
        >>> tracker = MLflowTracker("sqlite:///mlflow.db")
        >>> run_id = tracker.start_run("experiment-v1")
        >>> tracker.log_metrics({"val/loss": 0.25}, step=1)
        >>> tracker.end_run()
        >>> tracker.get_run_info(run_id)["metrics"]
        {'val/loss': 0.25}
    """

    # The stock client, tables and models of the runs, each made when it is first asked for.
    _client: mlflow.MlflowClient | None = None
    _models: Histories
    _run_name_prefix: str | None = None
    # Arguments of the constructor that a pickle has.
    _given: dict[str, Any]
    _mirrors: Sequence[str] | None = None

    def __new__(  # noqa: D102
        cls,
        tracking_uri: str,
        artifact_uri: str | None = None,
        backend_store_uri: str | None = None,
        registry_uri: str | None = None,
        s3_endpoint_url: str | None = None,
        s3_access_key_id: str | None = None,
        s3_secret_access_key: str | None = None,
        experiment_name: str = EXPERIMENT_NAME,
        mode: Literal["online", "offline"] | None = None,
        mirrors: Sequence[str] | None = None,
        ranks: Literal["zero", "all", "each"] | None = None,
        durability: Literal["process", "power"] | None = None,
        system_metrics: bool | None = None,
        environment: bool | None = None,
        set_environment: bool | None = None,
        default_tags: Mapping[str, Any] | None = None,
        run_name_prefix: str | None = None,
        bridge: bool | None = None,
        strict: bool | None = None,
    ) -> Self:
        given = {name: value for name, value in locals().items() if name not in NOT_PICKLED}
        # It is imported by the first tracker, not with the package.
        from . import _environment

        _environment.load()
        if s3_access_key_id is None and s3_secret_access_key is None:
            s3_access_key_id, s3_secret_access_key = map(_environment.get, S3_KEYS)
        tracking_uri = tracking_uri.removeprefix(PREFIX) if isinstance(tracking_uri, str) else tracking_uri
        backend_store_uri = backend_store_uri and backend_store_uri.removeprefix(PREFIX)
        registry_uri = registry_uri and registry_uri.removeprefix(PREFIX)
        heimdall_dir = None
        if _start.has_left():
            if artifact_uri is None and tracking_uri.startswith("postgres"):
                artifact_uri = "mlruns"
            if mirrors is None:
                mirrors = os.environ.get("MLFLOW_MIRROR_URIS", "").replace(",", " ").split()
            tracking_uri = _start.store(tracking_uri)
            backend_store_uri = backend_store_uri and _start.store(backend_store_uri)
            registry_uri = registry_uri and _start.store(registry_uri)
            mirrors = [_start.store(uri) for uri in mirrors]
            artifact_uri = artifact_uri and _start.artifacts(artifact_uri)
            heimdall_dir = _start.path(os.environ.get("HEIMDALL_DIR") or ".heimdall")
        elif artifact_uri is not None and artifact_uri.startswith("file:"):
            artifact_uri = _start.artifacts(artifact_uri)
        # The constructor of the native half is for this class alone, so its stub does not show it.
        tracker = super().__new__(  # type: ignore[call-arg]
            cls,
            {
                "tracking_uri": tracking_uri,
                "artifact_uri": artifact_uri,
                "backend_store_uri": backend_store_uri,
                "registry_uri": registry_uri,
                "s3_endpoint_url": s3_endpoint_url,
                "s3_access_key_id": s3_access_key_id,
                "s3_secret_access_key": s3_secret_access_key,
                "experiment_name": experiment_name,
                "mode": mode,
                "mirrors": mirrors,
                "ranks": ranks,
                "durability": durability,
                "joins_tasks": _joins_tasks(),
                "system_metrics": system_metrics,
                "environment": environment,
                "set_environment": set_environment,
                "default_tags": default_tags,
                "bridge": bridge,
                "strict": strict,
                "heimdall_dir": heimdall_dir,
            },
        )
        tracker._own = set()
        tracker._given = given
        tracker._mirrors = mirrors
        tracker._run_name_prefix = run_name_prefix
        if tracker._is_bridged:
            for attach in when_bridged:
                attach(tracker)
        _outcome.watch()
        if "IPython" in sys.modules:
            from . import _cells

            _cells.watch(tracker)
        return tracker

    def start_run(
        self,
        run_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        nested: bool = False,
        parent_run_id: str | None = None,
        description: str | None = None,
        run_id: str | None = None,
    ) -> str:
        """Start a run, or go on with one, and make it the active one of this thread or task.

        Returns once the store has the run. Where the store does not answer, it returns after
        `HEIMDALL_CONNECT_TIMEOUT` with one warning, and the next starts do not wait; the run arrives later.

        Args:
            run_name: Name, up to 250 characters; if left out, one of the tracker's `run_name_prefix`, else a
                random one.
            tags: Tags; they win over the tracker's `default_tags` and over the tags `mlflow.user` and
                `mlflow.source.*`, which are set too. Values over 8,000 characters are cut, as by MLflow.
            nested: True lets the run start while another one is active. It is nested in the innermost run of
                the calling thread or task, and `end_run` ends the innermost.
            parent_run_id: Run that this one is nested in, where none is active.
            description: Description for people, in Markdown.
            run_id: A run to go on with in place of a new one. The run is RUNNING again, keeps its data, and
                gets the name, tags and description that are given. Default: `MLFLOW_RUN_ID`, which the first
                start takes out of the environment, as stock MLflow does; else a new run.

        Returns:
            Id of the run, 32 hexadecimal digits.

        Raises:
            RunStateError: Another run is active, and `nested` is false.
            InvalidInputError: An id breaks MLflow's rules, the run or its parent is deleted, or two names or
                descriptions are given; of a strict tracker also where the name or a tag breaks the rules.
                No run is started.
            NotFoundError: There is no run `run_id` or `parent_run_id`.
            StoreUnavailableError: A server, which chooses the ids of its runs, does not answer.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> search = tracker.start_run("search")
            >>> trial = tracker.start_run("trial 1", nested=True)
            >>> tracker.end_run()
            >>> tracker.active_run_id == search
            True
            >>> tracker.end_run()
            >>> tracker.get_run(trial).tags["mlflow.parentRunId"] == search
            True
        """
        if run_id is None and parent_run_id is None:
            run_id = self._run_of_environment()
        if run_name is None and self._run_name_prefix and run_id is None and not _is_named(tags):
            import time

            run_name = f"{self._run_name_prefix}_{time.strftime('%Y%m%d_%H%M%S')}"
        started = self._start_run(
            {
                "run_name": run_name,
                "tags": tags,
                "nested": nested,
                "parent_run_id": parent_run_id,
                "description": description,
                "run_id": run_id,
            }
        )
        if run_id is None:
            self._own.add(started)
        return started

    def _run_of_environment(self) -> str | None:
        """Return the run in `MLFLOW_RUN_ID`, once, where the environment means the store of this tracker."""
        run_id = os.environ.get("MLFLOW_RUN_ID")
        if not run_id or self._rank != 0:
            # Other ranks look for the run of rank 0 there, each time.
            return None
        from ._uris import same_store

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri and not same_store(uri, self._uris()[0]):
            return None
        del os.environ["MLFLOW_RUN_ID"]
        return run_id

    def run(
        self,
        run_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        nested: bool = False,
        parent_run_id: str | None = None,
        description: str | None = None,
        run_id: str | None = None,
    ) -> ActiveRun:
        """Run for a `with` block: FINISHED at its end, FAILED on an exception, KILLED on Ctrl-C.

        Runs nested in it that are still open end with it. The block's run has the logging methods of the
        tracker, which log to that run from any thread and also after its end.

        Args:
            run_name: As for `start_run`.
            tags: As for `start_run`.
            nested: As for `start_run`.
            parent_run_id: As for `start_run`.
            description: As for `start_run`.
            run_id: As for `start_run`.

        Returns:
            A context manager and handle of the run, which starts where the block is entered.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> with tracker.run("experiment-v2") as run:
            ...     tracker.log_params({"learning_rate": 1e-3})
            >>> tracker.get_run_info(run.run_id)["status"]
            'FINISHED'
        """
        arguments = {
            "run_name": run_name,
            "tags": tags,
            "nested": nested,
            "parent_run_id": parent_run_id,
            "description": description,
            "run_id": run_id,
        }
        # Only the given arguments are passed, so that a subclass of the user's is called as always.
        given: dict[str, Any] = {
            name: value for name, value in arguments.items() if value not in (None, False)
        }
        return ActiveRun(self, lambda: self.start_run(**given))

    def load_text(self, source: str, path: str = "") -> str:
        """Read a file of artifacts as text, in UTF-8. Waits as `download_artifacts` does.

        Args:
            source: A run's id or a URI, as `download_artifacts` takes it.
            path: The file below it.

        Raises:
            NotFoundError: There is no such run or model version.
            ArtifactNotFoundError: There is no such file.
            InvalidInputError: The file is no text in UTF-8.
        """
        from pathlib import Path
        from tempfile import TemporaryDirectory

        from .errors import ArtifactNotFoundError, InvalidInputError

        with TemporaryDirectory(prefix="heimdall-") as folder:
            file = Path(self.download_artifacts(source, path, folder))
            if not file.is_file():
                raise ArtifactNotFoundError(f"{path or source!r} is a folder: name a file in it")
            try:
                return file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise InvalidInputError(f"{path or source!r} is no text in UTF-8: {error}") from error

    def load_dict(self, source: str, path: str = "") -> Any:
        """Read a file of JSON or, where its name ends with .yaml or .yml, of YAML. Waits as above.

        Args:
            source: A run's id or a URI, as `download_artifacts` takes it.
            path: The file below it.

        Raises:
            NotFoundError: There is no such run or model version.
            ArtifactNotFoundError: There is no such file.
            InvalidInputError: The file is not of that form.
            MissingPackageError: The file is one of YAML, and PyYAML is not installed.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> with tracker.run("configured") as run:
            ...     tracker.log_dict({"receivers": [1, 2]}, "config.json")
            >>> tracker.load_dict(run.run_id, "config.json")
            {'receivers': [1, 2]}
        """
        import json

        from ._optional import need
        from .errors import InvalidInputError

        text = self.load_text(source, path)
        name = path or source
        if name.endswith((".yaml", ".yml")):
            yaml = need("yaml", "load_dict from a .yaml file")
            try:
                return yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise InvalidInputError(f"{name!r} is no YAML: {error}") from error
        try:
            return json.loads(text)
        except ValueError as error:
            raise InvalidInputError(f"{name!r} is no JSON: {error}") from error

    def search_runs(
        self,
        filter: str = "",
        order_by: str | Iterable[str] | None = None,
        max_results: int | None = None,
        view: Literal["active_only", "deleted_only", "all"] = "active_only",
        experiment_names: Iterable[str] | None = None,
    ) -> RunList:
        """Find runs. Delivers recorded data first, then waits for the store.

        Args:
            filter: Filter in MLflow's language, such as ``metrics.`val/loss` < 0.5 AND params.lr = '0.1'``;
                empty finds all.
            order_by: One or more orders, such as ``metrics.`val/loss` ASC``. MLflow's order comes behind:
                latest start first. Runs without the value, and NaN, come last either way.
            max_results: At most so many runs; None is all.
            view: Runs to find: those that are not deleted, those that are, or both.
            experiment_names: Experiments to look in; default the tracker's own.

        Returns:
            The runs in that order, a list with `to_pandas()`, `to_arrow()` and `to_polars()`.

        Raises:
            InvalidInputError: MLflow would refuse the filter, an order or the view; `max_results` is
                negative.
            NotFoundError: There is no such experiment.
            StoreUnavailableError: The store cannot answer.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> with tracker.run("first", tags={"kind": "demo"}):
            ...     tracker.log_metric("val/loss", 0.25)
            >>> [run.run_name for run in tracker.search_runs("tags.kind = 'demo'")]
            ['first']
        """
        orders = [order_by] if isinstance(order_by, str) else list(order_by or ())
        names = None if experiment_names is None else list(experiment_names)
        search = {
            "filter": filter,
            "order_by": orders,
            "max_results": max_results,
            "view": view,
            "experiment_names": names,
        }
        return RunList(self._search_runs(search))

    def export_runs(
        self, path: str | PathLike[str], filter: str = "", order_by: str | Iterable[str] | None = None
    ) -> None:
        """Write runs of the experiment to a file, which is there whole or not at all.

        Args:
            path: The file: .csv and .parquet have a row per run with the columns of `RunList`, .json a list
                of objects with metrics, params, tags and inputs of their own. Values are as they were logged:
                look at them before a spreadsheet evaluates values that begin with `=`. Times are UTC.
            filter: As for `search_runs`.
            order_by: As for `search_runs`.

        Raises:
            InvalidInputError: The file has another ending or its folder does not exist; MLflow would
                refuse the filter or an order.
            MissingPackageError: The file is one of Parquet, and pyarrow is not installed.
            StoreUnavailableError: The store cannot answer.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> tracker.export_runs("runs.csv")
        """
        from .runs import exporter

        export = exporter(path)
        export(self.search_runs(filter, order_by))

    def compare_model_versions(
        self,
        name: str,
        versions: Iterable[str | int] | None = None,
        metrics: str | Iterable[str] | None = None,
    ) -> VersionList:
        """Put versions of a model beside each other, with the metrics of the runs that made them.

        Delivers recorded data first, then waits for the registry and the store.

        Args:
            name: Registered model.
            versions: Numbers of the versions; default all.
            metrics: Keys of the metrics; default all that any of the runs has.

        Returns:
            A row per version, by their numbers: a list of dicts with `to_pandas()`, `to_arrow()` and
            `to_polars()`. A version whose run is unknown to the store has no metrics.

        Raises:
            NotFoundError: There is no such model or version.
            InvalidInputError: A version is no number.
            StoreUnavailableError: The registry or the store cannot answer.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> with tracker.run() as run:
            ...     tracker.log_metrics({"val/loss": 0.25, "epoch": 3})
            ...     tracker.log_text("weights", "model/weights.txt")
            >>> number = tracker.register_model("net", f"runs:/{run.run_id}/model")
            >>> tracker.set_model_alias("net", "champion", number)
            >>> (row,) = tracker.compare_model_versions("net", metrics="val/loss")
            >>> row["version"], row["aliases"], row["metrics.val/loss"]
            ('1', ['champion'], 0.25)
        """
        from .versions import compared

        numbers = None if versions is None else [str(version) for version in versions]
        keys = [metrics] if isinstance(metrics, str) else metrics
        return compared(self._versions_with_runs(name, numbers), keys)

    def load_model(
        self,
        source: str | PathLike[str],
        module: Any = None,
        flavor: Literal["pytorch", "onnx"] | None = None,
        device: Any = "cpu",
        allow_pickle: bool | None = None,
    ) -> Any:
        """Load a model from the stores of this tracker, without mlflow. Waits for the store.

        Args:
            source: `models:/<name>/<version or stage>`, `models:/<name>@<alias>`, `runs:/<run id>/<path>`,
                the URI of a folder, or its local path.
            module: A `torch.nn.Module` of the model's layers. It gets the state dict that is in the folder,
                and nothing is unpickled.
            flavor: Flavour to load where the folder has both.
            device: Device for the weights, as `torch.load` takes it for `map_location`.
            allow_pickle: True lets code of the model run, which a pickle contains. Default:
                `MLFLOW_ALLOW_PICKLE_DESERIALIZATION`, else True, as by stock MLflow.

        Returns:
            A `torch.nn.Module` in evaluation mode (a scripted one has its `forward` alone), or for ONNX an
            `onnxruntime.InferenceSession`.

        Raises:
            NotFoundError: There is no such model, or it has not that flavour.
            InvalidInputError: The folder is none that MLflow would load, or `module` has other layers.
            PermissionDeniedError: The model is a pickle, and pickles are not allowed.
            MissingPackageError: A package that the flavour needs is not installed.
            StoreUnavailableError: The store cannot answer.

        Example:
            >>> import torch
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> with tracker.run("trained"):
            ...     info = tracker.log_model(torch.nn.Linear(2, 1), registered_model_name="lines")
            >>> tracker.load_model("models:/lines/1")
            Linear(in_features=2, out_features=1, bias=True)
        """
        from .models.load import load_source

        return load_source(source, lambda: self, module, flavor, device, allow_pickle)

    def export_onnx(
        self,
        source: Any = None,
        module: Any = None,
        metric: str = "val/loss",
        compare_fn: Callable[[Iterable[float]], float] = min,
        input_example: Any = None,
        input_name: str | None = None,
        output_names: Sequence[str] | None = None,
        opset: int = 14,
        tolerance: float | None = None,
        artifact_path: str = "onnx",
        model_name: str | None = ONNX_MODEL_NAME,
        stage: str | None = "Staging",
        backbone: str | None = None,
        description: str = "",
        tags: Mapping[str, Any] | None = None,
    ) -> OnnxExport:
        """Export a trained network to ONNX, check it, log it, register it and stage it. Waits for the stores.

        The file is run by onnxruntime beside the network by torch, on five random batches of eight; only one
        that says the same is logged. It goes into the active run, or into one of its own, `export-onnx`,
        below the run of the training, as a folder with `model.onnx`, `metadata.json` and the files that stock
        MLflow needs.

        Args:
            source: A run's id, the URI of a model (`models:/…`, `runs:/…`) or of a checkpoint, the path of a
                checkpoint (of `heimdall_tracking.training`, of Lightning, a state dict) or of a model's
                folder, a `torch.nn.Module`, or an `RssLocalizationNet`. Default: the best run of the
                experiment. Of a run it is the model that was logged last, else the best checkpoint in
                `checkpoints`.
            module: Network of a checkpoint that does not contain one: a module, or a callable that makes one,
                such as its class, which gets the hyperparameters of the checkpoint.
            metric: Metric by which a run is the best.
            compare_fn: `min` where less is better, `max` where more is.
            input_example: Input to call the network with, as for `log_model`; default random spectrograms
                (batch, 3, 128, 32), for an `RssLocalizationNet` powers.
            input_name: Name of the input; default `mel_spectrogram` for spectrograms, `rss` for an
                `RssLocalizationNet`, else that of the parameter.
            output_names: Names of the outputs; default `positions` and `uncertainties` where there are two.
            opset: Version of ONNX's operators, 9 to 20.
            tolerance: Mean absolute difference of an output that is allowed, in the unit that the network
                counts in: that of the output, for degrees and metres of an `RssLocalizationNet` its
                `position_scale_m`; default 1e-5.
            artifact_path: Folder among the run's artifacts.
            model_name: Name to register it under; None registers nothing.
            stage: Stage of the version; None leaves it in none.
            backbone: Name of the backbone for the metadata; default the network's `backbone_name`.
            description: Description of the version.
            tags: Tags of the version, beside framework, format, input_shape and output_count.

        Returns:
            URI and version of the export, and the measurements.

        Raises:
            ExportError: The network cannot be exported, or the file says something else than the network.
            NotFoundError: There is no run with that metric, no such run or model, or none in the run.
            ArtifactNotFoundError: There is no such file.
            InvalidInputError: The checkpoint is of another network or needs `module`; an argument makes no
                sense.
            MissingPackageError: torch, onnx or onnxruntime is not installed.
            StoreUnavailableError: A store cannot answer.

        Example:
            >>> import torch
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> line = torch.nn.Linear(4, 2)
            >>> done = tracker.export_onnx(line, input_example=torch.ones(1, 4), model_name="lines")
            >>> (done.version, done.stage, done.metadata["inference_metrics"]["passed"])
            ('1', 'Staging', True)
        """
        from .models.export import export_onnx

        return export_onnx(
            self,
            source,
            module=module,
            metric=metric,
            compare_fn=compare_fn,
            input_example=input_example,
            input_name=input_name,
            output_names=output_names,
            opset=opset,
            tolerance=tolerance,
            artifact_path=artifact_path,
            model_name=model_name,
            stage=stage,
            backbone=backbone,
            description=description,
            tags=tags,
        )

    def flush(self, timeout: float | None = None) -> None:
        """Wait until all data recorded so far, by this process and by dead ones, is in the store.

        Mirrors are not waited for: `status()` tells how they stand. After 2 s a terminal shows a
        bar, a log one line.

        Args:
            timeout: Seconds to wait at most; None is without end.

        Raises:
            UndeliveredError: The time is over, or the tracker is offline; the rest stays in the journal.
        """
        waited(super().flush, timeout)

    @property
    def client(self) -> mlflow.MlflowClient:
        """The stock client for the same stores; everything recorded so far is there for it to read.

        Once it has been asked for, MLflow's tracking URI and registry URI are those of this tracker.

        Raises:
            MissingPackageError: mlflow is not installed.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> with tracker.run("both") as run:
            ...     tracker.client.log_metric(run.run_id, "theirs", 1.0)
            >>> tracker.get_run(run.run_id).metrics
            {'theirs': 1.0}
        """
        from ._optional import need

        stock = need("mlflow", "tracker.client")
        tracking, registry = self._uris()
        stock.set_tracking_uri(tracking)
        stock.set_registry_uri(registry)
        if self._client is None:
            self._client = stock.MlflowClient(tracking, registry)
        return self._client

    def __copy__(self) -> Self:
        # A tracker is a handle: a second one would be of another journal.
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        from ._pickled import remade, token_of

        return remade, (type(self), token_of(self), self._pickled())

    def _pickled(self) -> dict[str, Any]:
        """Return the arguments of a tracker like this one, without keys and passwords."""
        uris = {"tracking_uri": self.tracking_uri, "registry_uri": self.registry_uri}
        # Mirrors with a password are left out: the variable MLFLOW_MIRROR_URIS has them.
        mirrors = [uri for uri in self._mirrors or () if _native.without_credentials(uri) == uri] or None
        return {**self._given, **uris, "artifact_uri": self.artifact_uri, "mirrors": mirrors}


def _is_named(tags: Any) -> bool:
    """Return true where the tags of a new run have its name. Other things than tags have none."""
    try:
        return RUN_NAME_TAG in (tags or ())
    except Exception:
        return False


# Users import the class from the package itself.
MLflowTracker.__module__ = "heimdall_tracking"


def _joins_tasks() -> bool:
    """Return True where the program uses a library that joins the tasks of Slurm to one training."""
    if any(
        name in sys.modules for name in ("lightning.pytorch", "pytorch_lightning", "deepspeed", "accelerate")
    ):
        return True
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()
