"""Ranks of a distributed training: one run, of rank 0 or of all."""

from __future__ import annotations

import importlib.util
import sys
import textwrap
from pathlib import Path

import pytest

from heimdall_tracking import MLflowTracker
from support.helpers import PATIENCE_S, free_port, points, rows, run_program

RANKED = """
    import os, sys
    from heimdall_tracking import InvalidInputError, MLflowTracker

    rank = next(int(os.environ[name]) for name in sys.argv[2].split(",") if name in os.environ)
    tracker = MLflowTracker(sys.argv[1], experiment_name="tests", strict=True)
    with tracker.run("ddp") as run:
        for step in range(50):
            tracker.log_metrics({f"loss/{rank}": step, "shared": rank}, step=step)
        tracker.log_params({f"lr/{rank}": 0.1})
        tracker.log_text(f"rank {rank}", f"rank{rank}.txt")
        try:
            tracker.log_params({"": 1})
        except InvalidInputError:
            print("checked")
"""


def rank_variables(rank: int, port: int) -> dict[str, object]:
    """Return the variables that torchrun sets for the processes of one job."""
    return {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": f"job{port}",
    }


def run_ranks(start_script, uri: str) -> None:
    port = free_port()
    processes = [start_script(RANKED, uri, "RANK", **rank_variables(rank, port)) for rank in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, out) == (0, "checked\n"), err
    MLflowTracker(uri, experiment_name="tests").flush(PATIENCE_S)


def test_only_rank_zero_writes_the_run(uri, db, start_script):
    run_ranks(start_script, uri)
    assert rows(db, "SELECT name, status FROM runs") == [("ddp", "FINISHED")]
    assert points(db, "loss") == [("loss/0", step) for step in range(50)]
    assert rows(db, "SELECT key FROM params") == [("lr/0",)]


def test_a_rank_that_is_told_the_run_of_rank_zero_writes_it_too(uri, db, start_script):
    code = """
        import os, sys
        from heimdall_tracking import MLflowTracker
        rank = int(os.environ["RANK"])
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests", ranks="all")
        print(tracker.start_run("ddp"), flush=True)
        for step in range(50):
            tracker.log_metrics({f"loss/{rank}": step}, step=step)
        sys.stdin.readline()
        tracker.end_run()
    """
    port = free_port()
    first = start_script(code, uri, **rank_variables(0, port))
    run_id = first.stdout.readline().strip()
    second = start_script(code, uri, MLFLOW_RUN_ID=run_id, **rank_variables(1, port))
    assert second.stdout.readline().strip() == run_id
    _, err = second.communicate("end\n", timeout=PATIENCE_S)
    assert second.returncode == 0, err
    tracker = MLflowTracker(uri, experiment_name="tests")
    assert tracker.get_run(run_id).status == "RUNNING"
    _, err = first.communicate("end\n", timeout=PATIENCE_S)
    assert first.returncode == 0, err
    tracker.flush(PATIENCE_S)
    assert rows(db, "SELECT name, status FROM runs") == [("ddp", "FINISHED")]
    assert points(db, "loss") == [(f"loss/{rank}", step) for rank in range(2) for step in range(50)]
    assert "heimdall.rank.1" in tracker.get_run(run_id).tags


LAUNCHED = {
    "RANK": {"WORLD_SIZE": 4},
    "SLURM_PROCID": {"SLURM_NTASKS": 4, "MASTER_ADDR": "node1"},
    "OMPI_COMM_WORLD_RANK": {"OMPI_COMM_WORLD_SIZE": 4},
}


@pytest.mark.parametrize("variable", LAUNCHED)
def test_a_rank_other_than_zero_records_nothing_and_says_so_once(uri, db, run_script, heimdall_dir, variable):
    run = run_script(RANKED, uri, variable, **{variable: 3}, **LAUNCHED[variable])
    assert (run.code, run.out) == (0, "checked\n"), run.err
    assert run.err.count("rank 3") == run.err.count("HEIMDALL_RANKS=each") == 1
    assert not db.exists() or rows(db, "SELECT * FROM runs") == []
    assert list(heimdall_dir.glob("journal/*")) == []


def test_a_rank_that_is_silent_says_so(uri, run_script):
    run = run_script(
        """
        import sys
        from heimdall_tracking import MLflowTracker
        print(MLflowTracker(sys.argv[1]).status().mode)
        """,
        uri,
        RANK=1,
        WORLD_SIZE=2,
    )
    assert run.out == "silent\n"


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"SLURM_PROCID": 2, "SLURM_NTASKS": 4}, id="tasks of Slurm"),
        pytest.param({"RANK": 1, "NODE_RANK": 1, "LOCAL_RANK": 1}, id="left over"),
        pytest.param({"RANK": 1, "WORLD_SIZE": 2, "HEIMDALL_RANKS": "each"}, id="each"),
    ],
)
def test_a_process_of_its_own_records_its_run(uri, db, run_script, variables):
    name = next(iter(variables))
    run = run_script(RANKED, uri, name, **variables)
    assert (run.code, run.out, run.err) == (0, "checked\n", "")
    assert rows(db, "SELECT name, status FROM runs") == [("ddp", "FINISHED")]


def test_ranks_are_counted_where_they_are_given_by_argument(uri, db, run_script):
    run = run_script(
        """
        import sys
        from heimdall_tracking import MLflowTracker
        with MLflowTracker(sys.argv[1], ranks="zero").run():
            pass
        try:
            MLflowTracker(sys.argv[1], ranks="some")
        except ValueError as error:
            print("zero" in str(error) and "all" in str(error))
        """,
        uri,
        RANK=0,
    )
    assert (run.code, run.out) == (0, "True\n"), run.err
    assert len(rows(db, "SELECT * FROM runs")) == 1


def run_launched(command: list[object], folder: Path) -> None:
    """Run a program that starts the processes of its ranks."""
    variables = {"HEIMDALL_DIR": folder / "heimdall", "OMP_NUM_THREADS": 1}
    ran = run_program(command, cwd=folder, timeout=3 * PATIENCE_S, **variables)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("ranks", ["zero", "all"])
def test_torchrun_makes_one_run(uri, db, tmp_path, ranks):
    pytest.importorskip("torch")
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            import torch
            import torch.distributed as dist
            from heimdall_tracking import MLflowTracker

            dist.init_process_group("gloo")
            rank = dist.get_rank()
            tracker = MLflowTracker(sys.argv[1], experiment_name="tests", ranks=sys.argv[2])
            with tracker.run("ddp"):
                for step in range(20):
                    loss = torch.tensor(float(rank))
                    dist.all_reduce(loss)
                    tracker.log_metrics({f"loss/{rank}": loss}, step=step)
            dist.barrier()
            dist.destroy_process_group()
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    run_launched([*command, script, uri, ranks], tmp_path)
    MLflowTracker(uri, experiment_name="tests").flush(PATIENCE_S)
    assert rows(db, "SELECT name, status FROM runs") == [("ddp", "FINISHED")]
    expected = range(2) if ranks == "all" else range(1)
    assert points(db, "loss") == [(f"loss/{rank}", step) for rank in expected for step in range(20)]


def test_lightning_on_two_processes_makes_one_run(uri, db, tmp_path):
    if importlib.util.find_spec("lightning") is None:
        pytest.skip("lightning is not installed")
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            import torch
            import lightning
            from heimdall_tracking import MLflowTracker

            class Model(lightning.LightningModule):
                def __init__(self):
                    super().__init__()
                    self.layer = torch.nn.Linear(1, 1)

                def training_step(self, batch, step):
                    loss = self.layer(batch).mean()
                    tracker.log_metrics({"loss": loss.detach()}, step=self.global_step)
                    return loss

                def configure_optimizers(self):
                    return torch.optim.SGD(self.parameters(), 0.1)

            tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
            tracker.start_run("ddp")
            trainer = lightning.Trainer(
                accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False,
                enable_checkpointing=False, enable_progress_bar=False,
            )
            trainer.fit(Model(), torch.utils.data.DataLoader(torch.ones(16, 1), batch_size=2))
            tracker.end_run()
            """
        )
    )
    run_launched([sys.executable, script, uri], tmp_path)
    MLflowTracker(uri, experiment_name="tests").flush(PATIENCE_S)
    assert rows(db, "SELECT name, status FROM runs") == [("ddp", "FINISHED")]
    assert points(db, "loss") == [("loss", step) for step in range(4)]
