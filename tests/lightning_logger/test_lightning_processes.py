"""Trainings of several processes and those of LightningCLI make one run."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest

from support.helpers import rows, run_program

pytestmark = pytest.mark.training

TESTS = import_module("support").__path__[0].rpartition("/")[0]

TWO_PROCESSES = """
import sys
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
import lightning.pytorch as pl
from lightning.pytorch.loggers.logger import DummyExperiment
from heimdall_tracking.lightning import HeimdallLogger
from support.lightning_networks import network

class Net(type(network())):
    pass

class Looks(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        is_dummy = isinstance(trainer.logger.experiment, DummyExperiment)
        assert is_dummy is not trainer.is_global_zero
        if is_dummy:
            assert pl_module.logger.experiment.something(foo="bar") is None

if __name__ == "__main__":
    logger = HeimdallLogger("tests", tracking_uri=sys.argv[1], log_model="best")
    trainer = pl.Trainer(
        max_epochs=2, logger=logger, accelerator="cpu", devices=2, strategy=sys.argv[3], callbacks=[Looks()],
        log_every_n_steps=1, num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(Net(at="import"))
    if trainer.is_global_zero:
        print(logger.run_id)
"""


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_two_processes_log_to_one_run(db, uri, heimdall_dir, tmp_path, strategy):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    command = [sys.executable, script, uri, TESTS, strategy]
    done = run_program(command, cwd=tmp_path, HEIMDALL_DIR=heimdall_dir)
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.strip().splitlines()[-1]
    assert rows(db, "SELECT run_uuid, status FROM runs") == [(run_id, "FINISHED")]
    # Each process has half of the six rows.
    points = rows(db, "SELECT key, step FROM metrics WHERE key = 'train/loss' ORDER BY step")
    assert points == [("train/loss", step) for step in range(4)]


COMMAND_LINE = """
    import sys
    sys.path.insert(0, sys.argv[1])
    import torch
    torch.set_num_threads(1)
    from lightning.pytorch.cli import LightningCLI
    from support.lightning_networks import network

    Net = type(network())

    class Wide(Net):
        def __init__(self, width: int = 3):
            super().__init__(width=width)

    LightningCLI(Wide, args=sys.argv[2:])
    """


def test_the_command_line_makes_the_logger(db, uri, run_script, tmp_path):
    pytest.importorskip("jsonargparse")
    (tmp_path / "config.yaml").write_text(
        f"""
        trainer:
          max_epochs: 1
          accelerator: cpu
          enable_progress_bar: false
          default_root_dir: {tmp_path / "root"}
          logger:
            class_path: heimdall_tracking.lightning.HeimdallLogger
            init_args:
              experiment_name: tests
              tracking_uri: {uri}
              run_name: by command line
              tags:
                team: rf
        model:
          width: 5
        """
    )
    done = run_script(COMMAND_LINE, TESTS, "fit", "--config", "config.yaml", "--trainer.logger.prefix=cli")
    assert done.code == 0, done.err
    assert rows(db, "SELECT name, status FROM runs") == [("by command line", "FINISHED")]
    assert rows(db, "SELECT value FROM params WHERE key = 'width'") == [("5",)]
    assert ("cli-val/loss",) in rows(db, "SELECT DISTINCT key FROM metrics")
    assert rows(db, "SELECT value FROM tags WHERE key = 'team'") == [("rf",)]
    assert "HeimdallLogger" in (tmp_path / "root" / "config.yaml").read_text()
