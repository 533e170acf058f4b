"""A tracker sets the variables that stock MLflow and boto3 read where they are not set, and nothing else."""

from __future__ import annotations

import base64
import os
from typing import ClassVar

import pytest

from heimdall_tracking import MLflowTracker
from heimdall_tracking.errors import ConfigurationError, PermissionDeniedError
from support.helpers import write
from support.servers import Handler, HttpServer

KEYS = {"s3_access_key_id": "ours", "s3_secret_access_key": "hush"}
ENDPOINT = {"s3_endpoint_url": "http://minio:9000"}


@pytest.fixture(autouse=True)
def _leaves_nothing():
    """Remove the variables that a tracker has set in the test."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.fixture
def registry_uri(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'registry.db'}"


@pytest.fixture
def new(uri, registry_uri):
    """Make a tracker with all that it could tell, and return the variables that are new by it."""

    def make(**settings: object) -> dict[str, str]:
        before = dict(os.environ)
        MLflowTracker(uri, registry_uri=registry_uri, **ENDPOINT, **KEYS, **settings)
        assert {name: os.environ.get(name) for name in before} == before, "what was set is kept"
        return {name: value for name, value in os.environ.items() if name not in before}

    return make


def test_all_is_set_where_nothing_is(new, uri, registry_uri):
    assert new() == {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_REGISTRY_URI": registry_uri,
        "MLFLOW_S3_ENDPOINT_URL": "http://minio:9000",
        "AWS_ACCESS_KEY_ID": "ours",
        "AWS_SECRET_ACCESS_KEY": "hush",
    }


def test_what_stock_code_would_do_anyway_is_not_set(uri):
    before = dict(os.environ)
    MLflowTracker(uri)
    # Its registry is where its runs are.
    assert dict(os.environ) == before | {"MLFLOW_TRACKING_URI": uri}


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_S3_ENDPOINT_URL"])
def test_a_place_that_is_set_is_kept(new, monkeypatch, name):
    monkeypatch.setenv(name, "http://theirs")
    names = {
        "MLFLOW_TRACKING_URI",
        "MLFLOW_REGISTRY_URI",
        "MLFLOW_S3_ENDPOINT_URL",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
    }
    assert new().keys() == names - {name}


@pytest.mark.parametrize(
    "theirs",
    [
        {"AWS_ACCESS_KEY_ID": "theirs", "AWS_SECRET_ACCESS_KEY": "secret"},
        {"AWS_ACCESS_KEY_ID": "theirs"},
        {"AWS_SECRET_ACCESS_KEY": "secret"},
        {"AWS_SESSION_TOKEN": "token"},
    ],
    ids=" and ".join,
)
def test_keys_are_not_mixed_with_those_of_others(new, monkeypatch, theirs):
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    assert new().keys() == {"MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_S3_ENDPOINT_URL"}


@pytest.mark.parametrize("value", [None, "false", "true"])
def test_whether_certificates_are_verified_is_never_set(new, monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("MLFLOW_S3_IGNORE_TLS", value)
    assert "MLFLOW_S3_IGNORE_TLS" not in new()
    assert os.environ.get("MLFLOW_S3_IGNORE_TLS") == value


@pytest.mark.parametrize("text", ["false", "False", "0"])
def test_the_environment_is_left_alone_where_a_variable_says_so(new, monkeypatch, text):
    monkeypatch.setenv("HEIMDALL_SET_ENVIRONMENT", text)
    assert new() == {}


def test_the_argument_wins_over_the_variable(new, monkeypatch):
    assert new(set_environment=False) == {}
    monkeypatch.setenv("HEIMDALL_SET_ENVIRONMENT", "false")
    assert "MLFLOW_TRACKING_URI" in new(set_environment=True)


def test_a_switch_that_makes_no_sense_is_named(new, monkeypatch):
    monkeypatch.setenv("HEIMDALL_SET_ENVIRONMENT", "perhaps")
    with pytest.raises(ConfigurationError, match=r"HEIMDALL_SET_ENVIRONMENT.*perhaps"):
        new()


def test_stock_code_that_knows_nothing_else_reads_what_was_logged(s3_server, bucket, uri, run_script):
    variables = s3_server.variables
    run = run_script(
        """
        import os, sys
        uri, artifacts, endpoint, key, secret = sys.argv[1:]
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(
            uri, artifacts, s3_endpoint_url=endpoint, s3_access_key_id=key, s3_secret_access_key=secret
        )
        with tracker.run() as run:
            tracker.log_text("from S3", "a.txt")
        tracker.flush()

        import mlflow
        print(mlflow.get_tracking_uri() == uri, mlflow.artifacts.load_text(f"runs:/{run.run_id}/a.txt"))
        """,
        uri,
        f"s3://{bucket}/runs",
        s3_server.url,
        variables["AWS_ACCESS_KEY_ID"],
        variables["AWS_SECRET_ACCESS_KEY"],
    )
    assert run.code == 0, run.err
    assert run.out == "True from S3\n"


class Asked(Handler):
    """A server that notes the credentials it is sent, and refuses them."""

    seen: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("authorization"))
        self.answer(401)

    do_POST = do_GET


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Ask a server, with `HOME` in the folder of the test; returns the credentials of the first request."""
    monkeypatch.setenv("HOME", str(tmp_path))

    def ask() -> str:
        Asked.seen.clear()
        with HttpServer(Asked) as server, pytest.raises(PermissionDeniedError):
            MLflowTracker(server.url, experiment_name="e")
        kind, _, text = (Asked.seen[0] or " ").partition(" ")
        return base64.b64decode(text).decode() if kind == "Basic" else text

    return ask


def test_the_credentials_of_mlflow_s_own_file_are_used(asked, tmp_path, monkeypatch):
    write(tmp_path / ".netrc", b"default login other password p")
    write(
        tmp_path / ".mlflow" / "credentials",
        b"[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = hush\n",
    )
    assert asked() == "me:hush"
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token")
    assert asked() == "token"


def test_the_account_of_the_host_in_netrc_is_used(asked, tmp_path):
    write(
        tmp_path / ".netrc",
        b"machine elsewhere login x password y\nmachine 127.0.0.1 login me password hush\n",
    )
    assert asked() == "me:hush"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_TRACKING_AUTH", "corporate"),
        ("MLFLOW_TRACKING_AWS_SIGV4", "true"),
        ("MLFLOW_TRACKING_TOKEN", "a\n"),
        ("MLFLOW_TRACKING_PASSWORD", "a\nb"),
    ],
)
def test_what_cannot_be_sent_is_named_before_a_run_starts(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=name) as refused:
        MLflowTracker("http://127.0.0.1:9", experiment_name="e")
    assert name.endswith(("AUTH", "SIGV4")) or value not in str(refused.value)


def test_the_account_at_the_server_is_the_user_of_a_run(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "zoe")
    tracker = MLflowTracker(uri, experiment_name="e")
    with tracker.run() as run:
        pass
    assert tracker.get_run(run.run_id).tags["mlflow.user"] == "zoe"
