"""Artifacts in S3: what arrives, under which name, how it is sent, and that stock clients read it."""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import verify_artifact_path

from heimdall_tracking import ArtifactNotFoundError, InvalidInputError, MLflowTracker
from heimdall_tracking.errors import ArtifactError, ConfigurationError
from support import s3
from support.helpers import (
    MIB,
    PATIENCE_S,
    contents,
    memory_of_an_upload,
    run_program,
    write,
    write_large,
)
from support.s3_proxy import S3Proxy, begins, of, parts, puts

pytestmark = pytest.mark.s3

# From here on a file is sent in parts.
WHOLE, PART = 16 * MIB, 8 * MIB
PLAIN_NAMES = [
    ".hidden",
    "with blank.txt",
    "ünïcode 漢字",
    "no_ending",
    "a..b",
    "a+b",
    "a&b=c",
    "a=b",
    "it's",
    "x" * 200,
]
# The stock client refuses to read these, whoever has written them.
ODD_NAMES = [
    "a#b",
    "100%",
    "a%20b",
    "a%2Fb",
    "a?b",
    "colon:name",
    'quo"te',
    "st*r",
    "[1]{2}",
    "~",
    "a|b",
    "<a>",
    "a,b;c",
]


@pytest.fixture
def run(s3_server: s3.S3Server, s3_tracker: Callable[..., MLflowTracker], bucket: str) -> SimpleNamespace:
    """A tracker with an active run, and what boto3 finds of that run's artifacts."""
    tracker = s3_tracker(bucket)
    run_id = tracker.start_run()
    place = f"runs/{run_id}/artifacts"

    def objects() -> dict[str, bytes]:
        tracker.flush(PATIENCE_S)
        return s3_server.objects(bucket, place)

    return SimpleNamespace(tracker=tracker, run_id=run_id, bucket=bucket, place=place, objects=objects)


def stock_download(uri: str, target: Path, **variables: object) -> dict[str, bytes]:
    """Return what stock MLflow downloads, in a process that knows only the variables it is given."""
    target.mkdir()
    code = "import sys, mlflow; mlflow.artifacts.download_artifacts(sys.argv[1], dst_path=sys.argv[2])"
    done = run_program([sys.executable, "-c", code, uri, str(target)], **variables)
    assert done.returncode == 0, done.stderr
    return contents(target)


# Content that arrives.


@pytest.mark.parametrize(
    "size", [0, 1, 3 * MIB + 1, WHOLE - 1, WHOLE, WHOLE + 1, 3 * PART, 3 * PART + 1], ids="{:,} bytes".format
)
def test_a_file_of_any_length_arrives_byte_by_byte(run, s3_server, tmp_path, size):
    content = os.urandom(size)
    run.tracker.log_artifact(write(tmp_path / "weights.ckpt", content), "")
    assert run.objects() == {"weights.ckpt": content}
    assert s3_server.unfinished(run.bucket) == []


@pytest.mark.parametrize("name", PLAIN_NAMES + ODD_NAMES)
def test_a_file_arrives_under_its_name(run, tmp_path, name):
    run.tracker.log_artifact(write(tmp_path / "source" / name, b"1"), "")
    run.tracker.log_artifact(write(tmp_path / "source" / name, b"2"), "fo ld/er")
    # Not the file's own name: SeaweedFS keeps objects as files, and cannot have both.
    folder = f"in {name}"[:200]
    run.tracker.log_artifact(write(tmp_path / "source" / "inside", b"3"), folder)
    assert run.objects() == {
        name: b"1",
        f"fo ld/er/{name}": b"2",
        f"{folder}/inside": b"3",
    }


def test_stock_mlflow_reads_what_was_logged(run, s3_server, tmp_path):
    source = tmp_path / "source"
    for number, name in enumerate([*PLAIN_NAMES, "deep/er/and deeper/file", "empty"]):
        write(source / name, b"x" * number)
    write(source / "large", os.urandom(WHOLE + 12_345))
    run.tracker.log_artifacts_dir(source, "all")
    run.tracker.flush(PATIENCE_S)
    uri = run.tracker.get_run(run.run_id).artifact_uri
    assert uri == f"s3://{run.bucket}/{run.place}"
    assert stock_download(uri, tmp_path / "stock", **s3_server.variables) == {
        f"artifacts/all/{name}": content for name, content in contents(source).items()
    }


def test_stock_mlflow_lists_what_was_logged(run, uri, s3_server, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    for name, value in s3_server.variables.items():
        monkeypatch.setenv(name, value)
    run.tracker.log_artifact(write(tmp_path / "a.txt", b"12345"), "")
    run.tracker.log_artifact(write(tmp_path / "b.txt", b"1"), "folder")
    run.tracker.flush(PATIENCE_S)
    client = MlflowClient(uri)
    listed = [(it.path, it.is_dir, it.file_size) for it in client.list_artifacts(run.run_id)]
    assert listed == [("a.txt", False, 5), ("folder", True, None)]
    assert [it.path for it in client.list_artifacts(run.run_id, "folder")] == ["folder/b.txt"]


def test_moto_has_the_same(s3_tracker, moto_server, tmp_path):
    bucket = moto_server.create_bucket("second-opinion")
    source = tmp_path / "source"
    for number, name in enumerate([*PLAIN_NAMES, *ODD_NAMES]):
        write(source / name, b"x" * number)
    write(source / "large", os.urandom(2 * PART + WHOLE))
    with S3Proxy(moto_server.port) as proxy:
        tracker = s3_tracker(bucket, proxy)
        with tracker.run() as run:
            tracker.log_artifacts_dir(source, "")
        tracker.flush(PATIENCE_S)
    assert moto_server.objects(bucket, f"runs/{run.run_id}/artifacts") == contents(source)
    assert moto_server.unfinished(bucket) == []
    # It does not compare checksums of parts that add up, and gets others.
    sent = ["x-amz-checksum-crc64nvme" in it.headers for it in proxy.seen(parts)]
    assert sent == [True] * 4 + [False] * 4
    assert all("x-amz-checksum-sha256" in it.headers for it in proxy.seen(parts)[4:])


def test_a_file_logged_again_replaces_the_one_before(run, tmp_path):
    for number in range(20):
        run.tracker.log_artifact(write(tmp_path / "last.ckpt", b"x" * (20 - number)), "")
    assert run.objects() == {"last.ckpt": b"x"}


def test_the_later_file_wins_where_the_one_before_takes_longer(
    s3_tracker, s3_server, proxy, bucket, tmp_path
):
    tracker = s3_tracker(bucket, proxy)
    run_id = tracker.start_run()
    proxy.strike("delay", begins, times=1, seconds=0.5)
    tracker.log_artifact(write(tmp_path / "last.ckpt", os.urandom(WHOLE + 1)), "")
    tracker.log_artifact(write(tmp_path / "last.ckpt", b"later"), "")
    tracker.flush(PATIENCE_S)
    assert s3_server.objects(bucket, f"runs/{run_id}/artifacts") == {"last.ckpt": b"later"}


def test_many_small_files_arrive_each_by_one_request(s3_tracker, s3_server, proxy, bucket, tmp_path):
    source = tmp_path / "source"
    for number in range(500):
        write(source / f"{number % 7}" / f"{number}.bin", os.urandom(number))
    tracker = s3_tracker(bucket, proxy)
    run_id = tracker.start_run()
    upload = tracker.log_artifacts_dir(source, "many")
    upload.wait(PATIENCE_S)
    assert upload.done
    assert s3_server.objects(bucket, f"runs/{run_id}/artifacts/many") == contents(source)
    assert len(proxy.seen()) == 500


def test_links_hidden_files_and_empty_folders_are_as_in_a_local_folder(run, tmp_path):
    source = write(tmp_path / "source" / "checkpoints" / "epoch 3", b"weights").parent.parent
    (source / "last").symlink_to("checkpoints/epoch 3")
    (source / "empty folder").mkdir()
    write(source / ".git" / "config", b"hidden")
    run.tracker.log_artifacts_dir(source, "")
    files = {"checkpoints/epoch 3": b"weights", "last": b"weights", ".git/config": b"hidden"}
    assert run.objects() == files


@pytest.mark.strict
def test_a_link_that_leaves_the_folder_is_refused_and_nothing_is_sent(run, tmp_path):
    write(tmp_path / "secret")
    source = write(tmp_path / "source" / "file").parent
    (source / "link").symlink_to("../secret")
    with pytest.raises(InvalidInputError, match="link"):
        run.tracker.log_artifacts_dir(source)
    assert run.objects() == {}


@pytest.mark.strict
def test_special_files_are_refused(run, tmp_path):
    source = write(tmp_path / "source" / "file").parent
    os.mkfifo(source / "pipe")
    for refused in (source / "pipe", "/dev/null"):
        with pytest.raises(ArtifactNotFoundError, match=f"{refused} is not a file"):
            run.tracker.log_artifact(refused)
    with pytest.raises(ArtifactNotFoundError, match="pipe is not a file"):
        run.tracker.log_artifacts_dir(source)
    assert run.objects() == {}


@pytest.mark.strict
@pytest.mark.parametrize("folder", ["..", "../x", "a/../../x", "/etc", "a/.."])
def test_a_folder_that_could_lead_out_of_the_run_is_refused_in_the_words_of_mlflow(run, tmp_path, folder):
    with pytest.raises(MlflowException) as stock:
        verify_artifact_path(folder)
    words, _, _ = stock.value.message.partition(". ")
    with pytest.raises(InvalidInputError, match=re.escape(words)):
        run.tracker.log_artifact(write(tmp_path / "a.txt"), folder)
    assert run.objects() == {}


def test_texts_figures_and_dicts_go_to_s3_as_well(run):
    run.tracker.log_text("grüße", "notes/a.txt")
    run.tracker.log_dict({"a": [1, 2]}, "b.json")
    assert run.objects() == {
        "notes/a.txt": "grüße".encode(),
        "b.json": json.dumps({"a": [1, 2]}, indent=2).encode(),
    }


def test_a_run_without_a_prefix_has_its_artifacts_at_the_top_of_the_bucket(
    s3_server, bucket, uri, tmp_path, s3_bucket
):
    tracker = MLflowTracker(uri, f"s3://{bucket}", experiment_name="top")
    run_id = tracker.start_run()
    tracker.log_artifact(write(tmp_path / "a.txt"), "")
    tracker.flush(PATIENCE_S)
    assert s3_server.keys(bucket) == [f"{run_id}/artifacts/a.txt"]


# The way that it is sent.


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("a.json", "application/json"),
        ("a.png", "image/png"),
        ("a.html", "text/html"),
        ("a.csv", "text/csv"),
        ("a.txt", "text/plain"),
        ("a.svg", "image/svg+xml"),
    ],
)
@pytest.mark.parametrize("size", [3, WHOLE + 1], ids=["whole", "in parts"])
def test_the_content_type_is_that_of_the_name(run, s3_server, tmp_path, name, content_type, size):
    run.tracker.log_artifact(write(tmp_path / name, b"x" * size), "")
    run.tracker.flush(PATIENCE_S)
    head = s3_server.client().head_object(Bucket=run.bucket, Key=f"{run.place}/{name}")
    assert head["ContentType"].partition(";")[0] == content_type


def test_every_object_and_every_part_has_a_checksum(s3_tracker, s3_server, proxy, bucket, tmp_path):
    tracker = s3_tracker(bucket, proxy)
    tracker.start_run()
    tracker.log_artifact(write(tmp_path / "small", b"x"), "")
    tracker.log_artifact(write(tmp_path / "large", os.urandom(WHOLE + 1)), "")
    tracker.flush(PATIENCE_S)
    [small] = proxy.seen(lambda it: puts(it) and not parts(it))
    of_large = proxy.seen(parts)
    assert len(of_large) == 3
    assert "x-amz-checksum-sha256" in small.headers
    assert all("x-amz-checksum-crc64nvme" in it.headers for it in of_large)
    # Nobody else sees to it that what is sent in the clear is what arrives.
    assert all(len(it.headers["x-amz-content-sha256"]) == 64 for it in (small, *of_large))


def test_an_object_in_parts_has_a_checksum_of_the_whole(run, s3_server, tmp_path):
    run.tracker.log_artifact(write(tmp_path / "large", os.urandom(WHOLE + 1)), "")
    run.tracker.flush(PATIENCE_S)
    key = f"{run.place}/large"
    head = s3_server.client().head_object(Bucket=run.bucket, Key=key, ChecksumMode="ENABLED")
    assert head["ChecksumType"] == "FULL_OBJECT"
    assert len(base64.b64decode(head["ChecksumCRC64NVME"])) == 8


def test_the_extra_arguments_of_mlflow_go_with_every_object(
    s3_tracker, s3_server, proxy, bucket, tmp_path, monkeypatch
):
    extra = {
        "ServerSideEncryption": "AES256",
        "StorageClass": "STANDARD_IA",
        "ACL": "private",
        "ContentType": "application/x-heimdall",
        "Metadata": {"project": "heimdall"},
    }
    monkeypatch.setenv("MLFLOW_S3_UPLOAD_EXTRA_ARGS", json.dumps(extra))
    tracker = s3_tracker(bucket, proxy)
    run_id = tracker.start_run()
    tracker.log_artifact(write(tmp_path / "small.txt"), "")
    tracker.log_artifact(write(tmp_path / "large.txt", b"x" * (WHOLE + 1)), "")
    tracker.flush(PATIENCE_S)
    for name in ("small.txt", "large.txt"):
        head = s3_server.client().head_object(Bucket=bucket, Key=f"runs/{run_id}/artifacts/{name}")
        assert (head["ContentType"], head["Metadata"], head["StorageClass"]) == (
            "application/x-heimdall",
            {"project": "heimdall"},
            "STANDARD_IA",
        ), name
    creating = [it for it in proxy.seen() if begins(it) or (puts(it) and not parts(it))]
    assert len(creating) == 2
    for request in creating:
        assert request.headers["x-amz-server-side-encryption"] == "AES256"
        assert request.headers["x-amz-acl"] == "private"
    # A part of an object takes none of it.
    assert not any("x-amz-acl" in it.headers for it in proxy.seen(parts))


@pytest.mark.parametrize("text", ["{", "[]", '"a"', '{"Unknown": "x"}', '{"ACL": {"a": 1}}'])
def test_extra_arguments_that_make_no_sense_are_named(
    s3_tracker, bucket, monkeypatch, tmp_path, text, caplog
):
    monkeypatch.setenv("MLFLOW_S3_UPLOAD_EXTRA_ARGS", text)
    with pytest.raises(ConfigurationError, match="MLFLOW_S3_UPLOAD_EXTRA_ARGS"):
        s3_tracker(bucket)


def test_the_account_that_must_own_the_bucket_goes_with_every_request_for_an_object(
    s3_tracker, proxy, bucket, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_S3_EXPECTED_BUCKET_OWNER", "123456789012")
    tracker = s3_tracker(bucket, proxy)
    run_id = tracker.start_run()
    tracker.log_artifact(write(tmp_path / "small.txt"), "")
    tracker.log_artifact(write(tmp_path / "large.txt", b"x" * (WHOLE + 1)), "")
    tracker.download_artifacts(run_id, dst=tmp_path / "there")
    assert contents(tmp_path / "there").keys() == {"small.txt", "large.txt"}
    asked = proxy.seen(of(".txt"))
    assert {request.method for request in asked} == {"PUT", "POST", "GET", "HEAD"}
    without = [
        f"{request.method} {request.path} {request.query}"
        for request in asked
        if request.headers.get("x-amz-expected-bucket-owner") != "123456789012"
        # AWS refuses what is not signed.
        or "x-amz-expected-bucket-owner" not in request.headers["authorization"]
    ]
    assert without == []


def test_a_bucket_of_another_account_gets_nothing_and_that_is_told(
    s3_tracker, s3_server, proxy, bucket, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_S3_EXPECTED_BUCKET_OWNER", "123456789012")
    # AWS answers so in this case.
    proxy.strike("refuse", status=403, code="AccessDenied")
    tracker = s3_tracker(bucket, proxy)
    tracker.start_run()
    with pytest.raises(ArtifactError, match=r"a\.txt.*does not permit.*AccessDenied"):
        tracker.log_artifact(write(tmp_path / "a.txt"), "").wait(PATIENCE_S)
    assert s3_server.keys(bucket) == []
    assert tracker.status().parked == 1


def test_a_large_file_is_never_in_memory(s3_server, bucket, tmp_path, run_script):
    large = write_large(tmp_path / "large")
    grown = memory_of_an_upload(
        run_script, f"sqlite:///{tmp_path / 'mlflow.db'}", f"s3://{bucket}/runs", large, **s3_server.variables
    )
    assert grown <= 64
    [key] = [key for key in s3_server.keys(bucket) if key.endswith("large")]
    assert s3_server.client().head_object(Bucket=bucket, Key=key)["ContentLength"] == 256 * MIB


def test_large_files_of_one_folder_are_never_in_memory(s3_server, bucket, tmp_path, run_script, uri):
    folder, block = tmp_path / "checkpoints", os.urandom(16 * MIB)
    for number in range(6):
        file = write(folder / f"{number}.ckpt")
        with file.open("wb") as content:
            for part in range(4):
                content.write(bytes([number, part]) + block[2:])
    artifacts, variables = f"s3://{bucket}/runs", s3_server.variables
    assert memory_of_an_upload(run_script, uri, artifacts, folder, **variables) <= 64
    client = s3_server.client()
    keys = [key for key in s3_server.keys(bucket) if key.endswith(".ckpt")]
    sizes = [client.head_object(Bucket=bucket, Key=key)["ContentLength"] for key in keys]
    assert sizes == [64 * MIB] * 6
