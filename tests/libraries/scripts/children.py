"""Starts programs that log into its run, which the environment names for them."""

import os
import subprocess
import sys

import mlflow

CHILD = """
import sys
import mlflow

number = int(sys.argv[1])
with mlflow.start_run():
    mlflow.log_param(f"param-{number}", number)
    for step in range(3):
        mlflow.log_metric(f"metric-{number}", number, step=step)
"""

with mlflow.start_run(run_name="of the parent", nested=True) as run:
    mlflow.log_param("lr", 0.125)
    environment = os.environ | {"MLFLOW_RUN_ID": run.info.run_id}
    if sys.argv[1] == "the present URI":
        environment["MLFLOW_TRACKING_URI"] = mlflow.get_tracking_uri()
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, str(number)], env=environment) for number in range(2)
    ]
    assert [child.wait() for child in children] == [0, 0]
    mlflow.log_metric("of the parent", 1.0)
