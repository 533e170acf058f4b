"""Stores with quotas, gateways, other regions or no checksums, and endpoints that cannot work."""

from __future__ import annotations

import os

import pytest

from heimdall_tracking import ConfigurationError, MLflowTracker
from support import s3
from support.helpers import MIB, PATIENCE_S, wait_until, write
from support.s3_proxy import Request, S3Proxy, puts

pytestmark = [pytest.mark.s3, pytest.mark.faults]


@pytest.fixture
def proxy(s3_server: s3.S3Server):
    with S3Proxy(s3_server.port) as proxy:
        yield proxy


@pytest.mark.parametrize(
    ("status", "code"),
    [
        pytest.param(400, "XMinioAdminBucketQuotaExceeded", id="MinIO's quota"),
        pytest.param(403, "QuotaExceeded", id="Ceph's quota"),
        pytest.param(403, "", id="a page of a gateway"),
        pytest.param(400, "SomethingNew", id="a code of another store"),
    ],
)
def test_a_refusal_that_may_pass_is_waited_out(s3_tracker, s3_server, proxy, bucket, tmp_path, status, code):
    tracker = s3_tracker(bucket, proxy)
    proxy.strike("refuse", puts, status=status, code=code)
    with tracker.run() as run:
        tracker.log_artifact(write(tmp_path / "weights", b"content"), "")
        wait_until(lambda: tracker.status().last_error, "the store to be said to refuse")
        proxy.heal()
        tracker.flush(PATIENCE_S)
    assert tracker.status().parked == 0
    assert s3_server.objects(bucket, f"runs/{run.run_id}/artifacts") == {"weights": b"content"}


def has_checksum(request: Request) -> bool:
    return any(name.startswith("x-amz-checksum") for name in request.headers)


@pytest.mark.parametrize("size", [1000, 20 * MIB], ids=["whole", "in parts"])
@pytest.mark.parametrize("asked", [False, True], ids=["found out", "asked for"])
def test_a_store_without_checksums_is_used(
    s3_tracker, s3_server, proxy, bucket, tmp_path, monkeypatch, size, asked
):
    proxy.strike("refuse", has_checksum, status=400, code="InvalidArgument")
    if asked:
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    tracker, content = s3_tracker(bucket, proxy), os.urandom(size)
    with tracker.run() as run:
        tracker.log_artifact(write(tmp_path / "weights", content), "")
        tracker.flush(PATIENCE_S)
    assert s3_server.objects(bucket, f"runs/{run.run_id}/artifacts") == {"weights": content}
    assert tracker.status().parked == 0
    if asked:
        assert not proxy.seen(has_checksum)


def test_a_bucket_of_another_region_is_found(s3_tracker, s3_server, proxy, bucket, tmp_path):
    def is_elsewhere(request: Request) -> bool:
        return "/eu-central-1/s3/" not in request.headers.get("authorization", "")

    proxy.strike(
        "refuse", is_elsewhere, status=400, code="AuthorizationHeaderMalformed", region="eu-central-1"
    )
    tracker = s3_tracker(bucket, proxy)
    with tracker.run() as run:
        tracker.log_artifact(write(tmp_path / "weights", b"content"), "")
        tracker.flush(PATIENCE_S)
    assert tracker.status().last_error is None
    assert [it.path for it in tracker.list_artifacts(run_id=run.run_id)] == ["weights"]
    assert s3_server.objects(bucket, f"runs/{run.run_id}/artifacts") == {"weights": b"content"}


@pytest.mark.parametrize(
    "endpoint", ["127.0.0.1:9000", "minio", "http://", "http://mi nio:9000", "ftp://minio"]
)
@pytest.mark.parametrize("variable", ["MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL"])
def test_an_endpoint_that_is_none_is_named_before_a_run_starts(uri, monkeypatch, variable, endpoint):
    monkeypatch.setenv(variable, endpoint)
    with pytest.raises(ConfigurationError, match=f"{variable}.*http://minio:9000"):
        MLflowTracker(uri, artifact_uri="s3://bucket/x", experiment_name="e")


def test_blanks_and_quotes_around_an_endpoint_are_no_part_of_it(
    s3_tracker, s3_server, proxy, bucket, tmp_path
):
    tracker = s3_tracker(bucket, proxy, s3_endpoint_url=f' "{proxy.url}"\n')
    with tracker.run() as run:
        tracker.log_artifact(write(tmp_path / "weights", b"content"), "")
        tracker.flush(PATIENCE_S)
    assert s3_server.objects(bucket, f"runs/{run.run_id}/artifacts") == {"weights": b"content"}
