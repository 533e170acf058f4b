"""Artifacts: the bytes that were named when the call was made, where a stock client looks for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from heimdall_tracking import ArtifactNotFoundError, InvalidInputError, MLflowTracker
from support.helpers import contents, write

UNUSUAL_NAMES = [".hidden", "with blank.txt", "ünïcode 漢字", "no_ending", "a..b", "colon:name", "x" * 200]


@pytest.fixture
def run_id(tracker) -> str:
    return tracker.start_run()


@pytest.fixture
def download(tracker, client, run_id, tmp_path):
    """The run's artifacts as the stock client downloads them."""

    def download() -> dict[str, bytes]:
        tracker.flush()
        target = tmp_path / "downloaded"
        target.mkdir()
        client.download_artifacts(run_id, "", str(target))
        return contents(target)

    return download


@pytest.mark.parametrize("content", [b"", b"\0\xff\r\n", os.urandom(3_000_001)], ids=len)
def test_a_file_arrives_byte_by_byte(tracker, tmp_path, download, content):
    tracker.log_artifact(write(tmp_path / "weights.ckpt", content))
    assert download() == {"artifacts/weights.ckpt": content}


@pytest.mark.parametrize(
    ("folder", "expected"),
    [(None, "a.txt"), ("", "a.txt"), ("models", "models/a.txt"), ("a b/ü", "a b/ü/a.txt")],
)
def test_the_folder_among_the_artifacts_can_be_chosen(tracker, tmp_path, download, folder, expected):
    tracker.log_artifact(str(write(tmp_path / "a.txt")), folder)
    assert list(download()) == [expected]


@pytest.mark.parametrize("name", UNUSUAL_NAMES)
def test_a_file_may_have_an_unusual_name(tracker, tmp_path, download, name):
    tracker.log_artifact(write(tmp_path / "source" / name))
    assert list(download()) == [f"artifacts/{name}"]


@pytest.mark.parametrize("change", [lambda file: file.write_bytes(b"newer"), Path.unlink])
def test_a_file_arrives_as_it_was_when_it_was_logged(tracker, tmp_path, download, change):
    file = write(tmp_path / "last.ckpt", b"older" * 100_000)
    tracker.log_artifact(file)
    change(file)
    assert download() == {"artifacts/last.ckpt": b"older" * 100_000}


def test_a_file_logged_again_replaces_the_one_before(tracker, tmp_path, download):
    for content in (b"first, and longer", b"second"):
        tracker.log_artifact(write(tmp_path / "last.ckpt", content))
    assert download() == {"artifacts/last.ckpt": b"second"}


def test_a_folder_arrives_with_everything_in_it(tracker, tmp_path, download):
    names = [*UNUSUAL_NAMES, "deep/er/and deeper/file", ".git/config", "empty"]
    for number, name in enumerate(names):
        write(tmp_path / "source" / name, b"x" * number)
    (tmp_path / "source" / "folder without files").mkdir()
    tracker.log_artifacts_dir(tmp_path / "source", "all")
    assert download() == {f"all/{name}": b"x" * number for number, name in enumerate(names)}


def test_a_folder_arrives_as_it_was_when_it_was_logged(tracker, tmp_path, download):
    file = write(tmp_path / "source" / "a", b"older")
    tracker.log_artifacts_dir(str(tmp_path / "source"), None)
    file.write_bytes(b"newer")
    write(tmp_path / "source" / "b")
    assert download() == {"a": b"older"}


def test_an_empty_folder_is_fine_and_leaves_no_trace(tracker, tmp_path, client, run_id):
    (tmp_path / "empty").mkdir()
    tracker.log_artifacts_dir(tmp_path / "empty")
    tracker.flush()
    assert client.list_artifacts(run_id) == []


@pytest.mark.strict
@pytest.mark.parametrize(
    ("call", "path"),
    [
        ("log_artifact", "missing"),
        ("log_artifact", "folder"),
        ("log_artifacts_dir", "missing"),
        ("log_artifacts_dir", "folder/file"),
    ],
)
def test_what_is_not_there_or_of_the_other_kind_is_named(tracker, tmp_path, client, run_id, call, path):
    write(tmp_path / "folder" / "file")
    with pytest.raises(ArtifactNotFoundError, match=path):
        getattr(tracker, call)(tmp_path / path)
    tracker.flush()
    assert client.list_artifacts(run_id) == []


@pytest.mark.strict
@pytest.mark.parametrize("folder", ["..", "../x", "a/../../x", "/etc", "a//b", "./a", "a\\b", "a/"])
@pytest.mark.parametrize("call", ["log_artifact", "log_artifacts_dir"])
def test_a_folder_that_could_lead_out_of_the_run_is_refused(tracker, tmp_path, call, folder, run_id):
    file = write(tmp_path / "source" / "file")
    with pytest.raises(InvalidInputError, match="artifact path"):
        getattr(tracker, call)(file if call == "log_artifact" else file.parent, folder)


@pytest.mark.parametrize("absolute", [True, False])
def test_links_that_stay_in_the_folder_are_followed(tracker, tmp_path, download, absolute):
    source = write(tmp_path / "source" / "checkpoints" / "epoch 3", b"weights").parent.parent
    target = source / "checkpoints" if absolute else Path("checkpoints")
    (source / "last").symlink_to(target / "epoch 3")
    (source / "again").symlink_to(target)
    tracker.log_artifacts_dir(source, "")
    files = ["again/epoch 3", "checkpoints/epoch 3", "last"]
    assert download() == dict.fromkeys(files, b"weights")


@pytest.mark.strict
@pytest.mark.parametrize("target", ["../secret", "..", ".", "loop", "../source", "nowhere"])
def test_links_that_leave_the_folder_or_go_in_circles_are_refused(tracker, tmp_path, client, run_id, target):
    source = write(tmp_path / "source" / "aaa").parent
    write(tmp_path / "secret")
    (source / "loop").symlink_to(target)
    with pytest.raises((InvalidInputError, OSError)):
        tracker.log_artifacts_dir(source)
    tracker.flush()
    assert client.list_artifacts(run_id) == []


def test_a_linked_folder_can_be_logged_itself(tracker, tmp_path, download):
    write(tmp_path / "source" / "file")
    (tmp_path / "link").symlink_to("source")
    tracker.log_artifacts_dir(tmp_path / "link", "")
    tracker.log_artifact(tmp_path / "link" / "file", "one")
    assert set(download()) == {"file", "one/file"}


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_the_artifacts_of_a_new_experiment_go_where_the_artifact_uri_says(uri, tmp_path, form):
    folder = tmp_path / "artifacts"
    tracker = MLflowTracker(uri, form.format(folder), experiment_name="elsewhere")
    with tracker.run() as run:
        tracker.log_artifact(write(tmp_path / "a.txt"), "")
    tracker.flush()
    assert contents(folder) == {f"{run.run_id}/artifacts/a.txt": b"content"}


def test_an_experiment_that_exists_keeps_its_artifact_location(tracker, uri, client, tmp_path):
    MLflowTracker(uri, str(tmp_path / "new"), experiment_name="tests")
    location = client.get_experiment(tracker.experiment_id).artifact_location
    assert location == f"{tmp_path}/mlruns/{tracker.experiment_id}"


def test_nothing_of_the_copies_is_left_after_delivery(tracker, tmp_path, download):
    tracker.log_artifact(write(tmp_path / "a.txt"))
    assert download() == {"artifacts/a.txt": b"content"}
    assert list((Path(tracker.status()["journal"]) / "staging").iterdir()) == []
