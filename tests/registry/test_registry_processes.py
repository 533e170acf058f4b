"""Processes that register the same model at once, and registries that take their time."""

from __future__ import annotations

import inspect
import json
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import mlflow
import pytest

from heimdall_tracking import InvalidInputError, MLflowTracker, NotFoundError, RegistrationError
from support.helpers import PATIENCE_S, wait_until
from support.servers import Handler, HttpServer

REGISTER = """
    import sys
    from heimdall_tracking import MLflowTracker

    tracker = MLflowTracker(sys.argv[1], experiment_name="raced")
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(int(sys.argv[3])):
        version = tracker.register_model(sys.argv[2], "s3://models/m", tags={"by": sys.argv[4]})
        # A stock server inserts twice what two ask it for at once, and says that it cannot.
        if not sys.argv[1].startswith("http"):
            tracker.set_model_alias(sys.argv[2], "newest", version)
            tracker.set_registered_model_tag(sys.argv[2], "by", sys.argv[4])
        print(version, flush=True)
"""
REGISTER_BY_MLFLOW = """
    import sys
    from mlflow import MlflowClient

    client = MlflowClient(sys.argv[1], sys.argv[1])
    client.search_registered_models()
    print("ready", flush=True)
    sys.stdin.readline()
    done = 0
    while done < int(sys.argv[3]):
        try:
            made = client.create_model_version(sys.argv[2], "s3://models/m", await_creation_for=0)
            print(made.version, flush=True)
            done += 1
        except Exception as error:
            # It gives up after some attempts, or before there is the model.
            if "Giving up" not in str(error) and "not found" not in str(error):
                raise
"""


def raced(processes: list) -> list[int]:
    """The numbers that processes have been given, which all begin at once."""
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    numbers = []
    for process in processes:
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, err
        numbers += [int(line) for line in out.split()]
    return numbers


def test_processes_that_register_at_once_get_numbers_of_their_own(tracker, stock, store, model, start_script):
    uri = tracker._uris()[0]
    processes = [start_script(REGISTER, uri, model, 10, f"process {it}") for it in range(4)]
    numbers = raced(processes)
    assert sorted(numbers) == list(range(1, 41))
    found = stock.search_model_versions(f"name = '{model}'")
    assert sorted(int(it.version) for it in found) == list(range(1, 41))
    assert {it.tags["by"] for it in found} == {f"process {it}" for it in range(4)}
    if not store.startswith("http"):
        registered = tracker.get_registered_model(model)
        assert set(registered.aliases) == {"newest"}
        assert registered.tags["by"].startswith("process")


def test_numbers_are_given_once_where_mlflow_registers_at_once(tracker, store, model, start_script):
    uri = tracker._uris()[0]
    processes = [
        start_script(REGISTER, uri, model, 10, "ours"),
        start_script(REGISTER_BY_MLFLOW, uri, model, 10, "theirs", MLFLOW_TRACKING_URI=uri),
    ]
    assert sorted(raced(processes)) == list(range(1, 21))


class SlowRegistry(HttpServer):
    """A stock server whose versions are registered only after so many questions, or never are.

    Of what a search finds it gives a few at a time.
    """

    def __init__(self, server: str, status: Callable[[int], str]) -> None:
        self.asked = 0
        self.searched = 0
        outer = self

        class Respondent(Handler):
            def respond(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {"Content-Type": "application/json"} if body else {}
                path, _, query = self.path.partition("?")
                outer.searched += "max_results=1000" in query
                url = f"{server}{path}?{query.replace('max_results=1000', 'max_results=3')}"
                request = urllib.request.Request(url, body or None, headers, method=self.command)
                try:
                    with urllib.request.urlopen(request) as answer:
                        code, content = answer.status, answer.read()
                except urllib.error.HTTPError as error:
                    code, content = error.code, error.read()
                if code == 200 and path.endswith(("model-versions/create", "model-versions/get")):
                    said = json.loads(content)
                    said["model_version"]["status"] = status(outer.asked)
                    said["model_version"]["status_message"] = "the disk is full"
                    outer.asked += 1
                    content = json.dumps(said).encode()
                self.answer(code, content)

            do_GET = do_POST = do_PATCH = do_DELETE = respond

        super().__init__(Respondent)


@pytest.fixture
def slow_registry(tracking_server) -> Iterator[Callable[..., SlowRegistry]]:
    started = []

    def start(status: Callable[[int], str]) -> SlowRegistry:
        started.append(SlowRegistry(tracking_server, status))
        return started[-1]

    yield start
    for registry in started:
        registry.close()


def test_a_version_that_is_pending_is_waited_for(slow_registry, model):
    registry = slow_registry(lambda asked: "READY" if asked >= 3 else "PENDING_REGISTRATION")
    tracker = MLflowTracker(registry.url, experiment_name="slow")
    assert tracker.register_model(model, "s3://models/m") == "1"
    assert registry.asked == 4


def test_a_version_is_waited_for_as_long_as_stock_mlflow_does():
    ours = inspect.signature(MLflowTracker.register_model).parameters["await_registration_for"]
    theirs = inspect.signature(mlflow.register_model).parameters["await_registration_for"]
    assert ours.default == theirs.default == 300


@pytest.mark.parametrize("patience", [0, None])
def test_a_version_is_not_waited_for_where_it_need_not_be(slow_registry, model, patience):
    registry = slow_registry(lambda _: "PENDING_REGISTRATION")
    tracker = MLflowTracker(registry.url, experiment_name="slow")
    number = tracker.register_model(model, "s3://models/m", await_registration_for=patience)
    assert registry.asked == 1
    assert tracker.get_model_version(model, number).status == "PENDING_REGISTRATION"


def test_a_version_that_stays_pending_is_there_and_an_error(slow_registry, model):
    registry = slow_registry(lambda _: "PENDING_REGISTRATION")
    tracker = MLflowTracker(registry.url, experiment_name="slow")
    with pytest.raises(RegistrationError, match=r"version 1 .*PENDING_REGISTRATION after 0.3 s"):
        tracker.register_model(model, "s3://models/m", await_registration_for=0.3)
    assert tracker.get_model_version(model, 1).source == "s3://models/m"


def test_a_version_that_cannot_be_registered_is_an_error_with_the_reason(slow_registry, model):
    registry = slow_registry(lambda asked: "FAILED_REGISTRATION" if asked else "PENDING_REGISTRATION")
    tracker = MLflowTracker(registry.url, experiment_name="slow")
    with pytest.raises(RegistrationError, match="FAILED_REGISTRATION the disk is full"):
        tracker.register_model(model, "s3://models/m")


def test_a_search_goes_on_as_long_as_there_are_pages(slow_registry, model):
    registry = slow_registry(lambda _: "READY")
    tracker = MLflowTracker(registry.url, experiment_name="paged")
    for number in range(7):
        tracker.register_model(f"{model} {number}", "s3://models/m", tags={"of": model})
        tracker.set_registered_model_tag(f"{model} {number}", "of", model)
    names = [f"{model} {number}" for number in range(7)]
    found = tracker.search_model_versions(f"tags.of = '{model}'", order_by="name")
    assert ([it.name for it in found], registry.searched) == (names, 3)
    found = tracker.search_registered_models(f"tags.of = '{model}'")
    assert ([it.name for it in found], registry.searched) == (names, 6)


def test_a_time_to_wait_is_a_number_of_seconds(tracker, model):
    for wrong in (-1, float("nan")):
        with pytest.raises(InvalidInputError, match="seconds"):
            tracker.register_model(model, "s3://models/m", await_registration_for=wrong)
    with pytest.raises(NotFoundError):
        tracker.get_registered_model(model)
    assert tracker.register_model(model, "s3://models/m", await_registration_for=float("inf")) == "1"


def test_ctrl_c_ends_the_wait_for_a_version(slow_registry, model, start_script):
    registry = slow_registry(lambda _: "PENDING_REGISTRATION")
    process = start_script(
        """
        import sys
        from heimdall_tracking import MLflowTracker

        tracker = MLflowTracker(sys.argv[1], experiment_name="slow")
        try:
            tracker.register_model(sys.argv[2], "s3://models/m")
        except KeyboardInterrupt:
            print("interrupted")
        """,
        registry.url,
        model,
    )
    wait_until(lambda: registry.asked > 1, "the version is waited for")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert out == "interrupted\n", err
