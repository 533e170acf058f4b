"""Artifacts in S3 over TLS: whose certificates are trusted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from heimdall_tracking.errors import ConfigurationError
from support import s3
from support.helpers import (
    PATIENCE_S,
    certificate_in,
    wait_until,
    write,
)
from support.s3_proxy import S3Proxy, parts

pytestmark = pytest.mark.s3

# From here on a file is sent in parts.
WHOLE = 16 << 20


@pytest.fixture
def tls_proxy(s3_server: s3.S3Server, tmp_path: Path) -> Iterator[S3Proxy]:
    with S3Proxy(s3_server.port, certificate=certificate_in(tmp_path)) as proxy:
        yield proxy


def test_a_certificate_that_nobody_trusts_is_told_and_nothing_is_sent(
    s3_tracker, bucket, tls_proxy, tmp_path, caplog
):
    tracker = s3_tracker(bucket, tls_proxy)
    tracker.start_run()
    tracker.log_artifact(write(tmp_path / "a.txt"))

    def is_told() -> bool:
        # A call that records is what brings the sentences of the background.
        tracker.set_tag("waiting", "for words")
        return "degraded" in caplog.text

    wait_until(is_told, "the outage is told")
    assert "certificate" in caplog.text
    assert tls_proxy.seen() == []


def test_a_certificate_of_the_ca_bundle_is_trusted(
    s3_tracker, s3_server, bucket, tls_proxy, tmp_path, monkeypatch
):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "cert.pem"))
    tracker = s3_tracker(bucket, tls_proxy)
    tracker.start_run()
    tracker.log_artifact(write(tmp_path / "a.txt"), "")
    tracker.flush(PATIENCE_S)
    assert len(s3_server.keys(bucket)) == len(tls_proxy.seen()) == 1


def test_what_tls_protects_is_not_hashed_for_the_signature_as_well(
    s3_tracker, s3_server, bucket, tls_proxy, tmp_path, monkeypatch
):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "cert.pem"))
    tracker = s3_tracker(bucket, tls_proxy)
    run_id = tracker.start_run()
    content = os.urandom(WHOLE + 1)
    tracker.log_artifact(write(tmp_path / "large", content), "")
    tracker.flush(PATIENCE_S)
    assert s3_server.objects(bucket, f"runs/{run_id}/artifacts") == {"large": content}
    sent = tls_proxy.seen(parts)
    assert {it.headers["x-amz-content-sha256"] for it in sent} == {"UNSIGNED-PAYLOAD"}
    assert all("x-amz-checksum-crc64nvme" in it.headers for it in sent)


def test_a_ca_bundle_that_is_none_is_named(s3_tracker, bucket, tls_proxy, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(write(tmp_path / "no.pem")))
    with pytest.raises(ConfigurationError, match=r"AWS_CA_BUNDLE.*no\.pem"):
        s3_tracker(bucket, tls_proxy)


def test_certificates_are_not_verified_where_the_user_says_so_who_is_warned(
    s3_tracker, s3_server, bucket, tls_proxy, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("MLFLOW_S3_IGNORE_TLS", "true")
    tracker = s3_tracker(bucket, tls_proxy)
    tracker.start_run()
    tracker.log_artifact(write(tmp_path / "large", b"x" * (WHOLE + 1)), "")
    tracker.flush(PATIENCE_S)
    assert len(s3_server.keys(bucket)) == 1
    # Whoever is in the way could change what is not signed.
    assert all(len(it.headers["x-amz-content-sha256"]) == 64 for it in tls_proxy.seen(parts))
    assert sum("MLFLOW_S3_IGNORE_TLS" in record.getMessage() for record in caplog.records) == 1
