"""All that a call has accepted arrives once: after a kill, behind a lock, with others writing too."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sqlite3
import time
from threading import Event, Thread

import pytest

from heimdall_tracking import MLflowTracker, NotFoundError, UndeliveredError
from support.helpers import PATIENCE_S, contents, rows, wait_until

pytestmark = pytest.mark.faults

LOGGING_FOR_EVER = """
    import itertools, sys, pathlib
    from heimdall_tracking import MLflowTracker

    tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
    flush_at = int(sys.argv[2])
    print(tracker.start_run("doomed", {"started": "yes"}), flush=True)
    file = pathlib.Path("file")
    for i in itertools.count():
        tracker.log_metrics({"loss": i / 7}, step=i)
        print("metric", i, flush=True)
        tracker.log_params({f"p{i}": i})
        print("param", i, flush=True)
        file.write_text(f"content {i}")
        tracker.log_artifact(file, f"files/{i}")
        print("artifact", i, flush=True)
        if i == flush_at:
            tracker.flush()
"""


@pytest.mark.parametrize(
    ("lines", "flush_at"), [(1, -1), (2, -1), (3, -1), (5, -1), (40, -1), (300, -1), (8, 1), (100, 20)]
)
def test_everything_a_killed_process_was_promised_arrives_once_and_its_run_is_failed(
    uri, db, start_script, lines, flush_at
):
    process = start_script(LOGGING_FOR_EVER, uri, flush_at)
    run_id, *acknowledged = [process.stdout.readline().strip() for _ in range(lines)]
    process.kill()
    killed = time.time_ns() // 1_000_000
    acknowledged += process.stdout.read().splitlines()

    tracker = MLflowTracker(uri, experiment_name="tests")
    tracker.flush()
    info = tracker.get_run_info(run_id)
    promised = {kind: 0 for kind in ("metric", "param", "artifact")}
    for line in acknowledged:
        if line.count(" ") == 1:  # The last line may be torn.
            promised[line.split()[0]] += 1
    points = rows(db, "SELECT step, value, timestamp FROM metrics WHERE run_uuid = ?", run_id)
    assert sorted(point[:2] for point in points) == [(i, i / 7) for i in range(len(points))]
    assert promised["metric"] <= len(points) <= promised["metric"] + 1
    params = info["parameters"]
    assert params == {f"p{i}": str(i) for i in range(len(params))}
    assert promised["param"] <= len(params) <= promised["param"] + 1
    artifacts = contents(db.parent / "mlruns" / info["experiment_id"] / run_id / "artifacts")
    count = len(artifacts)
    assert artifacts == {f"files/{i}/file": b"content %d" % i for i in range(count)}
    assert promised["artifact"] <= count <= promised["artifact"] + 1
    assert info["tags"]["started"] == "yes"
    assert info["status"] == "FAILED"
    last = max((timestamp for *_, timestamp in points), default=info["start_time"])
    assert last <= info["end_time"] <= killed


def test_a_dead_process_is_reported_once(uri, start_script, caplog):
    process = start_script(LOGGING_FOR_EVER, uri, -1)
    run_id = process.stdout.readline().strip()
    process.kill()
    process.communicate()
    for _ in range(2):
        MLflowTracker(uri, experiment_name="tests").flush()
    told = [record.getMessage() for record in caplog.records if run_id in record.getMessage()]
    assert len(told) == 1
    assert "FAILED" in told[0]


def test_the_journal_of_a_living_process_is_left_alone(uri, start_script):
    process = start_script(LOGGING_FOR_EVER, uri, 0)
    run_id, *_ = [process.stdout.readline().strip() for _ in range(20)]
    tracker = MLflowTracker(uri, experiment_name="tests")
    tracker.flush()
    assert tracker.get_run_info(run_id)["status"] == "RUNNING"


def test_what_was_left_for_one_database_waits_for_a_tracker_of_that_database(uri, tmp_path, start_script):
    process = start_script(LOGGING_FOR_EVER, uri, -1)
    run_id, *_ = [process.stdout.readline().strip() for _ in range(10)]
    process.kill()
    process.communicate()
    other = MLflowTracker(f"sqlite:///{tmp_path}/other.db")
    other.flush()
    with pytest.raises(NotFoundError):
        other.get_run_info(run_id)
    assert MLflowTracker(uri).get_run_info(run_id)["status"] == "FAILED"


def test_calls_return_while_the_database_is_locked_and_all_arrives_after(tracker, db, locked, tmp_path):
    (tmp_path / "file").write_text("content")
    with locked(db):
        run_id = tracker.start_run("patient")
        for step in range(100):
            tracker.log_metrics({"loss": step}, step=step)
        tracker.log_artifact(tmp_path / "file")
        tracker.end_run()
        assert tracker.status()["pending"] == 104
        with pytest.raises(UndeliveredError, match="104 records"):
            tracker.flush(timeout=0.2)
    tracker.flush()
    assert tracker.status()["pending"] == 0
    assert len(rows(db, "SELECT * FROM metrics WHERE run_uuid = ?", run_id)) == 100
    assert tracker.get_run_info(run_id)["status"] == "FINISHED"


def test_a_long_outage_is_told_once_and_its_end_as_well(tracker, db, locked, caplog):
    with locked(db):
        tracker.start_run()
        wait_until(lambda: tracker.status()["degraded"], "the outage is noticed")
        # The start tells that the store has not answered; its answer comes later.
        wait_until(lambda: "locked" in tracker.status()["last_error"], "the reason is known")

        def is_told() -> bool:
            tracker.log_metrics({"loss": 1})
            return bool(caplog.records)

        wait_until(is_told, "the outage is told")
    tracker.flush()
    status = tracker.status()
    assert (status["degraded"], status["last_error"], status["pending"]) == (False, None, 0)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "degraded" in told[0]
    assert "works again" in told[1]
    assert {record.name for record in caplog.records} == {"heimdall_tracking"}


# The many fill the journal's disk as well as the database's; the few only the latter.
@pytest.mark.parametrize("count", [1000, 100])
def test_everything_arrives_once_there_is_room_on_a_disk_that_was_full(uri, db, tracker, run_script, count):
    run = run_script(
        """
        import os, resource, sys
        from heimdall_tracking import MLflowTracker

        def limit_files_to(size):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        uri, db, count = sys.argv[1:]
        tracker = MLflowTracker(uri, experiment_name="tests")
        run_id = tracker.start_run()
        tracker.flush()
        limit_files_to(os.path.getsize(db))
        for part in range(0, int(count), 100):
            tracker.log_params({f"p{part + i}": "x" * 5000 for i in range(100)})
        while not tracker.status()["degraded"]:
            pass
        limit_files_to(resource.RLIM_INFINITY)
        tracker.flush(timeout=20)
        print(run_id)
        """,
        uri,
        db,
        count,
    )
    assert run.code == 0, run.err
    assert len(tracker.get_run_info(run.out.strip())["parameters"]) == count


def test_the_journal_goes_on_once_a_full_disk_that_took_no_new_segment_has_room(uri, run_script):
    run = run_script(
        """
        import pathlib, resource, sys
        from heimdall_tracking import MLflowTracker

        def limit_files_to(size):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        run_id = tracker.start_run()
        # More than the 8 MiB of a segment.
        tracker.log_params({f"p{i}": "x" * 5000 for i in range(1800)})
        tracker.flush()
        limit_files_to(4)
        tracker.log_metrics({"full": 1})
        limit_files_to(resource.RLIM_INFINITY)
        tracker.flush()
        tracker.log_metrics({"room": 1})
        tracker.flush()
        segments = pathlib.Path(tracker.status()["journal"]).glob("*.segment")
        print(max(int(segment.stem) for segment in segments) > 1, tracker.status().in_memory)
        print(sorted(tracker.get_run_info(run_id)["metrics"]))
        """,
        uri,
    )
    assert run.out == "True 0\n['full', 'room']\n", run.err


def test_what_a_deleted_run_is_sent_is_parked_with_one_warning_and_the_rest_arrives(
    tracker, client, heimdall_dir, tmp_path, caplog
):
    (tmp_path / "file").write_text("content")
    deleted = tracker.start_run()
    tracker.flush()
    client.delete_run(deleted)
    tracker.log_metrics({"loss": 0.25}, step=7)
    tracker.log_artifact(tmp_path / "file")
    tracker.end_run()
    kept = tracker.start_run()
    tracker.log_metrics({"loss": 0.5})
    tracker.flush()

    assert tracker.get_run_info(kept)["metrics"] == {"loss": 0.5}
    status = tracker.status()
    assert (status["pending"], status["degraded"]) == (0, False)
    [letters] = (heimdall_dir / "dead_letter").glob("*.jsonl")
    parked = [json.loads(line) for line in letters.read_text().splitlines()]
    assert all("deleted" in letter["reason"] for letter in parked)
    assert status["parked"] == len(parked)
    assert "metrics loss at step 7" in parked[0]["summary"]
    told = [record.getMessage() for record in caplog.records if deleted in record.getMessage()]
    assert all(str(letters) in text for text in told)
    assert len(told) == 1


def test_a_param_that_somebody_else_has_set_otherwise_is_parked(tracker, client, caplog):
    run_id = tracker.start_run()
    tracker.flush()
    client.log_param(run_id, "lr", "theirs")
    tracker.log_params({"lr": "ours"})
    tracker.log_metrics({"loss": 1})
    tracker.flush()
    info = tracker.get_run_info(run_id)
    assert (info["parameters"], info["metrics"]) == ({"lr": "theirs"}, {"loss": 1})
    assert tracker.status()["parked"] == 1
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "lr" in record.getMessage()


def test_nothing_of_the_journal_is_left_after_a_clean_exit(uri, tmp_path, run_script, heimdall_dir):
    (tmp_path / "file").write_text("content")
    run = run_script(
        """
        import sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1])
        with tracker.run():
            tracker.log_artifact("file")
            tracker.log_metrics({"loss": 1})
        """,
        uri,
    )
    assert (run.code, run.out, run.err) == (0, "", "")
    assert [path.name for path in heimdall_dir.rglob("*")] == ["journal"]


def test_what_is_not_delivered_at_exit_stays_and_goes_out_through_whoever_asks_next(
    tracker, uri, db, locked, start_script
):
    process = start_script(
        """
        import sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        print("ready", flush=True)
        sys.stdin.readline()
        print(tracker.start_run())
        """,
        uri,
        HEIMDALL_EXIT_TIMEOUT=0.1,
    )
    assert process.stdout.readline() == "ready\n"
    with locked(db):
        out, err = process.communicate("go\n", timeout=PATIENCE_S)
    assert "next start" in err
    info = tracker.get_run_info(out.strip())
    assert (info["status"], info["end_time"] >= info["start_time"]) == ("FINISHED", True)


def test_a_forked_child_goes_on_with_the_tracker_of_its_parent(tracker, uri, run_script):
    run = run_script(
        """
        import os, sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        print(tracker.start_run(), flush=True)
        if (child := os.fork()) == 0:
            tracker.log_metrics({"child": 1})
            tracker.log_params({"a": 1})
            tracker.flush()
            found = tracker.get_run_info(tracker.active_run_id)["metrics"]
            tracker.end_run("FAILED")
            os._exit(0 if found == {"child": 1} and tracker.active_run_id is None else 1)
        print(os.waitpid(child, 0)[1], flush=True)
        tracker.log_metrics({"parent": 2})
        """,
        uri,
    )
    run_id, child_status = run.out.split()
    assert (child_status, run.err) == ("0", "")
    info = tracker.get_run_info(run_id)
    assert (info["status"], info["metrics"]) == ("FINISHED", {"child": 1.0, "parent": 2.0})


def test_a_forked_child_with_a_tracker_of_its_own_logs_beside_its_parent(tracker, uri, run_script):
    run = run_script(
        """
        import os, sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1])
        print(tracker.start_run(), flush=True)
        if os.fork() == 0:
            own = MLflowTracker(sys.argv[1])
            print(own.start_run(), flush=True)
            own.log_metrics({"child": 1})
            own.end_run()
            own.flush()
            os._exit(0)
        os.wait()
        tracker.log_metrics({"parent": 1})
        """,
        uri,
    )
    metrics = [tracker.get_run_info(run_id)["metrics"] for run_id in run.out.split()]
    assert (metrics, run.err) == ([{"parent": 1.0}, {"child": 1.0}], "")


def test_children_forked_in_the_middle_of_deliveries_log_beside_their_parent(tracker, uri, db, run_script):
    run = run_script(
        """
        import os, sys, threading
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        tracker.start_run()
        stop = threading.Event()

        def log():
            while not stop.is_set():
                tracker.log_metrics({"parent": 1})
                tracker.flush()

        thread = threading.Thread(target=log)
        thread.start()
        for _ in range(20):
            if (child := os.fork()) == 0:
                own = MLflowTracker(sys.argv[1], experiment_name="tests")
                own.start_run("child")
                own.log_metrics({"child": 1})
                own.end_run()
                own.flush()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        thread.join()
        """,
        uri,
    )
    assert (run.code, run.err) == (0, "")
    assert len(rows(db, "SELECT * FROM metrics WHERE key = 'child'")) == 20


def test_a_forked_child_that_ends_leaves_the_run_of_its_parent_alone(tracker, uri, run_script):
    run = run_script(
        """
        import os, sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1])
        run_id = tracker.start_run()
        tracker.flush()
        if os.fork() == 0:
            sys.exit(0)
        os.wait()
        tracker.log_metrics({"loss": 1})
        print(run_id, tracker.get_run_info(run_id)["status"], tracker.get_run_info(run_id)["metrics"])
        """,
        uri,
        HEIMDALL_EXIT_TIMEOUT=1,
    )
    run_id = run.out[:32]
    assert (run.out, run.err) == (f"{run_id} RUNNING {{'loss': 1.0}}\n", "")
    assert tracker.get_run_info(run_id)["status"] == "FINISHED"


def test_ctrl_c_ends_a_flush_that_waits_for_a_locked_database(tracker, uri, db, locked, start_script):
    process = start_script(
        """
        import sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1])
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            print(tracker.start_run(), flush=True)
            tracker.flush()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """,
        uri,
        HEIMDALL_EXIT_TIMEOUT=0,
    )
    assert process.stdout.readline() == "ready\n"
    with locked(db):
        process.stdin.write("go\n")
        process.stdin.flush()
        run_id = process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        # Still locked: only the interrupt can have ended it.
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (0, "interrupted\n")
    assert "next start" in err
    assert MLflowTracker(uri).get_run_info(run_id)["status"] in ("FINISHED", "KILLED")


def test_an_exit_that_has_nothing_to_wait_for_says_nothing(uri, run_script):
    done = run_script(
        """
        import sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1])
        with tracker.run():
            tracker.log_metric("loss", 1.0)
        tracker.flush()
        """,
        uri,
        HEIMDALL_EXIT_TIMEOUT=0,
    )
    assert (done.code, done.out, done.err) == (0, "", "")


def test_two_processes_that_start_on_a_new_database_at_once_both_log_everything(uri, db, start_script):
    code = """
        import sys
        from heimdall_tracking import MLflowTracker
        sys.stdin.readline()
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        with tracker.run() as run:
            for step in range(500):
                tracker.log_metrics({"loss": step, "accuracy": -step}, step=step)
        print(run.run_id)
        """
    processes = [start_script(code, uri) for _ in range(2)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    ended = [(process.communicate(timeout=PATIENCE_S), process.returncode) for process in processes]
    assert [(err, code) for (_, err), code in ended] == [("", 0)] * 2
    for (out, _), _ in ended:
        found = rows(db, "SELECT key, step FROM metrics WHERE run_uuid = ?", out.strip())
        assert sorted(found) == sorted((k, i) for k in ("loss", "accuracy") for i in range(500))
    statuses = rows(db, "SELECT status, experiment_id FROM runs")
    assert len(statuses) == 2
    assert set(statuses) == {("FINISHED", 1)}


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_that_is_no_time_is_refused(tracker, timeout):
    with pytest.raises(ValueError, match="timeout"):
        tracker.flush(timeout)


@pytest.mark.parametrize("timeout", [None, 0, 1e9, 1e19, float("inf")])
def test_a_flush_with_nothing_to_deliver_returns_whatever_the_timeout(tracker, timeout):
    tracker.flush()
    tracker.flush(timeout)


def test_another_sqlite_in_this_process_may_read_while_records_are_delivered(tracker, db):
    """The stock client in the same script: it brings a second SQLite, which sees no lock of ours."""
    run_id = tracker.start_run()
    tracker.flush()
    done = Event()
    refused: list[str] = []

    def read() -> None:
        while not done.is_set():
            try:
                rows(db, "SELECT count(*) FROM metrics")
            except sqlite3.Error as error:
                refused.append(str(error))

    reader = Thread(target=read)
    reader.start()
    try:
        for step in range(200):
            tracker.log_metrics({f"metric {i}": i for i in range(20)}, step=step)
            tracker.flush(timeout=10)
    finally:
        done.set()
        reader.join()
    assert refused == []
    assert rows(db, "PRAGMA integrity_check") == [("ok",)]
    assert rows(db, "SELECT count(*) FROM metrics WHERE run_uuid = ?", run_id) == [(4000,)]


def test_another_sqlite_in_this_process_may_write_while_trackers_come_and_go(uri, db):
    """Closing a file drops all POSIX locks on it, so a tracker must not do so while a foreign one is held."""
    MLflowTracker(uri, experiment_name="tests")
    done = Event()
    written: list[str] = []
    refused: list[str] = []

    def write() -> None:
        while not done.is_set():
            key = f"key {len(written)}"
            try:
                with contextlib.closing(sqlite3.connect(db)) as connection, connection:
                    connection.execute("INSERT INTO experiment_tags VALUES (?, ?, 0)", (key, "x" * 3000))
                written.append(key)
            except sqlite3.Error as error:
                refused.append(str(error))

    writer = Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            tracker = MLflowTracker(uri, experiment_name="tests")
            with tracker.run():
                for step in range(20):
                    tracker.log_metrics({f"metric {i}": i for i in range(20)}, step=step)
            tracker.flush()
            del tracker
    finally:
        done.set()
        writer.join()
    assert refused == []
    assert rows(db, "PRAGMA integrity_check") == [("ok",)]
    assert rows(db, "SELECT count(*) FROM metrics") == [(10 * 400,)]
    assert [key for (key,) in rows(db, "SELECT key FROM experiment_tags ORDER BY rowid")] == written


def test_ctrl_c_ends_the_wait_of_the_exit(uri, db, locked, start_script):
    process = start_script(
        """
        import sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        print("ready", flush=True)
        sys.stdin.readline()
        tracker.start_run()
        """,
        uri,
        HEIMDALL_EXIT_TIMEOUT=600,
        HEIMDALL_CONNECT_TIMEOUT=0.2,
    )
    assert process.stdout.readline() == "ready\n"
    with locked(db):
        process.stdin.write("go\n")
        process.stdin.flush()
        # The start of the run tells of the database, and the first look at the progress says the other line.
        assert "degraded" in process.stderr.readline()
        assert "Ctrl-C leaves the rest to the next start" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert "not everything is delivered" in err
