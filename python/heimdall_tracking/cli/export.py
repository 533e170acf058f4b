"""`heimdall export`: a trained network as ONNX, checked, registered and staged."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .._uris import identity
from ..errors import InvalidInputError, NotFoundError


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "export",
        description=(
            "Export a trained network to ONNX, compare it with torch, log it as a folder with model.onnx, "
            "register it and put it into a stage. Stores and experiment are those of the environment "
            "(MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...)."
        ),
    )
    add_argument = parser.add_argument
    add_argument(
        "source",
        nargs="?",
        help="run, URI of a model or checkpoint, checkpoint file or folder of a model; default the best run",
    )
    add_argument("--uri", help="tracking URI; default what the environment says")
    add_argument("--experiment", help="experiment; default what the environment says")
    add_argument("--metric", default="val/loss", help="what the best run is the best by (%(default)s)")
    add_argument("--mode", choices=("min", "max"), default="min", help="which one is best (%(default)s)")
    add_argument(
        "--module",
        metavar="PACKAGE.MODULE:NAME",
        help="class or function that makes the network of a checkpoint; found in the working directory too",
    )
    add_argument("--input-shape", metavar="N,N,...", help="shape of one row of the input; default 3,128,32")
    add_argument("--input-name", metavar="NAME", help="name of the input")
    add_argument("--output-names", metavar="NAME,...", help="names of the outputs")
    add_argument("--opset", type=int, default=14, help="version of ONNX's operators (%(default)s)")
    add_argument(
        "--tolerance",
        type=float,
        help="mean absolute difference that is allowed, in the unit of the network (1e-5)",
    )
    add_argument("--backbone", help="name of the backbone, for the metadata")
    add_argument("--name", default="heimdall-localization-onnx", help="registered model (%(default)s)")
    add_argument("--stage", default="Staging", help="stage of the new version (%(default)s)")
    add_argument("--no-register", action="store_true", help="log it, and register nothing")
    add_argument("--json", action="store_true", help="print the metadata as JSON")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Export, and print the URI and the measurements."""
    from .._plain_settings import PlainSettings
    from ..settings import initialize_mlflow

    settings = PlainSettings(mlflow_tracking_uri=given.uri, mlflow_experiment_name=given.experiment)
    if given.uri:
        # The environment's other stores belong to another tracking URI.
        settings.mlflow_backend_store_uri = settings.mlflow_registry_uri = None
    module = _imported(given.module) if given.module else None
    input_example = _example(given.input_shape) if given.input_shape else None
    _check_database(settings.mlflow_tracking_uri, given)
    tracker = initialize_mlflow(settings)
    done = tracker.export_onnx(
        given.source,
        module=module,
        metric=given.metric,
        compare_fn=min if given.mode == "min" else max,
        input_example=input_example,
        input_name=given.input_name,
        output_names=given.output_names.split(",") if given.output_names else None,
        opset=given.opset,
        tolerance=given.tolerance,
        model_name=None if given.no_register else given.name,
        stage=given.stage,
        backbone=given.backbone,
    )
    tracker.flush()
    record = done.metadata
    if given.json:
        where = {"model_uri": done.model_uri, "model_name": done.model_name, "model_version": done.version}
        print(json.dumps({**record, **where}, indent=2))
        return 0
    measured = record["inference_metrics"]
    print(f"{record['model_type']}, {record['onnx_file_size_mb']:.1f} MiB, at {done.model_uri}")
    if done.version is not None:
        print(f"registered as {done.model_name}, version {done.version}, stage {done.stage}")
    for name in record["output_names"]:
        print(f"  {name}: differs from torch by {measured[f'{name}_mae']:.2g} on average")
    print(
        f"  8 rows in {measured['inference_time_onnx_ms']:.2f} ms, by torch in "
        f"{measured['inference_time_pytorch_ms']:.2f} ms"
    )
    return 0


def _check_database(uri: str, given: argparse.Namespace) -> None:
    """Refuse a SQLite database that is not there, unless a file is exported: a tracker would make one."""
    kind, *place = identity(uri)
    if kind != "sqlite" or Path(str(place[0])).is_file():
        return
    if given.source is None:
        raise NotFoundError(f"no run has the metric {given.metric!r}: there is no database {place[0]}")
    if not Path(given.source).exists():
        raise NotFoundError(
            f"{given.source!r} is no run, checkpoint or folder: there is no database {place[0]}"
        )


def _imported(name: str) -> Any:
    from importlib import import_module

    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise InvalidInputError(f"--module {name!r} is not valid: it must be package.module:Name")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidInputError(f"--module {name!r} cannot be imported: {error}") from error


def _example(shape: str) -> Any:
    from .._optional import need

    torch = need("torch", "heimdall export")
    try:
        sizes = [int(size) for size in shape.split(",")]
        return torch.randn(2, *sizes, generator=torch.Generator().manual_seed(0))
    except (ValueError, RuntimeError) as error:
        raise InvalidInputError(
            f"--input-shape {shape!r} is not valid: it must be such as 3,128,32"
        ) from error
