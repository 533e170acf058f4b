"""The environment of a run is recorded when asked for, with everything but secrets."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from types import SimpleNamespace

import pytest

from heimdall_tracking import ConfigurationError, MLflowTracker
from support.helpers import contents, run_program

TRAIN = """
import sys
from heimdall_tracking import MLflowTracker

tracker = MLflowTracker(sys.argv[1], environment=True)
with tracker.run("captured") as run:
    print(run.run_id)
"""


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository with a training script, and nothing that differs from its only commit."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "train.py").write_text(TRAIN)
    (folder / "config.yaml").write_text("lr: 0.1\n")
    git(folder, "init", "--quiet", "--initial-branch", "trunk")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    return folder


@pytest.fixture
def train(repository, uri, heimdall_dir):
    """Run the script to its end and return what the stock client reads of its run."""
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    def run(*arguments: str, **variables: object) -> SimpleNamespace:
        script = [sys.executable, "train.py", uri, *arguments]
        process = run_program(script, cwd=repository, HEIMDALL_DIR=heimdall_dir, **variables)
        assert (process.returncode, process.stderr) == (0, "")
        run_id = process.stdout.strip()
        client = MlflowClient(uri, uri)
        names = [file.path for file in client.list_artifacts(run_id, "environment")]
        files = {
            name.removeprefix("environment/"): Path(
                download_artifacts(run_id=run_id, artifact_path=name, tracking_uri=uri)
            ).read_text()
            for name in names
        }
        return SimpleNamespace(run_id=run_id, tags=client.get_run(run_id).data.tags, files=files)

    return run


def test_nothing_of_it_is_recorded_unless_asked_for(tracker, client):
    with tracker.run() as run:
        pass
    tracker.flush()
    assert [key for key in client.get_run(run.run_id).data.tags if key.startswith("heimdall.")] == []
    assert client.list_artifacts(run.run_id) == []


def test_tags_tell_python_machine_command_and_source(train, repository, uri):
    tags = train("--lr", "0.1", "two words").tags
    assert tags["heimdall.python"] == f"CPython {platform.python_version()}"
    assert tags["heimdall.hostname"] == socket.gethostname()
    command = shlex.split(tags["heimdall.command_line"])
    assert command[1:] == ["train.py", uri, "--lr", "0.1", "two words"]
    assert tags["heimdall.git.branch"] == "trunk"
    assert tags["heimdall.git.dirty"] == "false"
    assert tags["mlflow.source.git.commit"] == git(repository, "rev-parse", "HEAD")


def test_the_packages_are_those_that_importlib_finds(train):
    def normalised(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = train().files["packages.txt"].splitlines()
    names = [normalised(re.split(r"==| @ ", line)[0]) for line in lines]
    assert names == sorted(names)
    assert set(names) == {normalised(found.metadata["Name"]) for found in distributions()}
    assert f"psutil=={__import__('psutil').__version__}" in lines


def test_the_machine_is_described_as_json(train, repository):
    system = json.loads(train().files["system.json"])
    assert system["hostname"] == socket.gethostname()
    assert system["cpu_count"] == os.cpu_count()
    assert system["python"]["version"] == platform.python_version()
    assert system["architecture"] == platform.machine()
    assert system["working_directory"] == str(repository)
    assert system["git"]["commit"] == git(repository, "rev-parse", "HEAD")
    assert system["memory_megabytes"] > 0


def test_a_clean_source_has_no_difference(train):
    assert train().files.keys() == {"packages.txt", "system.json"}


def test_the_difference_of_a_changed_source_makes_it_again_from_its_commit(train, repository, tmp_path):
    git(repository, "config", "diff.noprefix", "true")
    git(repository, "config", "color.diff", "always")
    script = repository / "train.py"
    script.write_text(TRAIN + "\n# größer\n")
    (repository / "config.yaml").unlink()
    (repository / "new.py").write_text("x = 1\n")
    git(repository, "add", "new.py")
    run = train()
    assert run.tags["heimdall.git.dirty"] == "true"
    assert json.loads(run.files["system.json"])["git"]["changed"] == ["config.yaml", "new.py", "train.py"]
    clone, patch = tmp_path / "clone", tmp_path / "git_diff.patch"
    git(tmp_path, "clone", "--quiet", str(repository), str(clone))
    patch.write_text(run.files["git_diff.patch"])
    git(clone, "apply", str(patch))
    assert (clone / "train.py").read_text() == script.read_text()
    assert (clone / "new.py").exists()
    assert not (clone / "config.yaml").exists()


def test_a_long_difference_is_cut_and_says_so(train, repository):
    (repository / "train.py").write_text(TRAIN + "# filling\n" * 200_000)
    patch = train().files["git_diff.patch"]
    assert patch.endswith("# cut after 1048576 bytes: the difference is longer\n")
    assert len(patch) < 1_100_000


def test_secrets_are_recorded_nowhere(train, repository, db, heimdall_dir, tmp_path):
    git(repository, "remote", "add", "origin", "https://me:hush1@git.example/me/it.git")
    script = TRAIN + 'password = "hush2"\nuri = "postgresql://me:hush3@db/ml"\n'
    (repository / "train.py").write_text(script)
    (repository / "config.yaml").write_text("lr: 0.1\napi_key: hush4\n")
    (repository / ".env").write_text("SOMETHING=hush5\n")
    git(repository, "add", ".env")
    given = ["--password", "hush6", "--token=hush7", "db.secret=hush8", "--uri", "http://me:hush9@host/"]
    run = train(*given, "me:hush10@host", MY_VARIABLE="hush11")
    assert "--password *** --token=*** db.secret=*** --uri" in run.tags["heimdall.command_line"]
    assert run.tags["heimdall.git.remote"] == "https://***@git.example/me/it.git"
    assert 'password = "***"' in run.files["git_diff.patch"]
    assert "api_key: ***" in run.files["git_diff.patch"]
    written = contents(tmp_path)
    del written["repository/train.py"], written["repository/config.yaml"], written["repository/.env"]
    found = {name for name, content in written.items() if re.search(rb"hush\d", content)}
    assert {name for name in found if not name.startswith("repository/.git/")} == set()


def test_a_folder_outside_any_repository_is_no_obstacle(run_script, uri, tracker, client):
    run = run_script(TRAIN, uri)
    assert (run.code, run.err) == (0, "")
    tags = client.get_run(run.out.strip()).data.tags
    assert not any(key.startswith("heimdall.git.") for key in tags)
    # Code that is given by -c may be anything.
    assert tags["heimdall.command_line"].split(" -c ")[1] == shlex.join(["…", uri])


def test_a_branch_that_is_not_checked_out_is_not_named(train, repository):
    git(repository, "checkout", "--quiet", "--detach")
    tags = train().tags
    assert "heimdall.git.branch" not in tags
    assert tags["heimdall.git.dirty"] == "false"


def test_tags_of_the_user_win(uri):
    tracker = MLflowTracker(uri, environment=True)
    with tracker.run(tags={"heimdall.python": "mine"}) as run:
        pass
    assert tracker.get_run(run.run_id).tags["heimdall.python"] == "mine"


def test_a_resumed_run_keeps_what_it_was_started_with(train, uri):
    run = train("first")
    tracker = MLflowTracker(uri, environment=True)
    with tracker.run(run_id=run.run_id):
        pass
    assert tracker.get_run(run.run_id).tags["heimdall.command_line"] == run.tags["heimdall.command_line"]


def test_the_variable_turns_it_on_and_the_argument_wins(uri, monkeypatch):
    monkeypatch.setenv("HEIMDALL_LOG_ENVIRONMENT", "true")
    tracker = MLflowTracker(uri)
    with tracker.run() as run:
        pass
    assert "heimdall.python" in tracker.get_run(run.run_id).tags
    tracker = MLflowTracker(uri, environment=False)
    with tracker.run() as run:
        pass
    assert "heimdall.python" not in tracker.get_run(run.run_id).tags


def test_a_variable_that_is_neither_true_nor_false_is_an_error(uri, monkeypatch):
    monkeypatch.setenv("HEIMDALL_LOG_ENVIRONMENT", "perhaps")
    with pytest.raises(ConfigurationError, match="HEIMDALL_LOG_ENVIRONMENT"):
        MLflowTracker(uri)
