"""Long files go in parts to the store behind a tracking server, as stock MLflow's client sends them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from heimdall_tracking import MLflowTracker
from heimdall_tracking.errors import ArtifactError, ConfigurationError
from support import s3
from support.helpers import MIB, PATIENCE_S, free_port, memory_of_an_upload, wait_until, write_large
from support.s3_proxy import Request, S3Proxy
from support.stock import server_command, serving
from test_hostile_servers import Server, mlflow, ok

pytestmark = [pytest.mark.server, pytest.mark.s3]

PART = 5 * MIB
SIZE = 3 * PART + 17


@pytest.fixture(scope="module")
def served(s3_server: s3.S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A stock `mlflow server` whose artifacts are in S3, and the proxies before the one and the other."""
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    bucket = s3_server.create_bucket()
    options = ["--serve-artifacts", "--artifacts-destination", f"s3://{bucket}/served"]
    command = server_command(port, f"sqlite:///{folder / 'mlflow.db'}", *options)
    with S3Proxy(s3_server.port) as store, S3Proxy(port) as server:
        variables = s3_server.variables | {"MLFLOW_S3_ENDPOINT_URL": store.url}
        with serving(command, f"http://127.0.0.1:{port}", folder / "log", **variables):
            yield SimpleNamespace(server=server, store=store, bucket=bucket)
    s3_server.delete_bucket(bucket)


@pytest.fixture
def far(
    request: pytest.FixtureRequest,
    served: SimpleNamespace,
    s3_server: s3.S3Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[SimpleNamespace]:
    """A run at that server, what is logged and what arrives; the parameter is what the user has switched."""
    if said := getattr(request, "param", None):
        monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", said)
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", str(SIZE))
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", str(PART))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0.01")
    # A secret that the store must not see.
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hush")
    for proxy in (served.server, served.store):
        proxy.heal()
        proxy.forget()
    tracker = MLflowTracker(served.server.url, experiment_name="parts", set_environment=False)
    run_id = tracker.start_run()

    def log(size: int = SIZE, name: str = "weights.ckpt", immutable: bool = False) -> tuple[object, bytes]:
        content = os.urandom(size)
        file = tmp_path / name
        file.write_bytes(content)
        return tracker.log_artifact(file, "models", immutable=immutable), content

    def stored(name: str = "weights.ckpt") -> SimpleNamespace:
        [key] = [
            key for key in s3_server.keys(served.bucket) if key.endswith(f"{run_id}/artifacts/models/{name}")
        ]
        found = s3_server.client().get_object(Bucket=served.bucket, Key=key)
        return SimpleNamespace(content=found["Body"].read(), etag=found["ETag"].strip('"'))

    yield SimpleNamespace(**vars(served), tracker=tracker, run_id=run_id, log=log, stored=stored)
    tracker.end_run()
    tracker.flush(PATIENCE_S)


def is_ours(request: Request) -> bool:
    """Return whether it is a part that has not come from the server."""
    return request.part is not None and "heimdall" in request.headers.get("user-agent", "")


def part(number: int):
    return lambda request: is_ours(request) and request.part == number


def of_upload(way: str):
    return lambda request: f"/mlflow-artifacts/mpu/{way}/" in request.path


@pytest.mark.parametrize("far", [None, "true"], ids=["the server says it", "the user says it"], indirect=True)
def test_a_long_file_goes_past_the_server_in_parts(far):
    upload, content = far.log()
    upload.wait(PATIENCE_S)
    stored = far.stored()
    assert stored.content == content
    assert stored.etag.endswith("-4")
    assert sorted(request.part for request in far.store.seen(is_ours)) == [1, 2, 3, 4]
    assert not far.server.seen(lambda it: it.method == "PUT")


def test_nothing_that_is_the_servers_to_know_goes_to_the_store(far):
    far.log()[0].wait(PATIENCE_S)
    assert all(it.headers["authorization"] == "Bearer hush" for it in far.server.seen(of_upload("create")))
    sent = far.store.seen(is_ours)
    assert sent
    assert not any({"authorization", "cookie"} & it.headers.keys() for it in sent)


@pytest.mark.parametrize(
    ("far", "size"), [(None, SIZE - 1), ("false", SIZE)], ids=["shorter", "switched off"], indirect=["far"]
)
def test_other_files_go_through_the_server(far, size):
    upload, content = far.log(size)
    upload.wait(PATIENCE_S)
    assert far.stored().content == content
    assert not far.store.seen(is_ours)
    assert not far.server.seen(of_upload("create"))


PASSING: list[tuple[str, dict[str, Any]]] = [
    ("refuse", {"status": 503, "code": "SlowDown"}),
    ("refuse", {"status": 429, "code": "TooManyRequests"}),
    ("reset", {"at": MIB}),
    ("lose answer", {}),
]


@pytest.mark.parametrize(
    ("name", "details"), PASSING, ids=[f"{name} {it.get('code', '')}" for name, it in PASSING]
)
def test_a_part_that_fails_is_sent_again_alone(far, name, details):
    fault = far.store.strike(name, part(2), 2, **details)
    upload, content = far.log()
    upload.wait(PATIENCE_S)
    assert far.stored().content == content
    assert fault.struck == 2
    assert sorted(it.part for it in far.store.seen(is_ours)) == [1, 2, 2, 2, 3, 4]
    assert len(far.server.seen(of_upload("create"))) == 1


@pytest.mark.parametrize("way", ["create", "complete"])
def test_no_step_is_one_that_must_not_fail(far, way):
    fault = far.server.strike("refuse", of_upload(way), 2, status=503, code="Unavailable")
    upload, content = far.log()
    upload.wait(PATIENCE_S)
    assert far.stored().content == content
    assert fault.struck == 2


def test_an_outage_at_the_end_costs_no_part(far, s3_server):
    far.server.strike("refuse", of_upload("complete"), status=503, code="Unavailable")
    upload, content = far.log()
    wait_until(lambda: len(far.server.seen(of_upload("complete"))) > 8, "the delivery has tried again")
    far.server.heal()
    upload.wait(PATIENCE_S)
    assert far.stored().content == content
    assert [len(far.server.seen(of_upload(way))) for way in ("create", "abort")] == [1, 0]
    assert sorted(it.part for it in far.store.seen(is_ours)) == [1, 2, 3, 4]
    assert s3_server.unfinished(far.bucket) == []


def through_the_server(request: Request) -> bool:
    return request.method == "PUT"


@pytest.mark.parametrize(("status", "begun"), [(413, 1), (403, 2)], ids=["for good", "again and again"])
def test_what_cannot_go_past_the_server_goes_through_it(far, s3_server, status, begun):
    far.store.strike("refuse", part(3), status=status, code="Refused")
    upload, content = far.log()
    upload.wait(PATIENCE_S)
    assert far.stored().content == content
    assert len(far.server.seen(through_the_server)) == 1
    assert [len(far.server.seen(of_upload(way))) for way in ("create", "abort")] == [begun, begun]
    assert s3_server.unfinished(far.bucket) == []


def test_an_upload_that_could_not_be_given_up_is_once_somebody_can_be_told(far, s3_server):
    far.store.strike("refuse", part(3), 4, status=403, code="AccessDenied")
    far.server.strike("refuse", of_upload("abort"), 6, status=503, code="Unavailable")
    upload, content = far.log()
    upload.wait(PATIENCE_S)
    assert far.stored().content == content
    assert len(far.server.seen(of_upload("create"))) == 2
    assert s3_server.unfinished(far.bucket) == []


def test_an_upload_whose_part_is_refused_is_given_up_and_begun_anew_without_a_word_of_its_address(
    far, s3_server, caplog
):
    caplog.set_level(logging.DEBUG, "heimdall_tracking")

    def said() -> list[str]:
        # A call that records is what brings the sentences of the background.
        far.tracker.set_tag("waiting", "for words")
        return [it.getMessage() for it in caplog.records if it.name.startswith("heimdall")]

    far.store.strike("refuse", part(3), 4, status=403, code="AccessDenied")
    # Long enough to be told.
    far.server.strike("refuse", of_upload("create"), after=1, status=503, code="Unavailable")
    upload, content = far.log()
    errors: set[str] = set()

    def refused() -> bool:
        errors.add(far.tracker.status().last_error or "")
        return any("403" in error for error in errors)

    wait_until(refused, "the part is refused")
    wait_until(said, "the user is told that the store does not take it")
    assert far.server.seen(of_upload("abort"))
    [told] = [error for error in errors if "403" in error]
    assert "part 3" in told
    assert "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD" in told
    far.server.heal()
    upload.wait(PATIENCE_S)
    assert far.stored().content == content
    assert s3_server.unfinished(far.bucket) == []
    for text in (told, str(far.tracker.status()), *said()):
        assert "Signature" not in text
        assert "uploadId" not in text


def test_an_outage_costs_nothing_of_what_has_arrived(far, s3_server):
    far.store.strike("refuse", part(3), status=503, code="SlowDown")
    upload, content = far.log()
    wait_until(lambda: "503" in (far.tracker.status().last_error or ""), "the store is known to be away")
    wait_until(lambda: len(far.store.seen(part(3))) > 8, "the delivery has tried again")
    far.store.heal()
    upload.wait(PATIENCE_S)
    assert far.stored().content == content
    assert [len(far.server.seen(of_upload(way))) for way in ("create", "abort", "complete")] == [1, 0, 1]
    assert sorted(it.part for it in far.store.seen(is_ours) if it.part != 3) == [1, 2, 4]
    assert s3_server.unfinished(far.bucket) == []


def test_parts_of_a_file_that_has_changed_in_an_outage_are_not_mixed(far, s3_server, tmp_path):
    far.store.strike("refuse", part(3), status=503, code="SlowDown")
    upload, content = far.log(immutable=True)
    wait_until(lambda: "503" in (far.tracker.status().last_error or ""), "the store is known to be away")
    # The caller has said that nobody would.
    changed = os.urandom(len(content))
    with (tmp_path / "weights.ckpt").open("r+b") as file:
        file.write(changed)
    far.store.heal()
    upload.wait(PATIENCE_S)
    assert far.stored().content == changed
    assert far.server.seen(of_upload("abort"))
    assert s3_server.unfinished(far.bucket) == []


@pytest.mark.parametrize("status", [501, 404, 405, 500])
def test_a_server_that_knows_no_parts_gets_the_file_in_one_piece(far, status):
    refused = far.server.strike("refuse", of_upload("create"), status=status, code="None")
    upload, content = far.log()
    upload.wait(PATIENCE_S)
    assert refused.struck == 1
    assert far.stored().content == content
    assert not far.store.seen(is_ours)


def test_a_server_whose_store_takes_no_parts_gets_the_file_in_one_piece(
    tracking_server, monkeypatch, tmp_path
):
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "true")
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", "1")
    (tmp_path / "file").write_bytes(content := os.urandom(SIZE))
    port = int(tracking_server.rpartition(":")[2])
    with S3Proxy(port) as proxy:
        tracker = MLflowTracker(proxy.url, experiment_name="one piece")
        with tracker.run() as run:
            tracker.log_artifact(tmp_path / "file", "").wait(PATIENCE_S)
        assert [it.status for it in proxy.seen(of_upload("create"))] == [501]
        there = tracker.download_artifacts(run.run_id, "file", tmp_path / "back")
        assert Path(there).read_bytes() == content


def test_addresses_that_are_none_are_refused_and_the_file_is_kept(monkeypatch, tmp_path, heimdall_dir):
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "true")
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", "1")

    def answer(path: str, sent: dict) -> tuple[int, dict[str, str], bytes]:
        if path == "experiments/get-by-name":
            experiment = json.loads(mlflow(path, sent)[2])
            experiment["experiment"]["artifact_location"] = "mlflow-artifacts:/1"
            return ok(experiment)
        if path.startswith("runs/"):
            run = json.loads(mlflow(path, sent)[2])
            if "run" in run:
                run["run"]["info"]["artifact_uri"] = "mlflow-artifacts:/1/a/artifacts"
            return ok(run)
        if "num_parts" in sent:
            return ok({"upload_id": "1", "credentials": [{"url": "file:///etc/hush", "part_number": 1}]})
        return mlflow(path, sent)

    (tmp_path / "file").write_bytes(b"content")
    with Server(answer) as server:
        tracker = MLflowTracker(server.url, experiment_name="e")
        tracker.start_run()
        upload = tracker.log_artifact(tmp_path / "file", "")
        with pytest.raises(ArtifactError, match="part 1 begins with file:") as caught:
            upload.wait(PATIENCE_S)
        assert "hush" not in str(caught.value)
        tracker.end_run()
        tracker.flush(PATIENCE_S)
        assert any(sent == {"path": "file", "upload_id": "1"} for _, _, sent in server.requests), "given up"
    assert any(it.read_bytes() == b"content" for it in heimdall_dir.rglob("dead_letter/**/*") if it.is_file())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "maybe"),
        ("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", "long"),
        ("MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", "0"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named(tracking_server, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"{name}.*{value}"):
        MLflowTracker(tracking_server)


@pytest.mark.parametrize("chunk", [16 * MIB, 128 * MIB], ids="parts of {:,} bytes".format)
def test_a_long_file_is_never_in_memory(far, run_script, tmp_path, chunk):
    large = write_large(tmp_path / "large")
    grown = memory_of_an_upload(
        run_script,
        far.server.url,
        "",
        large,
        MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE=SIZE,
        MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE=chunk,
    )
    assert len(far.store.seen(is_ours)) == 256 * MIB // chunk
    assert grown <= 64
