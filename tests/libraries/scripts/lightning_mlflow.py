"""Trains by Lightning, whose logger records by MLflow; `joins` means the active run, `breaks` an error."""

import contextlib
import sys
from importlib import import_module

import mlflow

from support.lightning_networks import network

package, *how = sys.argv[1:]
pl = import_module(package)
loggers = import_module(f"{package}.loggers")
joined = {"run_id": mlflow.active_run().info.run_id} if "joins" in how else {}
logger = loggers.MLFlowLogger("of lightning", run_name="of the logger", **joined)
logger.log_hyperparams({"lr": 0.125})
trainer = pl.Trainer(
    max_epochs=2,
    log_every_n_steps=1,
    accelerator="cpu",
    enable_progress_bar=False,
    enable_model_summary=False,
    enable_checkpointing=False,
    logger=logger,
)
net = network(package)
net.fails_in = 1 if "breaks" in how else None
with contextlib.suppress(RuntimeError):
    trainer.fit(net)
