"""`heimdall config` and `heimdall doctor`: what is set, from where, whether it works, and never a secret."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import socket
import threading
from email.utils import formatdate
from pathlib import Path
from time import time

import pytest

from heimdall_tracking import MLflowTracker
from heimdall_tracking.cli import config, doctor
from support import s3
from support.helpers import contents, free_port, write

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def checked(heimdall):
    """Run `heimdall doctor --json`; each check by its name, and the exit code."""

    def run(*arguments: object, **variables: object) -> tuple[dict[str, dict[str, str]], int]:
        done = heimdall("doctor", "--json", *arguments, **variables)
        assert "hush" not in done.stdout + done.stderr
        report = json.loads(done.stdout)
        assert report["ok"] is (done.returncode == 0)
        return {check["check"]: check for check in report["checks"]}, done.returncode

    return run


def test_every_setting_is_shown_with_its_source(heimdall, tmp_path):
    write(
        tmp_path / ".env",
        b"# ours\nMLFLOW_EXPERIMENT_NAME=mine\n\n"
        b"MLFLOW_S3_ACCESS_KEY_ID=hush\nMLFLOW_S3_SECRET_ACCESS_KEY=hush\n"
        b"HEIMDALL_MODE=offline\nMLFLOW_TRACKING_TOKEN=hush\n",
    )
    variables = {
        "MLFLOW_REGISTRY_URI": "postgresql://me:hush@db/ml",
        "MLFLOW_MIRROR_URIS": "http://me:hush@one,http://me:hush@two",
        "HTTPS_PROXY": "http://me:hush@proxy:3128",
    }
    done = heimdall("config", "--json", **variables)
    assert "hush" not in done.stdout + done.stderr
    found = json.loads(done.stdout)
    rows = {row["name"]: (row["value"], row["source"]) for row in found["settings"]}
    file = str(tmp_path / ".env")
    assert found["env_file"] == file
    assert rows["mlflow_tracking_uri"] == ("sqlite:///mlflow.db", "default")
    assert rows["mlflow_experiment_name"] == ("mine", f"{file}:2")
    assert rows["mlflow_s3_access_key_id"] == ("****", f"{file}:4")
    assert rows["mlflow_registry_uri"] == ("postgresql://***@db/ml", "environment MLFLOW_REGISTRY_URI")
    assert rows["HEIMDALL_MODE"] == ("offline", f"{file}:6")
    assert rows["HEIMDALL_DURABILITY"] == ("process", "default")
    assert rows["MLFLOW_TRACKING_TOKEN"] == ("****", f"{file}:7")
    assert rows["MLFLOW_MIRROR_URIS"][0] == "http://***@one http://***@two"
    assert rows["HTTPS_PROXY"][0] == "http://***@proxy:3128"
    table = heimdall("config", **variables)
    assert "hush" not in table.stdout + table.stderr
    for name, (value, source) in rows.items():
        assert re.search(rf"^{name} +{re.escape(value or '-')} +{re.escape(source)}$", table.stdout, re.M), (
            name
        )


def test_the_variables_of_postgres_are_the_source_of_their_uri(heimdall):
    done = heimdall("config", "--json", POSTGRES_HOST="db", POSTGRES_PASSWORD="hush")
    (row,) = [row for row in json.loads(done.stdout)["settings"] if row["name"] == "mlflow_tracking_uri"]
    assert row["value"] == "postgresql://***@db/postgres"
    assert row["source"] == "environment POSTGRES_HOST, environment POSTGRES_PASSWORD"
    assert "hush" not in done.stdout


def test_every_variable_of_ours_is_shown():
    sources = [*ROOT.glob("src/**/*.rs"), *ROOT.glob("python/**/*.py")]
    used = {name for file in sources for name in re.findall(r'"(HEIMDALL_[A-Z_]+[A-Z])"', file.read_text())}
    assert used - {"HEIMDALL_ENV_FILE"} == {
        name for name in config.DEFAULTS_OF_VARIABLES if name.startswith("HEIMDALL_")
    }


def test_a_healthy_folder_passes_and_keeps_no_trace(checked, tmp_path):
    before = set(tmp_path.rglob("*"))
    found, code = checked()
    assert code == 0
    assert {check["state"] for check in found.values() if check["check"] != "file system"} == {"ok"}
    assert "has no tables yet" in found["tracking store"]["found"]
    assert "written, read and deleted" in found["artifacts"]["found"]
    assert set(tmp_path.rglob("*")) == before


def test_the_release_of_a_database_is_named(checked, uri):
    MLflowTracker(uri, experiment_name="mine").flush()
    found, code = checked("--uri", uri, "--experiment", "mine")
    assert code == 0
    assert "schema of MLflow 3.17 (revision dc11669786a5)" in found["tracking store"]["found"]


def test_the_known_revisions_are_those_of_mlflow():
    import mlflow.store.db_migrations
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(Path(mlflow.store.db_migrations.__file__).parent)
    theirs = [script.revision for script in scripts.walk_revisions()][::-1]
    ours = [entry.partition("=")[0] for entry in doctor.REVISIONS]
    # The last is that of a release which is newer than the installed one.
    assert theirs[-len(ours) + 1 :] == ours[:-1]
    assert doctor._release("867495a8f9d4") == "between 2.8 and 2.22"
    assert doctor._release("acf3f17fdcc7") == "2.8"
    assert doctor._release("unknown") is None
    for file in ROOT.glob("src/store/sql/schema/mlflow_*.rs"):
        version, revision = (
            re.search(rf'{name}: "([\w.]+)"', file.read_text())[1] for name in ("mlflow_version", "revision")
        )
        assert doctor._release(revision) == ".".join(version.split(".")[:2])


def test_a_newer_schema_is_a_warning(checked, uri, db):
    import contextlib
    import sqlite3

    MLflowTracker(uri, experiment_name="mine").flush()
    with contextlib.closing(sqlite3.connect(db)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        connection.commit()
    found, code = checked("--uri", uri)
    assert (code, found["tracking store"]["state"]) == (0, "warning")
    assert "ffffffffffff" in found["tracking store"]["found"]


def test_a_database_of_something_else_fails(checked, tmp_path):
    (tmp_path / "text.db").write_text("This is no database. " * 100)
    found, code = checked("--uri", f"sqlite:///{tmp_path}/text.db")
    assert (code, found["tracking store"]["state"]) == (1, "fail")


def test_a_deleted_experiment_fails(checked, uri, tracker, client):
    client.delete_experiment(tracker.experiment_id)
    found, code = checked("--uri", uri, "--experiment", "tests")
    assert code == 1
    assert "'tests' is deleted" in found["tracking store"]["found"]


def test_a_server_that_is_silent_fails_in_time(checked):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"postgresql://me:hush@127.0.0.1:{silent.getsockname()[1]}/db"
        found, code = checked("--uri", uri, HEIMDALL_CONNECT_TIMEOUT=1)
    assert code == 1
    assert "does not answer within 1 s" in found["tracking store"]["found"]
    assert "HEIMDALL_CONNECT_TIMEOUT" in found["tracking store"]["advice"]
    assert found["artifacts"]["state"] != "fail" or found["artifacts"]["advice"]


def test_a_server_that_is_not_there_fails(checked):
    found, code = checked("--uri", f"http://me:hush@127.0.0.1:{free_port()}", HEIMDALL_CONNECT_TIMEOUT=2)
    assert (code, found["tracking store"]["state"]) == (1, "fail")
    assert found["tracking store"]["advice"]


def test_postgresql_is_looked_at_and_gets_no_tables(checked, postgres_uri, postgres_server):
    found, code = checked("--uri", postgres_uri)
    assert code == 0
    assert "has no tables yet" in found["tracking store"]["found"]
    assert "the database" in found["clock"]["found"]
    MLflowTracker(postgres_uri, experiment_name="mine").flush()
    found, code = checked("--uri", postgres_uri)
    assert "schema of MLflow 3.17" in found["tracking store"]["found"]


def test_a_tracking_server_is_asked_and_its_artifacts_are_tried(checked, tracking_server):
    found, code = checked("--uri", tracking_server)
    assert code == 0, found
    assert "answers" in found["tracking store"]["found"]
    assert "written, read and deleted" in found["artifacts"]["found"]
    assert "the tracking server" in found["clock"]["found"]


@pytest.fixture
def at(s3_server):
    """Variables that name a bucket and keys."""

    def variables(bucket: str, key: str = s3.ACCESS_KEY, secret: str = s3.SECRET_KEY) -> dict[str, str]:
        return {
            "MLFLOW_ARTIFACT_URI": f"s3://{bucket}/runs",
            "MLFLOW_S3_ENDPOINT_URL": s3_server.url,
            "MLFLOW_S3_ACCESS_KEY_ID": key,
            "MLFLOW_S3_SECRET_ACCESS_KEY": secret,
        }

    return variables


def test_a_bucket_is_written_read_and_left_as_it_was(checked, at, bucket, s3_server):
    found, code = checked(**at(bucket))
    assert code == 0
    assert found["artifacts"]["found"] == f"s3://{bucket}/runs: a file was written, read and deleted"
    assert "the artifact store" in found["clock"]["found"]
    assert s3_server.keys(bucket) == []


def test_a_bucket_of_moto_is_tried(checked, moto_server, tmp_path):
    bucket = moto_server.create_bucket("doctored")
    found, code = checked(MLFLOW_ARTIFACT_URI=f"s3://{bucket}", **moto_server.variables)
    assert (code, found["artifacts"]["state"]) == (0, "ok")
    assert moto_server.keys(bucket) == []


@pytest.mark.parametrize(
    ("bucket_name", "key", "secret"),
    [
        (None, s3.READER_KEY, s3.READER_SECRET),
        (None, s3.ACCESS_KEY, "hush-hush"),
        ("no-such-bucket", s3.ACCESS_KEY, s3.SECRET_KEY),
    ],
    ids=["may only read", "wrong secret", "no bucket"],
)
def test_a_bucket_that_cannot_be_written_fails(checked, at, bucket, bucket_name, key, secret):
    found, code = checked(**at(bucket_name or bucket, key, secret))
    assert (code, found["artifacts"]["state"]) == (1, "fail")
    assert "write failed" in found["artifacts"]["found"]
    assert "s3:PutObject" in found["artifacts"]["advice"]


@pytest.mark.parametrize(("off", "state"), [(-30, "ok"), (300, "warning"), (-3600, "fail")])
def test_a_clock_that_differs_is_told(off, state):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response_only(403)
            self.send_header("Date", formatdate(time() + off, usegmt=True))
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://me:hush@127.0.0.1:{server.server_port}"
        check = doctor._clock({"mlflow_tracking_uri": uri, "mlflow_s3_endpoint_url": None}, None, None, 5)
        server.shutdown()
    assert check.state == state
    if state != "ok":
        assert ("behind" if off > 0 else "ahead of") in check.found
        assert "NTP" in check.advice


def test_a_full_disk_and_a_file_system_of_memory_are_warnings(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 5))
    assert doctor._room(tmp_path / "new").state == "warning"
    for kind in ("nfs4", "fuse.sshfs", "tmpfs", "overlay"):
        monkeypatch.setattr(doctor, "_kind_of_file_system", lambda _, kind=kind: kind)
        check = doctor._file_system(tmp_path)
        assert (check.state, kind in check.found) == ("warning", True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no file system in memory")
def test_the_kind_of_a_file_system_is_found():
    assert doctor._kind_of_file_system(Path("/dev/shm")) == "tmpfs"


def test_a_folder_that_is_a_file_fails(checked, tmp_path):
    (tmp_path / "file").touch()
    found, code = checked(HEIMDALL_DIR=tmp_path / "file" / "journals")
    assert (code, found["HEIMDALL_DIR"]["state"]) == (1, "fail")


def test_another_torch_than_the_linked_one_fails(monkeypatch):
    import importlib.metadata

    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1.0.0+cpu")
    check = doctor._torch()
    if "not installed" in check.found:
        pytest.skip("heimdall-training is not installed")
    assert check.state == "fail"
    assert check.advice.startswith("pip install torch==")


def test_a_check_that_hangs_ends():
    forever = threading.Event()
    check = doctor._bounded("hung", -4.9, lambda: forever.wait() and None)
    assert check.state == "fail"
    assert "no answer" in check.found


def test_secrets_in_a_file_for_all_are_a_warning(checked, tmp_path):
    file = write(tmp_path / ".env", b"MLFLOW_S3_ACCESS_KEY_ID=hush\nMLFLOW_S3_SECRET_ACCESS_KEY=hush\n")
    file.chmod(0o644)
    assert checked()[0][".env"]["state"] == "warning"
    file.chmod(0o600)
    assert checked()[0][".env"]["state"] == "ok"


def test_a_setting_that_makes_no_sense_fails_with_its_name(checked):
    found, code = checked(HEIMDALL_CONNECT_TIMEOUT="soon")
    assert code == 1
    assert "HEIMDALL_CONNECT_TIMEOUT" in found["settings"]["found"]
    found, code = checked(HEIMDALL_ENV_FILE="none.env")
    assert code == 1
    assert "none.env" in found[".env"]["found"]


def test_the_checks_are_printed_with_what_to_do(heimdall, tmp_path):
    done = heimdall("doctor", "--uri", "sqlite:///missing/mlflow.db")
    assert done.returncode == 1
    assert re.search(r"^fail    tracking store: .*missing", done.stdout, re.M)
    assert re.search(r"^ok      python: ", done.stdout, re.M)
    assert contents(tmp_path) == {}
