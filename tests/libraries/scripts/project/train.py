"""Trains as a project of MLflow does: in the run that `mlflow run` has started for it."""

import sys

import mlflow

with mlflow.start_run():
    mlflow.log_param("epochs", 3)
    for step in range(3):
        mlflow.log_metric("loss", float(sys.argv[1]) / (step + 1), step=step)
