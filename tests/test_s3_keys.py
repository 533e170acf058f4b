"""Artifacts in S3: by whose keys they go there."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import ssl
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest

from heimdall_tracking import MLflowTracker
from heimdall_tracking.errors import ConfigurationError
from support import s3
from support.helpers import (
    PATIENCE_S,
    certificate_in,
    run_program,
    wait_until,
    write,
)
from support.s3_proxy import S3Proxy, of
from support.servers import Handler, HttpServer

pytestmark = pytest.mark.s3


@pytest.fixture
def deliver(
    uri: str,
    s3_server: s3.S3Server,
    proxy: S3Proxy,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., str]:
    """Log a file with what the environment says, and return the key that signed it when it has arrived."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def deliver(*, endpoint: str | None = proxy.url, **settings: str) -> str:
        if endpoint is not None:
            monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", endpoint)
        tracker = MLflowTracker(uri, f"s3://{bucket}/runs", experiment_name="keys", **settings)
        with tracker.run():
            tracker.log_artifact(write(tmp_path / "a.txt"), "")
        tracker.flush(PATIENCE_S)
        [key] = s3_server.keys(bucket)
        assert s3_server.client().get_object(Bucket=bucket, Key=key)["Body"].read() == b"content"
        [by] = {request.access_key for request in proxy.seen()}
        return by

    return deliver


def keys_in_environment(
    monkeypatch: pytest.MonkeyPatch, key: str = s3.ACCESS_KEY, secret: str = s3.SECRET_KEY
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)


def test_the_keys_of_the_environment_are_used(deliver, monkeypatch):
    keys_in_environment(monkeypatch)
    assert deliver() == s3.ACCESS_KEY


def test_the_keys_of_the_settings_come_before_those_of_the_environment(deliver, monkeypatch):
    keys_in_environment(monkeypatch, s3.READER_KEY, s3.READER_SECRET)
    assert deliver(s3_access_key_id=s3.ACCESS_KEY, s3_secret_access_key=s3.SECRET_KEY) == s3.ACCESS_KEY


def test_the_endpoint_of_the_settings_comes_before_that_of_the_environment(deliver, monkeypatch, proxy):
    keys_in_environment(monkeypatch)
    assert deliver(endpoint="http://127.0.0.1:1", s3_endpoint_url=proxy.url) == s3.ACCESS_KEY


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_the_endpoint_of_the_settings_comes_before_that_of_aws(deliver, monkeypatch, proxy, variable):
    keys_in_environment(monkeypatch)
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    assert deliver(endpoint=None, s3_endpoint_url=proxy.url) == s3.ACCESS_KEY


@pytest.mark.parametrize("name", ["default", "lab"])
def test_the_keys_of_a_profile_are_used(deliver, monkeypatch, tmp_path, name):
    # The file and its place are those of AWS's own tools.
    write(
        tmp_path / ".aws" / "credentials",
        f"[other]\naws_access_key_id = nobody\naws_secret_access_key = nothing\n\n"
        f"[{name}]\naws_access_key_id = {s3.ACCESS_KEY}\naws_secret_access_key = {s3.SECRET_KEY}\n".encode(),
    )
    if name != "default":
        monkeypatch.setenv("AWS_PROFILE", name)
    assert deliver() == s3.ACCESS_KEY


def test_a_profile_may_have_endpoint_and_region_as_well(deliver, monkeypatch, tmp_path, proxy):
    config = f"[profile lab]\nregion = eu-south-1\nendpoint_url = {proxy.url}\n"
    credentials = f"[lab]\naws_access_key_id={s3.ACCESS_KEY}\naws_secret_access_key={s3.SECRET_KEY}\n"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(write(tmp_path / "config", config.encode())))
    monkeypatch.setenv(
        "AWS_SHARED_CREDENTIALS_FILE", str(write(tmp_path / "credentials", credentials.encode()))
    )
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert deliver(endpoint=None) == s3.ACCESS_KEY
    assert all("/eu-south-1/s3/" in request.headers["authorization"] for request in proxy.seen())


@pytest.mark.parametrize(
    ("profile", "default_profile"), [(None, "lab"), ("lab", "nobody's")], ids=["alone", "behind AWS_PROFILE"]
)
def test_the_default_profile_can_be_named(deliver, monkeypatch, tmp_path, profile, default_profile):
    write(
        tmp_path / ".aws" / "credentials",
        b"[default]\naws_access_key_id = nobody\naws_secret_access_key = nothing\n"
        + f"[lab]\naws_access_key_id = {s3.ACCESS_KEY}\naws_secret_access_key = {s3.SECRET_KEY}\n".encode(),
    )
    monkeypatch.setenv("AWS_DEFAULT_PROFILE", default_profile)
    if profile:
        monkeypatch.setenv("AWS_PROFILE", profile)
    assert deliver() == s3.ACCESS_KEY


@pytest.mark.parametrize("file", ["config", "credentials"])
@pytest.mark.parametrize(
    "way",
    [
        "role_arn = arn:aws:iam::123456789012:role/training\nsource_profile = base",
        "sso_session = work\nsso_account_id = 123456789012",
        "sso_start_url = https://work.awsapps.com/start",
    ],
    ids=lambda way: way.partition(" ")[0],
)
def test_a_profile_whose_keys_come_by_another_way_is_refused_with_advice(
    uri, bucket, monkeypatch, tmp_path, file, way
):
    section = "profile lab" if file == "config" else "lab"
    write(tmp_path / ".aws" / file, f"[{section}]\nregion = eu-south-1\n{way}\n".encode())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    name = way.partition(" ")[0]
    with pytest.raises(ConfigurationError, match=rf"AWS_PROFILE.*lab.*{name}.*export-credentials"):
        MLflowTracker(uri, f"s3://{bucket}/runs")
    # The advice helps.
    keys_in_environment(monkeypatch)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    MLflowTracker(uri, f"s3://{bucket}/runs")


PRINTS_KEYS = """
import datetime, json, pathlib, sys

asked = pathlib.Path(sys.argv[1])
asked.write_text(asked.read_text() + "asked\\n" if asked.exists() else "asked\\n")
expires = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=int(sys.argv[4]))
keys = {"AccessKeyId": sys.argv[2], "SecretAccessKey": sys.argv[3], "Expiration": expires.isoformat()}
print(json.dumps({"Version": 1} | keys))
"""


@pytest.fixture
def with_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """A profile whose keys a program prints; the file that it writes a line to whenever it is asked."""

    def with_process(minutes: int) -> Path:
        program, asked = write(tmp_path / "my tools" / "keys.py", PRINTS_KEYS.encode()), tmp_path / "asked"
        command = shlex.join(
            [sys.executable, str(program), str(asked), s3.ACCESS_KEY, s3.SECRET_KEY, str(minutes)]
        )
        write(tmp_path / ".aws" / "config", f"[profile lab]\ncredential_process = {command}\n".encode())
        monkeypatch.setenv("AWS_PROFILE", "lab")
        return asked

    return with_process


def test_keys_that_a_program_prints_are_used_until_shortly_before_they_expire(deliver, with_process):
    asked = with_process(60)
    assert deliver() == s3.ACCESS_KEY
    assert asked.read_text() == "asked\n"


def test_keys_that_are_about_to_expire_are_asked_for_anew(
    with_process, uri, s3_server, bucket, monkeypatch, tmp_path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", s3_server.url)
    asked = with_process(5)
    tracker = MLflowTracker(uri, f"s3://{bucket}/runs", experiment_name="keys")
    with tracker.run():
        for name in ("a", "b", "c"):
            tracker.log_artifact(write(tmp_path / name), "").wait(PATIENCE_S)
    assert len(s3_server.keys(bucket)) == 3
    assert asked.read_text() == "asked\n" * 3


def test_a_program_that_prints_no_keys_is_told_without_what_it_prints(
    deliver, monkeypatch, tmp_path, uri, bucket
):
    command = "echo hush; echo hush >&2; exit 3"
    write(tmp_path / ".aws" / "config", f"[profile lab]\ncredential_process = {command}\n".encode())
    monkeypatch.setenv("AWS_PROFILE", "lab")
    tracker = MLflowTracker(uri, f"s3://{bucket}/runs", experiment_name="keys")
    tracker.start_run()
    tracker.log_artifact(write(tmp_path / "a.txt"), "")
    wait_until(lambda: tracker.status().last_error, "the user is told")
    told = str(tracker.status().last_error)
    assert "credential_process" in told
    assert "exit status: 3" in told
    assert "hush" not in told


def test_a_profile_that_has_keys_beside_a_role_gives_its_keys(deliver, monkeypatch, tmp_path):
    write(
        tmp_path / ".aws" / "credentials",
        f"[lab]\naws_access_key_id = {s3.ACCESS_KEY}\naws_secret_access_key = {s3.SECRET_KEY}\n".encode(),
    )
    write(tmp_path / ".aws" / "config", b"[profile lab]\nsso_start_url = https://work.awsapps.com/start\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert deliver() == s3.ACCESS_KEY


def test_a_profile_that_does_not_exist_is_named(s3_tracker, bucket, monkeypatch, uri):
    monkeypatch.setenv("AWS_PROFILE", "nobody's")
    with pytest.raises(ConfigurationError, match="nobody's"):
        MLflowTracker(uri, f"s3://{bucket}/runs")


def test_the_region_of_the_environment_is_signed_for(deliver, monkeypatch, proxy):
    keys_in_environment(monkeypatch)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    deliver()
    assert all("/eu-west-1/s3/" in request.headers["authorization"] for request in proxy.seen())


def test_half_a_pair_of_keys_is_an_error_that_shows_neither(s3_tracker, bucket, uri):
    with pytest.raises(ConfigurationError) as refused:
        MLflowTracker(uri, f"s3://{bucket}/runs", s3_secret_access_key=s3.SECRET_KEY)
    assert s3.SECRET_KEY not in str(refused.value)


class Metadata(HttpServer):
    """A server with temporary keys, like those where machines and containers of AWS find theirs."""

    def __init__(self, keys: dict[str, str], token: str = "") -> None:
        self.asked: list[tuple[str, str]] = []
        document = {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "AccessKeyId": keys["AccessKeyId"],
            "SecretAccessKey": keys["SecretAccessKey"],
            "Token": keys["SessionToken"],
            "Expiration": "2099-01-01T00:00:00Z",
            "LastUpdated": "2026-01-01T00:00:00Z",
        }
        folder = "/latest/meta-data/iam/security-credentials/"
        service = self

        class Respondent(Handler):
            def say(self, status: int, text: str = "") -> None:
                service.asked.append((self.command, self.path))
                self.answer(status, text.encode())

            def do_PUT(self) -> None:
                asks_for_token = self.path == "/latest/api/token"
                has_time = "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
                self.say(200, "session token") if asks_for_token and has_time else self.say(400)

            def do_GET(self) -> None:
                if self.path == "/container":
                    allowed = self.headers.get("Authorization", "") == token
                    return self.say(200, json.dumps(document)) if allowed else self.say(401)
                if self.headers.get("X-aws-ec2-metadata-token") != "session token":
                    # The second version of the service answers nobody who has not asked for a token.
                    return self.say(401)
                if self.path == folder:
                    return self.say(200, "a-role")
                return (
                    self.say(200, json.dumps(document)) if self.path == folder + "a-role" else self.say(404)
                )

        super().__init__(Respondent)


@pytest.fixture
def at_moto(
    moto_server: s3.MotoServer, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request
) -> Iterator[SimpleNamespace]:
    """An S3 with an STS; `deliver()` logs a file there and returns the headers that it was sent with."""
    bucket = moto_server.create_bucket(f"roles-{abs(hash(request.node.name))}")
    monkeypatch.setenv("HOME", str(tmp_path))
    with S3Proxy(moto_server.port) as proxy:

        def deliver() -> dict[str, str]:
            tracker = MLflowTracker(
                uri, f"s3://{bucket}/runs", s3_endpoint_url=proxy.url, experiment_name="roles"
            )
            with tracker.run():
                tracker.log_artifact(write(tmp_path / "a.txt"), "")
            tracker.flush(PATIENCE_S)
            assert len(moto_server.keys(bucket)) == 1
            [sent] = proxy.seen(of("a.txt", "PUT"))
            return sent.headers | {"access key": sent.access_key}

        yield SimpleNamespace(deliver=deliver, server=moto_server, proxy=proxy)


@pytest.fixture
def temporary_keys(moto_server: s3.MotoServer) -> dict[str, str]:
    import boto3

    sts = boto3.client(
        "sts",
        endpoint_url=moto_server.url,
        aws_access_key_id="a",
        aws_secret_access_key="b",
        region_name=s3.REGION,
    )
    role = "arn:aws:iam::123456789012:role/training"
    return sts.assume_role(RoleArn=role, RoleSessionName="tests")["Credentials"]


def test_a_session_token_goes_with_its_keys(at_moto, temporary_keys, monkeypatch):
    keys_in_environment(monkeypatch, temporary_keys["AccessKeyId"], temporary_keys["SecretAccessKey"])
    monkeypatch.setenv("AWS_SESSION_TOKEN", temporary_keys["SessionToken"])
    sent = at_moto.deliver()
    assert sent["access key"] == temporary_keys["AccessKeyId"]
    assert sent["x-amz-security-token"] == temporary_keys["SessionToken"]


def test_the_keys_of_a_container_are_used(at_moto, temporary_keys, monkeypatch, tmp_path):
    metadata = Metadata(temporary_keys, "the container's token")
    token = write(tmp_path / "token", b"the container's token")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{metadata.url}/container")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token))
    with contextlib.closing(metadata):
        sent = at_moto.deliver()
    assert sent["access key"] == temporary_keys["AccessKeyId"]
    assert sent["x-amz-security-token"] == temporary_keys["SessionToken"]


def test_the_keys_of_a_machine_are_used_by_the_second_version_of_its_service(
    at_moto, temporary_keys, monkeypatch
):
    metadata = Metadata(temporary_keys)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", metadata.url)
    with contextlib.closing(metadata):
        sent = at_moto.deliver()
    assert sent["access key"] == temporary_keys["AccessKeyId"]
    assert sent["x-amz-security-token"] == temporary_keys["SessionToken"]
    assert metadata.asked[0] == ("PUT", "/latest/api/token")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/container"),
        ("", "/latest/meta-data/iam/security-credentials/a-role"),
    ],
    ids=["container", "machine"],
)
def test_the_services_are_found_at_the_addresses_that_aws_has_given_them(tmp_path, name, path):
    """In a network of its own, where 169.254.169.254 and .170.2 are this machine."""
    places = {"HOME": tmp_path, "HEIMDALL_DIR": tmp_path / "heimdall"}
    command = ["unshare", "--net", "--map-root-user", sys.executable, __file__, name, path]
    done = run_program(command, cwd=tmp_path, PYTHONPATH=os.pathsep.join(sys.path), **places)
    if "unshare failed" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip("no network of our own can be made here")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ASIATEMPORARY", "temporary-token", path]


@contextlib.contextmanager
def token_service(moto: s3.MotoServer, certificate: tuple[Path, Path]) -> Iterator[SimpleNamespace]:
    """moto's STS by TLS; what AWS takes in the URL goes into the body, where moto looks for it."""
    asked: list[dict[str, str]] = []

    class Respondent(Handler):
        def do_POST(self) -> None:
            query = self.path.partition("?")[2]
            asked.append(dict(urllib.parse.parse_qsl(query)))
            with urllib.request.urlopen(f"{moto.url}/", query.encode()) as answer:
                text = answer.read()
            self.answer(200, text)

    with ThreadingHTTPServer(("127.0.0.1", 0), Respondent) as http:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        http.socket = context.wrap_socket(http.socket, server_side=True)
        Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield SimpleNamespace(url=f"https://127.0.0.1:{http.server_address[1]}", asked=asked)
        http.shutdown()


def test_a_web_identity_is_changed_for_keys(at_moto, moto_server, monkeypatch, tmp_path):
    role = "arn:aws:iam::123456789012:role/training"
    monkeypatch.setenv(
        "AWS_WEB_IDENTITY_TOKEN_FILE", str(write(tmp_path / "token", b"signed by the provider"))
    )
    monkeypatch.setenv("AWS_ROLE_ARN", role)
    monkeypatch.setenv("AWS_ROLE_SESSION_NAME", "tests")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "cert.pem"))
    with token_service(moto_server, certificate_in(tmp_path)) as sts:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        sent = at_moto.deliver()
    [asked] = sts.asked
    assert (asked["RoleArn"], asked["RoleSessionName"]) == (role, "tests")
    assert asked["WebIdentityToken"] == "signed by the provider"
    assert sent["access key"].startswith("ASIA")
    assert sent["x-amz-security-token"]


def serve_in_a_network_of_our_own(variable: str, path: str) -> None:
    """The other side of `test_the_services_are_found_at_the_addresses_that_aws_has_given_them`."""
    from moto.server import ThreadedMotoServer

    for command in (
        ["ip", "link", "set", "lo", "up"],
        ["ip", "addr", "add", "169.254.169.254/32", "dev", "lo"],
        ["ip", "addr", "add", "169.254.170.2/32", "dev", "lo"],
    ):
        subprocess.run(command, check=True)
    keys = {
        "AccessKeyId": "ASIATEMPORARY",
        "SecretAccessKey": "temporary-secret",
        "SessionToken": "temporary-token",
    }
    metadata = Metadata(keys)
    # The same service, where AWS has it.
    for address in ("169.254.169.254", "169.254.170.2"):
        there = ThreadingHTTPServer((address, 80), metadata.http.RequestHandlerClass)
        Thread(target=there.serve_forever, daemon=True).start()
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    port = moto.get_host_and_port()[1]
    server = s3.MotoServer()
    server.url = f"http://127.0.0.1:{port}"
    bucket = server.create_bucket()
    if variable:
        os.environ[variable] = path
    with S3Proxy(port) as proxy:
        tracker = MLflowTracker("sqlite:///mlflow.db", f"s3://{bucket}/runs", s3_endpoint_url=proxy.url)
        tracker.start_run()
        tracker.log_text("text", "a.txt")
        tracker.flush(PATIENCE_S)
        tracker.end_run()
        [sent] = proxy.seen(of("a.txt", "PUT"))
    print(sent.access_key, sent.headers["x-amz-security-token"], metadata.asked[-1][1])


if __name__ == "__main__":
    serve_in_a_network_of_our_own(*sys.argv[1:])
