"""`delete_artifacts`: files leave every kind of store, in order with the files that are logged."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from subprocess import Popen
from types import SimpleNamespace

import pytest

from heimdall_tracking import InvalidInputError, MLflowTracker, NotFoundError, RunStateError, WrongTypeError
from support import s3
from support.helpers import rows, wait_until, write
from support.s3_proxy import Request, S3Proxy, of, puts


def deletes(request: Request) -> bool:
    return request.method == "DELETE" or (request.method == "POST" and "delete" in request.query)


@pytest.fixture(params=["disk", "s3", "server"])
def tracker(request: pytest.FixtureRequest, uri: str) -> Iterator[MLflowTracker]:
    """A tracker whose files go to a local folder, to S3, or through the proxy of an MLflow server."""
    if request.param == "s3":
        made = request.getfixturevalue("s3_tracker")(request.getfixturevalue("bucket"))
    elif request.param == "server":
        made = MLflowTracker(request.getfixturevalue("mlflow_server").url, experiment_name="deletes")
    else:
        made = MLflowTracker(uri, experiment_name="deletes")
    yield made
    made.end_run()


def files(tracker: MLflowTracker, run_id: str, folder: str = "") -> set[str]:
    """The paths of all files of a run."""
    found: set[str] = set()
    for info in tracker.list_artifacts(folder, run_id=run_id):
        found |= files(tracker, run_id, info.path) if info.is_dir else {info.path}
    return found


def log(tracker: MLflowTracker, *names: str, text: str = "content") -> None:
    for name in names:
        tracker.log_text(text, name)


def test_a_file_a_folder_and_all_are_deleted_and_others_stay(tracker):
    run_id = tracker.start_run()
    log(tracker, "a.txt", "b.txt", "sub/1", "sub/deep/er/2", "sub2/3", "sub.txt", "with blank/ü#%.txt")
    tracker.delete_artifacts("a.txt")
    assert files(tracker, run_id) == {
        "b.txt",
        "sub/1",
        "sub/deep/er/2",
        "sub2/3",
        "sub.txt",
        "with blank/ü#%.txt",
    } - ({"with blank/ü#%.txt"} if tracker.status().parked else set())
    tracker.delete_artifacts("sub/deep")
    assert files(tracker, run_id, "sub") == {"sub/1"}
    # The names of two neighbours begin as that of the folder.
    tracker.delete_artifacts("sub")
    assert {"b.txt", "sub2/3", "sub.txt"} <= files(tracker, run_id)
    assert files(tracker, run_id, "sub") == set()
    tracker.delete_artifacts("with blank")
    assert files(tracker, run_id) == {"b.txt", "sub2/3", "sub.txt"}
    tracker.delete_artifacts()
    assert files(tracker, run_id) == set()
    log(tracker, "again.txt")
    tracker.end_run()
    assert files(tracker, run_id) == {"again.txt"}


def test_what_is_not_there_is_no_error(tracker):
    with tracker.run() as run:
        run.delete_artifacts()
        run.delete_artifacts("none/at/all")
        log(tracker, "a")
        tracker.delete_artifacts("a/below/a/file")
        tracker.delete_artifacts("b")
    assert files(tracker, run.run_id) == {"a"}
    assert tracker.status().parked == 0


def test_files_are_logged_and_deleted_in_the_order_of_the_calls(tracker):
    with tracker.run() as run:
        for step in range(10):
            log(tracker, "kept/last", f"kept/{step}", text=str(step))
            tracker.delete_artifacts(f"kept/{step - 1}")
            if step % 3 == 2:
                tracker.delete_artifacts("kept")
                log(tracker, "kept/last", text="again")
    assert files(tracker, run.run_id) == {"kept/last", "kept/9"}
    assert tracker.load_text(f"runs:/{run.run_id}/kept/last") == "9"


def test_files_of_a_run_that_is_named_are_deleted(tracker):
    with tracker.run() as first:
        log(tracker, "a", "b")
    with tracker.run() as second:
        log(tracker, "a", "b")
        tracker.delete_artifacts("a", run_id=first.run_id)
        tracker.delete_artifacts("b")
    # The run of a block has ended, and deletes its files all the same.
    first.delete_artifacts("none")
    assert files(tracker, first.run_id) == {"b"}
    assert files(tracker, second.run_id) == {"a"}


WRONG = ["", "..", "../a", "a/../../b", "/etc", ".", "./a", "a//b", "a/", "a\\b", "a\nb", "a/.."]


@pytest.mark.parametrize("path", WRONG)
def test_a_path_that_could_lead_out_of_the_run_is_refused(uri, path):
    tracker = MLflowTracker(uri)
    with tracker.run() as run:
        log(tracker, "a/b", "b")
        with pytest.raises(InvalidInputError, match="artifact path"):
            tracker.delete_artifacts(path)
    assert files(tracker, run.run_id) == {"a/b", "b"}


def test_a_call_that_can_be_for_no_run_or_path_is_refused(uri):
    tracker = MLflowTracker(uri)
    with pytest.raises(RunStateError, match="delete_artifacts"):
        tracker.delete_artifacts("a")
    with pytest.raises(NotFoundError):
        tracker.delete_artifacts("a", run_id="0" * 32)
    with tracker.run(), pytest.raises(WrongTypeError, match="artifact path"):
        tracker.delete_artifacts(1)
    with pytest.raises(InvalidInputError, match="run id"):
        tracker.delete_artifacts("a", run_id="../..")


@pytest.mark.parametrize("path", ["link", "link/outside", "link/deep", "deep/link/outside"])
def test_no_link_leads_a_deletion_out_of_the_run(uri, tmp_path, path):
    outside = write(tmp_path / "elsewhere" / "outside").parent
    write(outside / "deep" / "file")
    tracker = MLflowTracker(uri, str(tmp_path / "artifacts"), experiment_name="tests")
    with tracker.run() as run:
        log(tracker, "deep/a")
        tracker.flush()
        (root,) = tmp_path.glob(f"artifacts/**/{run.run_id}/artifacts")
        for folder in (root, root / "deep"):
            (folder / "link").symlink_to(outside)
        tracker.delete_artifacts(path)
    assert {path.name for path in outside.rglob("*") if path.is_file()} == {"outside", "file"}
    # A link itself is deleted; what would be behind it is refused.
    assert (root / "link").is_symlink() is (path != "link")
    tracker.flush()
    assert tracker.status().parked == (0 if path == "link" else 1)
    tracker.delete_artifacts(run_id=run.run_id)
    tracker.flush()
    assert list(root.iterdir()) == []
    assert (outside / "deep" / "file").exists()


def test_a_server_that_would_delete_a_neighbour_as_well_is_not_asked(mlflow_server, caplog):
    tracker = MLflowTracker(mlflow_server.url, experiment_name="deletes")
    with caplog.at_level(logging.WARNING, "heimdall_tracking"), tracker.run() as run:
        log(tracker, "last", "last.json")
        tracker.delete_artifacts("last")
        # Deletions of different files overtake one another: the neighbour must still be there for the first.
        tracker.flush()
        tracker.delete_artifacts("last.json")
        tracker.flush()
    assert files(tracker, run.run_id) == {"last"}
    assert "deletion of artifact last " in caplog.text
    assert "last.json" in caplog.text


@pytest.fixture
def far(s3_server: s3.S3Server, proxy: S3Proxy, bucket: str, uri: str, s3_tracker) -> SimpleNamespace:
    """A tracker whose files go to S3 through a proxy that can fail."""
    tracker = s3_tracker(bucket, s3_endpoint_url=proxy.url)

    def objects(run_id: str) -> dict[str, bytes]:
        return s3_server.objects(bucket, f"runs/{run_id}/artifacts")

    return SimpleNamespace(tracker=tracker, proxy=proxy, objects=objects, server=s3_server, bucket=bucket)


def test_an_outage_delays_a_deletion_and_what_was_not_sent_is_not_sent_any_more(far):
    with far.tracker.run() as run:
        log(far.tracker, "there")
        far.tracker.flush()
        far.proxy.strike("refuse", puts, status=503, code="SlowDown")
        far.proxy.strike("refuse", deletes, status=503, code="SlowDown")
        far.tracker.delete_artifacts("there")
        log(far.tracker, *(f"old/{number}" for number in range(40)))
        far.tracker.delete_artifacts("old")
        log(far.tracker, "old/new")
        wait_until(lambda: far.proxy.seen(deletes), "the store is asked to delete")
        wait_until(lambda: far.proxy.seen(of("0")), "the store is asked to take files")
        assert set(far.objects(run.run_id)) == {"there"}
        far.proxy.heal()
        far.tracker.flush()
        assert set(far.objects(run.run_id)) == {"old/new"}
    sent = {request.path for request in far.proxy.seen(puts)}
    # At most 16 are on their way at a time; the others had not begun.
    assert len(sent) <= 18


def test_a_store_that_lets_nobody_delete_keeps_the_files_with_one_warning(far, caplog):
    far.proxy.strike("refuse", deletes, status=403, code="AccessDenied")
    with caplog.at_level(logging.WARNING, "heimdall_tracking"), far.tracker.run() as run:
        log(far.tracker, "a", "b")
        far.tracker.delete_artifacts("a")
        far.tracker.delete_artifacts("b")
        far.tracker.flush()
    assert set(far.objects(run.run_id)) == {"a", "b"}
    assert far.tracker.status().parked == 2
    assert far.tracker.get_run(run.run_id).status == "FINISHED"
    told = [record.getMessage() for record in caplog.records if "cannot be delivered" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("deletion of artifact ")


DOOMED = """
    import sys
    from heimdall_tracking import MLflowTracker

    uri, artifacts = sys.argv[1:]
    tracker = MLflowTracker(uri, artifacts, experiment_name="tests")
    print(tracker.start_run(), flush=True)
    tracker.log_text("first", "a/b")
    tracker.log_text("first", "a/c")
    tracker.flush()
    tracker.log_text("stuck", "stuck")
    tracker.delete_artifacts("a")
    tracker.log_text("second", "a/b")
    tracker.set_tag("all", "there")
    print("logged", flush=True)
    tracker.flush()
    """


@pytest.mark.faults
@pytest.mark.parametrize("when", ["before the deletion", "behind the deletion"])
def test_a_deletion_that_a_kill_has_interrupted_is_made_and_spares_later_files(
    when: str,
    far: SimpleNamespace,
    start_script: Callable[..., Popen],
    run_script: Callable[..., SimpleNamespace],
    uri: str,
    db,
) -> None:
    variables = far.server.variables | {"MLFLOW_S3_ENDPOINT_URL": far.proxy.url}
    # The position stays before the deletion while an earlier file cannot be sent.
    far.proxy.strike("refuse", lambda it: puts(it) and of("stuck")(it), status=503, code="SlowDown")
    if when == "before the deletion":
        far.proxy.strike("hold", deletes)
    process = start_script(DOOMED, uri, f"s3://{far.bucket}/runs", **variables)
    run_id, said = (process.stdout.readline().strip() for _ in range(2))
    assert said == "logged", process.communicate()
    wait_until(lambda: far.proxy.seen(deletes), "the store is asked to delete")
    before = {"a/b": b"first", "a/c": b"first"}
    left = before if when == "before the deletion" else {}
    # Keys alone: an object that is read may be deleted meanwhile.
    place = f"runs/{run_id}/artifacts/"
    keys = {place + name for name in left}
    wait_until(lambda: {*far.server.keys(far.bucket, place)} == keys, "the deletion is where it should be")
    wait_until(lambda: rows(db, "SELECT 1 FROM tags WHERE key = 'all'"), "the records behind it are there")
    # A later file waits until no deletion can come behind it any more.
    assert far.objects(run_id) == left
    process.kill()
    process.wait()
    far.proxy.heal()
    code = "import sys; from heimdall_tracking import MLflowTracker; MLflowTracker(sys.argv[1]).flush()"
    done = run_script(code, uri, **variables)
    assert done.code == 0, done.err
    assert far.objects(run_id) == {"a/b": b"second", "stuck": b"stuck"}


def test_a_deletion_waits_for_a_long_file_that_is_on_its_way(far, tmp_path):
    large = write(tmp_path / "large", bytes(20 << 20))
    with far.tracker.run() as run, contextlib.ExitStack() as after:
        far.proxy.strike("delay", puts, seconds=0.1)
        after.callback(far.proxy.heal)
        far.tracker.log_artifact(large, "files")
        far.tracker.delete_artifacts("files")
        log(far.tracker, "files/small")
        far.tracker.flush()
    assert set(far.objects(run.run_id)) == {"files/small"}
    assert far.server.unfinished(far.bucket) == []
