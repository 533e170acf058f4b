"""Forks, spawns, threads, ranks and signals: one run with everything, ended by the process that began it."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from heimdall_tracking import MLflowTracker
from support.helpers import PATIENCE_S, clean_environment, free_port, rows, wait_until


def points(db: Path, prefix: str) -> list[tuple]:
    return sorted(rows(db, "SELECT key, step FROM metrics WHERE key LIKE ?", f"{prefix}%"))


def test_a_forked_child_logs_into_the_run_of_its_parent(uri, db, run_script, heimdall_dir):
    run = run_script(
        """
        import os, sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        tracker.start_run("family")
        tracker.log_metrics({"before": 1})
        children = []
        for child in range(3):
            if (pid := os.fork()) == 0:
                for step in range(100):
                    tracker.log_metrics({f"child{child}": step}, step=step)
                tracker.log_params({f"child{child}": "yes"})
                tracker.set_tag(f"child{child}", "yes")
                tracker.log_text(f"child {child}", f"child{child}.txt")
                tracker.flush()
                os._exit(0)
            children.append(pid)
        for step in range(100):
            tracker.log_metrics({"parent": step}, step=step)
        print([os.waitpid(pid, 0)[1] for pid in children])
        """,
        uri,
    )
    assert (run.out, run.err) == ("[0, 0, 0]\n", "")
    assert rows(db, "SELECT name, status FROM runs") == [("family", "FINISHED")]
    for who in ("parent", "child0", "child1", "child2"):
        assert points(db, who) == [(who, step) for step in range(100)]
    assert len(rows(db, "SELECT * FROM params")) == 3
    assert len(rows(db, "SELECT * FROM tags WHERE key LIKE 'child%'")) == 3
    ((artifacts,),) = rows(db, "SELECT artifact_uri FROM runs")
    files = Path(artifacts.removeprefix("file://")).iterdir()
    assert sorted(path.read_text() for path in files) == ["child 0", "child 1", "child 2"]
    assert list(heimdall_dir.glob("journal/*")) == []


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)", "sys.exit(0)"])
def test_what_a_forked_child_had_logged_arrives_however_it_ends_and_the_run_goes_on(uri, db, run_script, end):
    run = run_script(
        f"""
        import os, sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        tracker.start_run("family")
        if os.fork() == 0:
            for step in range(100):
                tracker.log_metrics({{"child": step}}, step=step)
            {end}
        os.wait()
        tracker.flush()
        other = MLflowTracker(sys.argv[1], experiment_name="tests")
        other.flush()
        print(other.get_run(tracker.active_run_id).status, flush=True)
        tracker.log_metrics({{"parent": 1}})
        """,
        uri,
    )
    assert (run.code, run.out) == (0, "RUNNING\n"), run.err
    MLflowTracker(uri, experiment_name="tests").flush(PATIENCE_S)
    assert points(db, "child") == [("child", step) for step in range(100)]
    assert points(db, "parent") == [("parent", 0)]
    assert rows(db, "SELECT name, status FROM runs") == [("family", "FINISHED")]


def test_a_forked_child_does_not_end_the_run_of_its_parent(uri, db, run_script):
    run = run_script(
        """
        import os, sys
        from heimdall_tracking import MLflowTracker, RunStateError
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        run_id = tracker.start_run("family")
        if os.fork() == 0:
            try:
                tracker.end_run("FAILED")
            except RunStateError:
                pass
            tracker.flush()
            os._exit(0)
        os.wait()
        print(tracker.get_run(run_id).status)
        """,
        uri,
    )
    assert (run.out, run.err) == ("RUNNING\n", "")
    assert rows(db, "SELECT name, status FROM runs") == [("family", "FINISHED")]


ORPHANED = """
import os, signal, sys, time
from heimdall_tracking import MLflowTracker

tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
print("ready", flush=True)
sys.stdin.readline()
run_id = tracker.start_run()
if os.fork():
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
tracker.log_metrics({"loss": 0.5})
print(run_id, os.getpid(), flush=True)
time.sleep(600)
"""


def test_a_child_whose_parent_has_died_delivers_the_start_of_their_run_as_well(uri, db, locked, start_script):
    process = start_script(ORPHANED, uri)

    def tell() -> None:
        process.stdin.write("\n")
        process.stdin.flush()

    assert process.stdout.readline() == "ready\n"
    with locked(db):
        tell()
        run_id, child = process.stdout.readline().split()
        tell()
        killed = process.wait(PATIENCE_S)
    try:
        assert killed == -signal.SIGKILL
        query = "SELECT value FROM metrics WHERE run_uuid = ?"
        wait_until(lambda: rows(db, query, run_id) == [(0.5,)], "what the child has logged is there")
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_children_of_children_log_into_the_same_run(uri, db, run_script):
    run = run_script(
        """
        import os, sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        tracker.start_run("family")
        for generation in range(3):
            tracker.log_metrics({"generation": generation}, step=generation)
            if (child := os.fork()) != 0:
                os.waitpid(child, 0)
                tracker.flush()
                if generation:
                    os._exit(0)
                break
        else:
            tracker.log_metrics({"generation": 3}, step=3)
            tracker.flush()
            os._exit(0)
        """,
        uri,
    )
    assert (run.code, run.err) == (0, "")
    assert points(db, "generation") == [("generation", step) for step in range(4)]
    assert rows(db, "SELECT name, status FROM runs") == [("family", "FINISHED")]


def test_children_forked_while_other_threads_log_do_not_hang(uri, db, run_script):
    run = run_script(
        """
        import os, sys, threading, time
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        tracker.start_run("family")
        stop = threading.Event()
        logged = [0] * 3

        def log(thread):
            while not stop.is_set():
                tracker.log_metrics({f"thread{thread}": 1}, step=logged[thread])
                logged[thread] += 1
                time.sleep(0.0001)  # So that they do not log more than can be delivered at the exit.

        threads = [threading.Thread(target=log, args=[thread]) for thread in range(3)]
        [thread.start() for thread in threads]
        for child in range(50):
            if (pid := os.fork()) == 0:
                tracker.log_metrics({"child": child}, step=child)
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        stop.set()
        [thread.join() for thread in threads]
        print(*logged)
        """,
        uri,
    )
    assert run.code == 0, run.err
    MLflowTracker(uri, experiment_name="tests").flush(PATIENCE_S)
    assert points(db, "child") == [("child", step) for step in range(50)]
    for thread, count in enumerate(map(int, run.out.split())):
        assert len(points(db, f"thread{thread}")) == count


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_pool_of_processes_logs_everything(uri, db, tmp_path, method):
    # A file: a child that is spawned imports the main module.
    script = tmp_path / "pool.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing, sys
            from heimdall_tracking import MLflowTracker

            def work(i):
                if tracker is None:
                    own = MLflowTracker(sys.argv[1], experiment_name="tests")
                    with own.run(f"work {i}"):
                        own.log_metrics({"work": i}, step=i)
                    own.flush()
                else:
                    tracker.log_metrics({"work": i}, step=i)
                return i

            tracker = None
            if __name__ == "__main__":
                method = sys.argv[2]
                if method == "fork":
                    tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
                    tracker.start_run("pool")
                with multiprocessing.get_context(method).Pool(3) as pool:
                    print(sum(pool.map(work, range(30))))
                    pool.close()
                    pool.join()
            """
        )
    )
    ran = subprocess.run(
        [sys.executable, script, uri, method],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=clean_environment(HEIMDALL_DIR=tmp_path / "heimdall"),
    )
    assert (ran.returncode, ran.stdout) == (0, "435\n"), ran.stderr
    MLflowTracker(uri, experiment_name="tests").flush(PATIENCE_S)
    assert points(db, "work") == [("work", step) for step in range(30)]
    assert {status for (status,) in rows(db, "SELECT status FROM runs")} == {"FINISHED"}


def test_a_tracker_does_not_travel_to_a_spawned_process(tracker):
    import pickle

    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(tracker)


def test_workers_of_a_dataloader_log_through_the_tracker_of_their_parent(uri, db, run_script):
    pytest.importorskip("torch")
    run = run_script(
        """
        import sys
        import torch
        from heimdall_tracking import MLflowTracker

        class Numbers(torch.utils.data.Dataset):
            def __len__(self):
                return 64

            def __getitem__(self, i):
                tracker.log_metrics({"read": i}, step=i + 1000 * epoch)
                return i

        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        with tracker.run("training"):
            for epoch in range(2):
                loader = torch.utils.data.DataLoader(
                    Numbers(), batch_size=8, num_workers=2, multiprocessing_context="fork"
                )
                for step, batch in enumerate(loader):
                    tracker.log_metrics({"batch": float(batch.float().mean())}, step=step + 1000 * epoch)
        """,
        uri,
    )
    assert (run.code, run.out) == (0, ""), run.err
    MLflowTracker(uri, experiment_name="tests").flush(PATIENCE_S)
    assert points(db, "read") == [("read", i + 1000 * epoch) for epoch in range(2) for i in range(64)]
    assert len(points(db, "batch")) == 16
    assert rows(db, "SELECT name, status FROM runs") == [("training", "FINISHED")]


def test_threads_share_a_run_and_lose_nothing(uri, db, run_script):
    run = run_script(
        """
        import sys, threading
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")

        def log(thread):
            for step in range(2000):
                tracker.log_metrics({f"thread{thread}": step}, step=step)

        with tracker.run("crowd"):
            threads = [threading.Thread(target=log, args=[thread]) for thread in range(8)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
        """,
        uri,
    )
    assert (run.code, run.err) == (0, "")
    assert rows(db, "SELECT count(*), count(DISTINCT key || step) FROM metrics") == [(16_000, 16_000)]


def test_a_subinterpreter_is_refused_with_a_reason(run_script):
    run = run_script(
        """
        import heimdall_tracking
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters
        other = interpreters.create()
        code = '''
        try:
            import heimdall_tracking
        except ImportError as error:
            assert "interpreter" in str(error), error
        else:
            raise SystemExit("imported")
        '''
        import textwrap
        failed = interpreters.run_string(other, textwrap.dedent(code))
        print(failed)
        """
    )
    assert (run.code, run.out) == (0, "None\n"), run.err


BUSY = """
    import sys
    from heimdall_tracking import MLflowTracker

    tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
    tracker.start_run("busy")
    tracker.flush()
    print("ready", flush=True)
    sys.stdin.readline()
    step = 0
    while True:
        tracker.log_metrics({"loss": step}, step=step)
        step += 1
        print(step, flush=True)
"""


def logged_when(process: subprocess.Popen, at_least: int, end: Callable[[], object]) -> set[int]:
    """The steps whose calls had returned in a process that is ended when it has made some."""
    said = b""
    while said.count(b"\n") <= at_least:
        said += os.read(process.stdout.fileno(), 65536)
    end()
    # It waits while nobody reads.
    while chunk := os.read(process.stdout.fileno(), 65536):
        said += chunk
    process.wait(PATIENCE_S)
    # The last line may be torn.
    return {int(line) - 1 for line in said.split(b"\n")[:-1] if line != b"ready"}


def test_ctrl_c_ends_the_run_within_a_step_as_killed_with_everything(uri, db, start_script):
    process = start_script(BUSY, uri)
    process.stdin.write("go\n")
    process.stdin.flush()
    logged = logged_when(process, 100, lambda: process.send_signal(signal.SIGINT))
    assert "KeyboardInterrupt" in process.stderr.read()
    assert process.returncode in (130, -signal.SIGINT, 1)
    assert {step for _, step in points(db, "loss")} >= logged
    assert rows(db, "SELECT status FROM runs") == [("KILLED",)]


def test_sigterm_delivers_everything_ends_the_run_as_killed_and_then_the_process(
    uri, db, start_script, heimdall_dir
):
    process = start_script(BUSY, uri)
    process.stdin.write("go\n")
    process.stdin.flush()
    logged = logged_when(process, 100, process.terminate)
    assert process.returncode == -signal.SIGTERM
    assert {step for _, step in points(db, "loss")} >= logged
    ((status, ended),) = rows(db, "SELECT status, end_time FROM runs")
    assert status == "KILLED"
    assert ended is not None
    assert list(heimdall_dir.glob("journal/*")) == []


def test_sigterm_waits_for_a_store_that_is_away_no_longer_than_the_grace(uri, db, locked, start_script):
    process = start_script(BUSY, uri, HEIMDALL_TERM_GRACE=0.3)
    ready = b""
    while not ready.endswith(b"\n"):
        ready += os.read(process.stdout.fileno(), 1)
    with locked(db):
        process.stdin.write("go\n")
        process.stdin.flush()
        # Still locked: only the grace can have ended it.
        logged = logged_when(process, 100, process.terminate)
    assert process.returncode == -signal.SIGTERM
    tracker = MLflowTracker(uri, experiment_name="tests")
    tracker.flush(PATIENCE_S)
    assert {step for _, step in points(db, "loss")} >= logged
    assert rows(db, "SELECT status FROM runs") == [("KILLED",)]


def test_sigterm_ends_a_process_whose_main_thread_never_comes_back_to_python(uri, db, start_script):
    process = start_script(
        """
        import hashlib, sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        tracker.start_run("busy")
        tracker.log_metrics({"loss": 1})
        print("logged", flush=True)
        # One call of C for minutes, as a training step may be.
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
        """,
        uri,
        HEIMDALL_TERM_GRACE=5,
    )
    assert process.stdout.readline() == "logged\n"
    process.terminate()
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == -signal.SIGTERM
    MLflowTracker(uri, experiment_name="tests").flush(PATIENCE_S)
    assert points(db, "loss") == [("loss", 0)]
    assert rows(db, "SELECT status FROM runs") == [("KILLED",)]


@pytest.mark.parametrize("before", [True, False])
def test_a_handler_of_sigterm_that_the_user_has_is_called(uri, db, start_script, before):
    install = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))"
    first, then = (install, "") if before else ("", install)
    process = start_script(
        f"""
        import signal, sys, time
        from heimdall_tracking import MLflowTracker
        {first}
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        {then}
        tracker.start_run("busy")
        tracker.log_metrics({{"loss": 1}})
        print("logged", flush=True)
        while True:
            time.sleep(0.01)
        """,
        uri,
    )
    assert process.stdout.readline() == "logged\n"
    process.terminate()
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 7, err
    assert points(db, "loss") == [("loss", 0)]
    ((status,),) = rows(db, "SELECT status FROM runs")
    assert status != "RUNNING"


@pytest.mark.parametrize(
    "crash", ["os.abort()", "os.kill(os.getpid(), 11)", "os._exit(1)", "os.kill(os.getpid(), 9)"]
)
def test_no_run_of_a_process_that_crashed_stays_running(uri, db, run_script, crash):
    run = run_script(
        f"""
        import os, sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        tracker.start_run("outer")
        tracker.start_run("inner", nested=True)
        tracker.log_metrics({{"loss": 1}})
        {crash}
        """,
        uri,
    )
    assert run.code != 0
    MLflowTracker(uri, experiment_name="tests").flush(PATIENCE_S)
    assert sorted(rows(db, "SELECT name, status FROM runs")) == [("inner", "FAILED"), ("outer", "FAILED")]
    assert points(db, "loss") == [("loss", 0)]
    assert rows(db, "SELECT * FROM runs WHERE end_time IS NULL") == []


RANKED = """
    import os, sys
    from heimdall_tracking import InvalidInputError, MLflowTracker

    rank = next(int(os.environ[name]) for name in sys.argv[2].split(",") if name in os.environ)
    tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
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
    """What torchrun sets for the processes of one job."""
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


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"])
def test_a_rank_other_than_zero_records_nothing(uri, db, run_script, heimdall_dir, variable):
    run = run_script(RANKED, uri, variable, **{variable: 3})
    assert (run.code, run.out, run.err) == (0, "checked\n", "")
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
    )
    assert (run.out, run.err) == ("silent\n", "")


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
    ran = subprocess.run(
        [*command, script, uri, ranks],
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE_S,
        cwd=tmp_path,
        env=clean_environment(HEIMDALL_DIR=tmp_path / "heimdall", OMP_NUM_THREADS=1),
    )
    assert ran.returncode == 0, ran.stderr
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
    ran = subprocess.run(
        [sys.executable, script, uri],
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE_S,
        cwd=tmp_path,
        env=clean_environment(HEIMDALL_DIR=tmp_path / "heimdall", OMP_NUM_THREADS=1),
    )
    assert ran.returncode == 0, ran.stderr
    MLflowTracker(uri, experiment_name="tests").flush(PATIENCE_S)
    assert rows(db, "SELECT name, status FROM runs") == [("ddp", "FINISHED")]
    assert points(db, "loss") == [("loss", step) for step in range(4)]
