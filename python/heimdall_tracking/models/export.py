"""From a trained network to ONNX: exported, checked against torch, logged, registered, staged."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from .._optional import need
from ..errors import ArtifactNotFoundError, ExportError, HeimdallError, InvalidInputError, NotFoundError
from ..heimdall_defaults import ONNX_INPUT_NAME
from . import load, log, onnx, pytorch, signature
from .folder import MLMODEL, read_mlmodel
from .history import HISTORY, listed
from .protocol import ModelTracker

NAME = "heimdall-localization-onnx"
OPSET = 14
# Beyond these, `torch.onnx.export` has its other exporter only.
OPSETS = range(9, 21)
BATCHES = 5
BATCH_SIZE = 8
TOLERANCE = 1e-5
METADATA = "metadata.json"
# Name, then alias or number or stage, then the path below.
VERSION = re.compile(r"models:/([^/]+?)(?:@([^/@]+)|/([^/]+))(?:/(.+))?")
# Input and outputs of the localisation networks.
INPUT_SHAPE = (3, 128, 32)
OUTPUT_NAMES = ("positions", "uncertainties")


@dataclasses.dataclass(frozen=True)
class OnnxExport:
    """An export that has been checked, logged and registered.

    Attributes:
        run_id: Run that the export is logged in.
        source_run_id: Run that the network was trained in: the source, or the one that its URI or version is
            of.
        model_uri: `runs:/<run id>/<artifact path>`: a folder with `model.onnx` and `MLmodel`.
        model_name: Name that the export is registered under; None where it is not.
        version: Version under that name.
        stage: Stage that the version is in.
        metadata: Content of `metadata.json` in the folder.
    """

    run_id: str
    source_run_id: str | None
    model_uri: str
    model_name: str | None
    version: str | None
    stage: str | None
    metadata: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Source:
    """A network to export, and facts about it."""

    module: Any
    run_id: str | None = None
    model_type: str | None = None
    backbone: str | None = None
    sample: Callable[[int, Any], Any] | None = None
    input_name: str | None = None
    output_names: Sequence[str] | None = None
    # Per output: the factor from network units to output units; a number, or one per column.
    units: Sequence[Any] = ()


def export_onnx(
    tracker: ModelTracker,
    source: Any = None,
    *,
    module: Any = None,
    metric: str = "val/loss",
    compare_fn: Callable[[Iterable[float]], float] = min,
    input_example: Any = None,
    input_name: str | None = None,
    output_names: Sequence[str] | None = None,
    opset: int = OPSET,
    tolerance: float | None = None,
    artifact_path: str = "onnx",
    model_name: str | None = NAME,
    stage: str | None = "Staging",
    backbone: str | None = None,
    description: str = "",
    tags: Mapping[str, Any] | None = None,
) -> OnnxExport:
    """Export a network to ONNX: see `MLflowTracker.export_onnx`."""
    for package in ("onnx", "onnxruntime"):
        need(package, "export_onnx")
    if opset not in OPSETS:
        raise InvalidInputError(f"opset={opset} is not valid: it must be {OPSETS[0]} to {OPSETS[-1]}")
    if model_name is None:
        stage = None
    with tempfile.TemporaryDirectory(prefix="heimdall-export-") as name:
        folder = Path(name)
        found = _find(tracker, source, module, metric, compare_fn, folder)
        inputs = _inputs(found, input_example)
        names = output_names or found.output_names
        outputs, _ = signature.named_outputs(pytorch.run(found.module, inputs), names or None)
        if names is None and len(outputs) == len(OUTPUT_NAMES):
            outputs = dict(zip(OUTPUT_NAMES, outputs.values(), strict=True))
        named = dict(zip([_input_name(found, inputs, input_name)], inputs.tensors, strict=False))
        input_names = [*named, *list(inputs.tensors)[len(named) :]]
        file = folder / onnx.WEIGHTS
        _write(found.module, inputs, input_names, list(outputs), opset, file)
        limit = TOLERANCE if tolerance is None else tolerance
        metrics = check(found, inputs, input_names, list(outputs), limit, file)
        record = _record(found, inputs, outputs, backbone, file, metrics, opset)
        info = _logged(tracker, found, file, artifact_path, record)
    result = OnnxExport(
        run_id=info.run_id,
        source_run_id=found.run_id,
        model_uri=info.model_uri,
        model_name=model_name,
        version=None,
        stage=stage,
        metadata=record,
    )
    # Only one rank of a distributed training registers.
    if model_name is None or tracker.status().mode == "silent":
        return result
    known = {
        "framework": "pytorch",
        "format": "onnx",
        "input_shape": ",".join(map(str, record["input_shape"])),
        "output_count": str(len(outputs)),
    }
    version = tracker.register_model(model_name, info.model_uri, description, {**known, **(tags or {})})
    if stage is not None:
        tracker.transition_model_stage(model_name, version, stage)
    return dataclasses.replace(result, version=version)


def _find(
    tracker: ModelTracker,
    source: Any,
    module: Any,
    metric: str,
    compare_fn: Callable[[Iterable[float]], float],
    folder: Path,
) -> Source:
    """Find the network: in the best run, a run, a model's URI, a checkpoint file, or as it is given."""
    if source is None:
        best = tracker.get_best_run(metric, compare_fn)
        if best is None:
            raise NotFoundError(
                f"no run of the experiment {tracker.experiment_name!r} has the metric {metric!r}: name a "
                "run, a checkpoint or a module to export"
            )
        source = best["run_id"]
    if not isinstance(source, (str, PathLike)):
        return _of_module(source, None)
    path = load.local_path(source)
    if path is not None and path.is_file():
        return _of_checkpoint(path, module, None)
    if path is not None and path.is_dir():
        return _of_folder(path, module, None)
    text = fspath(source)
    if path is not None and not (len(text) == 32 and all(it in "0123456789abcdef" for it in text)):
        raise ArtifactNotFoundError(f"there is no run, checkpoint or folder {text!r}")
    fetched = folder / "source"
    fetched.mkdir()
    if path is None:
        uri, below, run_id = _resolved(tracker, text)
        local = Path(tracker.download_artifacts(uri, below, str(fetched)))
        if local.is_file():
            return _of_checkpoint(local, module, run_id)
        found = _of_folder(local, module, run_id)
        if run_id is None and text.startswith("models:") and (local / MLMODEL).is_file():
            # The registry does not know the run: a model that MLflow 3 has logged is no version of it.
            found = dataclasses.replace(found, run_id=read_mlmodel(local).get("run_id"))
        return found
    return _of_run(tracker, text, module, fetched)


def _resolved(tracker: ModelTracker, uri: str) -> tuple[str, str, str | None]:
    """Return the URI with a version's number for a stage or alias, the path below it, and its run."""
    if uri.startswith("runs:"):
        return uri, "", uri.removeprefix("runs:").strip("/").split("/")[0]
    named = VERSION.fullmatch(uri.rstrip("/"))
    if named is None:
        return uri, "", None
    name, alias, pick, path = named.groups()
    if alias or pick.lower() == "latest":
        version = tracker.get_model_version_by_alias(name, alias or pick)
    elif pick.isdecimal():
        version = tracker.get_model_version(name, pick)
    else:
        in_stage = tracker.get_latest_versions(name, [pick])
        if not in_stage:
            raise NotFoundError(f"the registered model {name!r} has no version in the stage {pick!r}")
        version = in_stage[0]
    return f"models:/{name}/{version.version}", path or "", version.run_id


def _of_run(tracker: ModelTracker, run_id: str, module: Any, folder: Path) -> Source:
    """Find the model that a run has logged, else its best checkpoint, else its last."""
    run = tracker.get_run(run_id)
    paths = [entry["artifact_path"] for entry in listed(run.tags.get(HISTORY, "[]"))]
    for path in [*reversed(paths), "model"]:
        try:
            local = Path(tracker.download_artifacts(f"runs:/{run_id}/{path}", dst=str(folder)))
        except (NotFoundError, ArtifactNotFoundError):
            continue
        if local.is_dir() and (_is_torch(local) if module is None else load.has_state(local)):
            return _of_folder(local, module, run_id)
    try:
        local = Path(tracker.download_artifacts(f"runs:/{run_id}/checkpoints", dst=str(folder)))
        found = [path for path in local.iterdir() if path.suffix in (".ckpt", ".pt", ".pth")]
    except (NotFoundError, ArtifactNotFoundError):
        found = []
    if not found:
        raise NotFoundError(f"run {run_id} has no model and no checkpoint among its artifacts")
    return _of_checkpoint(min(found, key=_score), module, run_id)


def _is_torch(folder: Path) -> bool:
    if load.config_of(folder) is not None:
        return True
    return (folder / MLMODEL).is_file() and "pytorch" in read_mlmodel(folder)["flavors"]


def _score(checkpoint: Path) -> tuple[int, float, str]:
    """Return a key that sorts the best checkpoint first: the loss that it was kept for, if it has one."""
    content = _checkpoint(checkpoint)
    if isinstance(content, Mapping):
        loss = (content.get("metrics") or {}).get("val/loss")
        for state in (content.get("callbacks") or {}).values():
            if loss is None and isinstance(state, Mapping) and state.get("best_model_score") is not None:
                is_best = Path(str(state.get("best_model_path"))).name == checkpoint.name
                loss = 0.0 if is_best else None
        if loss is not None:
            return 0, float(loss), checkpoint.name
    return 1, float(checkpoint.stem != "last"), checkpoint.name


def _of_folder(folder: Path, module: Any, run_id: str | None) -> Source:
    if module is not None:
        return _of_module(load.load_folder(folder, _made(module), None, "cpu", None), run_id)
    if load.config_of(folder) is not None:
        training = need("heimdall_training", "export_onnx of a network of heimdall_training")
        return _of_module(training.load_model(folder), run_id)
    found = _of_module(load.load_folder(folder, None, "pytorch", "cpu", None), run_id)
    described = read_mlmodel(folder).get("metadata") or {}
    return dataclasses.replace(
        found,
        model_type=described.get("model_type") or found.model_type,
        backbone=described.get("backbone") or found.backbone,
    )


def _of_checkpoint(file: Path, module: Any, run_id: str | None) -> Source:
    content = _checkpoint(file)
    if not isinstance(content, Mapping):
        raise InvalidInputError(f"{file} holds a {type(content).__name__}, not a state dict or checkpoint")
    given = content.get("hyper_parameters") or {}
    described = given.get("model") if isinstance(given, Mapping) else None
    state = content.get("state_dict", content)
    if module is None and isinstance(described, Mapping) and {"receivers", "backbone"} & {*described}:
        return _of_module(_native_net(described, state), run_id)
    if module is None:
        raise InvalidInputError(
            f"{file} has weights and not the network that they are of: give it by module=…, a module or a "
            "callable that makes one"
        )
    made = _made(module, given if isinstance(given, Mapping) else {})
    load.fill(made, dict(state))
    return _of_module(made, run_id)


def _checkpoint(file: Path) -> Any:
    import pickle

    torch = need("torch", "export_onnx")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise InvalidInputError(
            f"{file} cannot be read as a checkpoint of tensors and plain values (weights_only=True): {error}"
        ) from error


def _native_net(described: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
    training = need("heimdall_training", "export_onnx of a checkpoint of heimdall_training")
    model = training.models.make_model(described)
    model.load_state_dict(dict(state))
    return model


def _made(module: Any, hyper_parameters: Mapping[str, Any] | None = None) -> Any:
    """Return a given module, or make one: a class gets the hyperparameters that it asks for."""
    import inspect

    torch = need("torch", "export_onnx")
    if isinstance(module, torch.nn.Module):
        return module
    if not callable(module):
        raise InvalidInputError(
            f"module must be a torch.nn.Module or a callable that makes one, not {type(module).__name__}"
        )
    parameters = inspect.signature(module).parameters
    known = {name: value for name, value in (hyper_parameters or {}).items() if name in parameters}
    return module(**known)


def _of_module(model: Any, run_id: str | None) -> Source:
    torch = need("torch", "export_onnx")
    native = log.native_module(model)
    if native is not None:
        return Source(
            native,
            run_id,
            type(model).__name__,
            getattr(native, "backbone_name", None),
            sample=native.example,
            input_name=native.input_name,
            output_names=native.output_names,
            units=(native.degrees_per_unit.numpy(), native.position_scale_m),
        )
    model = pytorch.unwrapped(model)
    if not isinstance(model, torch.nn.Module):
        raise InvalidInputError(
            "the source must be a run, the URI of a model, a checkpoint file, a torch.nn.Module or an "
            f"RssLocalizationNet, not {type(model).__name__}"
        )
    backbone = getattr(model, "backbone_name", None)
    placed = pytorch.on_cpu(model)
    if any(it.is_floating_point() and it.dtype.itemsize < 4 for it in placed.parameters()):
        # CPUs have few operations of half precision: the file has single precision, and so has the module
        # that the file is compared with.
        placed = copy.deepcopy(placed).float()
    return Source(
        placed,
        run_id,
        getattr(model, "original_name", None) or type(model).__name__,
        backbone if isinstance(backbone, str) else None,
    )


def _inputs(found: Source, example: Any) -> signature.Inputs:
    torch = need("torch", "export_onnx")
    if example is None:
        drawn = torch.Generator().manual_seed(0)
        example = found.sample(2, drawn) if found.sample else torch.randn(2, *INPUT_SHAPE, generator=drawn)
    return signature.as_inputs(example, found.module.forward)


def _input_name(found: Source, inputs: signature.Inputs, given: str | None) -> str:
    if given or found.input_name:
        return given or found.input_name or ""
    (first, tensor), *others = inputs.tensors.items()
    return ONNX_INPUT_NAME if not others and tuple(tensor.shape[1:]) == INPUT_SHAPE else first


def _write(
    module: Any,
    inputs: signature.Inputs,
    input_names: list[str],
    output_names: list[str],
    opset: int,
    file: Path,
) -> None:
    """Export by the exporter that is made for these opsets; the newer one of torch begins with opset 18."""
    torch = need("torch", "export_onnx")
    axes = {name: {0: "batch"} for name in [*input_names, *output_names]}
    try:
        with warnings.catch_warnings(), pytorch.evaluating(module):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                () if inputs.by_keyword else tuple(inputs.tensors.values()),
                str(file),
                kwargs=dict(inputs.tensors) if inputs.by_keyword else None,
                dynamo=False,
                opset_version=opset,
                do_constant_folding=True,
                input_names=input_names,
                output_names=output_names,
                dynamic_axes=axes,
            )
    except Exception as error:
        raise ExportError(f"{type(module).__name__} cannot be exported to ONNX: {error}") from error


def check(
    found: Source,
    inputs: signature.Inputs,
    input_names: Sequence[str],
    output_names: Sequence[str],
    tolerance: float,
    file: Path,
) -> dict[str, Any]:
    """Compare an exported file with its module on random batches, and time both.

    Returns:
        Mean absolute difference of each output, in the unit of the output, and milliseconds per batch. The
        first batch of each length is not timed.

    Raises:
        ExportError: A difference, in the unit that the network counts in, is not below the tolerance, a
            number is not finite in one of them alone, or the batch axis is not free.
    """
    torch = need("torch", "export_onnx")
    numpy = need("numpy", "export_onnx")
    runtime = need("onnxruntime", "export_onnx")
    try:
        session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        graph = need("onnx", "export_onnx").load(str(file), load_external_data=False)
        for value in [*onnx.graph_inputs(graph), *graph.graph.output]:
            if onnx.shape_of(value)[:1] != [-1]:
                raise ExportError(f"{value.name!r} has a fixed batch size, {onnx.shape_of(value)}")
        drawn = torch.Generator().manual_seed(1)
        units = found.units or [1.0] * len(output_names)
        measured, compared = dict.fromkeys(output_names, 0.0), dict.fromkeys(output_names, 0.0)
        seconds = {"onnx": 0.0, "pytorch": 0.0}
        # The first batch of each length makes plans and caches; servers send batches of one.
        for size, is_timed in [(1, False), (BATCH_SIZE, False), *[(BATCH_SIZE, True)] * BATCHES]:
            batch = _batch(found, inputs, size, drawn)
            fed = dict(zip(input_names, map(signature.array, batch.values()), strict=True))
            begun = time.perf_counter()
            theirs = session.run(list(output_names), fed)
            middle = time.perf_counter()
            with pytorch.evaluating(found.module):
                ours = inputs.call(found.module, batch)
            if is_timed:
                seconds["onnx"] += middle - begun
                seconds["pytorch"] += time.perf_counter() - middle
            expected, _ = signature.named_outputs(ours, output_names)
            for (name, one), other, unit in zip(expected.items(), theirs, units, strict=True):
                array = signature.array(one)
                if array.shape != other.shape:
                    raise ExportError(f"{name!r} has the shape {other.shape} and by torch {array.shape}")
                difference = numpy.abs(array.astype(numpy.float64) - other.astype(numpy.float64))
                difference = numpy.where(_same(numpy, array, other), 0.0, difference)
                in_unit = float((difference / unit).mean())
                if is_timed:
                    measured[name] += float(difference.mean()) / BATCHES
                    compared[name] += in_unit / BATCHES
                else:
                    _check_difference(name, in_unit, tolerance, f"a batch of {size}")
    except HeimdallError:
        raise
    except Exception as error:
        raise ExportError(f"the exported network does not run: {error}") from error
    for name, difference in compared.items():
        _check_difference(name, difference, tolerance, f"the mean of {BATCHES} batches of {BATCH_SIZE}")
    milliseconds = {kind: 1000 * total / BATCHES for kind, total in seconds.items()}
    return {
        **{f"{name}_mae": difference for name, difference in measured.items()},
        "inference_time_onnx_ms": milliseconds["onnx"],
        "inference_time_pytorch_ms": milliseconds["pytorch"],
        "speedup": milliseconds["pytorch"] / milliseconds["onnx"],
        "passed": True,
    }


def _check_difference(name: str, difference: float, tolerance: float, where: str) -> None:
    if not difference < tolerance:
        raise ExportError(
            f"the exported network is another: {name!r} differs by {difference:.3g} in the network's own "
            f"unit on {where} random rows, and {tolerance:.3g} is allowed; nothing was logged"
        )


def _same(numpy: Any, one: Any, other: Any) -> Any:
    """Return a mask that is True where both are the same infinity, or both NaN."""
    return (one == other) | (numpy.isnan(one) & numpy.isnan(other))


def _batch(found: Source, inputs: signature.Inputs, size: int, drawn: Any) -> dict[str, Any]:
    """Draw random rows: standard normal numbers; for integer inputs, values of the example in any order."""
    torch = need("torch", "export_onnx")
    if found.sample is not None:
        (name,) = inputs.tensors
        return {name: found.sample(size, drawn)}
    batch = {}
    for name, tensor in inputs.tensors.items():
        shape = (size, *tensor.shape[1:])
        if tensor.is_floating_point():
            batch[name] = torch.randn(shape, generator=drawn).to(tensor.dtype)
        else:
            flat = tensor.reshape(-1)
            count = int(torch.tensor(shape).prod())
            batch[name] = flat[torch.randint(len(flat), (count,), generator=drawn)].reshape(shape)
    return batch


def _record(
    found: Source,
    inputs: signature.Inputs,
    outputs: Mapping[str, Any],
    backbone: str | None,
    file: Path,
    metrics: Mapping[str, Any],
    opset: int,
) -> dict[str, Any]:
    parameters = list(found.module.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    size = file.stat().st_size
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return {
        "model_type": found.model_type,
        "format": "onnx",
        "backbone": backbone or found.backbone,
        # Shapes are those of one row.
        "input_shape": [1, *next(iter(inputs.tensors.values())).shape[1:]],
        "output_names": list(outputs),
        "output_shapes": {name: [1, *tensor.shape[1:]] for name, tensor in outputs.items()},
        "opset": opset,
        "export_date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "onnx_file_size_bytes": size,
        "onnx_file_size_mb": size / (1 << 20),
        "onnx_file_sha256": digest.hexdigest(),
        "mlflow_run_id": found.run_id,
        "pytorch_params": {"total": total, "trainable": trainable, "frozen": total - trainable},
        "inference_metrics": dict(metrics),
    }


def _logged(
    tracker: ModelTracker, found: Source, file: Path, artifact_path: str, record: Mapping[str, Any]
) -> Any:
    """Log the folder in the active run, else in one of its own: that of the training has ended."""
    files = {METADATA: (json.dumps(record, indent=2) + "\n").encode()}
    metrics = {
        f"onnx/{name}": value
        for name, value in record["inference_metrics"].items()
        if not isinstance(value, bool)
    }

    def logged(run_id: str | None) -> Any:
        tracker.log_metrics(metrics, run_id=run_id)
        return log.log_model(tracker, file, artifact_path, metadata=record, files=files, run_id=run_id)

    if (active := tracker.active_run_id) is not None:
        return logged(active)
    tags = {"phase": "export", "model": found.model_type or "unknown"}
    with tracker.run("export-onnx", tags, parent_run_id=_parent(tracker, found.run_id)):
        return logged(tracker.active_run_id)


def _parent(tracker: ModelTracker, run_id: str | None) -> str | None:
    """Return the run of the training, unless it is deleted or of another store than the version."""
    if run_id is None:
        return None
    try:
        is_active = tracker.get_run(run_id).lifecycle_stage == "active"
    except NotFoundError:
        return None
    return run_id if is_active else None
