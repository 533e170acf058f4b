"""A model into the artifacts of the active run, and from there into the registry."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError, RunStateError
from . import onnx, pytorch
from .folder import ModelInfo, finish

if TYPE_CHECKING:
    from ..tracker import MLflowTracker

# What MLflow's UI finds the models of a run by.
HISTORY = "mlflow.log-model.history"
# MLflow cuts longer tags, and half of a JSON text is none.
LONGEST_TAG = 5000


class Histories:
    """The models of a tracker's active runs, as their tag lists them."""

    def __init__(self) -> None:
        self._entries: dict[str, list[dict[str, Any]]] = {}

    def add(self, tracker: MLflowTracker, info: ModelInfo) -> None:
        """Add a model to the tag of its run, the active one."""
        active = tracker.active_run_ids
        self._entries = {run_id: entries for run_id, entries in self._entries.items() if run_id in active}
        if info.run_id not in self._entries:
            before = tracker._resumed_from()
            self._entries[info.run_id] = _listed(before.tags.get(HISTORY, "[]")) if before else []
        flavors = {
            name: {key: value for key, value in flavor.items() if key != "config"}
            for name, flavor in info.flavors.items()
        }
        entries = self._entries[info.run_id]
        entries.append(
            {
                "run_id": info.run_id,
                "artifact_path": info.artifact_path,
                "utc_time_created": info.utc_time_created,
                "model_uuid": info.model_uuid,
                "flavors": flavors,
            }
        )
        # The oldest go first; all of them stay among the artifacts.
        while len(json.dumps(entries)) > LONGEST_TAG and len(entries) > 1:
            del entries[0]
        tracker.set_tag(HISTORY, json.dumps(entries))


def _listed(tag: str) -> list[dict[str, Any]]:
    with contextlib.suppress(ValueError):
        entries = json.loads(tag)
        if isinstance(entries, list):
            return entries
    return []


def log_model(
    tracker: MLflowTracker,
    model: Any,
    artifact_path: str = "model",
    *,
    input_example: Any = None,
    signature: Any = None,
    registered_model_name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    description: str = "",
    tags: Mapping[str, Any] | None = None,
    pip_requirements: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    serialization: pytorch.Serialization = "auto",
    files: Mapping[str, bytes] | None = None,
) -> ModelInfo:
    """Log a model: see `MLflowTracker.log_model`. `files` are further ones for its folder, by name."""
    path = artifact_path.strip("/")
    run_id = tracker.active_run_id
    if run_id is None:
        raise RunStateError("no run is active: call start_run() before log_model()")
    if not path:
        raise InvalidInputError("artifact_path is empty: a model has a folder of its own, such as 'model'")
    tracker._check_artifact_file(path)
    if metadata is not None:
        metadata = plain(metadata)
    with tempfile.TemporaryDirectory(prefix="heimdall-model-") as name:
        folder = Path(name)
        if onnx.is_onnx(model):
            saved = onnx.save(model, folder, input_example=input_example, given_signature=signature)
        else:
            native = native_module(model)
            if native is not None:
                # What the wheel that it is of reads itself.
                sys.modules["heimdall_training"].save_model(model, folder)
                model, serialization = native, "torchscript"
                input_example = native.example(2) if input_example is None else input_example
                output_names = output_names or native.output_names
            saved = pytorch.save(
                model,
                folder,
                input_example=input_example,
                given_signature=signature,
                output_names=output_names,
                serialization=serialization,
            )
        for file, content in (files or {}).items():
            (folder / file).write_bytes(content)
        info = finish(
            folder,
            flavors=saved.flavors,
            requirements=list(pip_requirements or saved.requirements),
            run_id=run_id,
            artifact_path=path,
            signature=saved.signature,
            example=saved.example,
            metadata=metadata,
        )
        # Copied into the journal before it returns: the temporary folder may go.
        tracker.log_artifacts_dir(folder, path)
    if tracker._models is None:
        tracker._models = Histories()
    tracker._models.add(tracker, info)
    # Of the ranks of a distributed training, one registers.
    if registered_model_name is None or tracker.status().mode == "silent":
        return info
    version = tracker.register_model(registered_model_name, info.model_uri, description, tags)
    return dataclasses.replace(
        info, registered_model_name=registered_model_name, registered_model_version=version
    )


def native_module(model: Any) -> Any:
    """Return the network of `heimdall_training` as a module of torch, which loads where that wheel is not.

    For anything else this is None.
    """
    training = sys.modules.get("heimdall_training")
    if training is None or not isinstance(model, training.RssLocalizationNet):
        return None
    return training.as_module(model)


def plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was said of a model as JSON has it.

    Raises:
        InvalidInputError: JSON has no form for it.
    """
    try:
        copied: dict[str, Any] = json.loads(json.dumps(dict(metadata), default=str))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"the metadata of a model is written as JSON, and cannot be: {error}"
        ) from error
    return copied
