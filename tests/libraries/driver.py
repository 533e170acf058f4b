"""Run a user's script by one of the doors: `driver.py DOOR SCRIPT ARGUMENTS…`."""

import contextlib
import runpy
import sys


def opened(door):
    """Return the context that a script runs in."""
    if door == "uri":
        return contextlib.nullcontext()
    from heimdall_tracking import initialize_mlflow

    tracker = initialize_mlflow()
    return tracker.run("of the tracker") if door == "run" else contextlib.nullcontext()


door, *sys.argv = sys.argv[1:]
with opened(door):
    runpy.run_path(sys.argv[0], run_name="__main__")
