"""Processes that die in the middle of an upload to S3: the next start, or a sync, sends what is missing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from heimdall_tracking import MLflowTracker
from support import s3
from support.helpers import MIB, PATIENCE_S, SEED, rows, sync, wait_until, write
from support.s3_proxy import (
    S3Proxy,
    begins,
    completes,
    of,
    parts,
    puts,
)

PART = 8 * MIB


DOOMED = """
    import sys
    from heimdall_tracking import MLflowTracker

    uri, artifacts, file = sys.argv[1:]
    tracker = MLflowTracker(uri, artifacts, experiment_name="s3")
    print(tracker.start_run(), flush=True)
    tracker.log_artifact(file, "")
    print("logged", flush=True)
    tracker.log_metrics({"loss": 1.0}, step=1)
    tracker.flush()
"""


@pytest.fixture
def killed(
    start_script: Callable[..., subprocess.Popen],
    s3_server: s3.S3Server,
    proxy: S3Proxy,
    bucket: str,
    uri: str,
    heimdall_dir: Path,
    tmp_path: Path,
) -> SimpleNamespace:
    """A process that was killed when three of the eight parts of its file had arrived."""
    content = os.urandom(8 * PART)
    file = write(tmp_path / "large", content)
    variables = s3_server.variables | {"MLFLOW_S3_ENDPOINT_URL": proxy.url}
    proxy.strike("hold", parts, after=3)
    process = start_script(DOOMED, uri, f"s3://{bucket}/runs", file, **variables)
    run_id = process.stdout.readline().strip()

    def noted() -> int:
        """Parts of which the process knows that they have arrived; the first line says what is uploaded."""
        notes = [path.read_text() for path in heimdall_dir.glob("journal/*/staging/*.parts")]
        return sum(len([line for line in note.splitlines() if line]) - 1 for note in notes)

    wait_until(lambda: noted() == 3, "three parts are there")
    process.send_signal(signal.SIGKILL)
    process.wait()
    file.unlink()
    sent = proxy.sent_parts()
    assert len(sent) == 3
    assert s3_server.unfinished(bucket) == [f"runs/{run_id}/artifacts/large"]
    proxy.heal()
    return SimpleNamespace(run_id=run_id, content=content, sent=sent, variables=variables)


def check_resumed(killed: SimpleNamespace, s3_server: s3.S3Server, proxy: S3Proxy, bucket: str) -> None:
    assert s3_server.objects(bucket, f"runs/{killed.run_id}/artifacts") == {"large": killed.content}
    assert sorted(proxy.sent_parts()) == list(range(1, 9))
    assert s3_server.unfinished(bucket) == []
    assert len(proxy.seen(begins)) == 1


def test_the_next_start_sends_the_parts_that_a_killed_process_has_not(
    killed, s3_tracker, s3_server, proxy, bucket
):
    tracker = s3_tracker(bucket, proxy)
    tracker.flush(PATIENCE_S)
    check_resumed(killed, s3_server, proxy, bucket)
    run = tracker.get_run(killed.run_id)
    assert (run.status, run.metrics) == ("FAILED", {"loss": 1.0})


def test_sync_sends_the_parts_that_a_killed_process_has_not(killed, s3_server, proxy, bucket, heimdall_dir):
    done = sync(heimdall_dir, **killed.variables)
    assert done.returncode == 0, done.stderr
    check_resumed(killed, s3_server, proxy, bucket)
    assert list(heimdall_dir.glob("journal/*")) == []


@pytest.mark.parametrize("is_replacement", [False, True], ids=["new", "in place of an older file"])
def test_an_upload_whose_parts_the_store_has_swept_away_begins_anew(
    killed, s3_tracker, s3_server, proxy, bucket, is_replacement
):
    client = s3_server.client()
    if is_replacement:
        # Its length is the same, but the length proves nothing.
        key = f"runs/{killed.run_id}/artifacts/large"
        client.put_object(Bucket=bucket, Key=key, Body=os.urandom(len(killed.content)))
    [upload] = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    tracker = s3_tracker(bucket, proxy)
    tracker.flush(PATIENCE_S)
    assert s3_server.objects(bucket, f"runs/{killed.run_id}/artifacts") == {"large": killed.content}
    assert s3_server.unfinished(bucket) == []


def test_parts_of_a_file_as_it_was_are_not_mixed_with_what_it_has_become(
    killed, s3_tracker, s3_server, proxy, bucket, heimdall_dir
):
    # As of a file that is uploaded from where it is.
    [staged] = [it for it in heimdall_dir.glob("journal/*/staging/*") if it.suffix != ".parts"]
    content = os.urandom(len(killed.content))
    staged.write_bytes(content)
    s3_tracker(bucket, proxy).flush(PATIENCE_S)
    assert s3_server.objects(bucket, f"runs/{killed.run_id}/artifacts") == {"large": content}
    assert len(proxy.seen(begins)) == 2
    assert s3_server.unfinished(bucket) == []


def test_an_upload_that_was_completed_right_before_the_kill_is_not_sent_again(
    start_script, s3_server, s3_tracker, proxy, bucket, uri, tmp_path
):
    content = os.urandom(3 * PART)
    file = write(tmp_path / "large", content)
    # The server makes the object, and the process never hears of it.
    lost = proxy.strike("lose answer", completes)
    held = proxy.strike("hold", of("large", "HEAD"))
    variables = s3_server.variables | {"MLFLOW_S3_ENDPOINT_URL": proxy.url}
    process = start_script(DOOMED, uri, f"s3://{bucket}/runs", file, **variables)
    run_id = process.stdout.readline().strip()
    wait_until(lambda: lost.struck or held.struck, "the object is there")
    wait_until(lambda: s3_server.keys(bucket), "the object is there")
    process.kill()
    process.wait()
    proxy.heal()
    proxy.forget()
    s3_tracker(bucket, proxy).flush(PATIENCE_S)
    assert s3_server.objects(bucket, f"runs/{run_id}/artifacts") == {"large": content}
    assert s3_server.unfinished(bucket) == []
    assert proxy.sent_parts() == []


def test_kills_at_random_instants_lose_nothing_and_leave_nothing_unfinished(
    start_script, s3_server, s3_tracker, proxy, bucket, uri, tmp_path, heimdall_dir
):
    print(f"HEIMDALL_SEED={SEED}")
    rng = random.Random(SEED)
    expected = {}
    variables = s3_server.variables | {"MLFLOW_S3_ENDPOINT_URL": proxy.url}
    for _ in range(6):
        content = rng.randbytes(rng.randrange(17, 40) * MIB)
        file = write(tmp_path / "large", content)
        process = start_script(DOOMED, uri, f"s3://{bucket}/runs", file, **variables)
        run_id = process.stdout.readline().strip()
        assert process.stdout.readline() == "logged\n"
        expected[f"{run_id}/artifacts/large"] = content
        # Those of whoever died before are delivered first.
        so_many = len(proxy.seen()) + rng.randrange(12)
        wait_until(
            lambda n=so_many, p=process: len(proxy.seen()) >= n or p.poll() is not None,
            "so many requests have come",
        )
        process.kill()
        process.wait()
    s3_tracker(bucket, proxy).flush(PATIENCE_S)
    assert s3_server.objects(bucket, "runs") == expected
    # A kill between the store's answer to the first request and the note of it leaves one without parts.
    client = s3_server.client()
    for left in client.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
        sent = client.list_parts(Bucket=bucket, Key=left["Key"], UploadId=left["UploadId"])
        assert sent.get("Parts", []) == []


def test_a_process_that_ends_without_its_store_leaves_everything_to_sync(
    start_script, s3_server, proxy, bucket, uri, tmp_path, heimdall_dir
):
    content = os.urandom(20 * MIB)
    file = write(tmp_path / "large", content)
    variables = s3_server.variables | {"MLFLOW_S3_ENDPOINT_URL": proxy.url}
    proxy.strike("refuse", status=503, code="ServiceUnavailable")
    code = DOOMED.replace("tracker.flush()", "tracker.end_run()")
    process = start_script(code, uri, f"s3://{bucket}/runs", file, HEIMDALL_EXIT_TIMEOUT=1, **variables)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    run_id = out.split()[0]
    refused = sync(heimdall_dir, "--timeout", "3", **variables)
    assert refused.returncode != 0
    proxy.heal()
    done = sync(heimdall_dir, **variables)
    assert done.returncode == 0, done.stderr
    assert s3_server.objects(bucket, f"runs/{run_id}/artifacts") == {"large": content}
    assert s3_server.unfinished(bucket) == []
    assert list(heimdall_dir.glob("journal/*")) == []


def test_files_of_a_dead_process_that_cannot_go_out_hold_up_nobody(
    start_script, run_script, s3_server, proxy, bucket, uri, db, tmp_path, monkeypatch
):
    file = write(tmp_path / "weights", b"content")
    variables = s3_server.variables | {"MLFLOW_S3_ENDPOINT_URL": proxy.url}
    artifacts = f"s3://{bucket}/runs"
    proxy.strike("refuse", puts, status=503, code="SlowDown")
    process = start_script(DOOMED, uri, artifacts, file, **variables)
    run_id, said = (process.stdout.readline().strip() for _ in range(2))
    assert said == "logged", process.communicate()
    process.kill()
    process.wait()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    tracker = MLflowTracker(uri, artifacts, experiment_name="tests")
    with tracker.run() as run:
        tracker.log_metrics({"loss": 0.5})
        query = "SELECT value FROM metrics WHERE run_uuid = ?"
        wait_until(lambda: rows(db, query, run.run_id) == [(0.5,)], "what this process records is there")
    proxy.heal()
    code = "import sys; from heimdall_tracking import MLflowTracker; MLflowTracker(sys.argv[1]).flush()"
    done = run_script(code, uri, **variables)
    assert done.code == 0, done.err
    assert s3_server.objects(bucket, f"runs/{run_id}/artifacts") == {"weights": b"content"}
    assert tracker.get_run(run_id).status == "FAILED"
