"""Names up to what disks and S3 can have arrive; longer ones are refused with the reason and kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from heimdall_tracking import MLflowTracker, Run
from heimdall_tracking.errors import ArtifactError
from support.helpers import PATIENCE_S, contents, write

# A disk counts bytes.
LONGEST = ["x" * 255, "é" * 127 + "x", "漢" * 85, "." + "x" * 254]
IDS = ["ASCII", "two bytes each", "three bytes each", "hidden"]
# So does S3, the whole key.
LONGEST_KEY = 1024


@pytest.fixture(params=["local", "server", "s3"])
def anywhere(request: pytest.FixtureRequest, uri: str):
    """A tracker whose artifacts are on disk, at a tracking server or in S3."""
    match request.param:
        case "local":
            tracker = MLflowTracker(uri)
        case "server":
            tracker = MLflowTracker(request.getfixturevalue("tracking_server"), experiment_name="names")
        case _:
            tracker = request.getfixturevalue("s3_tracker")(request.getfixturevalue("bucket"))
    yield tracker
    tracker.end_run()


def is_kept(heimdall_dir: Path, content: bytes) -> bool:
    return content in contents(heimdall_dir / "dead_letter").values()


def run_with_a_refused(path: str, tracker: MLflowTracker, heimdall_dir: Path) -> Run:
    """A run with a file that is refused and kept, and another one."""
    with tracker.run() as run:
        tracker.log_text("refused", path)
        tracker.log_text("after it", "later.txt")
    tracker.flush(PATIENCE_S)
    assert tracker.status().parked == 1
    assert is_kept(heimdall_dir, b"refused")
    return run


def folder_for(run_id: str, length: int, letter: str = "d") -> str:
    """A folder in which a file of one letter has a key of so many bytes."""
    left = length - len(f"runs/{run_id}/artifacts//f")
    size = len(letter.encode())
    parts = []
    while left > 200:
        parts.append(letter * (100 // size))
        left -= len(parts[-1].encode()) + 1
    return "/".join([*parts, "e" * left])


@pytest.mark.parametrize("name", LONGEST, ids=IDS)
def test_a_file_whose_name_is_as_long_as_a_disk_can_have_arrives_and_comes_back(anywhere, tmp_path, name):
    file = write(tmp_path / "source" / name)
    with anywhere.run() as run:
        anywhere.log_artifact(file, "").wait(PATIENCE_S)
        anywhere.log_artifacts_dir(file.parent, "folder").wait(PATIENCE_S)
        anywhere.log_text("text", f"texts/{name}")
    there = anywhere.download_artifacts(run.run_id, dst=tmp_path / "there")
    assert contents(Path(there)) == {name: b"content", f"folder/{name}": b"content", f"texts/{name}": b"text"}


@pytest.mark.parametrize("path", ["x" * 256, "é" * 128, "y" * 300, f"{'z' * 300}/file"])
def test_a_name_that_no_disk_can_have_is_refused_and_kept_and_the_rest_arrives(
    tracker, client, heimdall_dir, tmp_path, path, caplog
):
    run = run_with_a_refused(path, tracker, heimdall_dir)
    assert path in caplog.text
    assert "File name too long" in caplog.text
    assert [it.path for it in client.list_artifacts(run.run_id)] == ["later.txt"]
    assert client.get_run(run.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("path", ["x" * 256, f"folder/{'z' * 300}"])
def test_a_name_that_the_disk_of_a_server_cannot_have_is_refused_and_kept_and_the_rest_arrives(
    tracking_server, heimdall_dir, tmp_path, path
):
    tracker = MLflowTracker(tracking_server, experiment_name="names")
    run = run_with_a_refused(path, tracker, heimdall_dir)
    # Of a file that it cannot name the server keeps the folder.
    there = tracker.download_artifacts(run.run_id, dst=tmp_path / "there")
    assert contents(Path(there)) == {"later.txt": b"after it"}
    assert tracker.get_run(run.run_id).status == "FINISHED"


def test_who_waits_for_a_name_that_no_disk_can_have_is_told(tracker, tmp_path):
    with tracker.run():
        upload = tracker.log_artifact(write(tmp_path / "file"), "y" * 300)
        with pytest.raises(ArtifactError, match=r"y{300}/file.*File name too long.*dead letters"):
            upload.wait(PATIENCE_S)


def test_s3_may_have_names_that_a_disk_cannot_have(s3_tracker, s3_server, bucket, tmp_path):
    tracker = s3_tracker(bucket)
    with tracker.run() as run:
        tracker.log_artifact(write(tmp_path / "file"), "y" * 300).wait(PATIENCE_S)
        tracker.log_text("short", "short.txt")
    tracker.flush(PATIENCE_S)
    place = f"runs/{run.run_id}/artifacts"
    assert s3_server.objects(bucket, place) == {f"{'y' * 300}/file": b"content", "short.txt": b"short"}
    assert [it.path for it in tracker.list_artifacts(run_id=run.run_id)] == ["short.txt", "y" * 300]
    with pytest.raises(ArtifactError, match=r"y{300}.*File name too long"):
        tracker.download_artifacts(run.run_id, "y" * 300, tmp_path / "there")


def test_a_key_as_long_as_s3_can_have_arrives_and_comes_back(s3_tracker, s3_server, bucket, tmp_path):
    tracker = s3_tracker(bucket)
    file = write(tmp_path / "f")
    with tracker.run() as run:
        for letter in ("d", "é"):
            folder = folder_for(run.run_id, LONGEST_KEY, letter)
            tracker.log_artifact(file, folder).wait(PATIENCE_S)
    assert [len(key.encode()) for key in s3_server.keys(bucket)] == [LONGEST_KEY] * 2
    there = tracker.download_artifacts(run.run_id, dst=tmp_path / "there")
    assert list(contents(Path(there)).values()) == [b"content"] * 2


@pytest.mark.parametrize("length", [LONGEST_KEY + 1, 5000])
@pytest.mark.parametrize("letter", ["d", "é"])
def test_a_key_that_s3_cannot_have_is_refused_and_kept_and_the_rest_arrives(
    s3_tracker, s3_server, bucket, tmp_path, heimdall_dir, length, letter
):
    tracker = s3_tracker(bucket)
    with tracker.run() as run:
        folder = folder_for(run.run_id, length, letter)
        upload = tracker.log_artifact(write(tmp_path / "f", b"refused"), folder)
        tracker.log_text("after it", "later.txt")
        with pytest.raises(ArtifactError, match=r"KeyTooLong.*dead letters"):
            upload.wait(PATIENCE_S)
    tracker.flush(PATIENCE_S)
    assert tracker.status().parked == 1
    assert is_kept(heimdall_dir, b"refused")
    assert s3_server.keys(bucket) == [f"runs/{run.run_id}/artifacts/later.txt"]
    assert tracker.get_run(run.run_id).status == "FINISHED"
