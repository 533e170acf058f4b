"""Artifacts in S3: what arrives, under which name, by whose keys, and that stock clients read it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shlex
import ssl
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import verify_artifact_path

from heimdall_tracking import ArtifactNotFoundError, InvalidInputError, MLflowTracker
from heimdall_tracking.errors import ArtifactError, ConfigurationError
from support import s3
from support.helpers import (
    PATIENCE_S,
    certificate_in,
    clean_environment,
    contents,
    memory_of_an_upload,
    wait_until,
    write,
)
from support.s3_proxy import S3Proxy, begins, of, parts, puts

pytestmark = pytest.mark.s3

MIB = 1 << 20
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
    """What stock MLflow downloads, in a process that knows only the variables it is told of."""
    target.mkdir()
    code = "import sys, mlflow; mlflow.artifacts.download_artifacts(sys.argv[1], dst_path=sys.argv[2])"
    done = subprocess.run(
        [sys.executable, "-c", code, uri, str(target)],
        capture_output=True,
        text=True,
        env=clean_environment(**variables),
    )
    assert done.returncode == 0, done.stderr
    return contents(target)


# What arrives.


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


def test_a_link_that_leaves_the_folder_is_refused_and_nothing_is_sent(run, tmp_path):
    write(tmp_path / "secret")
    source = write(tmp_path / "source" / "file").parent
    (source / "link").symlink_to("../secret")
    with pytest.raises(InvalidInputError, match="link"):
        run.tracker.log_artifacts_dir(source)
    assert run.objects() == {}


def test_special_files_are_refused(run, tmp_path):
    source = write(tmp_path / "source" / "file").parent
    os.mkfifo(source / "pipe")
    for refused in (source / "pipe", "/dev/null"):
        with pytest.raises(ArtifactNotFoundError, match=f"{refused} is not a file"):
            run.tracker.log_artifact(refused)
    with pytest.raises(ArtifactNotFoundError, match="pipe is not a file"):
        run.tracker.log_artifacts_dir(source)
    assert run.objects() == {}


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


# How it is sent.


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
    # What AWS answers there.
    proxy.strike("refuse", status=403, code="AccessDenied")
    tracker = s3_tracker(bucket, proxy)
    tracker.start_run()
    with pytest.raises(ArtifactError, match=r"a\.txt.*does not permit.*AccessDenied"):
        tracker.log_artifact(write(tmp_path / "a.txt"), "").wait(PATIENCE_S)
    assert s3_server.keys(bucket) == []
    assert tracker.status().parked == 1


def test_a_large_file_is_never_in_memory(s3_server, bucket, tmp_path, run_script):
    large = tmp_path / "large"
    with large.open("wb") as file:
        for _ in range(16):
            file.write(os.urandom(16 * MIB))
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


# By whose keys.


@pytest.fixture
def deliver(
    uri: str,
    s3_server: s3.S3Server,
    proxy: S3Proxy,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., str]:
    """Log a file with what the environment says, and return the key that signed it when it has arrived."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def deliver(*, endpoint: str | None = proxy.url, **settings: str) -> str:
        if endpoint is not None:
            monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", endpoint)
        tracker = MLflowTracker(uri, f"s3://{bucket}/runs", experiment_name="keys", **settings)
        with tracker.run():
            tracker.log_artifact(write(tmp_path / "a.txt"), "")
        tracker.flush(PATIENCE_S)
        [key] = s3_server.keys(bucket)
        assert s3_server.client().get_object(Bucket=bucket, Key=key)["Body"].read() == b"content"
        [by] = {request.access_key for request in proxy.seen()}
        return by

    return deliver


def keys_in_environment(
    monkeypatch: pytest.MonkeyPatch, key: str = s3.ACCESS_KEY, secret: str = s3.SECRET_KEY
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)


def test_the_keys_of_the_environment_are_used(deliver, monkeypatch):
    keys_in_environment(monkeypatch)
    assert deliver() == s3.ACCESS_KEY


def test_the_keys_of_the_settings_come_before_those_of_the_environment(deliver, monkeypatch):
    keys_in_environment(monkeypatch, s3.READER_KEY, s3.READER_SECRET)
    assert deliver(s3_access_key_id=s3.ACCESS_KEY, s3_secret_access_key=s3.SECRET_KEY) == s3.ACCESS_KEY


def test_the_endpoint_of_the_settings_comes_before_that_of_the_environment(deliver, monkeypatch, proxy):
    keys_in_environment(monkeypatch)
    assert deliver(endpoint="http://127.0.0.1:1", s3_endpoint_url=proxy.url) == s3.ACCESS_KEY


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_the_endpoint_of_the_settings_comes_before_that_of_aws(deliver, monkeypatch, proxy, variable):
    keys_in_environment(monkeypatch)
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    assert deliver(endpoint=None, s3_endpoint_url=proxy.url) == s3.ACCESS_KEY


@pytest.mark.parametrize("name", ["default", "lab"])
def test_the_keys_of_a_profile_are_used(deliver, monkeypatch, tmp_path, name):
    # The file and its place are those of AWS's own tools.
    write(
        tmp_path / ".aws" / "credentials",
        f"[other]\naws_access_key_id = nobody\naws_secret_access_key = nothing\n\n"
        f"[{name}]\naws_access_key_id = {s3.ACCESS_KEY}\naws_secret_access_key = {s3.SECRET_KEY}\n".encode(),
    )
    if name != "default":
        monkeypatch.setenv("AWS_PROFILE", name)
    assert deliver() == s3.ACCESS_KEY


def test_a_profile_may_have_endpoint_and_region_as_well(deliver, monkeypatch, tmp_path, proxy):
    config = f"[profile lab]\nregion = eu-south-1\nendpoint_url = {proxy.url}\n"
    credentials = f"[lab]\naws_access_key_id={s3.ACCESS_KEY}\naws_secret_access_key={s3.SECRET_KEY}\n"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(write(tmp_path / "config", config.encode())))
    monkeypatch.setenv(
        "AWS_SHARED_CREDENTIALS_FILE", str(write(tmp_path / "credentials", credentials.encode()))
    )
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert deliver(endpoint=None) == s3.ACCESS_KEY
    assert all("/eu-south-1/s3/" in request.headers["authorization"] for request in proxy.seen())


@pytest.mark.parametrize(
    ("profile", "default_profile"), [(None, "lab"), ("lab", "nobody's")], ids=["alone", "behind AWS_PROFILE"]
)
def test_the_default_profile_can_be_named(deliver, monkeypatch, tmp_path, profile, default_profile):
    write(
        tmp_path / ".aws" / "credentials",
        b"[default]\naws_access_key_id = nobody\naws_secret_access_key = nothing\n"
        + f"[lab]\naws_access_key_id = {s3.ACCESS_KEY}\naws_secret_access_key = {s3.SECRET_KEY}\n".encode(),
    )
    monkeypatch.setenv("AWS_DEFAULT_PROFILE", default_profile)
    if profile:
        monkeypatch.setenv("AWS_PROFILE", profile)
    assert deliver() == s3.ACCESS_KEY


@pytest.mark.parametrize("file", ["config", "credentials"])
@pytest.mark.parametrize(
    "way",
    [
        "role_arn = arn:aws:iam::123456789012:role/training\nsource_profile = base",
        "sso_session = work\nsso_account_id = 123456789012",
        "sso_start_url = https://work.awsapps.com/start",
    ],
    ids=lambda way: way.partition(" ")[0],
)
def test_a_profile_whose_keys_come_by_another_way_is_refused_with_advice(
    uri, bucket, monkeypatch, tmp_path, file, way
):
    section = "profile lab" if file == "config" else "lab"
    write(tmp_path / ".aws" / file, f"[{section}]\nregion = eu-south-1\n{way}\n".encode())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    name = way.partition(" ")[0]
    with pytest.raises(ConfigurationError, match=rf"AWS_PROFILE.*lab.*{name}.*export-credentials"):
        MLflowTracker(uri, f"s3://{bucket}/runs")
    # The advice helps.
    keys_in_environment(monkeypatch)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    MLflowTracker(uri, f"s3://{bucket}/runs")


PRINTS_KEYS = """
import datetime, json, pathlib, sys

asked = pathlib.Path(sys.argv[1])
asked.write_text(asked.read_text() + "asked\\n" if asked.exists() else "asked\\n")
expires = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=int(sys.argv[4]))
keys = {"AccessKeyId": sys.argv[2], "SecretAccessKey": sys.argv[3], "Expiration": expires.isoformat()}
print(json.dumps({"Version": 1} | keys))
"""


@pytest.fixture
def with_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """A profile whose keys a program prints; the file that it writes a line to whenever it is asked."""

    def with_process(minutes: int) -> Path:
        program, asked = write(tmp_path / "my tools" / "keys.py", PRINTS_KEYS.encode()), tmp_path / "asked"
        command = shlex.join(
            [sys.executable, str(program), str(asked), s3.ACCESS_KEY, s3.SECRET_KEY, str(minutes)]
        )
        write(tmp_path / ".aws" / "config", f"[profile lab]\ncredential_process = {command}\n".encode())
        monkeypatch.setenv("AWS_PROFILE", "lab")
        return asked

    return with_process


def test_keys_that_a_program_prints_are_used_until_shortly_before_they_expire(deliver, with_process):
    asked = with_process(60)
    assert deliver() == s3.ACCESS_KEY
    assert asked.read_text() == "asked\n"


def test_keys_that_are_about_to_expire_are_asked_for_anew(
    with_process, uri, s3_server, bucket, monkeypatch, tmp_path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", s3_server.url)
    asked = with_process(5)
    tracker = MLflowTracker(uri, f"s3://{bucket}/runs", experiment_name="keys")
    with tracker.run():
        for name in ("a", "b", "c"):
            tracker.log_artifact(write(tmp_path / name), "").wait(PATIENCE_S)
    assert len(s3_server.keys(bucket)) == 3
    assert asked.read_text() == "asked\n" * 3


def test_a_program_that_prints_no_keys_is_told_without_what_it_prints(
    deliver, monkeypatch, tmp_path, uri, bucket
):
    command = "echo hush; echo hush >&2; exit 3"
    write(tmp_path / ".aws" / "config", f"[profile lab]\ncredential_process = {command}\n".encode())
    monkeypatch.setenv("AWS_PROFILE", "lab")
    tracker = MLflowTracker(uri, f"s3://{bucket}/runs", experiment_name="keys")
    tracker.start_run()
    tracker.log_artifact(write(tmp_path / "a.txt"), "")
    wait_until(lambda: tracker.status().last_error, "the user is told")
    told = str(tracker.status().last_error)
    assert "credential_process" in told
    assert "exit status: 3" in told
    assert "hush" not in told


def test_a_profile_that_has_keys_beside_a_role_gives_its_keys(deliver, monkeypatch, tmp_path):
    write(
        tmp_path / ".aws" / "credentials",
        f"[lab]\naws_access_key_id = {s3.ACCESS_KEY}\naws_secret_access_key = {s3.SECRET_KEY}\n".encode(),
    )
    write(tmp_path / ".aws" / "config", b"[profile lab]\nsso_start_url = https://work.awsapps.com/start\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert deliver() == s3.ACCESS_KEY


def test_a_profile_that_does_not_exist_is_named(s3_tracker, bucket, monkeypatch, uri):
    monkeypatch.setenv("AWS_PROFILE", "nobody's")
    with pytest.raises(ConfigurationError, match="nobody's"):
        MLflowTracker(uri, f"s3://{bucket}/runs")


def test_the_region_of_the_environment_is_signed_for(deliver, monkeypatch, proxy):
    keys_in_environment(monkeypatch)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    deliver()
    assert all("/eu-west-1/s3/" in request.headers["authorization"] for request in proxy.seen())


def test_half_a_pair_of_keys_is_an_error_that_shows_neither(s3_tracker, bucket, uri):
    with pytest.raises(ConfigurationError) as refused:
        MLflowTracker(uri, f"s3://{bucket}/runs", s3_secret_access_key=s3.SECRET_KEY)
    assert s3.SECRET_KEY not in str(refused.value)


class Metadata:
    """What machines and containers of AWS find their keys at, with temporary keys in it."""

    def __init__(self, keys: dict[str, str], token: str = "") -> None:
        self.asked: list[tuple[str, str]] = []
        document = {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "AccessKeyId": keys["AccessKeyId"],
            "SecretAccessKey": keys["SecretAccessKey"],
            "Token": keys["SessionToken"],
            "Expiration": "2099-01-01T00:00:00Z",
            "LastUpdated": "2026-01-01T00:00:00Z",
        }
        folder = "/latest/meta-data/iam/security-credentials/"
        service = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, status: int, text: str = "") -> None:
                service.asked.append((self.command, self.path))
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def do_PUT(self) -> None:
                asks_for_token = self.path == "/latest/api/token"
                has_time = "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
                self.answer(200, "session token") if asks_for_token and has_time else self.answer(400)

            def do_GET(self) -> None:
                if self.path == "/container":
                    allowed = self.headers.get("Authorization", "") == token
                    return self.answer(200, json.dumps(document)) if allowed else self.answer(401)
                if self.headers.get("X-aws-ec2-metadata-token") != "session token":
                    # The second version of the service answers nobody who has not asked for a token.
                    return self.answer(401)
                if self.path == folder:
                    return self.answer(200, "a-role")
                return (
                    self.answer(200, json.dumps(document))
                    if self.path == folder + "a-role"
                    else self.answer(404)
                )

            def log_message(self, *_: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def at_moto(
    moto_server: s3.MotoServer, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request
) -> Iterator[SimpleNamespace]:
    """An S3 with an STS; `deliver()` logs a file there and returns the headers that it was sent with."""
    bucket = moto_server.create_bucket(f"roles-{abs(hash(request.node.name))}")
    monkeypatch.setenv("HOME", str(tmp_path))
    with S3Proxy(moto_server.port) as proxy:

        def deliver() -> dict[str, str]:
            tracker = MLflowTracker(
                uri, f"s3://{bucket}/runs", s3_endpoint_url=proxy.url, experiment_name="roles"
            )
            with tracker.run():
                tracker.log_artifact(write(tmp_path / "a.txt"), "")
            tracker.flush(PATIENCE_S)
            assert len(moto_server.keys(bucket)) == 1
            [sent] = proxy.seen(of("a.txt", "PUT"))
            return sent.headers | {"access key": sent.access_key}

        yield SimpleNamespace(deliver=deliver, server=moto_server, proxy=proxy)


@pytest.fixture
def temporary_keys(moto_server: s3.MotoServer) -> dict[str, str]:
    import boto3

    sts = boto3.client(
        "sts",
        endpoint_url=moto_server.url,
        aws_access_key_id="a",
        aws_secret_access_key="b",
        region_name=s3.REGION,
    )
    role = "arn:aws:iam::123456789012:role/training"
    return sts.assume_role(RoleArn=role, RoleSessionName="tests")["Credentials"]


def test_a_session_token_goes_with_its_keys(at_moto, temporary_keys, monkeypatch):
    keys_in_environment(monkeypatch, temporary_keys["AccessKeyId"], temporary_keys["SecretAccessKey"])
    monkeypatch.setenv("AWS_SESSION_TOKEN", temporary_keys["SessionToken"])
    sent = at_moto.deliver()
    assert sent["access key"] == temporary_keys["AccessKeyId"]
    assert sent["x-amz-security-token"] == temporary_keys["SessionToken"]


def test_the_keys_of_a_container_are_used(at_moto, temporary_keys, monkeypatch, tmp_path):
    metadata = Metadata(temporary_keys, "the container's token")
    token = write(tmp_path / "token", b"the container's token")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{metadata.url}/container")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token))
    with contextlib.closing(metadata):
        sent = at_moto.deliver()
    assert sent["access key"] == temporary_keys["AccessKeyId"]
    assert sent["x-amz-security-token"] == temporary_keys["SessionToken"]


def test_the_keys_of_a_machine_are_used_by_the_second_version_of_its_service(
    at_moto, temporary_keys, monkeypatch
):
    metadata = Metadata(temporary_keys)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", metadata.url)
    with contextlib.closing(metadata):
        sent = at_moto.deliver()
    assert sent["access key"] == temporary_keys["AccessKeyId"]
    assert sent["x-amz-security-token"] == temporary_keys["SessionToken"]
    assert metadata.asked[0] == ("PUT", "/latest/api/token")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/container"),
        ("", "/latest/meta-data/iam/security-credentials/a-role"),
    ],
    ids=["container", "machine"],
)
def test_the_services_are_found_at_the_addresses_that_aws_has_given_them(tmp_path, name, path):
    """In a network of its own, where 169.254.169.254 and .170.2 are this machine."""
    done = subprocess.run(
        ["unshare", "--net", "--map-root-user", sys.executable, __file__, name, path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=PATIENCE_S,
        env=clean_environment(
            HEIMDALL_DIR=tmp_path / "heimdall", HOME=tmp_path, PYTHONPATH=os.pathsep.join(sys.path)
        ),
    )
    if "unshare failed" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip("no network of our own can be made here")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ASIATEMPORARY", "temporary-token", path]


@contextlib.contextmanager
def token_service(moto: s3.MotoServer, certificate: tuple[Path, Path]) -> Iterator[SimpleNamespace]:
    """moto's STS by TLS; what AWS takes in the URL goes into the body, where moto looks for it."""
    asked: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = self.path.partition("?")[2]
            asked.append(dict(urllib.parse.parse_qsl(query)))
            with urllib.request.urlopen(f"{moto.url}/", query.encode()) as answer:
                text = answer.read()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        http.socket = context.wrap_socket(http.socket, server_side=True)
        Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield SimpleNamespace(url=f"https://127.0.0.1:{http.server_address[1]}", asked=asked)
        http.shutdown()


def test_a_web_identity_is_changed_for_keys(at_moto, moto_server, monkeypatch, tmp_path):
    role = "arn:aws:iam::123456789012:role/training"
    monkeypatch.setenv(
        "AWS_WEB_IDENTITY_TOKEN_FILE", str(write(tmp_path / "token", b"signed by the provider"))
    )
    monkeypatch.setenv("AWS_ROLE_ARN", role)
    monkeypatch.setenv("AWS_ROLE_SESSION_NAME", "tests")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "cert.pem"))
    with token_service(moto_server, certificate_in(tmp_path)) as sts:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        sent = at_moto.deliver()
    [asked] = sts.asked
    assert (asked["RoleArn"], asked["RoleSessionName"]) == (role, "tests")
    assert asked["WebIdentityToken"] == "signed by the provider"
    assert sent["access key"].startswith("ASIA")
    assert sent["x-amz-security-token"]


# Over TLS.


@pytest.fixture
def tls_proxy(s3_server: s3.S3Server, tmp_path: Path) -> Iterator[S3Proxy]:
    with S3Proxy(s3_server.port, certificate=certificate_in(tmp_path)) as proxy:
        yield proxy


def test_a_certificate_that_nobody_trusts_is_told_and_nothing_is_sent(
    s3_tracker, bucket, tls_proxy, tmp_path, caplog
):
    tracker = s3_tracker(bucket, tls_proxy)
    tracker.start_run()
    tracker.log_artifact(write(tmp_path / "a.txt"))

    def is_told() -> bool:
        # A call that records is what brings the sentences of the background.
        tracker.set_tag("waiting", "for words")
        return "degraded" in caplog.text

    wait_until(is_told, "the outage is told")
    assert "certificate" in caplog.text
    assert tls_proxy.seen() == []


def test_a_certificate_of_the_ca_bundle_is_trusted(
    s3_tracker, s3_server, bucket, tls_proxy, tmp_path, monkeypatch
):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "cert.pem"))
    tracker = s3_tracker(bucket, tls_proxy)
    tracker.start_run()
    tracker.log_artifact(write(tmp_path / "a.txt"), "")
    tracker.flush(PATIENCE_S)
    assert len(s3_server.keys(bucket)) == len(tls_proxy.seen()) == 1


def test_what_tls_protects_is_not_hashed_for_the_signature_as_well(
    s3_tracker, s3_server, bucket, tls_proxy, tmp_path, monkeypatch
):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "cert.pem"))
    tracker = s3_tracker(bucket, tls_proxy)
    run_id = tracker.start_run()
    content = os.urandom(WHOLE + 1)
    tracker.log_artifact(write(tmp_path / "large", content), "")
    tracker.flush(PATIENCE_S)
    assert s3_server.objects(bucket, f"runs/{run_id}/artifacts") == {"large": content}
    sent = tls_proxy.seen(parts)
    assert {it.headers["x-amz-content-sha256"] for it in sent} == {"UNSIGNED-PAYLOAD"}
    assert all("x-amz-checksum-crc64nvme" in it.headers for it in sent)


def test_a_ca_bundle_that_is_none_is_named(s3_tracker, bucket, tls_proxy, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(write(tmp_path / "no.pem")))
    with pytest.raises(ConfigurationError, match=r"AWS_CA_BUNDLE.*no\.pem"):
        s3_tracker(bucket, tls_proxy)


def test_certificates_are_not_verified_where_the_user_says_so_who_is_warned(
    s3_tracker, s3_server, bucket, tls_proxy, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("MLFLOW_S3_IGNORE_TLS", "true")
    tracker = s3_tracker(bucket, tls_proxy)
    tracker.start_run()
    tracker.log_artifact(write(tmp_path / "large", b"x" * (WHOLE + 1)), "")
    tracker.flush(PATIENCE_S)
    assert len(s3_server.keys(bucket)) == 1
    # Whoever is in the way could change what is not signed.
    assert all(len(it.headers["x-amz-content-sha256"]) == 64 for it in tls_proxy.seen(parts))
    assert sum("MLFLOW_S3_IGNORE_TLS" in record.getMessage() for record in caplog.records) == 1


def serve_in_a_network_of_our_own(variable: str, path: str) -> None:
    """The other side of `test_the_services_are_found_at_the_addresses_that_aws_has_given_them`."""
    from moto.server import ThreadedMotoServer

    for command in (
        ["ip", "link", "set", "lo", "up"],
        ["ip", "addr", "add", "169.254.169.254/32", "dev", "lo"],
        ["ip", "addr", "add", "169.254.170.2/32", "dev", "lo"],
    ):
        subprocess.run(command, check=True)
    keys = {
        "AccessKeyId": "ASIATEMPORARY",
        "SecretAccessKey": "temporary-secret",
        "SessionToken": "temporary-token",
    }
    metadata = Metadata(keys)
    # The same service, where AWS has it.
    for address in ("169.254.169.254", "169.254.170.2"):
        there = ThreadingHTTPServer((address, 80), metadata.http.RequestHandlerClass)
        Thread(target=there.serve_forever, daemon=True).start()
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    port = moto.get_host_and_port()[1]
    server = s3.MotoServer()
    server.url = f"http://127.0.0.1:{port}"
    bucket = server.create_bucket()
    if variable:
        os.environ[variable] = path
    with S3Proxy(port) as proxy:
        tracker = MLflowTracker("sqlite:///mlflow.db", f"s3://{bucket}/runs", s3_endpoint_url=proxy.url)
        tracker.start_run()
        tracker.log_text("text", "a.txt")
        tracker.flush(PATIENCE_S)
        tracker.end_run()
        [sent] = proxy.seen(of("a.txt", "PUT"))
    print(sent.access_key, sent.headers["x-amz-security-token"], metadata.asked[-1][1])


if __name__ == "__main__":
    serve_in_a_network_of_our_own(*sys.argv[1:])
