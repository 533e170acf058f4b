"""Inputs and outputs of a model: the example, and the signature that MLflow keeps as JSON."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._optional import need
from ..errors import InvalidInputError, WrongTypeError
from .folder import INPUT_EXAMPLE, SERVING_EXAMPLE


@dataclass(frozen=True)
class Inputs:
    """An input example as torch takes it.

    Attributes:
        tensors: The tensors by name, in the order of the call.
        is_single: True for one tensor, which needs no name.
        by_keyword: True where the model is called with the names.
    """

    tensors: Mapping[str, Any]
    is_single: bool
    by_keyword: bool

    def call(self, model: Any, tensors: Mapping[str, Any] | None = None) -> Any:
        """Call a model with these tensors, or with others in their place."""
        values = tensors or self.tensors
        return model(**values) if self.by_keyword else model(*values.values())


def as_inputs(example: Any, forward: Any) -> Inputs:
    """Return an input example, which is one array or tensor, several in a tuple or list, or a dict of them.

    Args:
        example: The example.
        forward: Function that is called with the example; its parameters give several inputs their names.

    Raises:
        WrongTypeError: The example has something else in it.
    """
    if isinstance(example, Mapping):
        tensors = {str(name): as_tensor(value, str(name)) for name, value in example.items()}
        if not tensors:
            raise InvalidInputError(
                "input_example is an empty dict: it must have an array or tensor per input"
            )
        return Inputs(tensors, is_single=False, by_keyword=True)
    if isinstance(example, (tuple, list)) and any(hasattr(value, "shape") for value in example):
        names = _parameters(forward, len(example))
        tensors = {name: as_tensor(value, name) for name, value in zip(names, example, strict=True)}
        return Inputs(tensors, is_single=False, by_keyword=False)
    (name,) = _parameters(forward, 1)
    return Inputs({name: as_tensor(example, name)}, is_single=True, by_keyword=False)


def as_tensor(value: Any, name: str) -> Any:
    """Return an array or tensor as a tensor."""
    torch = need("torch", "an input example")
    if isinstance(value, torch.Tensor):
        return value.detach()
    if type(value).__module__.partition(".")[0] in ("pandas", "polars"):
        raise WrongTypeError(f"input {name!r} is a {type(value).__name__}: give its .to_numpy()")
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise WrongTypeError(
            f"input {name!r} is no array or tensor of numbers but {type(value).__name__}: {error}"
        ) from error


def _parameters(forward: Any, count: int) -> list[str]:
    names = [f"input_{index}" for index in range(count)] if count > 1 else ["input"]
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):
        return names
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = [it.name for it in parameters if it.kind in kinds and it.name != "self"]
    return [*known[:count], *names[len(known) :]][:count]


def named_outputs(output: Any, names: Sequence[str] | None) -> tuple[dict[str, Any], str]:
    """Return a model's output as tensors by name, and its kind: `tensor`, `tuple` or `dict`.

    Args:
        output: Value that the model has returned.
        names: Names to give them; default those of a dict or named tuple, else `output`, or `output_0`, ….

    Raises:
        WrongTypeError: There is something else than tensors in it.
        InvalidInputError: There are more or fewer names than outputs.
    """
    torch = need("torch", "a signature")
    if isinstance(output, torch.Tensor):
        kind, found = "tensor", {"output": output}
    elif isinstance(output, Mapping):
        kind, found = "dict", {str(name): value for name, value in output.items()}
    elif isinstance(output, (tuple, list)):
        fields = getattr(output, "_fields", [f"output_{index}" for index in range(len(output))])
        kind, found = "tuple", dict(zip(fields, output, strict=True))
    else:
        kind, found = "", {}
    if not found or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise WrongTypeError(
            f"the model returns {type(output).__name__}: MLflow serves a tensor, or a tuple, list or "
            "dict of tensors"
        )
    if names is not None:
        if len(names) != len(found):
            raise InvalidInputError(
                f"output_names are {list(names)!r}, and the model returns {len(found)} tensors"
            )
        found = dict(zip(names, found.values(), strict=True))
    return found, kind


def numpy_dtype(tensor: Any) -> str:
    """Name the type of an array of the tensor's numbers: NumPy knows no bfloat16 and no 8-bit floats."""
    name = str(tensor.dtype).removeprefix("torch.")
    return "float32" if name == "bfloat16" or name.startswith("float8") else name


def tensor_specs(tensors: Mapping[str, Any], with_names: bool) -> str:
    """Describe tensors as MLflow does, in JSON. The first axis is the batch, of any length."""
    specs = []
    for name, tensor in tensors.items():
        shape = [-1, *tensor.shape[1:]] if tensor.ndim else []
        specs.append(spec(name if with_names else None, numpy_dtype(tensor), shape))
    return json.dumps(specs)


def spec(name: str | None, dtype: str, shape: Sequence[int]) -> dict[str, Any]:
    """Return one entry of a signature."""
    named = {} if name is None else {"name": name}
    return {**named, "type": "tensor", "tensor-spec": {"dtype": dtype, "shape": list(shape)}}


def given(signature: Any) -> dict[str, str | None]:
    """Return a signature that the caller has given, as MLmodel has it.

    Args:
        signature: A `mlflow.models.ModelSignature`, or a dict with `inputs` and `outputs`, each a text of
            JSON or the list that it is of.

    Raises:
        WrongTypeError: It is neither.
    """
    known = signature.to_dict() if hasattr(signature, "to_dict") else signature
    if not isinstance(known, Mapping) or not known.keys() <= {"inputs", "outputs", "params"}:
        raise WrongTypeError(
            "a signature is a ModelSignature of MLflow or a dict with inputs and outputs, not "
            f"{type(signature).__name__}"
        )

    def text(value: Any) -> str | None:
        return value if value is None or isinstance(value, str) else json.dumps(value)

    return {key: text(known.get(key)) for key in ("inputs", "outputs", "params")}


def save_example(inputs: Inputs, folder: Path) -> dict[str, str]:
    """Write an input example as MLflow does, and return its entry for MLmodel."""
    lists = {name: array(tensor).tolist() for name, tensor in inputs.tensors.items()}
    content = next(iter(lists.values())) if inputs.is_single else lists
    (folder / INPUT_EXAMPLE).write_text(json.dumps(content), encoding="utf-8")
    (folder / SERVING_EXAMPLE).write_text(json.dumps({"inputs": content}, indent=2), encoding="utf-8")
    return {"artifact_path": INPUT_EXAMPLE, "serving_input_path": SERVING_EXAMPLE, "type": "ndarray"}


def array(tensor: Any) -> Any:
    """Return a tensor as an array of NumPy; an array is one already."""
    if not hasattr(tensor, "detach"):
        return tensor
    torch = need("torch", "a signature")
    return tensor.detach().to("cpu", getattr(torch, numpy_dtype(tensor))).numpy()
