"""Real stores, real servers, real processes: what the tests of the tracker share."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from heimdall_tracking import MLflowTracker
from support import postgres, s3
from support.helpers import (
    HEARS_CTRL_C,
    PATIENCE_S,
    TRACKING_VARIABLES,
    clean_environment,
    free_port,
    run_program,
)
from support.s3_proxy import S3Proxy
from support.stock import server_command, serving

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


def pytest_unconfigure() -> None:
    """Runs that tests leave open go to stores that are gone by now: the exit need not wait for them."""
    os.environ["HEIMDALL_EXIT_TIMEOUT"] = "0"


# Files of few tests that take minutes: one that began last would have the machine for itself.
LONG = (
    "test_models.py",
    "test_model_sources.py",
    "test_model_stock.py",
    "test_onnx_files.py",
    "test_onnx_sources.py",
    "test_s3_faults.py",
    "test_s3_kills.py",
    "test_durability.py",
)

# Folders and files whose tests use the bridge to stock MLflow.
BRIDGED = {"bridge", "libraries", "lightning_logger", "test_client.py"}
# Tests that take seconds without a server: the stock client asks hundreds of times, or stock MLflow starts.
SLOW = {
    "test_an_mlflow_whose_schema_is_not_shipped_makes_its_tables_itself",
    "test_any_keys_and_values_are_found_as_the_stock_client_finds_them",
    "test_models_are_found_as_the_stock_client_finds_them",
    "test_numbers_are_given_once_where_mlflow_registers_at_once",
    "test_params_that_fill_several_segments_of_the_journal_arrive",
    "test_purged_runs_are_gone_for_good_and_mlflow_gc_has_nothing_left_to_do",
    "test_the_first_of_many_runs_are_those_of_the_stock_client",
    "test_versions_are_found_as_the_stock_client_finds_them",
}


# The marks of a test follow from its folder, its fixtures and its parameters; a file that starts a server
# itself has a `pytestmark`.
FOLDERS = {
    "compat": "compat",
    "exports": "training",
    "faults": "faults",
    "libraries": "training",
    "models": "training",
    "training": "training",
}
FIXTURES = {
    "mlflow_server": "server",
    "tracking_server": "server",
    "postgres_server": "postgres",
    "s3_server": "s3",
    "moto_server": "s3",
}
# Stages are deprecated in MLflow, TorchScript is in torch; both work.
DEPRECATED = ("exports", "models", "registry")
PARAMETERS = {"server": "server", "postgresql": "postgres", "postgres": "postgres", "s3": "s3"}


def marks(item: pytest.Item) -> set[str]:
    folder = item.path.parent.name
    found = {FOLDERS[folder]} if folder in FOLDERS else set()
    if getattr(item, "originalname", item.name) in SLOW:
        found.add("slow")
    found |= {FIXTURES[name] for name in getattr(item, "fixturenames", ()) if name in FIXTURES}
    if callspec := getattr(item, "callspec", None):
        told = [
            word for value in callspec.params.values() if isinstance(value, str) for word in value.split("-")
        ]
        found |= {PARAMETERS[word] for word in told if word in PARAMETERS}
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what waits for more than a file, and begin with the files that take longest."""
    for item in items:
        for name in marks(item):
            item.add_marker(name)
        if item.path.parent.name in DEPRECATED:
            for category in ("DeprecationWarning", "FutureWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore:.*deprecated.*:{category}"))
    items.sort(key=lambda item: item.path.name not in LONG)


class TellsAtOnce:
    """Shows a failure when it happens: a suite that is cut off shows no summary."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self.terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.terminal.ensure_newline()
            self.terminal.write_line(
                f"{report.nodeid}: failed in {report.when} after {report.duration:.0f} s"
            )
            self.terminal.write_line("\n".join(report.longreprtext.splitlines()[-40:]))


# The reporter is registered by a hook of the same name, which has to come first.
@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if terminal := config.pluginmanager.get_plugin("terminalreporter"):
        config.pluginmanager.register(TellsAtOnce(terminal))


@pytest.fixture(autouse=True)
def heimdall_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """Journals of this test alone; what the developer has set elsewhere does not leak in."""
    for name in os.environ:
        if name.startswith(TRACKING_VARIABLES) and name != "MLFLOW_DISABLE_TELEMETRY":
            monkeypatch.delenv(name)
    for module, place in (("_tracking_service", "_tracking_uri"), ("_model_registry", "_registry_uri")):
        # Stock code in this process remembers what `tracker.client` has told it last, and prefers it.
        if stock := sys.modules.get(f"mlflow.tracking.{module}.utils"):
            monkeypatch.setattr(stock, place, None)
    monkeypatch.setenv("HEIMDALL_DIR", str(tmp_path / "heimdall"))
    # Elsewhere the stock client is an outsider, who sees what is in the store and no more.
    is_bridged = {request.path.name, request.path.parent.name} & BRIDGED
    if not is_bridged and not request.node.get_closest_marker("bridge"):
        monkeypatch.setenv("HEIMDALL_BRIDGE", "0")
    if request.node.get_closest_marker("strict"):
        monkeypatch.setenv("HEIMDALL_STRICT", "1")
    # As if this process had started there: relative URIs of a test stay in its folder.
    monkeypatch.setattr("heimdall_tracking._start.FOLDER", str(tmp_path))
    return tmp_path / "heimdall"


@pytest.fixture(autouse=True)
def stock_databases_are_closed() -> Iterator[None]:
    """Close the databases of stock clients after the test: MLflow keeps an engine for each URI, for ever."""
    yield
    for stores in ("tracking", "model_registry"):
        if module := sys.modules.get(f"mlflow.store.{stores}.sqlalchemy_store"):
            engines = module.SqlAlchemyStore._engine_map
            while engines:
                engines.popitem()[1].dispose()


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "mlflow.db"


@pytest.fixture
def uri(db: Path) -> str:
    return f"sqlite:///{db}"


@pytest.fixture
def tracker(uri: str) -> Iterator[MLflowTracker]:
    tracker = MLflowTracker(uri, experiment_name="tests")
    yield tracker
    tracker.end_run()


@pytest.fixture
def client(tracker: MLflowTracker, uri: str):
    """The stock client on the database that `tracker` has created; flush before you ask it."""
    from mlflow import MlflowClient

    return MlflowClient(uri, uri)


@pytest.fixture
def fluent(uri: str):
    """MLflow's fluent API on the database of `tracker`; what it is told in a test does not outlive it."""
    import mlflow
    from mlflow.tracking import fluent

    before = dict(os.environ)
    mlflow.set_tracking_uri(uri)
    yield mlflow
    fluent._active_run_stack.get().clear()
    fluent._active_experiment_id = None
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.fixture(scope="session")
def stock_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database made by stock MLflow; copy it before writing."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("stock") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").create_experiment("theirs", artifact_location="/theirs")
    return path


@pytest.fixture
def start_script(tmp_path: Path, heimdall_dir: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a Python program in a process of its own; it is killed if the test leaves it behind."""
    with contextlib.ExitStack() as processes:

        def start(code: str, *arguments: object, **variables: object) -> subprocess.Popen:
            environment = {"HEIMDALL_DIR": heimdall_dir} | variables
            process = subprocess.Popen(
                [sys.executable, "-c", HEARS_CTRL_C + textwrap.dedent(code), *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
                env=clean_environment(**environment),
            )
            processes.enter_context(process)
            processes.callback(process.kill)
            return process

        yield start


@pytest.fixture
def run_script(start_script: Callable[..., subprocess.Popen]):
    """Run a Python program to its end and return its exit code, output and errors."""

    def run(code: str, *arguments: object, **variables: object) -> SimpleNamespace:
        process = start_script(code, *arguments, **variables)
        out, err = process.communicate(timeout=PATIENCE_S)
        return SimpleNamespace(code=process.returncode, out=out, err=err)

    return run


@pytest.fixture
def heimdall(tmp_path: Path):
    """Run the command; its exit code, output and errors."""

    def run(*arguments: object, **variables: object) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name("heimdall"), *arguments]
        return run_program(command, cwd=tmp_path, **variables)

    return run


@pytest.fixture
def locked(start_script: Callable[..., subprocess.Popen]):
    """`with locked(db):` another process keeps everybody else out of the database.

    Locks of SQLite hold between processes only where each has one SQLite in it, so a lock from this
    process, whose tracker brings its own, would be none.
    """

    @contextlib.contextmanager
    def lock(db: Path) -> Iterator[None]:
        process = start_script(
            """
            import sqlite3, sys
            connection = sqlite3.connect(sys.argv[1], isolation_level=None)
            connection.execute("BEGIN EXCLUSIVE")
            print("locked", flush=True)
            sys.stdin.read()
            """,
            db,
        )
        assert process.stdout.readline() == "locked\n"
        try:
            yield
        finally:
            process.communicate(timeout=PATIENCE_S)

    return lock


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A stock `mlflow server` on a database that heimdall_tracking has created."""
    folder = tmp_path_factory.mktemp("server")
    db, log = folder / "mlflow.db", folder / "server.log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEIMDALL_DIR", str(folder / "heimdall"))
        MLflowTracker(f"sqlite:///{db}", experiment_name="served")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with serving(server_command(port, f"sqlite:///{db}"), url, log):
        yield SimpleNamespace(url=url, db=db, uri=f"sqlite:///{db}", log=log)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.PostgresServer]:
    """A real PostgreSQL server."""
    with postgres.running() as server:
        yield server


@pytest.fixture(scope="session")
def _databases() -> Iterator[int]:
    return itertools.count()


@pytest.fixture
def postgres_uri(postgres_server: postgres.PostgresServer, _databases: Iterator[int]) -> str:
    """The URI of an empty PostgreSQL database of this test alone."""
    return postgres_server.create_database(f"test{next(_databases)}")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[s3.S3Server]:
    """A real S3 server, which verifies signatures and checksums."""
    with s3.running() as server:
        yield server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[s3.MotoServer]:
    """Another S3 server, with an STS beside it."""
    with s3.running_moto() as server:
        yield server


@pytest.fixture
def bucket(s3_server: s3.S3Server) -> Iterator[str]:
    """A bucket of this test alone."""
    name = s3_server.create_bucket()
    yield name
    s3_server.delete_bucket(name)


@pytest.fixture
def s3_bucket(bucket: str, s3_server: s3.S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of this test alone, whose server the environment names."""
    for name, value in s3_server.variables.items():
        monkeypatch.setenv(name, value)
    return bucket


@pytest.fixture
def proxy(s3_server: s3.S3Server) -> Iterator[S3Proxy]:
    """A proxy between a tracker and the S3 server, which causes faults."""
    with S3Proxy(s3_server.port) as proxy:
        yield proxy


@pytest.fixture
def s3_tracker(s3_server: s3.S3Server, uri: str) -> Iterator[Callable[..., MLflowTracker]]:
    """Make a tracker whose artifacts go to S3, with keys among its settings and none in the environment."""
    made = []

    def make(bucket: str, server: s3.Server = s3_server, **settings: str) -> MLflowTracker:
        settings = {
            "s3_endpoint_url": server.url,
            "s3_access_key_id": s3.ACCESS_KEY,
            "s3_secret_access_key": s3.SECRET_KEY,
            "experiment_name": "s3",
        } | settings
        made.append(MLflowTracker(uri, f"s3://{bucket}/runs", **settings))
        return made[-1]

    yield make
    for tracker in made:
        tracker.end_run()


@pytest.fixture(scope="session")
def tracking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A stock `mlflow server`, with a database and artifacts of its own."""
    folder = tmp_path_factory.mktemp("tracking_server")
    port = free_port()
    command = server_command(port, f"sqlite:///{folder / 'mlflow.db'}")
    with serving(command, f"http://127.0.0.1:{port}", folder / "server.log"):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(params=["sqlite", "postgresql", "server"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of a store."""
    match request.param:
        case "sqlite":
            return f"sqlite:///{tmp_path / 'mlflow.db'}"
        case "postgresql":
            return request.getfixturevalue("postgres_uri")
        case _:
            return request.getfixturevalue("tracking_server")


@pytest.fixture
def stock(store: str, tracker: MLflowTracker):
    """The stock client on the store of `tracker`."""
    from mlflow import MlflowClient

    return MlflowClient(store, store)
