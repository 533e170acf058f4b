"""Artifacts are listed and downloaded as stock MLflow does it, from disk, from a server and from S3."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from heimdall_tracking import (
    ArtifactNotFoundError,
    InvalidInputError,
    MLflowTracker,
    NotFoundError,
    RunStateError,
)
from heimdall_tracking.errors import ArtifactError
from support import s3
from support.helpers import PATIENCE_S, contents, wait_until, write
from support.s3_proxy import Request, S3Proxy, of

RANGE = 8 << 20
NAMES = ("notes/é + 1.txt", ".hidden/x", "empty", "deep/" + "d/" * 20 + "file")


@pytest.fixture(params=["local", "server", "s3"])
def stored(request: pytest.FixtureRequest, tmp_path: Path):
    """A tracker whose artifacts are on disk, at a tracking server or in S3."""
    match request.param:
        case "local":
            tracker = MLflowTracker(f"sqlite:///{tmp_path / 'mlflow.db'}")
        case "server":
            tracker = MLflowTracker(request.getfixturevalue("tracking_server"), experiment_name="downloads")
        case _:
            bucket = request.getfixturevalue("s3_bucket")
            tracker = MLflowTracker(f"sqlite:///{tmp_path / 'mlflow.db'}", f"s3://{bucket}/pre fix")
    yield tracker
    tracker.end_run()


@pytest.fixture
def files(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / "files"
    # MLflow's server takes no such names.
    is_server = "server" in request.node.name
    for name in NAMES if is_server else (*NAMES, "notes/é #%20.txt"):
        write(folder / name, name.encode() if name != "empty" else b"")
    return folder


def test_a_folder_comes_back_as_it_was_logged(stored, files, tmp_path):
    with stored.run() as run:
        stored.log_artifacts_dir(files, "all")
    there = stored.download_artifacts(run.run_id, "all", tmp_path / "ours")
    assert there == str(tmp_path / "ours" / "all")
    assert contents(Path(there)) == contents(files)
    names = [info.path for info in stored.list_artifacts("all", run.run_id)]
    assert names == sorted(["all/.hidden", "all/deep", "all/empty", "all/notes"])
    by_uri = stored.download_artifacts(f"runs:/{run.run_id}/all/deep", dst=tmp_path / "uri")
    assert contents(Path(by_uri)) == contents(files / "deep")
    assert Path(by_uri).name == "deep"
    root = stored.download_artifacts(run.run_id, dst=tmp_path / "root")
    assert contents(Path(root) / "all") == contents(files)


def test_a_list_is_that_of_the_stock_client(stored, files):
    from mlflow import MlflowClient

    with stored.run() as run:
        stored.log_artifacts_dir(files, "all")
        stored.log_text("x", "top.txt")
    stored.flush()
    for folder in ("", "all", "all/notes", "nowhere"):
        theirs = MlflowClient(stored.tracking_uri).list_artifacts(run.run_id, folder)
        ours = stored.list_artifacts(folder, run.run_id)
        assert [(it.path, it.is_dir) for it in ours] == [(it.path, it.is_dir) for it in theirs]
        sizes = [it.file_size for it in ours if not it.is_dir]
        # Of an empty file the server tells no size.
        assert sizes == [it.file_size or 0 for it in theirs if not it.is_dir]


def test_a_long_file_comes_back_byte_by_byte(stored, tmp_path):
    content = os.urandom(3 * RANGE + 17)
    with stored.run() as run:
        stored.log_artifact(write(tmp_path / "weights.ckpt", content), "models").wait()
    there = stored.download_artifacts(run.run_id, "models/weights.ckpt", tmp_path / "ours")
    assert Path(there).read_bytes() == content
    assert [it.name for it in Path(there).parent.iterdir()] == ["weights.ckpt"]


def test_texts_and_dicts_are_read(stored, tmp_path):
    with stored.run() as run:
        stored.log_text("zwölf", "a.txt")
        stored.log_dict({"receivers": [1, 2]}, "b.json")
        stored.log_dict({"receivers": [1, 2]}, "b.yaml")
        assert stored.load_text(run.run_id, "a.txt") == "zwölf"
        assert stored.load_dict(run.run_id, "b.json") == {"receivers": [1, 2]}
        assert stored.load_dict(f"runs:/{run.run_id}/b.yaml") == {"receivers": [1, 2]}
        with pytest.raises(InvalidInputError, match="no JSON"):
            stored.load_dict(run.run_id, "a.txt")


def test_a_registered_model_is_downloaded_by_its_uri(stored, files, tmp_path):
    with stored.run() as run:
        stored.log_artifacts_dir(files, "model")
        name = f"m{run.run_id}"
        version = stored.register_model(name, f"runs:/{run.run_id}/model")
        stored.set_model_alias(name, "champion", version)
    for uri in (f"models:/{name}/{version}", f"models:/{name}@champion", f"models:/{name}/latest"):
        there = stored.download_artifacts(uri, dst=tmp_path / uri.replace("/", "_"))
        assert contents(Path(there)) == contents(files)
        # As stock MLflow has it: what the URI names below the version is a path below the target.
        for path in ("deep", "notes"):
            asked = [(f"{uri}/{path}", ""), (uri, path)]
            ours = [stored.download_artifacts(*it, tmp_path / f"{n}") for n, it in enumerate(asked)]
            assert [Path(it) for it in ours] == [tmp_path / f"{n}" / path for n in range(2)]
            assert all(Path(it).exists() for it in ours)


def test_what_is_not_there_is_told_apart(stored, tmp_path):
    with stored.run() as run:
        stored.log_text("x", "a.txt")
    with pytest.raises(ArtifactNotFoundError, match=r"b\.txt"):
        stored.download_artifacts(run.run_id, "b.txt", tmp_path / "ours")
    with pytest.raises(NotFoundError):
        stored.download_artifacts("0" * 32, "a.txt")
    for wrong in ("/etc/passwd", "../a.txt", "a/../../b"):
        with pytest.raises(InvalidInputError, match="artifact path"):
            stored.download_artifacts(run.run_id, wrong, tmp_path / "ours")
    with pytest.raises(RunStateError, match="list_artifacts"):
        stored.list_artifacts()


def test_what_is_on_this_disk_is_not_copied_without_a_target(tracker, tmp_path):
    with tracker.run() as run:
        tracker.log_text("x", "a.txt")
    there = Path(tracker.download_artifacts(run.run_id, "a.txt"))
    assert run.run_id in there.parts
    assert there.read_text() == "x"


@pytest.fixture
def far(s3_server: s3.S3Server, s3_tracker, bucket: str) -> Iterator[SimpleNamespace]:
    """A run whose artifacts are in S3, which is reached through a proxy."""
    with S3Proxy(s3_server.port) as proxy:
        tracker = s3_tracker(bucket, proxy)
        run_id = tracker.start_run()

        def put(name: str, content: bytes, **arguments: str) -> None:
            client = s3_server.client(request_checksum_calculation="when_required")
            key = f"runs/{run_id}/artifacts/{name}"
            client.put_object(Bucket=bucket, Key=key, Body=content, **arguments)

        yield SimpleNamespace(tracker=tracker, run_id=run_id, proxy=proxy, put=put, bucket=bucket)


CHECKSUMS = [{"ChecksumAlgorithm": "SHA256"}, {"ChecksumAlgorithm": "CRC32"}, {}]


@pytest.mark.parametrize("size", [1000, RANGE + 1], ids=["whole", "in ranges"])
@pytest.mark.parametrize("checksum", CHECKSUMS, ids=["SHA-256", "CRC-32", "ETag"])
def test_a_file_that_is_damaged_on_its_way_is_fetched_again(far, tmp_path, size, checksum):
    content = os.urandom(size)
    far.put("file", content, **checksum)
    damage = far.proxy.strike("damage answer", of("file", "GET"), 1)
    there = far.tracker.download_artifacts(far.run_id, "file", tmp_path / "ours")
    assert Path(there).read_bytes() == content
    assert damage.struck == 1
    assert [it.name for it in Path(there).parent.iterdir()] == ["file"]


@pytest.mark.parametrize("size", [1000, RANGE + 1], ids=["whole", "in ranges"])
@pytest.mark.parametrize("checksum", CHECKSUMS, ids=["SHA-256", "CRC-32", "ETag"])
def test_a_file_that_stays_damaged_is_told_and_never_there(far, tmp_path, size, checksum):
    far.put("file", os.urandom(size), **checksum)
    damage = far.proxy.strike("damage answer", of("file", "GET"))
    with pytest.raises(ArtifactError, match=f"s3://{far.bucket}/.*damaged.*has arrived"):
        far.tracker.download_artifacts(far.run_id, "file", tmp_path / "ours")
    assert damage.met == (2 if size <= RANGE else 4)
    assert list((tmp_path / "ours").iterdir()) == []


@pytest.mark.parametrize(
    ("size", "checksum"), [(1000, "Sha256"), (17 << 20, "Crc64Nvme")], ids=["in one request", "in parts"]
)
def test_what_was_logged_is_compared(far, tmp_path, size, checksum):
    far.tracker.log_artifact(write(tmp_path / "file", os.urandom(size)), "").wait()
    far.proxy.strike("damage answer", of("file", "GET"))
    with pytest.raises(ArtifactError, match=f"{checksum} of what has arrived"):
        far.tracker.download_artifacts(far.run_id, "file", tmp_path / "ours")


def test_a_file_of_another_length_than_the_list_says_is_told_with_its_store(far, tmp_path):
    far.put("folder/file", b"content")
    far.proxy.strike("lie", of("file", "GET"), headers={"content-length": "3"})
    with pytest.raises(ArtifactError, match=f"s3://{far.bucket}/.*(3 bytes|has arrived)"):
        far.tracker.download_artifacts(far.run_id, "folder", tmp_path / "ours")


@pytest.mark.parametrize("size", [1000, RANGE + 1], ids=["whole", "in ranges"])
def test_a_file_that_is_replaced_by_a_longer_one_meanwhile_arrives(far, tmp_path, size):
    far.put("folder/file", b"x" * size)
    # The request for it waits until the file is another.
    held = far.proxy.strike("hold", of("file"))
    with ThreadPoolExecutor() as pool:
        there = pool.submit(far.tracker.download_artifacts, far.run_id, "folder", tmp_path / "ours")
        wait_until(lambda: held.met, "the list is there")
        far.put("folder/file", content := os.urandom(2 * size))
        far.proxy.heal()
        assert contents(Path(there.result(PATIENCE_S))) == {"file": content}


def test_what_an_interrupted_download_has_left_in_a_logged_folder_is_no_artifact(far, tmp_path):
    left = ".heimdall-0123abcd.part"
    write(tmp_path / "folder" / "file", b"content")
    write(tmp_path / "folder" / left, b"half")
    far.tracker.log_artifacts_dir(tmp_path / "folder", "folder").wait()
    assert [it.path for it in far.tracker.list_artifacts("folder")] == ["folder/file"]
    # Another client may have taken it for one.
    far.put(f"folder/{left}", b"half")
    there = far.tracker.download_artifacts(far.run_id, "folder", tmp_path / "ours")
    assert contents(Path(there)) == {"file": b"content"}


@pytest.fixture
def start_download(far, tmp_path, start_script, uri):
    """Download a file or folder in a process of its own, which says so when it is there."""

    def start(name: str = "file") -> subprocess.Popen:
        return start_script(
            """
            import sys
            from heimdall_tracking import MLflowTracker

            uri, endpoint, key, secret, run_id, name, target = sys.argv[1:]
            tracker = MLflowTracker(
                uri, s3_endpoint_url=endpoint, s3_access_key_id=key, s3_secret_access_key=secret
            )
            try:
                tracker.download_artifacts(run_id, name, target)
                print("there", flush=True)
            except KeyboardInterrupt:
                print("stopped", flush=True)
            sys.stdin.read()
            """,
            uri,
            far.proxy.url,
            s3.ACCESS_KEY,
            s3.SECRET_KEY,
            far.run_id,
            name,
            tmp_path / "ours",
            HEIMDALL_DIR=tmp_path / "theirs",
        )

    return start


# Of the long file, and how many of them are on their way at a time.
RANGES, TOGETHER = 22, 16


def begun(far, start_download, **checksum: str) -> tuple[subprocess.Popen, bytes]:
    """A process that has four ranges of a file and waits for as many as go together, and the file."""
    content = os.urandom(RANGES * RANGE)
    far.put("file", content, **checksum)
    held = far.proxy.strike("hold", of("file", "GET"), after=4)
    process = start_download()
    wait_until(lambda: held.struck == TOGETHER, "as much is on its way as goes together")
    return process, content


def killed(far, start_download, **checksum: str) -> tuple[bytes, list[str]]:
    """A file of which a process has got four ranges when it was killed, and these."""
    process, content = begun(far, start_download, **checksum)
    process.kill()
    process.wait(PATIENCE_S)
    far.proxy.heal()
    arrived = ranges_of(far.proxy.seen(lambda it: of("file", "GET")(it) and not it.fault))
    assert len(arrived) == 4
    return content, arrived


def ranges_of(requests: list[Request]) -> list[str]:
    return sorted(request.headers["range"] for request in requests)


@pytest.mark.parametrize("is_replaced", [False, True], ids=["the same file", "another version of it"])
def test_what_a_killed_process_has_of_a_file_is_not_fetched_again(far, tmp_path, start_download, is_replaced):
    content, arrived = killed(far, start_download)
    there = tmp_path / "ours" / "file"
    assert not there.exists()
    if is_replaced:
        # The bytes of the first version are not taken for a part of the second.
        content = os.urandom(RANGES * RANGE)
        far.put("file", content)
        arrived = []
    far.proxy.forget()
    assert start_download().stdout.readline() == "there\n"
    assert there.read_bytes() == content
    asked = ranges_of(far.proxy.seen(of("file", "GET")))
    every = {f"bytes={at * RANGE}-{(at + 1) * RANGE - 1}" for at in range(RANGES)}
    assert asked == sorted(every - set(arrived))
    assert [it.name for it in there.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("checksum", CHECKSUMS, ids=["SHA-256", "CRC-32", "ETag"])
@pytest.mark.parametrize("is_lost", [False, True], ids=["all is there", "a range is lost"])
def test_what_a_power_loss_took_of_a_file_is_fetched_again(far, tmp_path, start_download, checksum, is_lost):
    content, arrived = killed(far, start_download, **checksum)
    (part,) = (tmp_path / "ours").glob("*.part")
    if is_lost:
        # The note of a range was on the disk before the range was.
        start = int(arrived[0].removeprefix("bytes=").split("-")[0])
        with part.open("r+b") as file:
            file.seek(start + 5)
            file.write(bytes(4096))
    far.proxy.forget()
    there = far.tracker.download_artifacts(far.run_id, "file", tmp_path / "ours")
    assert Path(there).read_bytes() == content
    assert len(far.proxy.seen(of("file", "GET"))) == RANGES - 4 + (RANGES if is_lost else 0)
    assert [it.name for it in Path(there).parent.iterdir()] == ["file"]


def test_what_a_killed_process_has_of_a_folder_is_not_fetched_again(far, tmp_path, start_download):
    files = {name: os.urandom(RANGE + 5) for name in ("changed", "deep/whole", "half", "replaced")}
    for name, content in files.items():
        far.put(f"all/{name}", content)
    held = far.proxy.strike("hold", of("half", "GET"), after=1)
    process = start_download("all")
    there = tmp_path / "ours" / "all"
    whole = [there / name for name in files if name != "half"]
    note = tmp_path / "ours"
    wait_until(
        lambda: held.struck == 1 and sum(it.read_text().count("\n") for it in note.glob("*-done.part")) == 3,
        "three files of the folder are there",
    )
    process.kill()
    process.wait(PATIENCE_S)
    assert all(path.exists() for path in whole)
    far.proxy.heal()
    # A file that has changed, here or in the store, is fetched.
    (there / "changed").write_bytes(bytes(RANGE + 5))
    files["replaced"] = os.urandom(RANGE + 5)
    far.put("all/replaced", files["replaced"])
    far.proxy.forget()
    folder = far.tracker.download_artifacts(far.run_id, "all", tmp_path / "ours")
    assert contents(Path(folder)) == files
    asked = [
        request.path.rpartition("/")[2]
        for request in far.proxy.seen(of("", "GET"))
        if "range" in request.headers
    ]
    assert sorted(asked) == ["changed", "changed", "half", "replaced", "replaced"]
    assert [it.name for it in (tmp_path / "ours").iterdir()] == ["all"]


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_download_that_fails_is_gone_on_with(far, tmp_path, start_download, method):
    content, arrived = killed(far, start_download)
    far.proxy.strike("refuse", of("file", method), status=403, code="AccessDenied")
    with pytest.raises(ArtifactError, match="file"):
        far.tracker.download_artifacts(far.run_id, "file", tmp_path / "ours")
    far.proxy.heal()
    far.proxy.forget()
    there = far.tracker.download_artifacts(far.run_id, "file", tmp_path / "ours")
    assert Path(there).read_bytes() == content
    # Some may be late ones of the download that has failed.
    assert set(ranges_of(far.proxy.seen(of("file", "GET")))).isdisjoint(arrived)


def test_a_folder_in_the_way_is_told_before_anything_is_fetched(far, tmp_path):
    far.put("file", b"content")
    (tmp_path / "ours" / "file" / "in it").mkdir(parents=True)
    with pytest.raises(ArtifactError, match=r"ours/file.*directory"):
        far.tracker.download_artifacts(far.run_id, "file", tmp_path / "ours")
    assert far.proxy.seen(of("file", "GET")) == []


def test_ctrl_c_stops_a_download_and_the_next_goes_on(far, tmp_path, start_download):
    script, content = begun(far, start_download)
    script.send_signal(signal.SIGINT)
    assert script.stdout.readline() == "stopped\n"
    far.proxy.heal()
    script.communicate(timeout=PATIENCE_S)
    assert len(far.proxy.seen(of("file", "GET"))) == 4 + TOGETHER, "nothing was asked for any more"
    far.proxy.forget()
    there = far.tracker.download_artifacts(far.run_id, "file", tmp_path / "ours")
    assert Path(there).read_bytes() == content
    assert len(far.proxy.seen(of("file", "GET"))) == RANGES - 4


def test_threads_and_processes_may_download_to_the_same_place_at_a_time(far, tmp_path, start_script, uri):
    threads, processes = 10, 4
    files = {
        "long": os.urandom(3 * RANGE + 17),
        "short": os.urandom(1000),
        "deep/er/file": b"deep",
        "empty": b"",
    }
    for name, content in files.items():
        far.put(f"all/{name}", content)
    expected = write(tmp_path / "expected", pickle.dumps(files))
    others = [
        start_script(
            """
            import pickle, sys
            from pathlib import Path
            from heimdall_tracking import MLflowTracker

            uri, endpoint, key, secret, run_id, expected = sys.argv[1:]
            tracker = MLflowTracker(
                uri, s3_endpoint_url=endpoint, s3_access_key_id=key, s3_secret_access_key=secret
            )
            files = pickle.loads(Path(expected).read_bytes())
            print("ready", flush=True)
            for target in sys.stdin:
                there = Path(tracker.download_artifacts(run_id, "all", target.strip()))
                wrong = [name for name, content in files.items() if (there / name).read_bytes() != content]
                print(wrong, flush=True)
            """,
            uri,
            far.proxy.url,
            s3.ACCESS_KEY,
            s3.SECRET_KEY,
            far.run_id,
            expected,
            HEIMDALL_DIR=tmp_path / f"process {number}",
        )
        for number in range(processes)
    ]
    for other in others:
        assert other.stdout.readline() == "ready\n"

    def download(target: Path) -> list[str]:
        there = Path(far.tracker.download_artifacts(far.run_id, "all", target))
        return [name for name, content in files.items() if (there / name).read_bytes() != content]

    with ThreadPoolExecutor(threads) as pool:
        for number in range(5):
            target = tmp_path / f"target {number}"
            for other in others:
                other.stdin.write(f"{target}\n")
                other.stdin.flush()
            ours = [pool.submit(download, target) for _ in range(threads)]
            wrong = [one.result(PATIENCE_S) for one in ours]
            told = [other.stdout.readline() for other in others]
            assert wrong == [[]] * threads
            assert told == ["[]\n"] * processes, others[told.index("")].stderr.read() if "" in told else ""
            assert contents(target / "all") == files, "nothing else is left"


def test_long_files_that_are_downloaded_together_are_never_in_memory(far, tmp_path, run_script, uri):
    content = os.urandom(4 * RANGE)
    for number in range(4):
        far.put(f"all/{number}", content)
    far.put("small", b"content")
    grown = run_script(
        """
        import re, sys
        from heimdall_tracking import MLflowTracker

        def peak():
            return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

        uri, endpoint, key, secret, run_id, target = sys.argv[1:]
        tracker = MLflowTracker(
            uri, s3_endpoint_url=endpoint, s3_access_key_id=key, s3_secret_access_key=secret
        )
        tracker.download_artifacts(run_id, "small", target)
        before = peak()
        tracker.download_artifacts(run_id, "all", target)
        print(peak() - before)
        """,
        uri,
        far.proxy.url,
        s3.ACCESS_KEY,
        s3.SECRET_KEY,
        far.run_id,
        tmp_path / "ours",
        HEIMDALL_DIR=tmp_path / "theirs",
    )
    assert grown.code == 0, grown.err
    assert all((tmp_path / "ours" / "all" / f"{number}").read_bytes() == content for number in range(4))
    assert float(grown.out) <= 32


def test_a_file_may_take_longer_to_come_from_a_server_than_an_answer(tracking_server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    content = os.urandom(RANGE)
    with S3Proxy(int(tracking_server.rpartition(":")[2])) as proxy:
        tracker = MLflowTracker(proxy.url, experiment_name="slow")
        with tracker.run() as run:
            tracker.log_artifact(write(tmp_path / "file", content), "").wait(PATIENCE_S)
        slow = proxy.strike("trickle", of("file", "GET"), 1, pause=0.02)
        there = tracker.download_artifacts(run.run_id, "file", tmp_path / "ours")
        assert Path(there).read_bytes() == content
        assert (slow.met, slow.struck) == (1, 1)
