"""Collecting garbage: unfinished uploads, half files and folders of no run."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

from heimdall_tracking import (
    collect_garbage,
)
from support.garbage import (
    Bucket,
    found,
    location_of,
    logged,
    spared,
    started,
    stock,
    stock_files,
)
from support.s3_proxy import S3Proxy


def test_unfinished_uploads_below_a_prefix_are_found_on_a_store_that_lists_whole_buckets(
    s3_tracker, s3_server, s3_bucket, uri, monkeypatch
):
    with S3Proxy(s3_server.port) as proxy:
        place = SimpleNamespace(uri=uri, artifacts=Bucket(s3_server, s3_bucket))
        run_id = logged(started(place))
        artifacts = stock(place).get_run(run_id).info.artifact_uri
        prefix = artifacts.removeprefix(f"s3://{s3_bucket}/")
        keys = [f"{prefix}/big.bin", "beside/big.bin"]
        for key in keys:
            s3_server.client().create_multipart_upload(Bucket=s3_bucket, Key=key)
        # As MinIO answers: a prefix is a whole key.
        proxy.strike(
            "answer",
            lambda request: "uploads" in request.query and bool(request.query.get("prefix")),
            body="<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>",
        )
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", proxy.url)
        report = collect_garbage(uri, uploads_older_than=0, delete=True)
    assert report.complete
    assert found(report) == [("unfinished upload", run_id)]
    left = s3_server.client().list_multipart_uploads(Bucket=s3_bucket)["Uploads"]
    assert [upload["Key"] for upload in left] == keys[1:]


def test_unfinished_uploads_to_s3_are_given_up_when_they_are_old(uri, s3_server, s3_bucket):
    place = SimpleNamespace(uri=uri, artifacts=Bucket(s3_server, s3_bucket))
    tracker = started(place)
    run_id = logged(tracker)
    artifacts = stock(place).get_run(run_id).info.artifact_uri
    prefix = artifacts.removeprefix(f"s3://{s3_bucket}/")
    boto = s3_server.client()
    keys = [f"{prefix}/model/a {number} é&+.bin" for number in range(3)] + ["beside/b.bin"]
    for key in keys:
        upload = boto.create_multipart_upload(Bucket=s3_bucket, Key=key)["UploadId"]
        for part, size in ((1, 5 << 20), (2, 100)):
            boto.upload_part(Bucket=s3_bucket, Key=key, UploadId=upload, PartNumber=part, Body=b"p" * size)
    before = place.artifacts.files()

    young = collect_garbage(uri, delete=True)
    assert young.items == []
    assert [item.kind for item in young.spared] == ["unfinished upload"] * 3
    assert all(item.reason.startswith("it was begun ") for item in young.spared)

    dry = collect_garbage(uri, uploads_older_than=0)
    assert found(dry) == [("unfinished upload", run_id)] * 3
    assert {item.uri for item in dry.items} == {f"s3://{s3_bucket}/{key}" for key in keys[:3]}
    assert dry.bytes == 3 * ((5 << 20) + 100)

    report = collect_garbage(uri, uploads_older_than=0, delete=True)
    assert report.complete
    assert len(report.items) == 3
    left = boto.list_multipart_uploads(Bucket=s3_bucket)["Uploads"]
    assert [upload["Key"] for upload in left] == ["beside/b.bin"]
    assert place.artifacts.files() == before


def test_an_upload_of_an_active_run_is_never_given_up(uri, s3_server, s3_bucket):
    place = SimpleNamespace(uri=uri, artifacts=Bucket(s3_server, s3_bucket))
    tracker = started(place)
    run_id = tracker.start_run()
    tracker.log_text("a", "a.txt")
    tracker.flush()
    key = stock(place).get_run(run_id).info.artifact_uri.removeprefix(f"s3://{s3_bucket}/") + "/big.bin"
    s3_server.client().create_multipart_upload(Bucket=s3_bucket, Key=key)
    report = collect_garbage(uri, uploads_older_than=0, delete=True)
    assert (report.items, spared(report)) == ([], {run_id: "it is in the journal of a process that lives"})
    tracker.end_run()
    tracker.flush()
    assert found(collect_garbage(uri, uploads_older_than=0)) == [("unfinished upload", run_id)]


def test_many_unfinished_uploads_are_all_found(uri, s3_server, s3_bucket):
    place = SimpleNamespace(uri=uri, artifacts=Bucket(s3_server, s3_bucket))
    started(place)
    prefix = location_of(place).removeprefix(f"s3://{s3_bucket}/")
    boto = s3_server.client()
    # More than a page, which is a thousand.
    with ThreadPoolExecutor(8) as threads:
        for number in range(1_005):
            key = f"{prefix}/{'a' * 32}/artifacts/{number}"
            threads.submit(boto.create_multipart_upload, Bucket=s3_bucket, Key=key)
    report = collect_garbage(uri, uploads_older_than=0)
    assert len({item.uri for item in report.items}) == 1_005


def test_half_files_in_local_folders_go_when_they_are_old(disk):
    tracker = started(disk)
    run_id = logged(tracker)
    folder = Path(stock(disk).get_run(run_id).info.artifact_uri)
    old, young = folder / "model/.heimdall-0badcafe.part", folder / ".heimdall-12345678.part"
    for part in (old, young):
        part.write_bytes(b"half")
    two_days_ago = time.time() - 2 * 86_400
    os.utime(old, (two_days_ago, two_days_ago))
    report = collect_garbage(disk.uri, delete=True)
    assert [(item.kind, item.uri, item.bytes) for item in report.items] == [
        ("unfinished upload", str(old), 4)
    ]
    assert (old.exists(), young.exists()) == (False, True)
    assert [item.path for item in stock(disk).list_artifacts(run_id, "model")] == ["model/weights.txt"]


def test_folders_of_no_run_go_when_they_are_asked_for(place):
    tracker = started(place)
    run_id = logged(tracker)
    base = location_of(place).removeprefix(place.artifacts.uri).strip("/")
    base = f"{base}/" if base else ""
    orphan, old_store = "0" * 32, "1" * 32
    place.artifacts.put(f"{base}{orphan}/artifacts/model/a", b"12345")
    # A run of MLflow's file store, a model of MLflow 3, a trace, and what somebody has put there.
    stays = [
        f"{old_store}/artifacts/a",
        f"{old_store}/meta.yaml",
        f"models/m-{orphan}/artifacts/MLmodel",
        f"traces/tr-{orphan}/artifacts/traces.json",
        f"{'2' * 32}/other/a",
        f"{'A' * 32}/artifacts/a",
        "notes.txt",
    ]
    for path in stays:
        place.artifacts.put(base + path)
    before = place.artifacts.files()

    report = collect_garbage(place.uri, delete=True)
    assert report.items == []
    assert spared(report).keys() == {orphan}
    assert "1 files, 5 bytes" in spared(report)[orphan]
    assert place.artifacts.files() == before

    report = collect_garbage(place.uri, orphans=True, delete=True)
    assert found(report) == [("orphan", orphan)]
    assert (report.files, report.bytes) == (1, 5)
    assert set(before) - set(place.artifacts.files()) == {f"{base}{orphan}/artifacts/model/a"}
    assert stock_files(stock(place), run_id) == ["model/weights.txt", "notes.txt"]


def test_an_orphan_that_a_version_points_to_stays(disk):
    tracker = started(disk)
    orphan = "0" * 32
    location = location_of(disk)
    base = location.removeprefix(disk.artifacts.uri).strip("/")
    disk.artifacts.put(f"{base}/{orphan}/artifacts/model/a" if base else f"{orphan}/artifacts/model/a")
    client = stock(disk)
    client.create_registered_model("m")
    client.create_model_version("m", f"file://{location}/{orphan}/artifacts/model")
    report = collect_garbage(disk.uri, orphans=True, delete=True)
    assert (report.items, list(spared(report))) == ([], [orphan])
    tracker.end_run()


def test_runs_of_another_experiment_in_the_same_location_are_no_orphans(disk, tmp_path):
    client = stock(disk)
    shared = str(tmp_path / "shared")
    started(disk)
    for name in ("one", "two"):
        client.create_experiment(name, artifact_location=shared)
    other = client.create_run(client.get_experiment_by_name("two").experiment_id).info.run_id
    client.log_text(other, "a", "a.txt")
    client.delete_run(other)
    for experiments in (["one"], ["one", "two"]):
        report = collect_garbage(disk.uri, experiments=experiments, orphans=True)
        assert "orphan" not in [item.kind for item in report.items]
