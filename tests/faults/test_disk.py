"""The journal's disk: full, read-only, deleted under us, bounded. Training goes on and loses nothing."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from heimdall_tracking import MLflowTracker
from support.helpers import PATIENCE_S, contents, run_program, wait_until


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=777", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Leave no room on a disk; delete the file to have some again."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    return ballast


@pytest.fixture
def at_the_disk(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Journals on the small disk; the database is elsewhere."""
    monkeypatch.setenv("HEIMDALL_DIR", str(small_disk / "heimdall"))
    return small_disk


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "degraded" in record.getMessage()]


def test_a_full_disk_is_told_once_and_costs_nothing(at_the_disk, uri, db, locked, caplog):
    tracker = MLflowTracker(uri, experiment_name="tests")
    run_id = tracker.start_run()
    tracker.flush()
    with locked(db):
        ballast = fill(at_the_disk)
        # Far more than what a journal may have laid aside on the disk before it was full.
        for part in range(200):
            tracker.log_params({f"p{part}.{i}": "x" * 5000 for i in range(20)})
            tracker.log_metrics({"loss": part}, step=part)
        status = tracker.status()
        assert status.in_memory > 0
        assert status.degraded
        assert "journal" in status.last_error or "space" in status.last_error.lower()
        assert len(warnings_of(caplog)) <= 1
        ballast.unlink()
    tracker.flush(PATIENCE_S)
    info = tracker.get_run_info(run_id)
    assert len(info["parameters"]) == 4000
    assert len(tracker.get_metric_history(run_id, "loss")) == 200
    status = tracker.status()
    assert (status.in_memory, status.degraded, status.parked) == (0, False, 0)


def test_the_journal_is_used_again_once_there_is_room(at_the_disk, uri, db, locked):
    tracker = MLflowTracker(uri, experiment_name="tests")
    tracker.start_run()
    tracker.flush()
    with locked(db):
        ballast = fill(at_the_disk)
        for part in range(200):
            tracker.log_params({f"p{part}.{i}": "x" * 5000 for i in range(20)})
        assert tracker.status().in_memory > 0
        ballast.unlink()
    tracker.flush(PATIENCE_S)
    with locked(db):
        tracker.log_metrics({"room": 1})
        status = tracker.status()
        assert (status.in_memory, status.pending) == (0, 1)
    tracker.flush(PATIENCE_S)


def test_a_process_that_dies_on_a_full_disk_has_what_was_on_disk_before(
    at_the_disk, uri, db, locked, start_script
):
    process = start_script(
        """
        import sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        print(tracker.start_run(), flush=True)
        tracker.flush()
        sys.stdin.readline()
        for step in range(100):
            tracker.log_metrics({"loss": step}, step=step)
        print("before", flush=True)
        sys.stdin.readline()
        for step in range(100, 200):
            tracker.log_metrics({"loss": step}, step=step)
            tracker.log_params({f"p{step}": "x" * 5000})
        print("after", flush=True)
        sys.stdin.read()
        """,
        uri,
        HEIMDALL_DIR=at_the_disk / "heimdall",
    )

    def say(text: str) -> str:
        process.stdin.write(f"{text}\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    run_id = process.stdout.readline().strip()
    wait_until(db.exists, "the database is there")
    with locked(db):
        assert say("log") == "before"
        ballast = fill(at_the_disk)
        assert say("log") == "after"
        process.kill()
        process.wait()
        ballast.unlink()
    tracker = MLflowTracker(uri, experiment_name="tests")
    tracker.flush(PATIENCE_S)
    steps = {point.step for point in tracker.get_metric_history(run_id, "loss")}
    assert steps >= set(range(100))
    assert tracker.get_run(run_id).status == "FAILED"


def test_an_artifact_that_does_not_fit_is_kept_in_memory_as_it_was(at_the_disk, uri, tmp_path, caplog):
    content = b"x" * 2_000_000
    (tmp_path / "weights").write_bytes(content)
    fill(at_the_disk)
    tracker = MLflowTracker(uri, str(tmp_path / "artifacts"), experiment_name="tests")
    run_id = tracker.start_run()
    tracker.log_artifact(tmp_path / "weights", "")
    (tmp_path / "weights").write_bytes(b"the next one")
    tracker.log_text("small", "small.txt")
    tracker.log_metrics({"loss": 1})
    tracker.flush(PATIENCE_S)
    assert tracker.get_run_info(run_id)["metrics"] == {"loss": 1.0}
    found = contents(tmp_path / "artifacts" / run_id / "artifacts")
    assert found == {"weights": content, "small.txt": b"small"}
    assert len(warnings_of(caplog)) == 1


def test_an_artifact_too_large_for_memory_is_uploaded_from_where_it_is(at_the_disk, uri, tmp_path, caplog):
    content = b"x" * 33 * 2**20
    (tmp_path / "weights").write_bytes(content)
    tracker = MLflowTracker(uri, str(tmp_path / "artifacts"), experiment_name="tests")
    run_id = tracker.start_run()
    tracker.log_artifact(tmp_path / "weights", "")
    tracker.flush(PATIENCE_S)
    assert contents(tmp_path / "artifacts" / run_id / "artifacts") == {"weights": content}
    assert any("weights" in text and "leave it there" in text for text in warnings_of(caplog))


def test_a_full_disk_at_the_start_is_told_and_costs_nothing(at_the_disk, uri, caplog):
    ballast = fill(at_the_disk)
    tracker = MLflowTracker(uri, experiment_name="tests")
    run_id = tracker.start_run()
    for step in range(100):
        tracker.log_metrics({"loss": step}, step=step)
    ballast.unlink()
    tracker.end_run()
    tracker.flush(PATIENCE_S)
    assert len(tracker.get_metric_history(run_id, "loss")) == 100
    assert tracker.get_run(run_id).status == "FINISHED"
    assert len(warnings_of(caplog)) == 1


# A filter of system calls: as on NFS before 4.2 and on many file systems in user space.
RESERVES_NOTHING = """
import ctypes, errno, platform, struct, sys
from heimdall_tracking import MLflowTracker

number = {"x86_64": 285, "aarch64": 47}[platform.machine()]
load, compare, end, allow = (0x20, 0, 0, 0), (0x15, 0, 1, number), 0x06, 0x7FFF0000
steps = [load, compare, (end, 0, 0, 0x50000 | errno.EOPNOTSUPP), (end, 0, 0, allow)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
assert libc.prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()  # the filter

tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
with tracker.run() as run:
    # Over the size of a segment.
    for part in range(2000):
        tracker.log_params({f"p{part}": "x" * 6000})
    tracker.flush(60)
    tracker.log_metrics({"loss": 1})
print(run.run_id)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="filters system calls")
def test_a_disk_that_reserves_nothing_costs_nothing(uri, run_script):
    run = run_script(RESERVES_NOTHING, uri)
    assert run.code == 0, run.err
    assert run.err == ""
    info = MLflowTracker(uri, experiment_name="tests").get_run_info(run.out.strip())
    assert (len(info["parameters"]), info["metrics"], info["status"]) == (2000, {"loss": 1.0}, "FINISHED")


@pytest.fixture
def run_under_rules(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run a Python program that may not write where the mode of a folder says so, not even as root."""
    prefix: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may write everywhere, and there is no setpriv to take that from it")
        prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]

    def run(code: str, *arguments: object, **variables: object) -> subprocess.CompletedProcess:
        command = [*prefix, sys.executable, "-c", code, *arguments]
        return run_program(command, cwd=tmp_path, **variables)

    return run


READ_ONLY_LATER = """
import os, pathlib, sys, time
from heimdall_tracking import MLflowTracker

def make_mode(mode):
    journal = pathlib.Path(tracker.status().journal)
    for folder in (journal, journal.parent, journal.parent.parent):
        folder.chmod(mode)

tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
run_id = tracker.start_run()
tracker.flush()
make_mode(0o555)
# Over the size of a segment, so that new files are needed.
for part in range(2000):
    tracker.log_params({f"p{part}": "x" * 6000})
tracker.flush(60)
make_mode(0o755)
tracker.log_metrics({"loss": 1})
tracker.end_run()
tracker.flush(60)
while (status := tracker.status()).degraded:
    time.sleep(0.01)
print(run_id, status.in_memory, status.pending, status.degraded)
"""


def test_a_folder_that_becomes_read_only_costs_nothing(uri, run_under_rules, heimdall_dir):
    run = run_under_rules(READ_ONLY_LATER, uri, HEIMDALL_DIR=heimdall_dir)
    assert run.returncode == 0, run.stderr
    run_id, *status = run.stdout.split()
    assert status == ["0", "0", "False"]
    assert run.stderr.count("degraded") <= 1, run.stderr
    tracker = MLflowTracker(uri, experiment_name="tests")
    info = tracker.get_run_info(run_id)
    assert (len(info["parameters"]), info["metrics"], info["status"]) == (2000, {"loss": 1.0}, "FINISHED")


def test_a_folder_that_is_read_only_at_the_start_is_told_and_costs_nothing(uri, run_under_rules, tmp_path):
    folder = tmp_path / "read only"
    folder.mkdir(mode=0o555)
    run = run_under_rules(
        """
import sys
from heimdall_tracking import MLflowTracker
tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
print(tracker.start_run())
for step in range(100):
    tracker.log_metrics({"loss": step}, step=step)
print(tracker.status().degraded)
""",
        uri,
        HEIMDALL_DIR=folder,
    )
    assert run.returncode == 0, run.stderr
    run_id, degraded = run.stdout.split()
    assert degraded == "True"
    assert run.stderr.count("degraded") == 1, run.stderr
    tracker = MLflowTracker(uri, experiment_name="tests")
    assert len(tracker.get_metric_history(run_id, "loss")) == 100


def test_a_journal_that_is_deleted_under_us_costs_nothing(tracker, uri, db, locked, heimdall_dir, caplog):
    run_id = tracker.start_run()
    tracker.flush()
    with locked(db):
        for step in range(100):
            tracker.log_metrics({"loss": step}, step=step)
        shutil.rmtree(heimdall_dir)
        for step in range(100, 200):
            tracker.log_metrics({"loss": step}, step=step)
    tracker.flush(PATIENCE_S)
    tracker.log_text("grüße", "notes.txt")
    tracker.end_run()
    tracker.flush(PATIENCE_S)
    assert len(tracker.get_metric_history(run_id, "loss")) == 200
    found = tracker.get_run(run_id)
    assert found.status == "FINISHED"
    assert len(warnings_of(caplog)) <= 1
    assert "pending=0" in repr(tracker.status()) or tracker.status().pending == 0


# A process that finds its journal full waits, and goes on when there is room.
LOGGING_INTO_A_SMALL_JOURNAL = """
    import sys, threading
    from heimdall_tracking import MLflowTracker

    tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
    run_id = tracker.start_run()
    tracker.flush()
    print(run_id, flush=True)
    sys.stdin.readline()
    try:
        for step in range(6_000):
            tracker.log_metrics({"loss": step}, step=step)
            tracker.set_tag("state", "x" * 5000)
            if step % 10 == 0:
                print(step, flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(3)
    print("done", flush=True)
    tracker.end_run()
    tracker.flush()
"""


@pytest.fixture
def waiting(start_script, uri: str, db: Path, heimdall_dir: Path):
    """A process whose calls wait for room in the journal while the database is locked, and its run."""
    process = start_script(LOGGING_INTO_A_SMALL_JOURNAL, uri, HEIMDALL_JOURNAL_LIMIT=100_000)
    return process, process.stdout.readline().strip()


def progress_until_it_stops(process: subprocess.Popen) -> int:
    """The last step that was said; ends when nothing is said for a second."""
    said = b""
    while select.select([process.stdout], [], [], 1.0)[0] and (
        chunk := os.read(process.stdout.fileno(), 65536)
    ):
        said += chunk
    steps = said.split(b"\n")[:-1]
    return int(steps[-1]) if steps[-1].isdigit() else sys.maxsize


def journal_bytes(heimdall_dir: Path) -> int:
    files = (path for path in heimdall_dir.rglob("*") if path.is_file())
    # Blocks, not lengths: a segment may be laid aside in advance as a hole.
    return sum(min(path.stat().st_size, path.stat().st_blocks * 512) for path in files)


def test_callers_wait_for_room_in_a_bounded_journal_and_lose_nothing(waiting, uri, db, locked, heimdall_dir):
    process, run_id = waiting
    with locked(db):
        process.stdin.write("go\n")
        process.stdin.flush()
        stopped_at = progress_until_it_stops(process)
        assert 0 <= stopped_at < 5_990, "it goes on as if there were no limit"
        assert process.poll() is None
        assert journal_bytes(heimdall_dir) < 400_000
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == "done"
    tracker = MLflowTracker(uri, experiment_name="tests")
    history = tracker.get_metric_history(run_id, "loss")
    assert sorted(point.step for point in history) == list(range(6_000))
    assert tracker.get_run(run_id).status == "FINISHED"


def test_ctrl_c_ends_the_wait_for_room_in_the_journal(waiting, uri, db, locked):
    process, run_id = waiting
    with locked(db):
        process.stdin.write("go\n")
        process.stdin.flush()
        stopped_at = progress_until_it_stops(process)
        assert stopped_at >= 0
        process.send_signal(signal.SIGINT)
        # Still locked: only the interrupt can have ended the wait.
        wait_until(lambda: "interrupted" in (process.stdout.readline() or ""), "the call is interrupted")
    process.communicate(timeout=PATIENCE_S)
    tracker = MLflowTracker(uri, experiment_name="tests")
    tracker.flush(PATIENCE_S)
    steps = {point.step for point in tracker.get_metric_history(run_id, "loss")}
    assert steps >= set(range(stopped_at + 1))


def test_a_full_disk_and_a_small_memory_make_callers_wait(at_the_disk, uri, db, locked, start_script):
    process = start_script(
        LOGGING_INTO_A_SMALL_JOURNAL,
        uri,
        HEIMDALL_DIR=at_the_disk / "heimdall",
        HEIMDALL_MEMORY_LIMIT=100_000,
    )
    run_id = process.stdout.readline().strip()
    with locked(db):
        ballast = fill(at_the_disk)
        process.stdin.write("go\n")
        process.stdin.flush()
        stopped_at = progress_until_it_stops(process)
        assert 0 <= stopped_at < 5_990, "it goes on as if there were no limit"
        ballast.unlink()
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    tracker = MLflowTracker(uri, experiment_name="tests")
    history = tracker.get_metric_history(run_id, "loss")
    assert sorted(point.step for point in history) == list(range(6_000))
