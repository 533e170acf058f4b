"""Artifacts in Google Cloud Storage and Azure Blob Storage: what arrives, comes back, waits and goes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from heimdall_tracking import ArtifactNotFoundError, MLflowTracker
from support import clouds
from support.helpers import MIB, PATIENCE_S, contents, wait_until, write
from support.s3_proxy import S3Proxy, begins

pytestmark = pytest.mark.s3

NAMES = [
    ".hidden",
    "with blank.txt",
    "ünïcode 漢字",
    "a#b",
    "100%",
    "a%20b",
    "a%2Fb",
    "a?b",
    "a+b",
    "a&b=c",
    "a..b",
    "it's",
    'quo"te',
    "colon:name",
    "[1]{2}",
    "<a>",
    "a,b;c|d~",
    "x" * 200,
    "deep/er/and deeper/file.json",
]


@pytest.fixture(scope="module", params=["google", "azure"])
def server(request: pytest.FixtureRequest) -> Iterator[clouds.Google | clouds.Azure]:
    with clouds.running(request.param) as server:
        yield server


@pytest.fixture
def cloud(server, monkeypatch: pytest.MonkeyPatch):
    """A server that the environment names."""
    for name, value in server.variables_at(server.url).items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def proxy(server, cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    """A proxy between the tracker and the server."""
    with S3Proxy(server.port) as proxy:
        for name, value in server.variables_at(proxy.url).items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture
def bucket(cloud) -> Iterator[str]:
    """A bucket, or container, of this test alone."""
    name = cloud.create_bucket()
    yield name
    cloud.delete_bucket(name)


@pytest.fixture
def make(cloud, uri: str) -> Iterator[Callable[[str], MLflowTracker]]:
    """Make a tracker whose artifacts go to a bucket."""
    made = []

    def make(bucket: str) -> MLflowTracker:
        made.append(MLflowTracker(uri, f"{cloud.uri(bucket)}/pre fix/é+&", experiment_name="clouds"))
        return made[-1]

    yield make
    for tracker in made:
        tracker.end_run()


def place(run_id: str) -> str:
    return f"pre fix/é+&/{run_id}/artifacts"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with whatever a name can be, an empty file and some that are sent in parts."""
    source = tmp_path / "source"
    for name in NAMES:
        write(source / name, name.encode())
    write(source / "empty", b"")
    # The name of the one tells its content type, the name of the other does not.
    write(source / "large.csv", os.urandom(20 * MIB))
    write(source / "large", os.urandom(24 * MIB + 1))
    return source


def told(tracker: MLflowTracker, caplog: pytest.LogCaptureFixture, words: str) -> None:
    """Wait until the tracker has said something of what happens in the background."""

    def is_told() -> bool:
        # A call that records is what brings the sentences of the background.
        tracker.set_tag("waiting", "for words")
        return words in caplog.text

    wait_until(is_told, f"{words!r} is told")


def test_all_files_arrive_byte_by_byte_and_long_ones_in_parts(cloud, proxy, make, bucket, source):
    tracker = make(bucket)
    with tracker.run() as run:
        tracker.log_artifacts_dir(source, "all")
    tracker.flush(PATIENCE_S)
    assert cloud.objects(bucket, f"{place(run.run_id)}/all") == contents(source)
    names = [request.path.rpartition("/")[2] for request in proxy.seen(cloud.completes)]
    assert sorted(names) == ["large", "large.csv"]


def test_what_was_logged_is_listed_and_comes_back(make, bucket, source, tmp_path):
    tracker = make(bucket)
    run_id = tracker.start_run()
    tracker.log_artifacts_dir(source, "all")
    tracker.log_text("grüße", "notes.txt")
    lengths = {path.name: path.stat().st_size for path in source.iterdir() if path.is_file()}
    listed = {it.path: it.file_size for it in tracker.list_artifacts("all")}
    assert listed == {f"all/{name}": length for name, length in lengths.items()} | {"all/deep": None}
    assert [(it.path, it.is_dir) for it in tracker.list_artifacts()] == [("all", True), ("notes.txt", False)]
    assert tracker.list_artifacts("nothing") == []
    assert tracker.load_text(run_id, "notes.txt") == "grüße"
    tracker.download_artifacts(run_id, "all", tmp_path / "back")
    assert contents(tmp_path / "back") == {f"all/{name}": it for name, it in contents(source).items()}


def test_what_is_not_there_is_named(make, bucket):
    tracker = make(bucket)
    run_id = tracker.start_run()
    for path in ("nothing", "folder/nothing.txt"):
        with pytest.raises(ArtifactNotFoundError, match=path):
            tracker.download_artifacts(run_id, path)
        with pytest.raises(ArtifactNotFoundError, match=path):
            tracker.load_text(run_id, path)


def test_a_file_logged_again_replaces_the_one_before(cloud, make, bucket, tmp_path):
    tracker = make(bucket)
    run_id = tracker.start_run()
    last = b""
    for size in (1, 17 * MIB, 17 * MIB, 2):
        last = os.urandom(size)
        tracker.log_artifact(write(tmp_path / "last.ckpt", last), "")
    tracker.flush(PATIENCE_S)
    assert cloud.objects(bucket, place(run_id)) == {"last.ckpt": last}


def test_files_are_deleted_and_others_stay(cloud, make, bucket, source):
    tracker = make(bucket)
    with tracker.run() as run:
        tracker.log_artifacts_dir(source, "all")
        tracker.log_artifacts_dir(source / "deep", "all/deeper")
        tracker.delete_artifacts("all/deep")
        tracker.delete_artifacts("all/large")
        tracker.delete_artifacts("all/none")
        tracker.log_text("later", "all/large")
        tracker.flush(PATIENCE_S)
        there = cloud.objects(bucket, place(run.run_id))
        left = {f"all/{name}" for name in contents(source) if not name.startswith("deep/")}
        assert set(there) == left | {"all/deeper/er/and deeper/file.json"}
        assert there["all/large"] == b"later"
        tracker.delete_artifacts()
        tracker.flush(PATIENCE_S)
        assert cloud.objects(bucket, place(run.run_id)) == {}
    assert tracker.status().parked == 0


def test_an_outage_loses_nothing(cloud, make, bucket, source, caplog):
    tracker = make(bucket)
    run_id = tracker.start_run()
    tracker.log_text("before", "before.txt")
    tracker.flush(PATIENCE_S)
    before = cloud.objects(bucket, place(run_id))
    assert before == {"before.txt": b"before"}
    cloud.halt()
    upload = tracker.log_artifacts_dir(source, "")
    told(tracker, caplog, "degraded")
    assert not upload.done
    cloud.resume(bucket)
    tracker.flush(PATIENCE_S)
    assert upload.done
    arrived = cloud.objects(bucket, place(run_id))
    assert {name: it for name, it in arrived.items() if name not in before} == contents(source)


def test_parts_that_the_store_has_forgotten_are_sent_again(cloud, proxy, make, bucket, tmp_path):
    tracker = make(bucket)
    run_id = tracker.start_run()
    content = os.urandom(20 * MIB)
    file = write(tmp_path / "large", content)
    if isinstance(cloud, clouds.Google):
        # moto stumbles over an upload that it does not know: the proxy says what a store says. Twice, as the
        # upload is asked for once more before it is given up.
        proxy.strike("refuse", cloud.completes, times=2, status=404, code="NoSuchUpload")
        tracker.log_artifact(file, "")
        tracker.flush(PATIENCE_S)
        assert len(proxy.seen(begins)) == 2
    else:
        proxy.strike("hold", cloud.completes)
        tracker.log_artifact(file, "")
        wait_until(lambda: proxy.seen(cloud.completes), "all parts have arrived")
        cloud.forget_parts(bucket, f"{place(run_id)}/large")
        proxy.heal()
        tracker.flush(PATIENCE_S)
    assert cloud.objects(bucket, place(run_id)) == {"large": content}


def test_a_bucket_that_is_missing_is_told_and_waited_for(cloud, make, tmp_path, caplog):
    tracker = make("missing")
    run_id = tracker.start_run()
    # A short file and one in parts are other requests.
    for name, size in (("short", 10), ("long", 17 * MIB)):
        tracker.log_artifact(write(tmp_path / name, b"x" * size), "")
    told(tracker, caplog, "the bucket does not exist")
    cloud.create_bucket("missing")
    try:
        tracker.flush(PATIENCE_S)
        assert {name: len(it) for name, it in cloud.objects("missing", place(run_id)).items()} == {
            "short": 10,
            "long": 17 * MIB,
        }
    finally:
        cloud.delete_bucket("missing")


def test_artifacts_of_a_deleted_run_go_and_others_stay(cloud, make, bucket, uri, source, heimdall):
    tracker = make(bucket)
    runs = []
    for _ in range(2):
        with tracker.run() as run:
            tracker.log_artifacts_dir(source, "all")
        runs.append(run.run_id)
    tracker.flush(PATIENCE_S)
    deleted, kept = runs
    tracker.delete_run(deleted)
    before = cloud.keys(bucket)
    for more in ([], ["--delete"]):
        assert cloud.keys(bucket) == before
        done = heimdall("gc", "--uri", uri, "--older-than", "0s", *more, **cloud.variables_at(cloud.url))
        assert (done.returncode, done.stderr) == (0, "")
        assert f"deleted run {deleted} of clouds, {len(contents(source))} files" in done.stdout
    assert cloud.keys(bucket) == [key for key in before if kept in key]


def test_keys_that_are_not_known_are_told_and_waited_for(cloud, proxy, make, bucket, caplog):
    # moto asks nobody who he is, and to a wrong signature Azurite says what Azure does where a known user may
    # not do a thing (AuthorizationFailure): the proxy says it in the words of the clouds.
    google = isinstance(cloud, clouds.Google)
    status, code = (401, "AuthenticationRequired") if google else (403, "AuthenticationFailed")
    proxy.strike("refuse", status=status, code=code)
    tracker = make(bucket)
    run_id = tracker.start_run()
    tracker.log_text("a", "a.txt")
    told(tracker, caplog, "does not accept the credentials")
    assert ("GOOGLE_APPLICATION_CREDENTIALS" if google else "AZURE_STORAGE_ACCOUNT_KEY") in caplog.text
    assert cloud.keys(bucket) == []
    proxy.heal()
    tracker.flush(PATIENCE_S)
    assert cloud.objects(bucket, place(run_id)) == {"a.txt": b"a"}
