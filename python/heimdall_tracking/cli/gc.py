"""`heimdall gc`: list the garbage of a store, and delete it with `--delete`."""

from __future__ import annotations

import argparse
import json

from .. import lifecycle
from .folder import heimdall_dir


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "gc",
        description=(
            "List what nobody needs any more: artifacts of deleted runs, uploads that were begun and never "
            "finished, folders that belong to no run and, with rules, runs that none of them keeps. Deletes "
            "nothing without --delete, and never what a registered version points to, what lies outside of an"
            " experiment's artifact location, or a run that a journal here has records of. Exit code "
            "1: something could not be looked into or deleted."
        ),
        epilog="AGE is days, hours, minutes and seconds: 30d, 12h, 2d8h5m20s.",
    )
    parser.add_argument(
        "--uri", help="the store of the runs; MLFLOW_TRACKING_URI or POSTGRES_*, as a tracker has it"
    )
    parser.add_argument(
        "--registry-uri", help="where models are registered; MLFLOW_REGISTRY_URI, else that store"
    )
    parser.add_argument(
        "--artifact-server",
        metavar="URL",
        help="the tracking server that keeps the artifacts of a database's experiments (mlflow-artifacts:)",
    )
    parser.add_argument("--dir", help="folder of the journals; HEIMDALL_DIR, else .heimdall")
    parser.add_argument(
        "--experiment", action="append", metavar="NAME", help="this one alone; may be given several times"
    )
    parser.add_argument("--delete", action="store_true", help="delete what is found")
    parser.add_argument(
        "--older-than", default="0s", metavar="AGE", help="runs that were deleted so long ago; default all"
    )
    parser.add_argument(
        "--purge",
        action="store_true",
        help="remove deleted runs from the database for good, with all that was logged, as `mlflow gc` does",
    )
    parser.add_argument(
        "--uploads-older-than",
        default="1d",
        metavar="AGE",
        help="uploads that were begun so long ago; default 1d",
    )
    parser.add_argument(
        "--orphans",
        action="store_true",
        help="folders that belong to no run go as well; no other store may have the same artifact location",
    )
    rules = parser.add_argument_group(
        "rules", "Ended runs of the named experiments that no rule keeps go. Registered ones are always kept."
    )
    rules.add_argument("--keep-best", type=int, metavar="N", help="keep the best runs by --metric")
    rules.add_argument(
        "--metric", metavar="KEY", help="the metric that says which are the best, by its latest value"
    )
    rules.add_argument("--maximize", action="store_true", help="large values of it are good, not small ones")
    rules.add_argument("--keep-newer-than", metavar="AGE", help="keep runs that ended within this time")
    rules.add_argument(
        "--keep-registered",
        action="store_true",
        help="keep runs that registered versions are of or point to, as all rules do; alone, all others go",
    )
    rules.add_argument(
        "--what",
        choices=("artifacts", "runs"),
        default="artifacts",
        help="what goes of the others: their artifacts, or the runs, which can be restored",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run, stays="what is not deleted stays")


def run(given: argparse.Namespace) -> int:
    """Print the garbage that goes, or has gone, and the things that stay."""
    report = lifecycle.collect_garbage(
        given.uri,
        registry_uri=given.registry_uri,
        experiments=given.experiment,
        older_than=given.older_than,
        uploads_older_than=given.uploads_older_than,
        orphans=given.orphans,
        keep_best=given.keep_best,
        metric=given.metric,
        maximize=given.maximize,
        keep_newer_than=given.keep_newer_than,
        keep_registered=given.keep_registered,
        what=given.what,
        purge=given.purge,
        delete=given.delete,
        artifact_server=given.artifact_server,
        heimdall_dir=None if given.dir is None else heimdall_dir(given.dir),
    )
    if given.json:
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        print(report)
        if report.dry_run and report.items:
            print("--delete deletes it")
    return 0 if report.complete else 1
