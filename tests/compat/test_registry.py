"""The registry of each release: what we write its client reads, what it writes we read."""

from __future__ import annotations

import pytest

from heimdall_tracking import AlreadyExistsError, InvalidInputError, MLflowTracker, NotFoundError

from .environments import driver

READ = """
    import json, sys
    from mlflow import MlflowClient

    client = MlflowClient(sys.argv[1], sys.argv[1])
    model = client.get_registered_model("powder")
    version = client.get_model_version("powder", "2")
    copy = client.get_model_version("copied", "1")

    def numbers(versions):
        return sorted(int(version.version) for version in versions)

    print(json.dumps({
        "model": [model.description, model.tags, {k: int(v) for k, v in model.aliases.items()}],
        "version": [version.current_stage, version.description, version.tags, version.run_id],
        "aliases": list(version.aliases),
        "latest": {it.current_stage: int(it.version) for it in model.latest_versions},
        "versions": numbers(client.search_model_versions("name = 'powder'")),
        "by tag": numbers(client.search_model_versions("tags.kind = 'onnx'")),
        "by alias": int(client.get_model_version_by_alias("powder", "champion").version),
        "copy": [copy.source, copy.run_id == version.run_id],
        "location": client.get_model_version_download_uri("copied", "1"),
        "models": sorted(it.name for it in client.search_registered_models()),
    }))
"""
WRITE = """
    import json, sys
    from mlflow import MlflowClient

    client = MlflowClient(sys.argv[1], sys.argv[1])
    client.create_registered_model("theirs", {"a": "b"}, "described")
    for _ in range(3):
        client.create_model_version("theirs", "s3://theirs/m", tags={"c": "d"}, description="theirs")
    client.transition_model_version_stage("theirs", "1", "Production")
    client.set_registered_model_alias("theirs", "champion", "2")
    client.delete_model_version("theirs", "3")
    # The same as `copy_model_version` does, which not every release has for servers.
    client.create_registered_model("copied")
    client.create_model_version("copied", "models:/theirs/1")
    print("null")
"""


@pytest.fixture(params=["database", "server"])
def uri(request: pytest.FixtureRequest, stock, empty_database: str, tmp_path, monkeypatch):
    """A database of the release, or its server on one."""
    monkeypatch.setenv("HEIMDALL_MLFLOW_VERSION", stock.version)
    monkeypatch.chdir(tmp_path)
    stock.make_database(empty_database)
    if request.param == "database":
        yield empty_database
    elif empty_database.startswith("sqlite"):
        with stock.server(empty_database, tmp_path) as url:
            yield url
    else:
        pytest.skip("a server is the same on any database")


def test_the_releases_client_reads_what_we_register(stock, uri):
    tracker = MLflowTracker(uri, experiment_name="shared")
    with tracker.run() as run:
        tracker.log_text("onnx", "m/model.onnx")
    tracker.create_registered_model("powder", {"team": "rf"}, "what it is")
    for _ in range(3):
        tracker.register_model("powder", f"runs:/{run.run_id}/m", "good", {"kind": "onnx", "n": 1})
    for version in (1, 2):
        tracker.transition_model_stage("powder", version, "Production", archive_existing_versions=True)
    tracker.set_model_alias("powder", "champion", 3)
    tracker.set_model_alias("powder", "champion", 2)
    tracker.set_model_version_tag("powder", 2, "n", 2)
    tracker.delete_model_version_tag("powder", 3, "kind")
    tracker.register_model("copied", "models:/powder@champion")
    tracker.register_model("renamed", "s3://models/m")
    tracker.rename_registered_model("renamed", "other")
    tracker.register_model("gone", "s3://models/m")
    tracker.delete_registered_model("gone")
    source = tracker.get_model_version("powder", 2).source

    found = stock.run(READ, driver(uri))

    assert found == {
        "model": ["what it is", {"team": "rf"}, {"champion": 2}],
        "version": ["Production", "good", {"kind": "onnx", "n": "2"}, run.run_id],
        "aliases": ["champion"],
        "latest": {"Archived": 1, "Production": 2, "None": 3},
        "versions": [1, 2, 3],
        "by tag": [1, 2],
        "by alias": 2,
        "copy": ["models:/powder/2", True],
        "location": source,
        "models": ["copied", "other", "powder"],
    }
    assert tracker.compare_model_versions("powder", versions=[2])[0]["aliases"] == ["champion"]


def test_we_read_what_the_releases_client_has_registered(stock, uri):
    tracker = MLflowTracker(uri, experiment_name="shared")
    stock.run(WRITE, driver(uri))

    model = tracker.get_registered_model("theirs")
    assert (model.description, model.tags, model.aliases) == ("described", {"a": "b"}, {"champion": "2"})
    latest = {it.current_stage: it.version for it in tracker.get_latest_versions("theirs")}
    assert latest == {"Production": "1", "None": "2"}
    found = tracker.search_model_versions("name = 'theirs' AND tags.c = 'd'", order_by="version_number")
    assert [(it.version, it.aliases, it.description) for it in found] == [
        ("1", [], "theirs"),
        ("2", ["champion"], "theirs"),
    ]
    assert [it.name for it in tracker.search_registered_models("name LIKE 'the%'")] == ["theirs"]
    assert tracker.get_model_version("copied", 1).source == "models:/theirs/1"
    assert tracker.resolve_model_uri("models:/copied/latest") == "s3://theirs/m"
    assert tracker.register_model("theirs", "models:/copied/1") == "4"
    with pytest.raises(NotFoundError):
        tracker.get_model_version("theirs", 3)
    with pytest.raises(NotFoundError):
        tracker.get_model_version_by_alias("theirs", "none")
    with pytest.raises(NotFoundError, match="logged model"):
        tracker.resolve_model_uri("models:/m-00000000000000000000000000000000")
    with pytest.raises(AlreadyExistsError):
        tracker.create_registered_model("theirs")
    with pytest.raises(InvalidInputError):
        tracker.transition_model_stage("theirs", 1, "Live")
