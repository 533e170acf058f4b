"""The tracker, with the parts that are Python's own: texts, figures, images, tables, other libraries."""

from __future__ import annotations

from . import _native
from ._progress import waited
from .active_run import ActiveRun
from .heimdall_defaults import EXPERIMENT_NAME, ONNX_MODEL_NAME
from .runs import RunList
from .uploads import Upload

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from os import PathLike
    from typing import Any, Literal

    import matplotlib.figure
    import mlflow
    import pandas
    from typing_extensions import Self

    from ._tables import Tables
    from .models.export import OnnxExport
    from .models.folder import ModelInfo
    from .models.history import Histories
    from .versions import VersionList


class MLflowTracker(_native.MLflowTracker):
    """Records runs of one experiment so that a stock MLflow reads them as its own.

    Calls that log something check their arguments, append to a journal on local disk and return; a thread
    delivers in the background, in order, and tries again for as long as the store is away. A value that a
    call has accepted survives the end of the process: the next tracker with the same `HEIMDALL_DIR` delivers
    it, or `heimdall sync` does. Calls that ask something deliver first and wait for the answer.

    A store that cannot be reached is waited for at construction for 5 s (`HEIMDALL_CONNECT_TIMEOUT`); then
    training goes on, and all that is recorded arrives when the store is there.

    All methods may be called from any thread. After a fork the child goes on with the tracker: values
    that the child logs land in the same run, which only the parent ends. A spawned process makes a
    tracker of its own.

    Args:
        tracking_uri: Store of the runs: a SQLite database, `sqlite:///<path>` (relative) or
            `sqlite:////<path>` (absolute), which is created if it does not exist; a PostgreSQL database,
            `postgresql://user:password@host:5432/database`, which must exist and gets MLflow's tables if it
            is empty; or an MLflow server, `http://host:5000` or `https://host/prefix`.
        artifact_uri: Place for the artifacts of the experiment, if it has to be created: a local folder,
            `s3://bucket/prefix`, `gs://…`, `wasbs://container@account.blob.core.windows.net/…`; default
            `mlruns` beside the database. An experiment that exists keeps the location it has.
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
            where calls on the others check their arguments and do nothing more, or `all`, where the others
            record into rank 0's run and are named by its tags `heimdall.rank.<n>`. Default:
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

    # The stock client, and tables and models of the active runs, made when they are first asked for.
    _client: mlflow.MlflowClient | None = None
    _tables: Tables | None = None
    _models: Histories | None = None

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
        ranks: Literal["zero", "all"] | None = None,
        durability: Literal["process", "power"] | None = None,
        system_metrics: bool | None = None,
        environment: bool | None = None,
        set_environment: bool | None = None,
        default_tags: Mapping[str, Any] | None = None,
    ) -> Self:
        # The constructor of the native half is for this class alone, so its stub does not show it.
        return super().__new__(  # type: ignore[call-arg]
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
                "system_metrics": system_metrics,
                "environment": environment,
                "set_environment": set_environment,
                "default_tags": default_tags,
            },
        )

    def start_run(
        self,
        run_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        nested: bool = False,
        parent_run_id: str | None = None,
        description: str | None = None,
        run_id: str | None = None,
    ) -> str:
        """Start a run, or go on with one, and make it the active one.

        Args:
            run_name: Name, up to 250 characters; a random one if left out.
            tags: Tags; they win over the tracker's `default_tags` and over the tags `mlflow.user` and
                `mlflow.source.*`, which are set too. Values over 8,000 characters are cut, as by MLflow.
            nested: True lets the run start while another one is active. It is nested in that one, and
                `end_run` ends the innermost.
            parent_run_id: Run that this one is nested in, where none is active.
            description: Description for people, in Markdown.
            run_id: A run to go on with in place of a new one. The run is RUNNING again, keeps its data, and
                gets the name, tags and description that are given.

        Returns:
            Id of the run, 32 hexadecimal digits.

        Raises:
            RunStateError: Another run is active, and `nested` is false.
            InvalidInputError: The name, a tag or an id breaks MLflow's rules, or the run or its parent is
                deleted; no run is started.
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
        return self._start_run(
            {
                "run_name": run_name,
                "tags": tags,
                "nested": nested,
                "parent_run_id": parent_run_id,
                "description": description,
                "run_id": run_id,
            }
        )

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

        Runs that the block has left open inside it end with it.

        Args:
            run_name: As for `start_run`.
            tags: As for `start_run`.
            nested: As for `start_run`.
            parent_run_id: As for `start_run`.
            description: As for `start_run`.
            run_id: As for `start_run`.

        Returns:
            A context manager; the run starts where the block is entered.

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
        given = {name: value for name, value in arguments.items() if value not in (None, False)}
        return ActiveRun(self, given)

    def log_artifact(
        self,
        local_path: str | PathLike[str],
        artifact_path: str | None = "artifacts",
        immutable: bool = False,
    ) -> Upload:
        """Log a file of the active run as it is now; it may change or go right after the call.

        The call waits for a copy of the file in the journal, without the GIL; the upload goes on behind it.

        Args:
            local_path: The file.
            artifact_path: Folder among the run's artifacts; None or "" is their root.
            immutable: Say that nobody will change the file. It is not copied then: where the journal is on
                the same disk it is kept under a second name and may be deleted, else it is uploaded from
                where it is and has to stay there.

        Returns:
            A handle that can be waited for.

        Raises:
            RunStateError: No run is active.
            ArtifactNotFoundError: There is no such file.
            InvalidInputError: `artifact_path` is absolute or climbs out.
            JournalError: The file cannot be copied into the journal.
        """
        return Upload(self, *self._log_artifact(local_path, artifact_path, immutable))

    def log_artifacts_dir(
        self,
        local_dir: str | PathLike[str],
        artifact_path: str | None = "artifacts",
        immutable: bool = False,
    ) -> Upload:
        """Log every file below a folder, hidden ones too, as it is now. Empty folders leave no trace.

        Args:
            local_dir: The folder. Links are followed where they stay in it.
            artifact_path: Folder among the run's artifacts; None or "" is their root.
            immutable: Say that nobody will change the files; see `log_artifact`.

        Returns:
            A handle that can be waited for.

        Raises:
            RunStateError: No run is active.
            ArtifactNotFoundError: There is no such folder.
            InvalidInputError: `artifact_path` is absolute or climbs out, a link leaves the folder.
            JournalError: A file cannot be copied into the journal; then none of the folder is logged.
        """
        return Upload(self, *self._log_artifacts_dir(local_dir, artifact_path, immutable))

    def log_text(self, text: str, artifact_file: str) -> None:
        """Log a text as a file of the active run, in UTF-8.

        Args:
            text: The text.
            artifact_file: The file among the run's artifacts, such as `notes/first.txt`.

        Raises:
            RunStateError: No run is active.
            InvalidInputError: `artifact_file` is empty, absolute or climbs out; the text has a lone
                surrogate.
            WrongTypeError: `text` is no str.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> with tracker.run("notes"):
            ...     tracker.log_text("two receivers were off", "notes.txt")
        """
        from .errors import InvalidInputError, WrongTypeError

        self._check_artifact(artifact_file, "log_text")
        if not isinstance(text, str):
            raise WrongTypeError(f"the text of {artifact_file!r} must be a str, not {type(text).__name__}")
        try:
            content = text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(
                f"the text of {artifact_file!r} has a lone surrogate, half a character, at {error.start}: "
                "remove it"
            ) from error
        self._log_bytes(content, artifact_file)

    def log_dict(self, dictionary: Mapping[str, Any] | Sequence[Any], artifact_file: str) -> None:
        """Log a dict or list as a file of JSON, or of YAML where the file's name ends with .yaml or .yml.

        Args:
            dictionary: Content that JSON or YAML has a form for. A value that JSON has no form for (a Path, a
                tensor) is written as `str()` gives it.
            artifact_file: The file among the run's artifacts, such as `config.json`.

        Raises:
            RunStateError: No run is active.
            InvalidInputError: `artifact_file` is empty, absolute or climbs out; the dict contains itself or
                has a key that JSON has no form for.
            MissingPackageError: The file is one of YAML, and PyYAML is not installed.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> with tracker.run("configured"):
            ...     tracker.log_dict({"receivers": [1, 2]}, "config.json")
        """
        import json

        from ._optional import need
        from .errors import InvalidInputError

        self._check_artifact(artifact_file, "log_dict")
        if artifact_file.endswith((".yaml", ".yml")):
            yaml = need("yaml", "log_dict to a .yaml file")
            text = yaml.dump(dictionary, indent=2, default_flow_style=False)
        else:
            try:
                text = json.dumps(dictionary, indent=2, default=str)
            except (TypeError, ValueError, RecursionError) as error:
                raise InvalidInputError(f"{artifact_file!r} cannot be written as JSON: {error}") from error
        self._log_bytes(text.encode(), artifact_file)

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

    def log_figure(
        self,
        figure: matplotlib.figure.Figure | Any,
        artifact_file: str,
        save_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Log a figure of Matplotlib or Plotly as a file of the active run.

        Args:
            figure: The figure; it is neither shown nor closed.
            artifact_file: The file among the run's artifacts. Its ending says the format: for Matplotlib
                .png, .svg, .pdf and others that the figure's canvas knows, for Plotly .html, .png, .jpeg,
                .webp, .svg and .pdf.
            save_kwargs: Arguments for `Figure.savefig`, or for Plotly's `write_html` or `write_image`.

        Raises:
            RunStateError: No run is active.
            InvalidInputError: `artifact_file` is no valid path or has an ending that is no format.
            WrongTypeError: `figure` is no figure of these libraries.
        """
        from . import _images

        self._check_artifact(artifact_file, "log_figure")
        self._log_bytes(_images.figure_bytes(figure, artifact_file, dict(save_kwargs or {})), artifact_file)

    def log_image(
        self,
        image: Any,
        artifact_file: str | None = None,
        key: str | None = None,
        step: int | None = None,
        timestamp: int | None = None,
    ) -> None:
        """Log an image of the active run: one file, or one of a series that MLflow's UI shows by step.

        Args:
            image: An image of Pillow or `mlflow.Image`, an array (height, width) or (height, width, 1, 3
                or 4), or such a tensor, which may have the channels first. Bools, whole numbers from 0 to
                255, or floats from 0 to 1; floats beyond are scaled to the whole range, with a warning.
            artifact_file: The file among the run's artifacts; its ending says the format.
            key: Name of the series, in place of `artifact_file`: letters, digits, `_ - . /` and blanks.
            step: Step of the image in the series; default 0.
            timestamp: Time of the image in milliseconds since 1970; default now.

        Raises:
            RunStateError: No run is active.
            InvalidInputError: Neither or both of `artifact_file` and `key` are given, or one that is not
                valid; the image has a shape or whole numbers that no image has.
            WrongTypeError: `image` is no image.
            MissingPackageError: Pillow is not installed.
        """
        import time
        import uuid

        from . import _images
        from .errors import InvalidInputError

        if (artifact_file is None) == (key is None):
            raise InvalidInputError("an image is logged under either artifact_file or key: give one of them")
        if key is None:
            assert artifact_file is not None
            if step is not None or timestamp is not None:
                raise InvalidInputError("an image under artifact_file has no step or timestamp: give a key")
            self._check_artifact(artifact_file, "log_image")
            self._log_bytes(_images.encoded(_images.as_pil(image), artifact_file), artifact_file)
            return
        if not _images.KEY.fullmatch(key):
            raise InvalidInputError(
                f"image key {key!r} is not valid: it may have letters, digits, underscores, dashes, dots, "
                "slashes and blanks only"
            )
        moment = timestamp or time.time_ns() // 1_000_000
        name = f"images/{key.replace('/', '~')}+step+{step or 0}+timestamp+{moment}+{uuid.uuid4()}"
        self._check_artifact(name, "log_image")
        whole = _images.as_pil(image)
        # MLflow's UI reads key, step and time from the names.
        files = {f"{name}.png": whole, f"{name}+compressed.webp": _images.small(whole)}
        encoded = {file: _images.encoded(content, file) for file, content in files.items()}
        for file, content in encoded.items():
            self._log_bytes(content, file)
        self.set_tag("mlflow.loggedImages", True)

    def log_table(self, data: dict[str, Any] | pandas.DataFrame, artifact_file: str) -> None:
        """Log a table of the active run, or append to the one that is there.

        MLflow's UI shows such tables and compares them between runs. Rows are appended to the table that
        this tracker has logged under that name in this run, or that a resumed run has in a local folder.

        Args:
            data: A DataFrame of pandas, or a dict of columns (or of the values of one row). Cells may be
                images of Pillow or `mlflow.Image`, if all of their column are.
            artifact_file: The file among the run's artifacts, ending with .json or .parquet.

        Raises:
            RunStateError: No run is active.
            InvalidInputError: `artifact_file` is no valid path, has another ending or one of `"',:[]{}`; a
                column has images and other things; the table cannot be written in that format.
            WrongTypeError: `data` is neither a dict nor a DataFrame.
            MissingPackageError: pandas is not installed, or the package that it needs for .parquet.
        """
        from ._tables import Tables

        run_id = self._check_artifact(artifact_file, "log_table")
        if self._tables is None:
            self._tables = Tables()
        self._tables.log(self, run_id, data, artifact_file)

    def log_input(
        self, dataset: Any, context: str | None = None, tags: Mapping[str, Any] | None = None
    ) -> None:
        """Log that the active run was given a dataset.

        Args:
            dataset: A `heimdall_tracking.Dataset`, or one that `mlflow.data` has made.
            context: Purpose of the dataset, such as `training`.
            tags: Tags of the input: keys up to 255 characters, values up to 500.

        Raises:
            RunStateError: No run is active.
            InvalidInputError: The dataset has something that is longer than MLflow takes.
            WrongTypeError: `dataset` is no dataset.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> with tracker.run("informed") as run:
            ...     tracker.log_input(Dataset("july.csv", data=b"lat,lon,rss"), context="training")
            >>> tracker.get_run(run.run_id).inputs[0].tags
            {'mlflow.data.context': 'training'}
        """
        from . import inputs

        self._log_input(inputs.fields(dataset, context, tags))

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

    def register_model(
        self,
        model_name: str,
        model_uri: str | PathLike[str],
        description: str = "",
        tags: Mapping[str, Any] | None = None,
        await_registration_for: float | None = 300,
    ) -> str:
        """Register a version of a model, creating the model if needed. Waits for the registry.

        Delivers first, so that the version's files are there when it is. A folder needs no `MLmodel` file to
        be registered, only to be loaded.

        Args:
            model_name: Registered model, up to 256 characters, without `/` and `:`.
            model_uri: Files to register:

                - `runs:/<run id>/<path>`, artifacts of a run, or the model that MLflow 3 has logged in it
                  under that name; the mistaken `runs://…` is understood too;
                - `models:/<name>/<version>`, `models:/<name>/<stage>`, `models:/<name>/latest` or
                  `models:/<name>@<alias>`: a version, whose files and run the new one has;
                - `models:/<model id>`, a model that MLflow 3 has logged;
                - `s3://<bucket>/<path>` or another artifact URI, `file:///<path>`, or the path of a folder. A
                  server takes local folders only below the artifacts of a run.
            description: Description of the version, up to 5,000 characters.
            tags: Tags of the version, values up to 100,000 characters (5,000 before MLflow 3).
            await_registration_for: Seconds to wait until the version is READY; databases and stock servers
                say so at once. None and 0 do not wait.

        Returns:
            The version's number, as MLflow gives it: a str.

        Raises:
            ArtifactError: A file of the model was refused by its store; nothing is registered then.
            NotFoundError: The run, version, alias or logged model that `model_uri` names does not exist.
            InvalidInputError: A name, URI, description or tag breaks MLflow's rules, a URI has two schemes
                (`s3://s3://…`), or a server does not take the location.
            RegistrationError: The version is registered and does not become READY (in time).
            StoreUnavailableError: The registry cannot answer.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> with tracker.run() as run:
            ...     tracker.log_text("weights", "model/weights.txt")
            >>> tracker.register_model("registered", f"runs:/{run.run_id}/model", "the first")
            '1'
            >>> tracker.register_model("released", "models:/registered/1")
            '1'
        """
        return self._register_model(
            {
                "model_name": model_name,
                "model_uri": model_uri,
                "description": description,
                "tags": tags,
                "await_registration_for": await_registration_for,
            }
        )

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

    def log_model(
        self,
        model: Any,
        artifact_path: str = "model",
        input_example: Any = None,
        signature: Any = None,
        registered_model_name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        description: str = "",
        tags: Mapping[str, Any] | None = None,
        pip_requirements: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        serialization: Literal["auto", "pickle", "torchscript"] = "auto",
    ) -> ModelInfo:
        """Log a model of the active run as a folder that stock MLflow loads; mlflow is not needed for it.

        The model is left as it is: its mode, its device, its gradients. From any device, the written
        model loads on a machine without GPU. Beside MLflow's files, the folder has the weights as
        `state_dict.safetensors` and `state_dict.pth`, which are read without running code.

        Args:
            model: A `torch.nn.Module` (a scripted, compiled or distributed one too), a trained
                `RssLocalizationNet` of `heimdall_tracking.training`, an `onnx.ModelProto`, or the path of an
                ONNX file.
            artifact_path: Folder among the run's artifacts.
            input_example: Input to call the model with: an array or tensor, a tuple or list of them, or a
                dict of them by the names of parameters. The first axis is the batch. The model is run on it
                once, and the signature describes its inputs and outputs.
            signature: A signature in place of that: a `mlflow.models.ModelSignature`, a dict with `inputs`
                and `outputs` as MLmodel has them, or False for none.
            registered_model_name: Register the model under this name as well, for which the call waits.
            metadata: Further facts about the model, as anything that JSON has a form for.
            description: Description of the registered version.
            tags: Tags of the registered version.
            pip_requirements: Lines of its `requirements.txt`; default the packages that its classes are of.
            output_names: Names of a tuple of outputs, such as `("positions", "uncertainties")`.
            serialization: `pickle` keeps the module itself, its class and all its methods; classes that
                belong to no installed package (of a script, of a notebook) go into the file. `torchscript`
                keeps `forward` alone, traced with the example. `auto` is the first where that works, else the
                other.

        Returns:
            The logged model; its `model_uri` is the URI to load it by.

        Raises:
            RunStateError: No run is active.
            InvalidInputError: The model can be written in no form or fails with the example; `artifact_path`
                is no valid path.
            WrongTypeError: `model` is no model; the example or the output of the model is no array or tensor.
            ArtifactNotFoundError: There is no such ONNX file.
            MissingPackageError: A package is not installed: torch, onnx, or cloudpickle for classes of a
                script.

        Example:
            >>> import torch
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> with tracker.run("trained"):
            ...     info = tracker.log_model(torch.nn.Linear(2, 1), input_example=torch.ones(1, 2))
            >>> info.signature["inputs"]
            '[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 2]}}]'
        """
        from .models.log import log_model

        return log_model(
            self,
            model,
            artifact_path,
            input_example=input_example,
            signature=signature,
            registered_model_name=registered_model_name,
            metadata=metadata,
            description=description,
            tags=tags,
            pip_requirements=pip_requirements,
            output_names=output_names,
            serialization=serialization,
        )

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

        Once it has been asked for, MLflow's fluent API in this process is about this tracker: its stores, its
        experiment and, in every thread, its active run, so that `mlflow.log_metric(...)` or
        `mlflow.pytorch.log_model(...)` land there. The start of a run then waits for the store, and the
        tracker still ends its runs. Of several trackers it is the one whose client was asked for last.

        Raises:
            MissingPackageError: mlflow is not installed.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> with tracker.run("both") as run:
            ...     tracker.client.log_metric(run.run_id, "theirs", 1.0)
            >>> tracker.get_run(run.run_id).metrics
            {'theirs': 1.0}
        """
        from . import _fluent

        client: mlflow.MlflowClient = _fluent.client(self)
        return client

    def _check_artifact(self, artifact_file: str, action: str) -> str:
        """Return the active run's id, once it is clear that it can be given a file of that name."""
        run_id = self.active_run_id
        if run_id is None:
            from .errors import RunStateError

            raise RunStateError(f"no run is active: call start_run() before {action}()")
        self._check_artifact_file(artifact_file)
        return run_id


# Users import the class from the package itself.
MLflowTracker.__module__ = "heimdall_tracking"
