"""The file arrives as it was at the call, whatever becomes of it until the store takes it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import pytest

from heimdall_tracking import MLflowTracker
from heimdall_tracking.errors import ArtifactError, UndeliveredError
from support import s3
from support.helpers import MIB, PATIENCE_S, contents, wait_until, write
from support.s3_proxy import S3Proxy, puts

# Sent by one request, and in parts.
LENGTHS = [5, 3 * MIB, 20 * MIB]


@pytest.fixture
def held(
    s3_server: s3.S3Server, s3_tracker: Callable[..., MLflowTracker], bucket: str, tmp_path: Path
) -> Iterator[SimpleNamespace]:
    """A run at a store that takes nothing until it is asked for its objects."""
    with S3Proxy(s3_server.port) as proxy:
        tracker = s3_tracker(bucket, proxy)
        run_id = tracker.start_run()
        fault = proxy.strike("hold", puts)

        def objects() -> dict[str, bytes]:
            proxy.heal()
            tracker.flush(PATIENCE_S)
            return s3_server.objects(bucket, f"runs/{run_id}/artifacts")

        yield SimpleNamespace(
            tracker=tracker,
            run_id=run_id,
            proxy=proxy,
            fault=fault,
            objects=objects,
            source=tmp_path / "source",
        )


def another_disk() -> str | None:
    """A folder that is on another disk than the journals of tests."""
    memory = Path("/dev/shm")
    is_other = memory.is_dir() and memory.stat().st_dev != Path(tempfile.gettempdir()).stat().st_dev
    return str(memory) if is_other else None


def staged(tracker: MLflowTracker) -> list[str]:
    """Return the names of the files that wait in the journal."""
    return sorted(path.name for path in (Path(tracker.status().journal) / "staging").iterdir())


def replace(file: Path) -> None:
    new = write(file.with_name("new"), b"newer")
    new.replace(file)


def truncate(file: Path) -> None:
    os.truncate(file, 1)


def grow(file: Path) -> None:
    with file.open("ab") as end:
        end.write(b"more" * 1000)


def scribble(file: Path) -> None:
    with file.open("r+b") as start:
        start.write(b"!!")


CHANGES = [lambda file: file.write_bytes(b"newer"), Path.unlink, replace, truncate, grow, scribble]
NAMES_OF_CHANGES = ["overwritten", "deleted", "replaced", "truncated", "grown", "scribbled in"]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("change", CHANGES, ids=NAMES_OF_CHANGES)
def test_a_file_arrives_as_it_was_at_the_call(held, change, length):
    content = os.urandom(length)
    file = write(held.source / "last.ckpt", content)
    held.tracker.log_artifact(file, "")
    change(file)
    assert held.objects() == {"last.ckpt": content}


@pytest.mark.parametrize("change", CHANGES, ids=NAMES_OF_CHANGES)
def test_a_folder_arrives_as_it_was_at_the_call(held, change):
    for number in range(30):
        write(held.source / f"{number % 3}" / f"{number}", os.urandom(number * 1000))
    before = contents(held.source)
    held.tracker.log_artifacts_dir(held.source, "")
    for number in range(30):
        change(held.source / f"{number % 3}" / f"{number}") if number != 1 else None
    write(held.source / "later")
    assert held.objects() == before


def test_each_call_brings_the_checkpoint_of_its_time(held):
    file = held.source / "last.ckpt"
    for number in range(10):
        held.tracker.log_artifact(write(file, bytes([number]) * (number + 1) * 10_000), f"{number}")
    file.unlink()
    assert held.objects() == {
        f"{number}/last.ckpt": bytes([number]) * (number + 1) * 10_000 for number in range(10)
    }


def test_a_file_that_grows_during_the_call_arrives_as_it_was_at_one_moment_of_it(held):
    file = write(held.source / "log.txt", b"x" * 1_000_000)
    over, line = Event(), b"0123456789abcdef" * 64

    def append() -> None:
        with file.open("ab", buffering=0) as end:
            while not over.wait(0.0002):
                end.write(line)

    writer = Thread(target=append)
    writer.start()
    try:
        lengths = []
        for number in range(20):
            before = file.stat().st_size
            held.tracker.log_artifact(file, f"{number}")
            lengths.append((before, file.stat().st_size))
            wait_until(lambda most=lengths[-1][1]: file.stat().st_size > most, "the file has grown")
    finally:
        over.set()
        writer.join()
    whole = file.read_bytes()
    found = held.objects()
    assert len(found) == 20
    for number, (least, most) in enumerate(lengths):
        content = found[f"{number}/log.txt"]
        assert least <= len(content) <= most
        assert whole.startswith(content)


def test_the_call_returns_while_the_store_takes_nothing(held):
    small = held.tracker.log_artifact(write(held.source / "small"), "")
    large = held.tracker.log_artifact(write(held.source / "large", os.urandom(20 * MIB)), "")
    held.tracker.log_metrics({"loss": 1.0}, step=1)
    wait_until(lambda: held.fault.struck >= 2, "both are on their way")
    assert not small.done
    assert not large.done
    with pytest.raises(UndeliveredError):
        large.wait(0.05)
    held.proxy.heal()
    small.wait(PATIENCE_S)
    large.wait(PATIENCE_S)
    assert small.done
    assert large.done
    assert set(held.objects()) == {"small", "large"}


def test_metrics_arrive_while_a_file_is_held_up(held, uri, db):
    from mlflow import MlflowClient

    held.tracker.log_artifact(write(held.source / "large", os.urandom(20 * MIB)), "")
    wait_until(lambda: held.fault.struck, "the file is on its way")
    held.tracker.log_metrics({"loss": 0.5}, step=1)
    client = MlflowClient(uri)
    wait_until(lambda: client.get_run(held.run_id).data.metrics == {"loss": 0.5}, "the metric is there")
    assert len(held.objects()) == 1


def test_a_run_ends_behind_its_files(held, uri, s3_server):
    from mlflow import MlflowClient

    held.tracker.log_artifact(write(held.source / "large", os.urandom(20 * MIB)), "")
    wait_until(lambda: held.fault.struck, "the file is on its way")
    held.tracker.log_metrics({"loss": 0.5}, step=1)
    held.tracker.end_run()
    client = MlflowClient(uri)
    wait_until(lambda: client.get_run(held.run_id).data.metrics == {"loss": 0.5}, "the metric is there")
    assert client.get_run(held.run_id).info.status == "RUNNING"
    assert len(held.objects()) == 1
    assert client.get_run(held.run_id).info.status == "FINISHED"


def test_other_runs_go_on_and_end_while_a_store_takes_nothing_of_one(held, uri):
    from mlflow import MlflowClient

    for number in range(50):
        # The same place again and again, and more files than are on their way at a time.
        held.tracker.log_artifact(write(held.source / "last.ckpt", b"%d" % number), "")
        held.tracker.log_artifact(write(held.source / f"{number}"), "")
        held.tracker.log_metrics({"loss": number}, step=number)
    held.tracker.end_run()
    with held.tracker.run() as other:
        held.tracker.log_metrics({"loss": 0.5})
    client = MlflowClient(uri)

    def is_over() -> bool:
        runs = client.search_runs(["1"], f"attributes.run_id = '{other.run_id}'")
        return [run.info.status for run in runs] == ["FINISHED"]

    wait_until(is_over, "the run behind it has ended")
    assert client.get_run(other.run_id).data.metrics == {"loss": 0.5}
    first = client.get_run(held.run_id)
    assert (first.info.status, first.data.metrics) == ("RUNNING", {"loss": 49})
    assert held.objects() == {"last.ckpt": b"49"} | {f"{number}": b"content" for number in range(50)}
    assert client.get_run(held.run_id).info.status == "FINISHED"


@pytest.fixture
def no_preemption() -> Iterator[None]:
    """No thread is made to give the GIL away: another one runs where it is let go, and nowhere else."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(PATIENCE_S)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("call", ["log_artifact", "log_artifacts_dir"])
def test_other_threads_run_while_a_file_is_copied(tracker, tmp_path, no_preemption, call):
    file = write(tmp_path / "source" / "large")
    with file.open("wb") as large:
        large.truncate(256 * MIB)
        large.seek(-1, os.SEEK_END)
        large.write(b"!")
    shares = subprocess.run(["cp", "--reflink=always", file, tmp_path / "copy"], capture_output=True)
    if shares.returncode == 0:
        pytest.skip("this disk copies without copying")
    tracker.start_run()
    folder = Path(tracker.status().journal) / "staging"
    looks, over, in_the_middle = Event(), Event(), Event()

    def look() -> None:
        while not over.is_set():
            looks.set()
            for copy in folder.iterdir():
                with contextlib.suppress(OSError), copy.open("rb") as begun:
                    begun.seek(-1, os.SEEK_END)
                    if begun.read(1) == b"\0":
                        in_the_middle.set()

    watcher = Thread(target=look)
    watcher.start()
    try:
        looks.wait()
        # A machine that is busy may let the other thread sleep through a copy.
        for _ in range(20):
            getattr(tracker, call)(file if call == "log_artifact" else file.parent, "").wait(PATIENCE_S)
            if in_the_middle.is_set():
                break
    finally:
        over.set()
        watcher.join()
    assert in_the_middle.is_set()


def test_a_run_that_goes_on_after_its_end_does_so_behind_its_files(held):
    held.tracker.log_artifact(write(held.source / "file"), "")
    wait_until(lambda: held.fault.struck, "the file is on its way")
    held.tracker.end_run()
    held.proxy.heal()
    held.tracker.start_run(run_id=held.run_id)
    held.tracker.log_metrics({"loss": 0.5})
    assert set(held.objects()) == {"file"}
    assert held.tracker.get_run(held.run_id).status == "RUNNING"
    held.tracker.end_run("FAILED")
    held.tracker.flush()
    assert held.tracker.get_run(held.run_id).status == "FAILED"


@pytest.mark.parametrize("length", LENGTHS)
def test_nothing_of_the_copies_is_left_when_all_has_arrived(held, length):
    held.tracker.log_artifact(write(held.source / "a", os.urandom(length)), "")
    held.tracker.log_artifacts_dir(held.source, "again")
    held.objects()
    wait_until(lambda: staged(held.tracker) == [], "the copies are gone")


@pytest.mark.parametrize("length", LENGTHS)
def test_an_immutable_file_is_not_copied(held, length):
    content = os.urandom(length)
    file = write(held.source / "frozen.ckpt", content)
    upload = held.tracker.log_artifact(file, "", immutable=True)
    wait_until(lambda: held.fault.struck, "it is on its way")
    kept = Path(held.tracker.status().journal).glob("staging/*")
    assert all(path.samefile(file) for path in kept if path.suffix != ".parts")
    assert held.objects() == {"frozen.ckpt": content}
    assert upload.done
    # It is the caller's, and stays.
    assert file.read_bytes() == content


def test_an_immutable_folder_is_not_copied(held):
    for number in range(10):
        write(held.source / f"{number}", os.urandom(100_000))
    held.tracker.log_artifacts_dir(held.source, "", immutable=True)
    wait_until(lambda: held.fault.struck, "they are on their way")
    kept = Path(held.tracker.status().journal).glob("staging/*")
    assert all(path.stat().st_nlink == 2 for path in kept)
    assert held.objects() == contents(held.source)


def test_an_immutable_file_that_has_gone_arrives_from_the_same_disk(held):
    file = write(held.source / "frozen.ckpt", b"x" * 100_000)
    upload = held.tracker.log_artifact(file, "", immutable=True)
    file.unlink()
    assert held.objects() == {"frozen.ckpt": b"x" * 100_000}
    upload.wait(PATIENCE_S)


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_file_that_was_said_not_to_change_is_not_the_artifact_itself(tmp_path, uri, is_folder):
    tracker = MLflowTracker(uri, str(tmp_path / "artifacts"), experiment_name="kept")
    file = write(tmp_path / "out" / "last.ckpt", b"epoch 1")
    with tracker.run() as run:
        call = tracker.log_artifacts_dir if is_folder else tracker.log_artifact
        call(file.parent if is_folder else file, "", immutable=True)
    tracker.flush(PATIENCE_S)
    file.write_bytes(b"epoch 2")
    assert tracker.load_text(run.run_id, "last.ckpt") == "epoch 1"


@pytest.mark.skipif(not another_disk(), reason="there is no second disk here")
def test_an_immutable_file_on_another_disk_is_told_when_it_has_gone(held, caplog):
    with tempfile.TemporaryDirectory(dir=another_disk()) as folder:
        file = write(Path(folder) / "frozen.ckpt", b"x" * 100_000)
        other = write(held.source / "other", b"y" * 100_000)
        gone = held.tracker.log_artifact(file, "", immutable=True)
        held.tracker.log_artifact(other, "")
    assert held.objects() == {"other": b"y" * 100_000}
    assert held.tracker.status().parked == 1
    told = [record.getMessage() for record in caplog.records]
    assert sum("frozen.ckpt" in text for text in told) == 1, told
    with pytest.raises(ArtifactError, match=r"frozen\.ckpt"):
        gone.wait(PATIENCE_S)


def test_what_was_staged_when_the_process_was_killed_arrives_by_the_next_start(
    held, s3_server, s3_tracker, bucket, start_script, uri
):
    file = write(held.source / "last.ckpt", b"older" * 1_000_000)
    script = start_script(
        """
        import os, signal, sys
        from heimdall_tracking import MLflowTracker

        uri, artifacts, file = sys.argv[1:]
        tracker = MLflowTracker(uri, artifacts, experiment_name="killed")
        tracker.start_run()
        tracker.log_artifact(file, "")
        os.unlink(file)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        uri,
        f"s3://{bucket}/runs",
        file,
        **s3_server.variables | {"MLFLOW_S3_ENDPOINT_URL": held.proxy.url},
    )
    script.wait(PATIENCE_S)
    assert not file.exists()
    assert s3_server.keys(bucket) == []
    held.proxy.heal()
    tracker = s3_tracker(bucket, experiment_name="killed")
    tracker.flush(PATIENCE_S)
    [content] = s3_server.objects(bucket).values()
    assert content == b"older" * 1_000_000
