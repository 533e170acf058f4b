"""The compose file of the examples: read, and tried with servers of the same kinds in place of the images."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import postgres, s3
from support.helpers import free_port, run_program
from support.stock import server_command, serving

pytestmark = [pytest.mark.server, pytest.mark.postgres, pytest.mark.s3]

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "compose"
TEXT = (FOLDER / "compose.yaml").read_text()
# `$$` is a dollar sign to compose.
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::([-?])([^}]*))?\}")
SERVICES: dict[str, Any] = yaml.safe_load(TEXT)["services"]
SECRET = re.compile("PASSWORD|SECRET|KEY|ROOT_USER")


def example() -> dict[str, str]:
    """The variables of `.env.example`."""
    lines = (FOLDER / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_every_variable_is_in_the_example_and_every_one_of_the_example_is_used():
    used = {match[1] for match in VARIABLE.finditer(TEXT)}
    assert used == set(example())


def test_no_secret_has_a_value_and_none_may_be_missing():
    for match in VARIABLE.finditer(TEXT):
        name, kind, _ = match.groups()
        if SECRET.search(name):
            assert kind == "?", f"compose must refuse to start without {name}"
            assert example()[name] == ""
        else:
            assert kind == "-", f"{name} needs a default"
            assert example()[name] == match[3]


def test_every_value_of_a_secret_comes_from_a_variable():
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if SECRET.search(key):
                assert VARIABLE.fullmatch(value), f"{name}: {key}"


def test_every_image_is_pinned():
    images = [service["image"] for service in SERVICES.values() if "image" in service]
    for dockerfile in FOLDER.glob("*.Dockerfile"):
        images += re.findall(r"^FROM (\S+)", dockerfile.read_text(), re.MULTILINE)
    assert len(images) == 5
    for image in images:
        tag = image.partition(":")[2]
        assert re.search(r"\d+\.\d+|RELEASE\.\d{4}-", tag), image


def test_what_the_services_are_built_and_made_of_exists():
    for name, service in SERVICES.items():
        if build := service.get("build"):
            assert (FOLDER / build["context"] / build["dockerfile"]).is_file(), name
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (FOLDER / source).is_file(), name
            else:
                assert source in yaml.safe_load(TEXT)["volumes"], name


def test_whoever_waits_for_a_healthy_service_waits_for_one_that_is_checked():
    for name, service in SERVICES.items():
        for other, wait in service.get("depends_on", {}).items():
            if wait["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], name
            else:
                assert wait["condition"] == "service_completed_successfully", name
                assert "restart" not in SERVICES[other], f"{other} never ends"


def test_nobody_beyond_this_machine_reaches_a_port():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_script_is_one_that_the_shell_reads_and_uses_the_variables_it_is_given():
    script = FOLDER / "bucket.sh"
    subprocess.run(["sh", "-n", str(script)], check=True)
    used = set(re.findall(r"\$([A-Z_0-9]+)", script.read_text()))
    assert used == set(SERVICES["bucket"]["environment"])


def test_the_policy_of_the_account_is_json_that_names_the_bucket_alone(tmp_path):
    text = (FOLDER / "bucket.sh").read_text()
    document = text.partition("<<POLICY\n")[2].partition("\nPOLICY\n")[0]
    policy = yaml.safe_load(document.replace("$S3_BUCKET", "b"))
    assert [it["Resource"] for it in policy["Statement"]] == [["arn:aws:s3:::b"], ["arn:aws:s3:::b/*"]]
    # MinIO takes no longer one.
    assert len(document) < 2048


def resolved(values: dict[str, str], text: str) -> str:
    return VARIABLE.sub(lambda match: values[match[1]] or "", text)


@pytest.fixture
def wired(postgres_server: postgres.PostgresServer, s3_server: s3.S3Server, bucket: str):
    """`environment(service)` as compose would make it, where other servers stand in for the containers."""
    postgres_server.execute("DROP DATABASE IF EXISTS mlflow")
    postgres_server.create_database("mlflow")
    postgres_server.execute("DROP ROLE IF EXISTS heimdall_compose")
    values = example() | {
        # The test server's account is called as the file's; its password holds for this test.
        "POSTGRES_PASSWORD": "0123456789abcdef",
        "S3_ACCESS_KEY_ID": s3.ACCESS_KEY,
        "S3_SECRET_ACCESS_KEY": s3.SECRET_KEY,
        "S3_BUCKET": bucket,
    }
    postgres_server.execute("CREATE ROLE heimdall_compose LOGIN SUPERUSER PASSWORD '0123456789abcdef'")

    def environment(service: str) -> dict[str, str]:
        found = {}
        for name, value in SERVICES[service]["environment"].items():
            text = resolved(values, value)
            text = text.replace(
                "heimdall:0123456789abcdef@postgres:5432",
                f"heimdall_compose:0123456789abcdef@127.0.0.1:{postgres_server.port}",
            )
            text = text.replace("http://minio:9000", s3_server.url)
            found[name] = text
        return found

    yield environment
    postgres_server.execute("DROP DATABASE IF EXISTS mlflow WITH (FORCE)")
    postgres_server.execute("DROP ROLE heimdall_compose")


def test_mlflow_starts_as_it_is_told_and_shows_what_the_demo_records(
    wired, postgres_server, s3_server, bucket, tmp_path
):
    port = str(free_port())
    service = SERVICES["mlflow"]
    program, *options = service["command"]
    assert program == "mlflow"
    options = ["127.0.0.1" if it == "0.0.0.0" else port if it == "5000" else it for it in options]
    command = [sys.executable, "-m", "mlflow", *options]
    with serving(command, f"http://127.0.0.1:{port}", tmp_path / "log", **wired("mlflow")):
        check = [it.replace("5000", port) for it in service["healthcheck"]["test"]]
        assert check[:2] == ["CMD", "python"]
        subprocess.run([sys.executable, *check[2:]], check=True)

        demo = wired("demo")
        demo |= {
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(postgres_server.port),
            "POSTGRES_USER": "heimdall_compose",
        }
        demo["HEIMDALL_DIR"] = str(tmp_path / "journal")
        code = """
from heimdall_tracking import initialize_mlflow, settings
tracker = initialize_mlflow(settings)
with tracker.run("demo") as run:
    tracker.log_text("found", "notes.txt")
tracker.flush()
print(run.run_id)
"""
        done = run_program([sys.executable, "-c", code], cwd=tmp_path, **demo)
        assert done.returncode == 0, done.stderr
        run_id = done.stdout.strip()
        assert list(s3_server.objects(bucket).values()) == [b"found"]
        url = f"http://127.0.0.1:{port}/get-artifact?path=notes.txt&run_uuid={run_id}"
        assert urllib.request.urlopen(url).read() == b"found"


def test_mlflow_answers_by_its_name_among_the_services_and_on_this_machine_and_by_no_other(tmp_path):
    port = free_port()
    variables = {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "MLFLOW_SERVER_ALLOWED_HOSTS": SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"],
    }
    url = f"http://127.0.0.1:{port}"

    def answer_to(host: str) -> int:
        request = urllib.request.Request(
            f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0", headers={"Host": host}
        )
        try:
            return urllib.request.urlopen(request).status
        except urllib.error.HTTPError as error:
            return error.code

    # On this machine the port is what `MLFLOW_PORT` says, and behind 80 browsers leave it out.
    known = ["mlflow:5000", "localhost:5000", "127.0.0.1:5000", "localhost:8080", "localhost", "127.0.0.1"]
    unknown = ["elsewhere:5000", "mlflow.elsewhere:5000", "localhost.elsewhere:5000"]
    with serving(server_command(port, None), url, tmp_path / "log", **variables):
        assert {host: answer_to(host) for host in known} == dict.fromkeys(known, 200)
        assert {host: answer_to(host) for host in unknown} == dict.fromkeys(unknown, 403)
