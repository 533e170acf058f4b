"""Tries four values by optuna, whose callback records each trial by MLflow."""

import sys

import mlflow
import optuna
from optuna_integration import MLflowCallback

jobs, nested = int(sys.argv[1]), "nested" in sys.argv
optuna.logging.set_verbosity(optuna.logging.ERROR)
recorder = MLflowCallback(metric_name="score", create_experiment=not nested, mlflow_kwargs={"nested": nested})


@recorder.track_in_mlflow()
def objective(trial):
    """Record what only the trial knows, too."""
    x = trial.suggest_float("x", -1.0, 1.0)
    for step in range(3):
        mlflow.log_metric("inside", trial.number, step=step)
    return x * x


study = optuna.create_study(study_name="of optuna", sampler=optuna.samplers.RandomSampler(seed=0))
study.optimize(objective, n_trials=4, n_jobs=jobs, callbacks=[recorder])
