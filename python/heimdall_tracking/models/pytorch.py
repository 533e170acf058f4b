"""A network of PyTorch as a model that stock MLflow loads, here and on other machines."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
import pickle
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from .._optional import need
from ..errors import InvalidInputError, MissingPackageError, WrongTypeError
from . import safetensors, signature
from .folder import STATE_PTH, STATE_SAFETENSORS, distributions_of, python_function, requirement, version_of

Serialization = Literal["auto", "pickle", "torchscript"]

DATA = "data"
WEIGHTS = "model.pth"
PICKLE_MODULE_FILE = "pickle_module_info.txt"
# Module that stock MLflow unpickles with; it reads files of `pickle` and `cloudpickle`.
PICKLE_MODULE = "mlflow.pytorch.pickle_module"
# The number counts the versions of the file: a process imports a name once.
LOADER = "heimdall_pyfunc_1"
INTERFACE = "interface.json"

logger = logging.getLogger("heimdall_tracking")


@dataclass(frozen=True)
class Saved:
    """Entries of the MLmodel file for the files that `save` has written."""

    flavors: dict[str, dict[str, Any]]
    requirements: list[str]
    signature: Mapping[str, str | None] | None
    example: Mapping[str, str] | None


def save(
    model: Any,
    folder: Path,
    *,
    input_example: Any = None,
    given_signature: Any = None,
    output_names: Sequence[str] | None = None,
    serialization: Serialization = "auto",
) -> Saved:
    """Write a module into a folder. The module, its mode, its device and its gradients stay as they are.

    Args:
        model: A `torch.nn.Module`, scripted or not.
        folder: The folder, which is empty.
        input_example: As for `MLflowTracker.log_model`.
        given_signature: As for `MLflowTracker.log_model`.
        output_names: As for `MLflowTracker.log_model`.
        serialization: As for `MLflowTracker.log_model`.

    Raises:
        InvalidInputError: The module can be written in no form, or fails with the example.
        WrongTypeError: `model` is no module, or the example or the output is no tensor.
    """
    torch = need("torch", "log_model of a module")
    model = unwrapped(model)
    if not isinstance(model, torch.nn.Module):
        raise WrongTypeError(
            "a model is a torch.nn.Module, an RssLocalizationNet of heimdall_training or an ONNX file, not "
            f"{type(model).__name__}"
        )
    (folder / DATA).mkdir(parents=True)
    inputs = signed = example = interface = None
    if input_example is not None:
        inputs = signature.as_inputs(input_example, model.forward)
        outputs, kind = signature.named_outputs(run(model, inputs), output_names)
        example = signature.save_example(inputs, folder)
        signed = {
            "inputs": signature.tensor_specs(inputs.tensors, with_names=not inputs.is_single),
            "outputs": signature.tensor_specs(outputs, with_names=kind != "tensor"),
            "params": None,
        }
        interface = _interface(inputs, outputs, kind)
    if given_signature is not None:
        signed = None if given_signature is False else signature.given(given_signature)

    form = _save_weights(model, folder / DATA / WEIGHTS, inputs, serialization)
    (folder / DATA / PICKLE_MODULE_FILE).write_text(PICKLE_MODULE, encoding="utf-8")
    _save_state(model, folder)

    flavors: dict[str, dict[str, Any]] = {
        "pytorch": {"code": None, "model_data": DATA, "pytorch_version": str(torch.__version__)},
        "python_function": python_function(
            "mlflow.pytorch", DATA, pickle_module_name=PICKLE_MODULE, config={"device": None}
        ),
    }
    if interface is not None:
        # Stock MLflow's loader cannot express several inputs or outputs, or bfloat16.
        (folder / DATA / INTERFACE).write_text(json.dumps(interface, indent=2) + "\n", encoding="utf-8")
        (folder / "code").mkdir()
        source = Path(__file__).with_name("_pyfunc_loader.py").read_text(encoding="utf-8")
        (folder / "code" / f"{LOADER}.py").write_text(source, encoding="utf-8")
        flavors["python_function"] = python_function(LOADER, DATA, code="code", config={"device": None})
    modules = {cls.__module__ for module in model.modules() for cls in type(module).__mro__}
    packages = {"torch"}
    if form != "torchscript":
        packages.update(
            distributions_of(modules - {"__main__", "builtins"}), [form] * (form == "cloudpickle")
        )
    served_by = f"mlflow=={version_of('mlflow')}" if version_of("mlflow") else "mlflow"
    requirements = [served_by, *(requirement(name) for name in sorted(packages))]
    return Saved(flavors, requirements, signed, example)


def unwrapped(model: Any) -> Any:
    """Return the module that a compiled or distributed one is made of: that one loads anywhere."""
    wrappers = ("DataParallel", "DistributedDataParallel")
    while True:
        if type(model).__name__ == "OptimizedModule" and hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif type(model).__name__ in wrappers and type(model).__module__.startswith("torch.nn.parallel"):
            model = model.module
        else:
            return model


def run(model: Any, inputs: signature.Inputs) -> Any:
    """Call a module in evaluation mode, without gradients, where its weights are; it is left as it was."""
    place = next(_tensors_of(model), None)
    moved = {
        name: tensor if place is None else tensor.to(place.device) for name, tensor in inputs.tensors.items()
    }
    with evaluating(model):
        try:
            return inputs.call(model, moved)
        except Exception as error:
            shapes = {name: (tuple(it.shape), str(it.dtype)) for name, it in moved.items()}
            raise InvalidInputError(f"the model fails with the input_example {shapes}: {error}") from error


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Set evaluation mode for a `with` block: no dropout, new statistics, gradients or random numbers."""
    torch = need("torch", "evaluating a module")
    modes = [(module, module.training) for module in model.modules()]
    devices = {tensor.device.index for tensor in _tensors_of(model) if tensor.device.type == "cuda"}
    try:
        # A class may have overridden `eval()` to do more, so each mode is set and restored by itself.
        for module, _ in modes:
            module.training = False
        with torch.no_grad(), torch.random.fork_rng(devices=sorted(devices)):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def on_cpu(model: Any) -> Any:
    """Return the module if all of it is on the CPU, else a copy that is; no GPU memory is used."""
    torch = need("torch", "copying a module")
    if all(tensor.device.type == "cpu" for tensor in _tensors_of(model)):
        return model
    if isinstance(model, torch.jit.ScriptModule):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            buffer = io.BytesIO()
            torch.jit.save(model, buffer)
            buffer.seek(0)
            return torch.jit.load(buffer, map_location="cpu")
    return copied_to_cpu(model)


def copied_to_cpu(model: Any) -> Any:
    """Copy a module, its tensors on the CPU and without gradients; shared tensors stay shared."""
    torch = need("torch", "copying a module")
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in filter(torch.is_tensor, [*module._parameters.values(), *vars(module).values()]):
            memo[id(tensor)] = _moved(tensor)
        for tensor in filter(torch.is_tensor, module._buffers.values()):
            memo[id(tensor)] = _moved(tensor)
    return copy.deepcopy(model, memo)


def _moved(tensor: Any) -> Any:
    torch = need("torch", "copying a module")
    moved = tensor.detach().to("cpu")
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(moved, requires_grad=tensor.requires_grad)
    return moved


def _tensors_of(model: Any) -> Iterator[Any]:
    yield from model.parameters()
    yield from model.buffers()


def _interface(inputs: signature.Inputs, outputs: Mapping[str, Any], kind: str) -> dict[str, Any] | None:
    """Describe the interface for our loader for `mlflow.pyfunc`; None where the stock loader will do."""
    known = [
        str(tensor.dtype).removeprefix("torch.") == signature.numpy_dtype(tensor)
        for tensor in [*inputs.tensors.values(), *outputs.values()]
    ]
    if inputs.is_single and kind == "tensor" and all(known):
        return None
    return {
        "inputs": [
            {"name": name, "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in inputs.tensors.items()
        ],
        "by_keyword": inputs.by_keyword,
        "outputs": list(outputs),
        "kind": kind,
    }


def _save_weights(
    model: Any, file: Path, inputs: signature.Inputs | None, serialization: Serialization
) -> str:
    """Write the module whole, and return the form: `torchscript`, `pickle` or `cloudpickle`."""
    torch = need("torch", "log_model of a module")
    if serialization not in ("auto", "pickle", "torchscript"):
        raise InvalidInputError(
            f"serialization={serialization!r} is not valid: it must be 'auto', 'pickle' or 'torchscript'"
        )
    if isinstance(model, torch.jit.ScriptModule):
        if serialization == "pickle":
            raise InvalidInputError("a scripted module cannot be pickled: leave serialization out")
        _save_script(model, file)
        return "torchscript"
    why: Exception | None = None
    if serialization != "torchscript":
        try:
            return _pickle(on_cpu(model), file)
        except Exception as error:
            if serialization == "pickle":
                if isinstance(error, MissingPackageError):
                    raise
                raise InvalidInputError(f"{_name(model)} cannot be pickled: {error}") from error
            why = error
    try:
        _save_script(scripted(model, inputs), file)
    except Exception as error:
        reason = f"it cannot be pickled ({why}), and " if why else ""
        hint = "" if inputs else "; with an input_example it would be traced"
        raise InvalidInputError(
            f"{_name(model)} cannot be written: {reason}it makes no TorchScript ({error}){hint}"
        ) from error
    if why is not None:
        logger.warning(
            "%s cannot be pickled (%s): it is written as TorchScript, which has its forward() alone",
            _name(model),
            why,
        )
    return "torchscript"


def scripted(model: Any, inputs: signature.Inputs | None) -> Any:
    """Return a module as TorchScript: traced with an example that is there, else compiled from its source."""
    torch = need("torch", "TorchScript")
    try:
        model = on_cpu(model)
        place = "cpu"
    except Exception:
        # A module that cannot be copied is traced on its device.
        place = next((str(tensor.device) for tensor in _tensors_of(model)), "cpu")
    with warnings.catch_warnings(), evaluating(model):
        # PyTorch warns that TorchScript has a successor, which stock MLflow 2 cannot load.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        if inputs is None:
            return torch.jit.script(model)
        moved = {name: tensor.to(place) for name, tensor in inputs.tensors.items()}
        more = {"strict": False, "check_trace": False}
        if inputs.by_keyword:
            traced = torch.jit.trace(model, example_kwarg_inputs=moved, **more)
        else:
            traced = torch.jit.trace(model, tuple(moved.values()), **more)
        _compare(inputs.call(model, moved), inputs.call(traced, moved))
        return traced


def _compare(expected: Any, found: Any) -> None:
    """Refuse a trace that computes something else than the module, as with random numbers."""
    torch = need("torch", "TorchScript")
    ours, _ = signature.named_outputs(expected, None)
    theirs, _ = signature.named_outputs(found, None)
    for (name, one), other in zip(ours.items(), theirs.values(), strict=True):
        if not torch.allclose(one, other, rtol=1e-5, atol=1e-6, equal_nan=True):
            raise InvalidInputError(f"its trace gives another {name!r} than it gives itself")


def _save_script(script: Any, file: Path) -> None:
    torch = need("torch", "TorchScript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        # The trace shares the module's tensors: a copy goes to the CPU.
        torch.jit.save(on_cpu(script), str(file))


def _pickle(model: Any, file: Path) -> str:
    """Pickle a module so that it loads where its class cannot be imported.

    Classes of a script, of a notebook and of modules that are not installed go into the pickle themselves;
    those of packages are imported when it is loaded.
    """
    torch = need("torch", "log_model of a module")
    own = _own_modules()
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    needs_value = sorted(cls.__qualname__ for cls in classes if cls.__module__ in {*own, "__main__"})
    try:
        cloudpickle = need("cloudpickle", "log_model of a class that is not installed")
    except MissingPackageError:
        if needs_value:
            raise
        torch.save(model, file, pickle_module=pickle)
        return "pickle"

    class Module:
        """The one member that `torch.save` uses of a module for pickling."""

        Pickler = cloudpickle.CloudPickler

    registered = [name for name in own if sys.modules[name] not in _by_value(cloudpickle)]
    for name in registered:
        cloudpickle.register_pickle_by_value(sys.modules[name])
    try:
        with warnings.catch_warnings():
            # The warnings are about the source of classes without a file: those classes are in the pickle.
            warnings.simplefilter("ignore")
            torch.save(model, file, pickle_module=Module)
    finally:
        for name in registered:
            cloudpickle.unregister_pickle_by_value(sys.modules[name])
    return "cloudpickle"


def _by_value(cloudpickle: Any) -> list[Any]:
    return [sys.modules.get(name) for name in cloudpickle.list_registry_pickle_by_value()]


def _own_modules() -> list[str]:
    """Modules that are imported and belong to no installed package: the user's own."""
    folders, packages = _installed()
    # The names are compared first: to resolve the links of thousands of files takes a while.
    inside = tuple(f"{folder}{os.sep}" for folder in folders)
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        ours = name.partition(".")[0] in ("__main__", "heimdall_tracking", "heimdall_training")
        if ours or getattr(module, "__name__", None) != name:
            continue
        if not isinstance(file, str) or file.startswith(inside):
            continue
        # Objects that pose as modules, such as torch.ops, name a file that does not exist.
        if not (path := Path(file)).is_absolute():
            continue
        path = path.resolve()
        if not str(path).startswith(inside) and packages.isdisjoint((path, *path.parents)):
            found.append(name)
    return found


def _installed() -> tuple[set[Path], set[Path]]:
    """Return the folders for packages alone, and the packages in folders that have other things as well."""
    schemes = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = {Path(sysconfig.get_path(name)) for name in schemes}
    folders |= {Path(entry) for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))}
    folders |= {folder.resolve() for folder in folders}
    packages = set()
    for place in {Path(entry).resolve() for entry in sys.path} - folders:
        # `pip install --target` writes here; the script itself may lie beside the packages.
        for package in metadata.distributions(path=[str(place)]):
            if package.read_text("RECORD") is not None:
                names = {file.parts[0] for file in package.files or () if file.parts}
                packages |= {place / name for name in names - {".."}}
    return folders, packages


def _save_state(model: Any, folder: Path) -> None:
    """Write the state dict in two forms that run no code when they are read."""
    torch = need("torch", "log_model of a module")
    state = {
        name: value.detach().to("cpu") if torch.is_tensor(value) else value
        for name, value in model.state_dict().items()
    }
    tensors = {name: value for name, value in state.items() if torch.is_tensor(value)}
    torch.save(state, folder / STATE_PTH)
    if len(tensors) != len(state):
        try:
            torch.load(folder / STATE_PTH, weights_only=True)
        except pickle.UnpicklingError as error:
            logger.warning("the state of %s that is no tensor is left out: %s", _name(model), error)
            torch.save(tensors, folder / STATE_PTH)
    try:
        safetensors.save(tensors, folder / STATE_SAFETENSORS, {"format": "pt"})
    except InvalidInputError as error:
        logger.warning("%s has no %s: %s", _name(model), STATE_SAFETENSORS, error)


def _name(model: Any) -> str:
    return type(model).__name__
