"""A tracker before servers that misbehave: nothing lost, nothing twice, no secret in wrong hands."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from heimdall_tracking import (
    ConfigurationError,
    MLflowTracker,
    PermissionDeniedError,
    StoreUnavailableError,
)
from support.helpers import certificate_in, free_port, wait_until
from support.servers import Handler, HttpServer
from support.stock import server_command, serving

pytestmark = pytest.mark.server

EXPERIMENT = {
    "experiment": {
        "experiment_id": "1",
        "name": "e",
        "lifecycle_stage": "active",
        "artifact_location": "/nowhere",
    }
}


class Server(HttpServer):
    """A server that remembers requests and answers as a function says: status, headers, body."""

    def __init__(self, answer: Callable[[str, dict], tuple[int, dict[str, str], bytes] | None]) -> None:
        self.requests: list[tuple[str, dict[str, str], dict]] = []
        outer = self

        class Respondent(Handler):
            protocol_version = "HTTP/1.1"

            def respond(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path, _, query = self.path.partition("?")
                path = path.partition("/api/2.0/mlflow/")[2]
                sent = json.loads(body) if body else dict(urllib.parse.parse_qsl(query))
                outer.requests.append((path, dict(self.headers), sent))
                answered = answer(path, sent)
                if answered is None:
                    self.close_connection = True
                    self.connection.close()
                    return
                status, headers, content = answered
                self.answer(status, content, headers)
                self.close_connection = "Content-Length" in headers

            do_GET = do_POST = do_PUT = respond

        super().__init__(Respondent)


def ok(content: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps(content).encode()


def mlflow(path: str, sent: dict) -> tuple[int, dict[str, str], bytes]:
    """The little of MLflow that a run needs."""
    info = {"run_id": "a" * 32, "status": "RUNNING", "lifecycle_stage": "active", "experiment_id": "1"}
    match path:
        case "experiments/get-by-name" | "experiments/get":
            return ok(EXPERIMENT)
        case "runs/create" | "runs/get":
            return ok({"run": {"info": info}})
        case _:
            return ok({})


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.mark.parametrize(
    ("answer", "error", "hint"),
    [
        ((401, {}, b"no"), PermissionDeniedError, "credentials"),
        ((403, {}, b"no"), PermissionDeniedError, "permit"),
        ((404, {}, b"no such page"), ConfigurationError, "no MLflow tracking server"),
        ((404, {}, b"<html>"), ConfigurationError, "no MLflow tracking server"),
        ((200, {}, b"<!doctype html><title>Log in</title>"), ConfigurationError, "a web page"),
    ],
)
def test_what_is_wrong_at_the_start_is_said_without_the_password(answer, error, hint):
    with Server(lambda path, sent: answer) as server, pytest.raises(error, match=hint) as caught:
        MLflowTracker(server.url.replace("://", "://me:hush@"))
    assert "hush" not in f"{caught.value!r}"


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        ((200, {}, b'{"experiments": [{"experiment_id"'), "cut off"),
        ((500, {}, b"Internal Server Error"), "500"),
        ((503, {"Retry-After": "1"}, b""), "503"),
        (None, "cannot answer"),
    ],
)
def test_what_may_pass_is_told_at_the_start_without_the_password(answer, hint, caplog):
    with Server(lambda path, sent: answer) as server:
        tracker = MLflowTracker(server.url.replace("://", "://me:hush@"))
        status = tracker.status()
    [told] = [record.getMessage() for record in caplog.records]
    assert hint in told
    assert hint in status.last_error
    assert "hush" not in f"{told} {status!r} {tracker!r}"


def test_credentials_go_to_the_server_and_into_nothing_else(monkeypatch, heimdall_dir, caplog):
    with Server(mlflow) as server:
        tracker = MLflowTracker(server.url.replace("://", "://me:hush@"), experiment_name="e")
        tracker.start_run()
        tracker.flush()
        assert {headers["authorization"] for _, headers, _ in server.requests} == {"Basic bWU6aHVzaA=="}
        shown = f"{tracker!r} {tracker.tracking_uri} {tracker.status()} {caplog.text}"
        shown += "".join(
            path.read_text(errors="replace") for path in heimdall_dir.rglob("*") if path.is_file()
        )
        assert "hush" not in shown


def test_a_token_is_sent_as_a_bearer(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hush")
    with Server(mlflow) as server:
        MLflowTracker(server.url, experiment_name="e")
        assert {headers["authorization"] for _, headers, _ in server.requests} == {"Bearer hush"}


def test_user_and_password_of_the_environment_go_before_a_token(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hush")
    with Server(mlflow) as server:
        MLflowTracker(server.url, experiment_name="e")
        assert {headers["authorization"] for _, headers, _ in server.requests} == {"Basic bWU6aHVzaA=="}


def test_a_path_before_the_api_is_kept():
    with Server(mlflow) as server:
        MLflowTracker(f"{server.url}/team/mlflow/", experiment_name="e")
        assert all(path for path, _, _ in server.requests)


def test_a_redirect_to_another_host_is_refused_and_gets_no_credentials():
    with Server(mlflow) as other:
        away = (307, {"Location": f"{other.url}/api/2.0/mlflow/experiments/search"}, b"")
        with (
            Server(lambda path, sent: away) as server,
            pytest.raises(ConfigurationError, match="redirects to"),
        ):
            MLflowTracker(server.url.replace("://", "://me:hush@"))
        assert other.requests == []


def test_a_redirect_on_the_same_host_is_followed():
    def answer(path: str, sent: dict) -> tuple[int, dict[str, str], bytes]:
        if path == "experiments/search" and not moved:
            moved.append(path)
            return 307, {"Location": "/api/2.0/mlflow/experiments/search"}, b""
        return mlflow(path, sent)

    moved: list[str] = []
    with Server(answer) as server:
        assert MLflowTracker(server.url, experiment_name="e").experiment_id == "1"
    assert moved


@pytest.mark.parametrize(
    "trouble",
    [
        (429, {"Retry-After": "1"}, b""),
        (500, {}, b"oh"),
        (503, {}, b""),
        (401, {}, b"token has run out"),
        (200, {}, b'{"cut'),
        (200, {}, b"<html>maintenance</html>"),
        None,
    ],
)
def test_trouble_that_passes_costs_nothing(trouble):
    def answer(path: str, sent: dict) -> tuple[int, dict[str, str], bytes] | None:
        if path == "runs/log-batch" and sent.get("metrics") and len(seen) < 2:
            seen.append(sent)
            return trouble
        return mlflow(path, sent)

    seen: list[dict] = []
    with Server(answer) as server:
        tracker = MLflowTracker(server.url, experiment_name="e")
        tracker.start_run()
        tracker.log_metrics({"a": 1.0, "b": 2.0}, step=3)
        tracker.end_run()
        tracker.flush()
        assert tracker.status()["parked"] == 0
        last = [sent for path, _, sent in server.requests if path == "runs/log-batch" and sent.get("metrics")]
        assert {metric["key"] for metric in last[-1]["metrics"]} == {"a", "b"}
        ends = [sent["status"] for path, _, sent in server.requests if path == "runs/update"]
        assert ends == ["FINISHED"]
        assert sum(path == "runs/create" for path, _, _ in server.requests) == 1


def test_what_the_server_forbids_is_parked_and_the_rest_goes_on():
    def answer(path: str, sent: dict) -> tuple[int, dict[str, str], bytes]:
        forbidden = any(metric["key"] == "secret" for metric in sent.get("metrics", []))
        return (403, {}, b"no") if forbidden else mlflow(path, sent)

    with Server(answer) as server:
        tracker = MLflowTracker(server.url, experiment_name="e")
        tracker.start_run()
        for key in ("a", "secret", "b"):
            tracker.log_metric(key, 1.0)
        tracker.flush()
        assert tracker.status()["parked"] == 1
        batches = [sent.get("metrics", []) for path, _, sent in server.requests if path == "runs/log-batch"]
        sent = {metric["key"] for batch in batches for metric in batch}
        assert {"a", "b"} <= sent


def test_answers_in_pages_are_read_to_their_end_and_no_further():
    def page(sent: dict, name: str, entries: list) -> tuple[int, dict[str, str], bytes]:
        first = int(sent.get("page_token") or 0)
        last = first + min(2, int(sent.get("max_results", 2)))
        following = {"next_page_token": str(last)} if last < len(entries) else {}
        return ok({name: entries[first:last]} | following)

    def answer(path: str, sent: dict) -> tuple[int, dict[str, str], bytes]:
        match path:
            case "runs/search":
                return page(sent, "runs", [{"info": {"run_id": f"{i:032}"}} for i in range(7)])
            case "experiments/search":
                return page(
                    sent, "experiments", [{"experiment_id": str(i), "name": f"e{i}"} for i in range(7)]
                )
            case "metrics/get-history":
                return page(sent, "metrics", [{"key": "m", "value": 1.0, "step": str(i)} for i in range(7)])
            case _:
                return mlflow(path, sent)

    with Server(answer) as server:
        tracker = MLflowTracker(server.url, experiment_name="e")
        assert [int(run.run_id) for run in tracker.search_runs()] == list(range(7))
        assert [int(it.experiment_id) for it in tracker.list_experiments()] == list(range(7))
        assert [point.step for point in tracker.get_metric_history("a" * 32, "m")] == list(range(7))
        server.requests.clear()
        assert len(tracker.search_runs(max_results=3)) == 3
        assert [sent["max_results"] for path, _, sent in server.requests if path == "runs/search"] == [3, 1]


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody has signed but itself, and its key."""
    return certificate_in(tmp_path)


@contextlib.contextmanager
def tls_server(certificate: tuple[Path, Path], *, wants_ours: bool = False) -> Iterator[str]:
    with Server(mlflow) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        if wants_ours:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(certificate[0])
        server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
        yield server.url.replace("http://", "https://")


@pytest.fixture
def tls_url(certificate: tuple[Path, Path]) -> Iterator[str]:
    with tls_server(certificate) as url:
        yield url


def test_a_certificate_that_nobody_trusts_is_refused(tls_url):
    with pytest.raises(ConfigurationError, match="certificate"):
        MLflowTracker(tls_url)


def test_a_certificate_that_is_named_is_trusted(tls_url, certificate, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate[0]))
    assert MLflowTracker(tls_url, experiment_name="e").experiment_id == "1"


def test_certificates_are_not_verified_where_the_user_says_so(tls_url, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    assert MLflowTracker(tls_url, experiment_name="e").experiment_id == "1"


def test_a_server_that_wants_a_certificate_of_us_gets_it(certificate, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate[0]))
    with tls_server(certificate, wants_ours=True) as url:
        with pytest.raises(ConfigurationError, match=r"(?i)certificate"):
            MLflowTracker(url)
        both = tmp_path / "both.pem"
        both.write_bytes(certificate[0].read_bytes() + certificate[1].read_bytes())
        monkeypatch.setenv("MLFLOW_TRACKING_CLIENT_CERT_PATH", str(both))
        assert MLflowTracker(url, experiment_name="e").experiment_id == "1"


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_server_behind_a_proxy_is_reached_through_it(variable, run_script):
    with Server(mlflow) as proxy:
        ran = run_script(
            """
            from heimdall_tracking import MLflowTracker
            print(MLflowTracker("http://mlflow.example", experiment_name="e").experiment_id)
            """,
            **{variable: proxy.url},
        )
        assert (ran.out, ran.code) == ("1\n", 0), ran.err
        assert {headers["host"] for _, headers, _ in proxy.requests} == {"mlflow.example"}


def test_a_server_that_is_silent_is_given_up_after_the_time_that_is_set(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracker = MLflowTracker(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert tracker.status().degraded
        with pytest.raises(StoreUnavailableError):
            tracker.list_experiments()


def test_a_server_that_dies_and_comes_back_has_one_run_with_everything(tmp_path: Path):
    from mlflow import MlflowClient

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = server_command(port, f"sqlite:///{tmp_path / 'mlflow.db'}")
    with serving(command, url, tmp_path / "log"):
        tracker = MLflowTracker(url, experiment_name="e")
        with tracker.run("before"):
            tracker.log_metric("m", 0.0)
        tracker.flush()
    run_id = tracker.start_run("during")
    for step in range(3000):
        tracker.log_metric("m", float(step), step=step)
    tracker.end_run()
    wait_until(lambda: tracker.status()["degraded"], "the outage is noticed")
    with serving(command, url, tmp_path / "log"):
        tracker.flush()
        assert tracker.get_run(run_id).run_name == "during"
        client = MlflowClient(url)
        found = client.search_runs([tracker.experiment_id])
        assert sorted(run.info.run_name for run in found) == ["before", "during"]
        (during,) = (run for run in found if run.info.run_name == "during")
        history = client.get_metric_history(during.info.run_id, "m")
        assert sorted(point.step for point in history) == list(range(3000))
        assert during.info.status == "FINISHED"
