"""Starts workers by multiprocessing, which log into the run of the process that has started them."""

import os
import sys
from multiprocessing import get_context

import mlflow


def work(number):
    """Log what one piece of work has brought into the run that the environment names."""
    client = mlflow.MlflowClient()
    run_id = os.environ["MLFLOW_RUN_ID"]
    client.log_param(run_id, f"param-{number}", number)
    for step in range(3):
        client.log_metric(run_id, f"metric-{number}", number, step=step)


if __name__ == "__main__":
    with mlflow.start_run(run_name="of the parent", nested=True) as run:
        mlflow.log_param("lr", 0.125)
        os.environ["MLFLOW_RUN_ID"] = run.info.run_id
        with get_context(sys.argv[1]).Pool(2) as pool:
            pool.map(work, range(4))
        mlflow.log_metric("of the parent", 1.0)
