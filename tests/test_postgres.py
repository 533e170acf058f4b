"""PostgreSQL directly: how it is named, who may what, and what happens when it goes away."""

from __future__ import annotations

import os
import pwd
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from heimdall_tracking import (
    ConfigurationError,
    InvalidInputError,
    MLflowTracker,
    PermissionDeniedError,
)
from support import postgres
from support.helpers import PATIENCE_S, certificate_in, free_port, wait_until

pytestmark = pytest.mark.postgres


def test_a_password_of_special_characters_opens_the_database_and_is_shown_nowhere(
    postgres_uri, heimdall_dir, caplog
):
    tracker = MLflowTracker(postgres_uri)
    with tracker.run() as run:
        tracker.log_metric("m", 1.0)
    assert tracker.get_run(run.run_id).metrics == {"m": 1.0}
    shown = f"{tracker!r} {tracker.tracking_uri} {tracker.registry_uri} {tracker.status()} {caplog.text}"
    shown += "".join(path.read_text(errors="replace") for path in heimdall_dir.rglob("*") if path.is_file())
    assert postgres.PASSWORD not in shown
    assert "p%40ss" not in shown


def test_the_driver_of_sqlalchemy_may_be_named(postgres_uri):
    uri = postgres_uri.replace("postgresql://", "postgresql+psycopg2://")
    assert MLflowTracker(uri).tracking_uri == MLflowTracker(postgres_uri).tracking_uri


def test_a_socket_opens_the_database(postgres_server, postgres_uri):
    database = postgres_uri.rpartition("/")[2]
    tracker = MLflowTracker(postgres_server.socket_uri(database))
    run_id = tracker.start_run()
    assert tracker.get_run(run_id).status == "RUNNING"


def test_the_search_path_says_where_the_tables_are(postgres_server, postgres_uri):
    database = postgres_uri.rpartition("/")[2]
    postgres_server.execute("CREATE SCHEMA tracking", database)
    tracker = MLflowTracker(f"{postgres_uri}?options=-csearch_path%3Dtracking")
    run_id = tracker.start_run()
    tracker.flush()
    assert postgres_server.execute("SELECT run_uuid FROM tracking.runs", database) == [(run_id,)]


def test_tables_of_others_in_the_database_are_left_alone(postgres_server, postgres_uri):
    database = postgres_uri.rpartition("/")[2]
    postgres_server.execute("CREATE TABLE recordings (id int)", database)
    tracker = MLflowTracker(postgres_uri)
    tracker.start_run()
    tracker.flush()
    assert postgres_server.execute("SELECT count(*) FROM recordings", database) == [(0,)]


def test_an_artifact_location_that_leaves_no_room_for_its_runs_is_refused_at_once(
    postgres_server, postgres_uri, tmp_path
):
    # A run's URI has 43 characters more, and its column 200.
    longest = f"/{'a' * 156}"
    with MLflowTracker(postgres_uri, longest, experiment_name="longest").run():
        pass
    for location in (f"{longest}a", f"/{'é' * 300}"):
        with pytest.raises(InvalidInputError, match="shorter artifact URI"):
            MLflowTracker(postgres_uri, location, experiment_name="too long")
    names = postgres_server.execute("SELECT name FROM experiments", postgres_uri.rpartition("/")[2])
    assert sorted(names) == [("Default",), ("longest",)]
    assert MLflowTracker(f"sqlite:///{tmp_path}/mlflow.db", location).experiment_id


def test_a_wrong_password_is_an_error_of_the_configuration_without_the_password(postgres_server):
    with pytest.raises(ConfigurationError, match="password") as caught:
        MLflowTracker(postgres_server.uri("postgres", password="hush"))
    assert "hush" not in f"{caught.value!r}"


def test_a_database_that_is_missing_is_an_error_of_the_configuration(postgres_server):
    with pytest.raises(ConfigurationError, match="missing"):
        MLflowTracker(postgres_server.uri("missing"))


def test_a_server_that_is_not_there_is_told_and_asked_later(caplog):
    tracker = MLflowTracker(f"postgresql://me@127.0.0.1:{free_port()}/db")
    [told] = [record.getMessage() for record in caplog.records]
    assert "refused" in told
    assert tracker.status().degraded


def test_a_role_that_may_only_read_is_told_so(postgres_server, postgres_uri):
    MLflowTracker(postgres_uri, experiment_name="there")
    database = postgres_uri.rpartition("/")[2]
    role = f"reader_{database}"
    postgres_server.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'r'", database)
    postgres_server.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}", database)
    reader = postgres_server.uri(database, user=role, password="r")
    with pytest.raises(PermissionDeniedError, match="permission denied"):
        MLflowTracker(reader, experiment_name="new")


def test_a_run_that_a_role_may_not_write_is_parked_and_not_tried_for_ever(
    postgres_server, postgres_uri, caplog
):
    MLflowTracker(postgres_uri, experiment_name="there")
    database = postgres_uri.rpartition("/")[2]
    role = f"reader_{database}"
    postgres_server.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'r'", database)
    postgres_server.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}", database)
    tracker = MLflowTracker(postgres_server.uri(database, user=role, password="r"), experiment_name="there")
    tracker.start_run()
    tracker.flush()
    assert tracker.status()["parked"] == 2
    assert "permission denied" in caplog.text


def test_a_connection_that_is_killed_again_and_again_costs_nothing(postgres_server, postgres_uri):
    database = postgres_uri.rpartition("/")[2]
    tracker = MLflowTracker(postgres_uri)
    run_id = tracker.start_run()
    kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    kill += " WHERE application_name = 'heimdall-tracking' AND datname = current_database()"
    killed = 0
    for i in range(20):
        for j in range(500):
            tracker.log_metric(f"m{j % 7}", float(j), step=i * 500 + j)
        ((count,),) = postgres_server.execute(kill, database)
        killed += count
    tracker.flush()
    assert killed > 0
    points = postgres_server.execute("SELECT count(*), count(DISTINCT step) FROM metrics", database)
    assert points == [(10_000, 10_000)]
    assert tracker.status()["parked"] == 0
    assert len(tracker.get_run(run_id).metrics) == 7


def test_however_many_threads_ask_there_are_two_connections(postgres_server, postgres_uri):
    tracker = MLflowTracker(postgres_uri)
    run_id = tracker.start_run()

    def ask(number: int) -> int:
        tracker.log_metric("m", 1.0, step=number)
        return len(tracker.get_metric_history(run_id, "m"))

    with ThreadPoolExecutor(16) as pool:
        assert max(pool.map(ask, range(100))) == 100
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'heimdall-tracking'"
    count += " AND datname = current_database()"
    assert postgres_server.execute(count, postgres_uri.rpartition("/")[2]) <= [(2,)]


def test_a_server_that_crashes_and_comes_back_has_everything_once(tmp_path, caplog):
    with postgres.running() as server:
        tracker = MLflowTracker(server.create_database("mlflow"))
        run_id = tracker.start_run()
        for step in range(1000):
            tracker.log_metric("m", float(step), step=step)
        server.stop("immediate")
        for step in range(1000, 2000):
            tracker.log_metric("m", float(step), step=step)
        wait_until(lambda: tracker.status()["degraded"], "the outage is noticed")
        server.start()
        tracker.end_run()
        tracker.flush()
        assert [point.step for point in tracker.get_metric_history(run_id, "m")] == list(range(2000))
        assert tracker.get_run(run_id).status == "FINISHED"


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory):
    """A server with a certificate that it has signed itself, and that certificate."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = certificate_in(folder)
    server = postgres.PostgresServer("-c ssl=on", "-c ssl_cert_file=server.crt", "-c ssl_key_file=server.key")
    for source, name in [(certificate, "server.crt"), (key, "server.key")]:
        target = server.data / name
        target.write_bytes(source.read_bytes())
        owner = server.data.stat()
        target.chmod(0o600)
        postgres.os.chown(target, owner.st_uid, owner.st_gid)
    try:
        server.start()
        server.create_database("mlflow")
        yield server, certificate
    finally:
        server.stop("immediate")


def test_sslmode_require_encrypts(tls_server):
    server, _ = tls_server
    tracker = MLflowTracker(f"{server.uri('mlflow')}?sslmode=require")
    query = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
    query += " WHERE application_name = 'heimdall-tracking'"
    assert server.execute(query) == [(True,)]
    assert tracker.experiment_id


def test_sslmode_verify_full_wants_a_certificate_that_is_trusted(tls_server):
    server, certificate = tls_server
    uri = f"{server.uri('mlflow')}?sslmode=verify-full"
    with pytest.raises(ConfigurationError, match="certificate"):
        MLflowTracker(uri)
    assert MLflowTracker(f"{uri}&sslrootcert={certificate}").experiment_id


def test_sslmode_require_is_refused_by_a_server_without_tls(postgres_uri):
    with pytest.raises(ConfigurationError, match="TLS"):
        MLflowTracker(f"{postgres_uri}?sslmode=require")


MANY_THREADS = """
    import sys
    from threading import Thread
    from heimdall_tracking import MLflowTracker

    tracker = MLflowTracker(sys.argv[1], experiment_name="crowd")
    print(tracker.start_run(), flush=True)

    def log(thread):
        for step in range(500):
            tracker.log_metrics({f"m{thread}": step / 3, "shared": float(thread)}, step=step * 4 + thread)

    threads = [Thread(target=log, args=[thread]) for thread in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    tracker.end_run()
    tracker.flush()
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_eight_processes_of_four_threads_each_lose_nothing(kind, request, tmp_path: Path, start_script):
    uri = f"sqlite:///{tmp_path / 'crowd.db'}"
    if kind == "postgresql":
        uri = request.getfixturevalue("postgres_uri")
    processes = [start_script(MANY_THREADS, uri, HEIMDALL_DIR=tmp_path / f"{i}") for i in range(8)]
    runs = []
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err
        runs.append(out.strip())
    tracker = MLflowTracker(uri, experiment_name="crowd")
    assert sorted(run.run_id for run in tracker.search_runs()) == sorted(runs)
    for run_id in runs:
        for thread in range(4):
            history = tracker.get_metric_history(run_id, f"m{thread}")
            assert sorted(point.step for point in history) == [step * 4 + thread for step in range(500)]
        assert len(tracker.get_metric_history(run_id, "shared")) == 2000
        assert tracker.get_run(run_id).metrics["shared"] == 3.0


def test_the_host_that_serves_is_found_among_several(postgres_server, postgres_uri):
    account, _, place = postgres_uri.removeprefix("postgresql://").rpartition("@")
    host, _, database = place.partition("/")
    dead = f"127.0.0.1:{free_port()}"
    for uri in (
        f"postgresql://{account}@{dead},{host}/{database}",
        f"postgresql://{account}@/{database}?host={dead}&host={host}",
        f"postgresql://{account}@{dead},{host}/{database}?target_session_attrs=read-write",
    ):
        tracker = MLflowTracker(uri, experiment_name="hosts")
        with tracker.run() as run:
            tracker.log_metric("m", 1.0)
        tracker.flush(PATIENCE_S)
        assert tracker.get_run(run.run_id).metrics == {"m": 1.0}
    refused = MLflowTracker(
        f"{postgres_uri}?target_session_attrs=read-only", experiment_name="hosts", mode="online"
    )
    assert "target_session_attrs" in str(refused.status().last_error)


def test_a_service_and_a_file_of_passwords_complete_a_uri(
    postgres_server, postgres_uri, tmp_path, monkeypatch
):
    account, _, place = postgres_uri.removeprefix("postgresql://").rpartition("@")
    host, _, database = place.partition("/")
    (name, _, port), user = host.partition(":"), account.partition(":")[0]
    password = postgres.PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
    services, passwords = tmp_path / "services", tmp_path / "passwords"
    services.write_text(f"[ml]\nhost={name}\nport={port}\ndbname={database}\nuser={user}\n")
    passwords.write_text(f"{name}:{port}:*:{user}:{password}\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    tracker = MLflowTracker(f"postgresql:///?service=ml&passfile={passwords}", experiment_name="service")
    with tracker.run() as run:
        tracker.log_metric("m", 1.0)
    assert tracker.get_run(run.run_id).metrics == {"m": 1.0}
    assert postgres.PASSWORD not in repr(tracker)
    with pytest.raises(ConfigurationError, match="no service"):
        MLflowTracker("postgresql:///?service=other", experiment_name="service")


def test_the_user_is_that_of_the_system_where_none_is_named(postgres_server, monkeypatch):
    monkeypatch.delenv("PGUSER", raising=False)
    name = pwd.getpwuid(os.getuid()).pw_name
    tracker_uri = postgres_server.socket_uri("postgres").split("://")[1].rpartition("@")[2]
    with pytest.raises(ConfigurationError, match=name):
        MLflowTracker(f"postgresql://{tracker_uri}", experiment_name="e")
