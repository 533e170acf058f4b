"""Trains by Lightning, which autologging records by MLflow."""

import sys
from importlib import import_module

import mlflow

from support.lightning_networks import network

package = sys.argv[1]
pl = import_module(package)
mlflow.pytorch.autolog(log_models=False, log_datasets=False)
trainer = pl.Trainer(
    max_epochs=2,
    log_every_n_steps=1,
    accelerator="cpu",
    enable_progress_bar=False,
    enable_model_summary=False,
    enable_checkpointing=False,
    logger=False,
)
trainer.fit(network(package))
