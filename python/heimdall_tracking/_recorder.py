"""The part of the tracker that records what is Python's own: texts, figures, images, tables, models."""

from __future__ import annotations

import os

from . import _native
from .uploads import Upload

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike
    from typing import Any, Literal

    import matplotlib.figure
    import pandas

    from ._native import Run
    from ._tables import Tables
    from .models.folder import ModelInfo


class Recorder(_native.MLflowTracker):
    """Records into the active run of a tracker, or into the run that a call names."""

    # Ids of the runs that this tracker has started.
    _own: set[str]
    # The tables of the runs, made when they are first asked for.
    _tables: Tables

    def log_artifact(
        self,
        local_path: str | PathLike[str],
        artifact_path: str | None = "artifacts",
        immutable: bool = False,
        run_id: str | None = None,
    ) -> Upload:
        """Log a file of the active run as it is now; it may change or go right after the call.

        The call waits for a copy of the file in the journal, without the GIL; the upload goes on behind it.

        Args:
            local_path: The file.
            artifact_path: Folder among the run's artifacts; None or "" is their root.
            immutable: Say that nobody will change the file. It is not copied then: where the journal is on
                the same disk it is kept under a second name and may be deleted, else it is uploaded from
                where it is and has to stay there.
            run_id: Run to log to; default the active run.

        Returns:
            A handle that can be waited for. Of a file that cannot be logged it is done, has no paths, and its
            `error` says why; `wait()` raises that.

        Raises:
            RunStateError: No run is active.
            ArtifactNotFoundError: There is no such file. A folder is logged under its name, as by MLflow,
                unless the tracker is strict.
            InvalidInputError: `artifact_path` is absolute or climbs out.
            JournalError: The file cannot be copied into the journal.
        """
        run_id = self._run_of(run_id, "log_artifact")
        return self._upload(self._log_artifact, local_path, artifact_path, immutable, run_id)

    def log_artifacts_dir(
        self,
        local_dir: str | PathLike[str],
        artifact_path: str | None = "artifacts",
        immutable: bool = False,
        run_id: str | None = None,
    ) -> Upload:
        """Log every file below a folder, hidden ones too, as it is now. Empty folders leave no trace.

        Args:
            local_dir: The folder. Links are followed where they stay in it.
            artifact_path: Folder among the run's artifacts; None or "" is their root.
            immutable: Say that nobody will change the files; see `log_artifact`.
            run_id: Run to log to; default the active run.

        Returns:
            A handle that can be waited for, as of `log_artifact`.

        Raises:
            RunStateError: No run is active.
            ArtifactNotFoundError: There is no such folder.
            InvalidInputError: `artifact_path` is absolute or climbs out, a link leaves the folder.
            JournalError: A file cannot be copied into the journal; then none of the folder is logged.
        """
        run_id = self._run_of(run_id, "log_artifacts_dir")
        return self._upload(self._log_artifacts_dir, local_dir, artifact_path, immutable, run_id)

    def log_text(self, text: str, artifact_file: str, run_id: str | None = None) -> None:
        """Log a text as a file of the active run, in UTF-8.

        Args:
            text: The text.
            artifact_file: The file among the run's artifacts, such as `notes/first.txt`.
            run_id: Run to log to; default the active run.

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
        from ._spared import Spared, path
        from .errors import InvalidInputError, WrongTypeError

        run_id = self._run_of(run_id, "log_text")
        with Spared(self, "artifact", artifact_file, run_id, text):
            artifact_file = path(self, artifact_file)
            self._check_artifact_file(artifact_file)
            if not isinstance(text, str):
                raise WrongTypeError(
                    f"the text of {artifact_file!r} must be a str, not {type(text).__name__}"
                )
            try:
                content = text.encode()
            except UnicodeEncodeError as error:
                raise InvalidInputError(
                    f"the text of {artifact_file!r} has a lone surrogate, half a character, at "
                    f"{error.start}: remove it"
                ) from error
            self._log_bytes(content, artifact_file, run_id)

    def log_dict(
        self,
        dictionary: Mapping[str, Any] | Sequence[Any],
        artifact_file: str,
        run_id: str | None = None,
    ) -> None:
        """Log a dict or list as a file of JSON, or of YAML where the file's name ends with .yaml or .yml.

        Args:
            dictionary: Content that JSON or YAML has a form for, or an object that holds such data: an
                `argparse.Namespace`, a dataclass, a model of pydantic, a config of OmegaConf. A key or a
                value that JSON has no form for (a Path, a tensor) is written as `str()` gives it.
            artifact_file: The file among the run's artifacts, such as `config.json`.
            run_id: Run to log to; default the active run.

        Raises:
            RunStateError: No run is active.
            InvalidInputError: `artifact_file` is empty, absolute or climbs out; the dict contains itself.
            MissingPackageError: The file is one of YAML, and PyYAML is not installed.

        Example:
            >>> tracker = MLflowTracker("sqlite:///mlflow.db")
            >>> with tracker.run("configured"):
            ...     tracker.log_dict({"receivers": [1, 2]}, "config.json")
        """
        from ._data import as_json, plain
        from ._optional import need
        from ._spared import Spared, path
        from .errors import InvalidInputError

        run_id = self._run_of(run_id, "log_dict")
        with Spared(self, "artifact", artifact_file, run_id, dictionary):
            artifact_file = path(self, artifact_file)
            self._check_artifact_file(artifact_file)
            try:
                if artifact_file.endswith((".yaml", ".yml")):
                    yaml = need("yaml", "log_dict to a .yaml file")
                    text = yaml.dump(plain(dictionary), indent=2, default_flow_style=False)
                else:
                    text = as_json(dictionary, indent=2)
            except (TypeError, ValueError, RecursionError) as error:
                raise InvalidInputError(f"{artifact_file!r} cannot be written: {error}") from error
            self._log_bytes(text.encode(), artifact_file, run_id)

    def log_figure(
        self,
        figure: matplotlib.figure.Figure | Any,
        artifact_file: str,
        save_kwargs: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> None:
        """Log a figure of Matplotlib or Plotly as a file of the active run.

        Args:
            figure: The figure; it is neither shown nor closed.
            artifact_file: The file among the run's artifacts. Its ending says the format: for Matplotlib
                .png, .svg, .pdf and others that the figure's canvas knows, for Plotly .html, .png, .jpeg,
                .webp, .svg and .pdf.
            save_kwargs: Arguments for `Figure.savefig`, or for Plotly's `write_html` or `write_image`.
            run_id: Run to log to; default the active run.

        Raises:
            RunStateError: No run is active.
            InvalidInputError: `artifact_file` is no valid path or has an ending that is no format.
            WrongTypeError: `figure` is no figure of these libraries.
        """
        from . import _images
        from ._spared import Spared, path

        run_id = self._run_of(run_id, "log_figure")
        with Spared(self, "artifact", artifact_file, run_id, figure):
            artifact_file = path(self, artifact_file)
            self._check_artifact_file(artifact_file)
            content = _images.figure_bytes(figure, artifact_file, dict(save_kwargs or {}))
            self._log_bytes(content, artifact_file, run_id)

    def log_image(
        self,
        image: Any,
        artifact_file: str | None = None,
        key: str | None = None,
        step: int | None = None,
        timestamp: int | None = None,
        run_id: str | None = None,
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
            run_id: Run to log to; default the active run.

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
        from ._spared import Spared, path, shown
        from .errors import InvalidInputError, WrongTypeError

        if (artifact_file is None) == (key is None):
            raise InvalidInputError("an image is logged under either artifact_file or key: give one of them")
        run_id = self._run_of(run_id, "log_image")
        with Spared(self, "artifact", artifact_file if key is None else key, run_id, image):
            if key is None:
                if step is not None or timestamp is not None:
                    raise InvalidInputError(
                        "an image under artifact_file has no step or timestamp: give a key"
                    )
                artifact_file = path(self, artifact_file)
                self._check_artifact_file(artifact_file)
                self._log_bytes(_images.encoded(_images.as_pil(image), artifact_file), artifact_file, run_id)
                return
            if not isinstance(key, str):
                raise WrongTypeError(f"an image key must be a str, not {type(key).__name__}")
            if not self._is_strict and key and not _images.KEY.fullmatch(key):
                spelt = _images.FORBIDDEN.sub("_", key)
                self._tell_once(
                    shown(key), f"MLflow takes no image key {shown(key)!r}: it is recorded as {spelt!r}"
                )
                key = spelt
            if not _images.KEY.fullmatch(key):
                raise InvalidInputError(
                    f"image key {key!r} is not valid: it may have letters, digits, underscores, dashes, "
                    "dots, slashes and blanks only"
                )
            moment = timestamp or time.time_ns() // 1_000_000
            name = f"images/{key.replace('/', '~')}+step+{step or 0}+timestamp+{moment}+{uuid.uuid4()}"
            self._check_artifact_file(name)
            whole = _images.as_pil(image)
            # MLflow's UI reads key, step and time from the names.
            files = {f"{name}.png": whole, f"{name}+compressed.webp": _images.small(whole)}
            encoded = {file: _images.encoded(content, file) for file, content in files.items()}
            for file, content in encoded.items():
                self._log_bytes(content, file, run_id)
            self.set_tag("mlflow.loggedImages", True, run_id=run_id)

    def log_table(
        self,
        data: dict[str, Any] | pandas.DataFrame,
        artifact_file: str,
        run_id: str | None = None,
    ) -> None:
        """Log a table of the active run, or append to the one that is there.

        MLflow's UI shows such tables and compares them between runs. Rows are appended to the table that
        this tracker has logged under that name in this run. For a run that was resumed, and for one of others
        that is not active here, the first call waits for the stores and appends to the table there. If the
        table of a resumed run cannot be read, the rows are left out, with one warning and a dead letter.

        Args:
            data: A DataFrame of pandas, or a dict of columns (or of the values of one row). Cells may be
                images of Pillow or `mlflow.Image`, if all of their column are.
            artifact_file: The file among the run's artifacts, ending with .json or .parquet.
            run_id: Run to log to; default the active run.

        Raises:
            RunStateError: No run is active.
            InvalidInputError: `artifact_file` is no valid path, has another ending or one of `"',:[]{}`; a
                column has images and other things; the table cannot be written in that format.
            WrongTypeError: `data` is neither a dict nor a DataFrame.
            MissingPackageError: pandas is not installed, or the package that it needs for .parquet.
            NotFoundError: There is no run `run_id`.
            ArtifactError: The tracker is strict, and the table of a resumed run cannot be read.
            StoreUnavailableError: The run is one of others and not active here; its store cannot answer.
        """
        from ._spared import Spared, path
        from ._tables import Tables

        run_id = self._run_of(run_id, "log_table")
        with Spared(self, "artifact", artifact_file, run_id, data):
            artifact_file = path(self, artifact_file)
            self._check_artifact_file(artifact_file)
            # Of two threads only one may make them.
            tables: Tables = self.__dict__.setdefault("_tables", Tables())
            tables.log(self, run_id, data, artifact_file)

    def log_input(
        self,
        dataset: Any,
        context: str | None = None,
        tags: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> None:
        """Log that the active run was given a dataset.

        Args:
            dataset: A `heimdall_tracking.Dataset`, or one that `mlflow.data` has made.
            context: Purpose of the dataset, such as `training`.
            tags: Tags of the input: keys up to 255 characters, values up to 500.
            run_id: Run to log to; default the active run.

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
        from ._spared import Spared

        run_id = self._run_of(run_id, "log_input")
        with Spared(self, "input", getattr(dataset, "name", type(dataset).__name__), run_id, dataset):
            if not self._is_strict:
                tags = inputs.tags_with_room(self, tags, run_id)
            self._log_input(inputs.fields(dataset, context, tags), run_id)

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
        run_id: str | None = None,
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
            run_id: Run to log to; default the active run.

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
            run_id=run_id,
        )

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
        be registered, only to be loaded; a folder of a run or of this disk without any file is refused.

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
            NotFoundError: The run, version, alias or logged model that `model_uri` names does not exist, or
                there is no file at its path; nothing is registered then.
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

    def _upload(
        self,
        log: Callable[..., tuple[list[str], int, int]],
        local: Any,
        artifact_path: Any,
        immutable: bool,
        run_id: str,
    ) -> Upload:
        """Log a file or a folder, and return the handle; an error of what was given is its state."""
        from pathlib import Path

        from ._spared import Spared, path

        with Spared(self, "artifact", local, run_id, f"{local} to {artifact_path}") as spared:
            folder = path(self, artifact_path, needs_name=False)
            # The path of an empty text would be the working folder.
            is_dir = local not in ("", b"") and Path(local).is_dir()
            if is_dir and log == self._log_artifact and not self._is_strict:
                # MLflow logs a folder under its own name.
                log = self._log_artifacts_dir
                folder = "/".join(filter(None, [folder, Path(os.path.normpath(local)).name]))
            return Upload(self, *log(local, folder, bool(immutable), run_id))
        return Upload(self, [], 0, 0, spared.error)

    def _before(self, run_id: str) -> Run | None:
        """Return a run as it was before this tracker logged to it; None for a run that it has started.

        Waits for the store where the run is one of others and not active in this tracker.
        """
        from ._context import is_active

        if run_id in self._own or is_active(self, run_id) or self.status().mode == "silent":
            return self._resumed_from(run_id)
        return self.get_run(run_id)
