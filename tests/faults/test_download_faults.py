"""S3 that refuses, breaks off and damages downloads: all arrives whole, or the user is told why not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from heimdall_tracking import MLflowTracker, collect_garbage
from heimdall_tracking.errors import ArtifactError
from support import s3
from support.helpers import contents
from support.s3_proxy import PASSING, Chooses, Request, S3Proxy, lists, name_of_fault, of

RANGE = 8 << 20
SIZES = {"folder/small": 200_000, "folder/other": 1000, "folder/deep/large": 2 * RANGE + 5}


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {name: os.urandom(size) for name, size in SIZES.items()}


@pytest.fixture(scope="module")
def bucket(s3_server: s3.S3Server, files: dict[str, bytes]) -> Iterator[str]:
    """A bucket of these tests, which only read, with the files in it."""
    name, client = s3_server.create_bucket(), s3_server.client()
    for key, content in files.items():
        client.put_object(Bucket=name, Key=key, Body=content)
    yield name
    s3_server.delete_bucket(name)


class Stored:
    """Files in S3 behind a proxy, and where they are downloaded to."""

    def __init__(self, tracker: MLflowTracker, proxy: S3Proxy, bucket: str, target: Path) -> None:
        self.tracker, self.proxy, self.bucket, self.target = tracker, proxy, bucket, target

    def download(self, path: str) -> dict[str, bytes]:
        """Everything that is at the target when a file or a folder has been downloaded to it."""
        self.tracker.download_artifacts(f"s3://{self.bucket}/{path}", dst=self.target)
        return contents(self.target)

    def refusal(self, path: str) -> str:
        """Return the message of a download that fails; it names the store."""
        with pytest.raises(ArtifactError, match=f"s3://{self.bucket}") as told:
            self.download(path)
        return str(told.value)


@pytest.fixture
def stored(s3_tracker: Callable[..., MLflowTracker], proxy: S3Proxy, bucket: str, tmp_path: Path) -> Stored:
    return Stored(s3_tracker(bucket, proxy), proxy, bucket, tmp_path / "ours")


def gets(name: str) -> Chooses:
    return of(name, "GET")


def looks(request: Request) -> bool:
    return request.method == "HEAD"


# Faults that pass.

# Questions have no bodies that could be damaged or break off, and the answer to HEAD has none either.
OF_QUESTIONS = ("damage", {}), ("reset", {"at": 100_000})
OF_ANSWERS = [("damage answer", {}), *(fault for fault in PASSING if fault not in OF_QUESTIONS)]
OF_BODIES = ("damage answer", "cut")


@pytest.mark.parametrize(("name", "details"), OF_ANSWERS, ids=map(name_of_fault, OF_ANSWERS))
def test_a_fault_that_passes_costs_nothing(stored, files, name, details):
    steps: dict[str, Chooses] = {"list": lists, "small": gets("small"), "ranges": gets("large")}
    if name not in OF_BODIES:
        steps["look"] = looks
    # Damaged bytes are fetched again once; bytes that are only late are not asked for again.
    times = 1 if name in ("damage answer", "delay") else 3
    faults = {step: stored.proxy.strike(name, chooses, times, **details) for step, chooses in steps.items()}
    assert stored.download("folder") == files
    assert {step: fault.struck for step, fault in faults.items()} == dict.fromkeys(steps, times)


@pytest.mark.parametrize("path", ["folder/small", "folder/deep/large"])
def test_a_file_alone_is_looked_for_as_often_as_it_takes(stored, files, path):
    faults = [
        stored.proxy.strike("refuse", chooses, 3, status=503, code="SlowDown")
        for chooses in (lists, looks, gets(path))
    ]
    assert list(stored.download(path).values()) == [files[path]]
    assert [fault.struck for fault in faults] == [3, 3, 3]


def test_what_was_written_of_a_file_that_breaks_off_is_not_fetched_again(stored, files):
    cut = stored.proxy.strike("cut", gets("large"), 3)
    assert stored.download("folder/deep/large") == {"large": files["folder/deep/large"]}
    asked = [request.headers["range"] for request in stored.proxy.seen(gets("large"))]
    assert cut.struck == 3
    assert len(asked) == len(set(asked)) == 6, "the rest of each range, not all of it"


# Faults that the user can mend.


def whole_files(folder: Path) -> dict[str, bytes]:
    """Return the files at the target, without the parts of long files that a later download goes on with."""
    return {name: content for name, content in contents(folder).items() if not name.endswith(".part")}


def test_an_object_that_the_store_forbids_is_named_and_never_half_there(stored, files):
    stored.proxy.strike("refuse", of("other"), status=403, code="AccessDenied")
    told = stored.refusal("folder")
    assert '"folder/other"' in told
    assert "does not permit this (AccessDenied" in told
    there = whole_files(stored.target)
    assert there.items() <= files.items()
    assert "folder/other" not in there
    stored.proxy.heal()
    assert stored.download("folder") == files


@pytest.mark.parametrize("chooses", [looks, lambda request: not lists(request)], ids=["look", "anything"])
@pytest.mark.parametrize("path", ["folder/small", "folder/deep/large"])
def test_a_file_that_may_not_be_read_is_named_and_not_there(stored, files, path, chooses):
    stored.proxy.strike("refuse", chooses, status=403, code="AccessDenied")
    name = path.rpartition("/")[2]
    told = stored.refusal(path)
    assert f'"{name}"' in told
    assert "does not permit this" in told
    assert not stored.target.exists()
    stored.proxy.heal()
    assert stored.download(path) == {name: files[path]}


@pytest.mark.parametrize(
    ("name", "details", "path"),
    [("refuse", {"status": 503, "code": "SlowDown"}, "folder/deep/large"), ("cut", {}, "folder/small")],
)
def test_a_store_that_stays_away_is_told_and_nothing_is_half_there(stored, files, name, details, path):
    fault = stored.proxy.strike(name, gets(path), **details)
    assert "cannot be reached or cannot answer at present" in stored.refusal(path)
    assert fault.struck > 6
    assert whole_files(stored.target) == {}
    stored.proxy.heal()
    assert stored.download(path) == {path.rpartition("/")[2]: files[path]}


@pytest.mark.parametrize("status", [403, 400])
def test_a_clock_that_is_wrong_is_named(stored, status):
    stored.proxy.strike("refuse", status=status, code="RequestTimeTooSkewed")
    told = stored.refusal("folder")
    assert '"folder"' in told
    assert "set the clock" in told
    assert not stored.target.exists()


def test_a_clock_that_turns_wrong_in_the_middle_is_named_with_the_file(stored):
    stored.proxy.strike("refuse", gets("small"), status=403, code="RequestTimeTooSkewed")
    told = stored.refusal("folder")
    assert '"folder/small"' in told
    assert "set the clock" in told
    assert "folder/small" not in contents(stored.target)


def test_a_bucket_that_does_not_exist_is_named(stored):
    stored.bucket = "not-there"
    told = stored.refusal("folder")
    assert "the bucket does not exist (NoSuchBucket" in told
    assert "create it" in told
    assert not stored.target.exists()


WRONG_KEYS = [(s3.ACCESS_KEY, "another-secret"), ("NOBODYKNOWSME", "another-secret")]


@pytest.mark.parametrize(("key", "secret"), WRONG_KEYS, ids=["secret", "key"])
def test_wrong_keys_are_told_without_the_secret(
    s3_tracker, proxy, bucket, tmp_path, caplog, capfd, heimdall_dir, key, secret
):
    caplog.set_level("DEBUG")
    tracker = s3_tracker(bucket, proxy, s3_access_key_id=key, s3_secret_access_key=secret)
    stored = Stored(tracker, proxy, bucket, tmp_path / "ours")
    told = stored.refusal("folder")
    assert '"folder"' in told
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in told
    assert not stored.target.exists()
    shown = [told, repr(tracker), repr(tracker.status()), caplog.text, *capfd.readouterr()]
    assert not any(secret in text for text in shown)
    assert not any(secret.encode() in content for content in contents(heimdall_dir).values())


@pytest.mark.parametrize("slash", ["", "/"], ids=["", "with a slash"])
def test_an_endpoint_may_have_a_path(s3_tracker, s3_server, bucket, files, tmp_path, uri, monkeypatch, slash):
    with S3Proxy(s3_server.port, prefix="/deep/s3") as proxy:
        tracker = s3_tracker(bucket, proxy, s3_endpoint_url=proxy.url + slash)
        assert Stored(tracker, proxy, bucket, tmp_path / "ours").download("folder") == files
        with tracker.run() as run:
            tracker.log_text("x", "notes/a.txt")
        (info,) = tracker.list_artifacts("notes", run.run_id)
        assert (info.path, info.file_size) == ("notes/a.txt", 1)

        key = f"runs/{run.run_id}/artifacts/big.bin"
        client = s3_server.client()
        upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        part = {"Bucket": bucket, "Key": key, "UploadId": upload, "PartNumber": 1}
        client.upload_part(**part, Body=b"part")
        for name, value in (s3_server.variables | {"MLFLOW_S3_ENDPOINT_URL": proxy.url + slash}).items():
            monkeypatch.setenv(name, value)
        report = collect_garbage(uri, uploads_older_than=0, delete=True)
        assert [(item.uri, item.bytes) for item in report.items] == [(f"s3://{bucket}/{key}", 4)]
        assert report.complete
        assert s3_server.unfinished(bucket) == []
        assert proxy.seen(lambda request: "uploads" in request.query)
        assert all(request.path.strip("/").split("/")[0] == bucket for request in proxy.seen())
