"""Forks, spawns and threads: one run with everything, ended by the process that began it."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from heimdall_tracking import MLflowTracker
from support.helpers import PATIENCE_S, points, rows, run_program, wait_until


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
    ran = run_program([sys.executable, script, uri, method], HEIMDALL_DIR=tmp_path / "heimdall")
    assert (ran.returncode, ran.stdout) == (0, "435\n"), ran.stderr
    MLflowTracker(uri, experiment_name="tests").flush(PATIENCE_S)
    assert points(db, "work") == [("work", step) for step in range(30)]
    assert {status for (status,) in rows(db, "SELECT status FROM runs")} == {"FINISHED"}


def test_a_pickled_tracker_is_one_of_its_own_in_another_process(uri, db, tmp_path):
    import base64
    import pickle

    tracker = MLflowTracker(
        uri, experiment_name="tests", s3_access_key_id="id", s3_secret_access_key="hidden"
    )
    assert pickle.loads(pickle.dumps(tracker)) is tracker
    pickled = pickle.dumps(tracker)
    assert b"hidden" not in pickled
    program = (
        "import base64, pickle, sys; tracker = pickle.loads(base64.b64decode(sys.argv[1]))\n"
        "with tracker.run('theirs'): tracker.log_metric('m', 1)\n"
        "print(tracker.experiment_name)"
    )
    ran = run_program(
        [sys.executable, "-c", program, base64.b64encode(pickled).decode()],
        HEIMDALL_DIR=tmp_path / "heimdall",
    )
    assert (ran.returncode, ran.stdout) == (0, "tests\n"), ran.stderr
    assert points(db, "m") == [("m", 0)]


def test_a_copy_of_a_tracker_is_the_tracker(tracker):
    import copy

    assert copy.copy(tracker) is tracker
    assert copy.deepcopy({"tracker": tracker})["tracker"] is tracker


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
