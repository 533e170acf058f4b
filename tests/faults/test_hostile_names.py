"""Stores that name files as none may be named: nothing is written elsewhere, and the name is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from heimdall_tracking import MLflowTracker
from heimdall_tracking.errors import ArtifactError
from support import s3
from support.helpers import contents, write
from support.s3_proxy import S3Proxy, lists
from test_hostile_servers import Server, mlflow, ok

# Each leads elsewhere, or is none; {outside} is a folder of this test's.
NAMES = [
    "../x",
    "..",
    ".",
    "a/../../x",
    "/etc/x",
    "{outside}/x",
    "../../outside/x",
    "a//x",
    "a\\b",
    "a\nb",
    "a\x7fb",
]
EVIL = b"evil"


class Place:
    """The folder of a download, with the files around it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.target, self.outside = folder, folder / "here" / "ours", folder / "outside"
        write(self.outside / "x", b"of the user")
        write(self.target / "x", b"of the user")
        write(self.target / "beside" / "x", b"of the user")
        self.before = self.everything()

    def everything(self) -> dict[Path, bytes | None]:
        """All that is there but what the tracker keeps for itself."""
        ours = (self.folder / "heimdall", self.folder / "mlflow.db")
        found = [path for path in self.folder.rglob("*") if not str(path).startswith(tuple(map(str, ours)))]
        return {path: path.read_bytes() if path.is_file() else None for path in found}

    def named(self, name: str) -> str:
        return name.format(outside=self.outside)

    def check_nothing_has_changed(self) -> None:
        assert self.everything() == self.before
        assert not Path("/etc/x").exists()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def names(error: BaseException, name: str) -> bool:
    """Return whether it says which name is refused: as it is, or quoted and with escapes."""
    escapes = {"\\": "\\\\", "\n": "\\n", "\0": "\\0", "\x7f": "\\u{7f}"}
    escaped = name.translate(str.maketrans(escapes))
    return name in str(error) or f'"{escaped}"' in str(error)


# S3.


def listing(*keys: str, folders: tuple[str, ...] = ()) -> str:
    """An answer to the question which objects there are, each as long as the evil."""
    facts = "<LastModified>2024-01-01T00:00:00.000Z</LastModified><ETag>&quot;1&quot;</ETag>"
    facts += f"<Size>{len(EVIL)}</Size>"
    objects = (f"<Contents><Key>{escape(key)}</Key>{facts}</Contents>" for key in keys)
    prefixes = (f"<CommonPrefixes><Prefix>{escape(key)}</Prefix></CommonPrefixes>" for key in folders)
    content = "".join([*objects, *prefixes])
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{content}</ListBucketResult>"


@pytest.fixture(scope="module")
def bucket(s3_server: s3.S3Server) -> Iterator[str]:
    """A bucket of these tests, with evil at names that may be."""
    name, client = s3_server.create_bucket(), s3_server.client()
    for key in ("folder/good", "etc/x", "x", "beside/x", "folderx/x"):
        client.put_object(Bucket=name, Key=key, Body=EVIL)
    yield name
    s3_server.delete_bucket(name)


@pytest.fixture
def tracker(s3_tracker: Callable[..., MLflowTracker], bucket: str, proxy: S3Proxy) -> MLflowTracker:
    return s3_tracker(bucket, proxy)


@pytest.mark.parametrize("name", NAMES)
def test_a_key_that_leads_elsewhere_is_refused(tracker, bucket, proxy, place, name):
    key = f"folder/{place.named(name)}"
    answer = proxy.strike("answer", lists, body=listing("folder/good", key))
    with pytest.raises(ArtifactError) as told:
        tracker.download_artifacts(f"s3://{bucket}/folder", dst=place.target)
    assert answer.struck == 1
    assert names(told.value, key)
    place.check_nothing_has_changed()


@pytest.mark.parametrize("key", ["../x", "{outside}/x", "/etc/x", "etc/x", "x", "beside/x", "folderx/x"])
def test_a_key_that_is_not_below_what_was_asked_for_is_refused(tracker, bucket, proxy, place, key):
    # Some of them are there, and the user has a file of that name.
    key = place.named(key)
    proxy.strike("answer", lists, body=listing("folder/good", key))
    with pytest.raises(ArtifactError) as told:
        tracker.download_artifacts(f"s3://{bucket}/folder", dst=place.target)
    assert names(told.value, key.strip("/"))
    place.check_nothing_has_changed()


def test_a_key_that_is_none_is_no_file(tracker, bucket, proxy, place):
    proxy.strike("answer", lists, body=listing("", "/", "folder/", "folder/good"))
    tracker.download_artifacts(f"s3://{bucket}/folder", dst=place.target)
    there = contents(place.target / "folder")
    (place.target / "folder" / "good").unlink()
    (place.target / "folder").rmdir()
    assert there == {"good": EVIL}
    place.check_nothing_has_changed()


@pytest.mark.parametrize("name", ["../x", "..", ".", "/etc/x", "a\\b"])
def test_a_key_that_leads_elsewhere_is_in_no_list(tracker, proxy, place, name):
    with tracker.run() as run:
        pass
    tracker.flush()
    key = f"runs/{run.run_id}/artifacts/{place.named(name)}"
    for body in (listing(key), listing(folders=(f"{key}/",))):
        proxy.strike("answer", lists, body=body)
        with pytest.raises(ArtifactError) as told:
            tracker.list_artifacts(run_id=run.run_id)
        assert names(told.value, key)
        proxy.heal()


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\nb"])
def test_a_name_says_nothing_to_a_terminal(tracker, bucket, proxy, place, name):
    proxy.strike("answer", lists, body=listing(f"folder/{name}"))
    with pytest.raises(ArtifactError) as told:
        tracker.download_artifacts(f"s3://{bucket}/folder", dst=place.target)
    assert str(told.value).isprintable()


def test_marks_of_folders_are_no_files(tracker, s3_server, bucket, tmp_path):
    """The consoles of stores make an object for a folder: it has no bytes, and its key ends with a slash."""
    client = s3_server.client()
    for key, content in {"all/": b"", "all/a/": b"", "all/a/file": b"x", "all/empty/": b""}.items():
        client.put_object(Bucket=bucket, Key=key, Body=content)
    there = tracker.download_artifacts(f"s3://{bucket}/all", dst=tmp_path / "ours")
    assert contents(Path(there)) == {"a/file": b"x"}


# A tracking server that keeps the artifacts.


@pytest.mark.parametrize("name", [*NAMES, "", "a\0b"])
def test_a_name_of_a_server_that_leads_elsewhere_is_refused(place, name):
    name = place.named(name)
    asked = []

    def answer(path: str, sent: dict) -> tuple[int, dict[str, str], bytes]:
        if path == "runs/get":
            info = {"run_id": "a" * 32, "status": "RUNNING", "lifecycle_stage": "active"}
            info |= {"experiment_id": "1", "artifact_uri": "mlflow-artifacts:/root"}
            return ok({"run": {"info": info}})
        if path:
            return mlflow(path, sent)
        asked.append(sent.get("path"))
        if sent.get("path") in ("root/file", "root/folder"):
            bad = {"path": name, "is_dir": sent["path"] == "root/folder", "file_size": len(EVIL)}
            return ok({"files": [{"path": "good", "is_dir": False, "file_size": len(EVIL)}, bad]})
        return ok({"files": []}) if "path" in sent else (200, {}, EVIL)

    with Server(answer) as server:
        tracker = MLflowTracker(server.url, experiment_name="e")
        for kind in ("file", "folder"):
            with pytest.raises(ArtifactError) as told:
                tracker.download_artifacts("a" * 32, kind, place.target)
            assert names(told.value, name)
            with pytest.raises(ArtifactError) as told:
                tracker.list_artifacts(kind, "a" * 32)
            assert names(told.value, name)
    assert set(asked) == {"root/file", "root/folder"}, "nothing is fetched"
    place.check_nothing_has_changed()
