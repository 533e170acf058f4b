"""A network of ONNX as a model that stock MLflow loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from .._optional import need
from ..errors import ArtifactNotFoundError, InvalidInputError
from . import signature
from .folder import python_function, requirement, version_of
from .pytorch import Saved

WEIGHTS = "model.onnx"
# The order is stock MLflow's: a GPU where there is one.
PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]
# A message of protobuf has at most 2 GiB; larger weights stand in a file of their own.
LARGEST_MESSAGE = (1 << 31) - 1


def is_onnx(model: Any) -> bool:
    """Return True for the path of an ONNX file and for a `ModelProto` of the package onnx."""
    if isinstance(model, (str, PathLike)):
        return True
    return type(model).__name__ == "ModelProto" and type(model).__module__.startswith("onnx")


def save(model: Any, folder: Path, *, input_example: Any = None, given_signature: Any = None) -> Saved:
    """Write an ONNX network into a folder.

    Args:
        model: An `onnx.ModelProto` or the path of a file.
        folder: The folder, which is empty.
        input_example: As for `MLflowTracker.log_model`.
        given_signature: As for `MLflowTracker.log_model`.

    Raises:
        ArtifactNotFoundError: There is no such file.
        InvalidInputError: It is no valid network of ONNX.
        MissingPackageError: onnx is not installed.
    """
    onnx = need("onnx", "log_model of an ONNX network")
    target = folder / WEIGHTS
    if isinstance(model, (str, PathLike)):
        file = Path(fspath(model))
        if not file.is_file():
            raise ArtifactNotFoundError(f"there is no ONNX file {file}")
        graph = _load(onnx, file)
        if _has_external_data(graph):
            _write(onnx, onnx.load(str(file)), target)
        else:
            shutil.copyfile(file, target)
    else:
        graph = model
        _write(onnx, model, target)
    try:
        onnx.checker.check_model(str(target))
    except onnx.checker.ValidationError as error:
        raise InvalidInputError(f"the network is not valid ONNX: {error}") from error
    inputs = example = None
    if input_example is not None:
        names = [it.name for it in graph_inputs(graph)]
        inputs = _inputs(input_example, names)
        example = signature.save_example(inputs, folder)
    signed: Mapping[str, str | None] | None
    if given_signature is None:
        # One input needs no name: then MLflow takes arrays and tables for it.
        many = len(graph_inputs(graph)) > 1
        signed = {
            "inputs": json.dumps([_spec(onnx, it, with_name=many) for it in graph_inputs(graph)]),
            "outputs": json.dumps([_spec(onnx, it, with_name=True) for it in graph.graph.output]),
            "params": None,
        }
    else:
        signed = None if given_signature is False else signature.given(given_signature)
    flavors: dict[str, dict[str, Any]] = {
        "onnx": {
            "code": None,
            "data": WEIGHTS,
            "onnx_version": str(onnx.__version__),
            "providers": PROVIDERS,
            "onnx_session_options": None,
        },
        "python_function": python_function("mlflow.onnx", WEIGHTS),
    }
    served_by = f"mlflow=={version_of('mlflow')}" if version_of("mlflow") else "mlflow"
    requirements = [served_by, *(requirement(name) for name in ("numpy", "onnx", "onnxruntime"))]
    return Saved(flavors, requirements, signed, example)


def graph_inputs(model: Any) -> list[Any]:
    """Return the inputs of a network without its weights, which old files list among them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [it for it in model.graph.input if it.name not in weights]


def shape_of(value: Any) -> list[int]:
    """Return the shape of an input or output; -1 is any length."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims]


def _load(onnx: Any, file: Path) -> Any:
    protobuf = need("google.protobuf.message", "log_model of an ONNX network")
    try:
        return onnx.load(str(file), load_external_data=False)
    except (protobuf.DecodeError, ValueError) as error:
        raise InvalidInputError(f"{file} is no ONNX file: {error}") from error


def _has_external_data(graph: Any) -> bool:
    return any(tensor.external_data for tensor in graph.graph.initializer)


def _write(onnx: Any, model: Any, target: Path) -> None:
    if model.ByteSize() > LARGEST_MESSAGE:
        # `onnx.save` takes the numbers out of the network that it is given.
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        onnx.save(copied, str(target), save_as_external_data=True, location=f"{WEIGHTS}.data")
    else:
        onnx.save(model, str(target))


def _spec(onnx: Any, value: Any, with_name: bool) -> dict[str, Any]:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return signature.spec(value.name if with_name else None, str(dtype), shape_of(value))


def _inputs(example: Any, names: list[str]) -> signature.Inputs:
    """Return an example as arrays: ONNX needs no torch."""
    if isinstance(example, Mapping):
        given = {str(name): value for name, value in example.items()}
    else:
        values = list(example) if isinstance(example, (tuple, list)) and len(names) > 1 else [example]
        if len(values) != len(names):
            raise InvalidInputError(f"input_example has {len(values)} inputs, the network has {names}")
        given = dict(zip(names, values, strict=True))
    if given.keys() != set(names):
        raise InvalidInputError(f"input_example has the inputs {sorted(given)}, the network has {names}")
    numpy = need("numpy", "an input example")
    arrays = {
        name: signature.array(given[name]) if hasattr(given[name], "detach") else numpy.asarray(given[name])
        for name in names
    }
    return signature.Inputs(arrays, is_single=len(names) == 1, by_keyword=False)
