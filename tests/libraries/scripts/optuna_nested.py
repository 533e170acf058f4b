"""Tries four values by optuna: a run for the study, and one in it for each trial."""

import sys

import mlflow
import optuna

jobs = int(sys.argv[1])
optuna.logging.set_verbosity(optuna.logging.ERROR)


def objective(trial):
    """Record one trial in a run of its own, in whatever thread it is tried."""
    x = trial.suggest_float("x", -1.0, 1.0)
    with mlflow.start_run(run_name=f"trial-{trial.number}", nested=True):
        mlflow.log_params(trial.params)
        for step in range(3):
            mlflow.log_metric("inside", trial.number, step=step)
        mlflow.log_metric("score", x * x)
    return x * x


with mlflow.start_run(run_name="study", nested=True):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=4, n_jobs=jobs)
    mlflow.log_metric("best", study.best_value)
    mlflow.log_param("trials", len(study.trials))
