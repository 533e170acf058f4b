"""Sweeps as `hydra_sweep.py` does, but imports MLflow in the jobs, which have left the folder by then."""

import hydra


@hydra.main(version_base=None, config_path=None)
def job(config):
    """Run one job."""
    import mlflow

    with mlflow.start_run(run_name=f"x={config.x}"):
        mlflow.log_params(dict(config))
        for step in range(3):
            mlflow.log_metric("score", config.x * step, step=step)


job()
