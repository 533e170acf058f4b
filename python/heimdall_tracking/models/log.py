"""A model into the artifacts of a run, and from there into the registry."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError, RunStateError
from . import onnx, pytorch
from .folder import ModelInfo, finish
from .history import Histories
from .protocol import ModelLogger


def log_model(
    tracker: ModelLogger,
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
    run_id: str | None = None,
    files: Mapping[str, bytes] | None = None,
) -> ModelInfo:
    """Log a model: see `MLflowTracker.log_model`. `files` are further ones for its folder, by name."""
    path = artifact_path.strip("/")
    if run_id is None:
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
                # These files are for the wheel of the network; big weights are not written once more.
                training = sys.modules["heimdall_training"]
                if training.models.is_described(model):
                    training.save_model(model, folder, weights=native.input_name == "rss")
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
        # The call copies the folder into the journal before it returns: the temporary folder may go.
        upload = tracker.log_artifacts_dir(folder, path, run_id=run_id)
        if (error := getattr(upload, "error", None)) is not None:
            # A model without its files is none.
            raise error
    # Of two threads only one may make them.
    histories: Histories = vars(tracker).setdefault("_models", Histories())
    histories.add(info, tracker._before, functools.partial(tracker.set_tag, run_id=run_id))
    # Only one rank of a distributed training registers.
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
    if training is None:
        return None
    ours = (training.RssLocalizationNet, training.LocalizationNet, training.TorchLocalizationNet)
    if not isinstance(model, ours):
        return None
    return training.as_module(model)


def plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a model in the form that JSON gives it.

    Raises:
        InvalidInputError: JSON has no form for the metadata.
    """
    try:
        copied: dict[str, Any] = json.loads(json.dumps(dict(metadata), default=str))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"the metadata of a model is written as JSON, and cannot be: {error}"
        ) from error
    return copied
