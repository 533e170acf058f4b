"""Sweeps over a value by hydra; each job records a run by MLflow."""

import hydra
import mlflow


@hydra.main(version_base=None, config_path=None)
def job(config):
    """Run one job."""
    with mlflow.start_run(run_name=f"x={config.x}"):
        mlflow.log_params(dict(config))
        for step in range(3):
            mlflow.log_metric("score", config.x * step, step=step)


job()
