"""Versions on every store: what they are registered from, and that stock MLflow sees the same of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heimdall_tracking import InvalidInputError, NotFoundError
from support.helpers import contents


def test_both_clients_read_the_same_of_a_version(tracker, stock, model, run_id, version_facts):
    number = tracker.register_model(model, f"runs:/{run_id}/models/m", "good", {"format": "onnx"})
    tracker.transition_model_stage(model, number, "staging")
    tracker.set_model_alias(model, "champion", number)

    ours, theirs = tracker.get_model_version(model, number), stock.get_model_version(model, number)

    assert version_facts(ours) == version_facts(theirs)
    assert ours.aliases == theirs.aliases == ["champion"]
    assert (ours.run_id, ours.description, ours.current_stage) == (run_id, "good", "Staging")
    assert ours.tags == {"format": "onnx"}
    assert ours.source == f"{stock.get_run(run_id).info.artifact_uri}/models/m"
    uri = tracker.get_model_version_download_uri(model, number)
    assert uri == stock.get_model_version_download_uri(model, number) == ours.source


def test_a_version_of_the_stock_client_is_read_as_it_reads_it(tracker, stock, model, run_id, version_facts):
    stock.create_registered_model(model)
    source = f"{stock.get_run(run_id).info.artifact_uri}/models/m"
    theirs = stock.create_model_version(
        model, source, run_id, {"a b": "c"}, "https://page", "theirs", await_creation_for=0
    )
    ours = tracker.get_model_version(model, theirs.version)
    assert version_facts(ours) == version_facts(theirs)
    assert (ours.run_link, ours.aliases) == ("https://page", [])


def test_a_version_without_a_run_has_none(tracker, stock, model):
    number = tracker.register_model(model, "s3://models/a b/ü")
    ours = tracker.get_model_version(model, number)
    assert (ours.run_id, ours.source, ours.tags, ours.description) == (None, "s3://models/a b/ü", {}, "")
    assert stock.get_model_version(model, number).source == "s3://models/a b/ü"


@pytest.mark.parametrize("suffix", ["/2", "/production", "@champion", "/latest", "@latest"])
def test_a_version_of_a_version_has_its_files_and_its_run(tracker, stock, model, run_id, suffix, tmp_path):
    from mlflow.artifacts import download_artifacts

    tracker.register_model(model, "s3://models/other", "not this one", {"mine": 1})
    tracker.register_model(model, f"runs:/{run_id}/models/m", "good", {"mine": 1})
    tracker.transition_model_stage(model, 2, "Production")
    tracker.set_model_alias(model, "champion", 2)

    number = tracker.register_model(f"{model} copy", f"models:/{model}{suffix}", "copied", {"copy": 2})

    copy, original = stock.get_model_version(f"{model} copy", number), stock.get_model_version(model, "2")
    assert (copy.source, copy.run_id) == (f"models:/{model}/2", run_id)
    assert (copy.description, copy.tags, copy.current_stage) == ("copied", {"copy": "2"}, "None")
    location = stock.get_model_version_download_uri(f"{model} copy", number)
    assert location == original.source
    assert tracker.resolve_model_uri(f"models:/{model} copy/{number}") == original.source
    (tmp_path / "copy").mkdir()
    download_artifacts(artifact_uri=f"models:/{model} copy/{number}", dst_path=str(tmp_path / "copy"))
    assert contents(tmp_path / "copy")["model.onnx"] == b"onnx"


def test_a_copy_is_the_one_that_the_stock_client_makes(tracker, stock, model, run_id, version_facts):
    number = tracker.register_model(model, f"runs:/{run_id}/models/m", "good", {"mine": 1})
    original = stock.get_model_version(model, number)
    tracker.register_model(f"{model} copy", f"models:/{model}/{number}", "good", {"mine": 1})
    stock.copy_model_version(f"models:/{model}/{number}", f"{model} copy")
    ours, theirs = (version_facts(tracker.get_model_version(f"{model} copy", number)) for number in (1, 2))
    for facts in (ours, theirs):
        del facts["version"], facts["creation_timestamp"], facts["last_updated_timestamp"]
    assert ours == theirs
    # And a copy of a copy.
    tracker.register_model(f"{model} third", f"models:/{model} copy/2")
    assert stock.get_model_version_download_uri(f"{model} third", "1") == original.source


@pytest.fixture
def logged_model(tracker, stock, run_id):
    """A model of MLflow 3, apart from the artifacts of its run."""
    made = stock.create_logged_model(tracker.experiment_id, name="logged", source_run_id=run_id)
    return stock.finalize_logged_model(made.model_id, "READY")


@pytest.mark.parametrize("form", ["models:/{model}", "runs:/{run}/logged"])
def test_a_logged_model_is_registered_and_knows_it(tracker, stock, model, run_id, logged_model, form):
    uri = form.format(model=logged_model.model_id, run=run_id)
    numbers = [tracker.register_model(model, uri) for _ in range(2)]
    found = stock.get_model_version(model, numbers[1])
    assert (found.source, found.run_id) == (f"models:/{logged_model.model_id}", run_id)
    location = logged_model.artifact_location
    assert stock.get_model_version_download_uri(model, numbers[1]) == location
    assert tracker.resolve_model_uri(uri) == location
    assert tracker.resolve_model_uri(f"models:/{model}/2") == location
    noted = json.loads(stock.get_logged_model(logged_model.model_id).tags["mlflow.modelVersions"])
    assert [(it["name"], int(it["version"])) for it in noted] == [(model, 1), (model, 2)]


def test_a_logged_model_that_is_deleted_is_none(tracker, stock, model, run_id, logged_model):
    stock.delete_logged_model(logged_model.model_id)
    with pytest.raises(NotFoundError, match=logged_model.model_id):
        tracker.register_model(model, f"models:/{logged_model.model_id}")
    # The name is that of a folder of the run again.
    uri = stock.get_run(run_id).info.artifact_uri
    assert tracker.resolve_model_uri(f"runs:/{run_id}/logged") == f"{uri}/logged"


def test_what_mlflow_registers_itself_leads_to_its_files(tracker, stock, model, run_id):
    stock.create_registered_model(model)
    stock.create_model_version(model, f"runs:/{run_id}/models/m", run_id)
    uri = stock.get_run(run_id).info.artifact_uri
    assert tracker.get_model_version_download_uri(model, 1) == f"runs:/{run_id}/models/m"
    assert tracker.resolve_model_uri(f"models:/{model}/1") == f"{uri}/models/m"
    assert tracker.resolve_model_uri(f"models:/{model}/1/model.onnx") == f"{uri}/models/m/model.onnx"
    number = tracker.register_model(f"{model} copy", f"models:/{model}/latest")
    assert tracker.resolve_model_uri(f"models:/{model} copy/{number}") == f"{uri}/models/m"


def test_local_folders_are_registered_where_no_server_forbids_it(tracker, stock, store, model, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "weights").write_bytes(b"weights")
    for form in (tmp_path / "here", "here", f"file://{tmp_path}/here"):
        if store.startswith("http"):
            with pytest.raises(InvalidInputError, match="run_id"):
                tracker.register_model(model, form)
        else:
            number = tracker.register_model(model, form)
            expected = form if str(form).startswith("file:") else str(tmp_path / "here")
            assert stock.get_model_version(model, number).source == expected


@pytest.mark.parametrize(
    ("uri", "error", "hint"),
    [
        ("s3://s3://bucket/m", InvalidInputError, "two schemes: write s3://bucket/m"),
        ("s3:///m", InvalidInputError, "bucket"),
        ("s3://" + "b" * 500, InvalidInputError, "500 characters"),
        ("models:/{model}/1/data", InvalidInputError, "registered whole"),
        ("models:/{model}/Live", InvalidInputError, "Staging"),
        ("models:/{model}/2", NotFoundError, "version 2"),
        ("models:/{model}/Production", NotFoundError, "in stage Production"),
        ("models:/{model}@champion", NotFoundError, '"champion"'),
        ("models:/{model} none/latest", NotFoundError, "none"),
        ("models:/m-00000000000000000000000000000000", NotFoundError, "logged model"),
        ("runs:/00000000000000000000000000000000/m", NotFoundError, "run"),
    ],
)
def test_what_cannot_be_registered_leaves_no_model_and_says_why(tracker, stock, model, uri, error, hint):
    tracker.register_model(model, "s3://models/m")
    with pytest.raises(error, match=hint):
        tracker.register_model(f"{model} new", uri.format(model=model))
    with pytest.raises(NotFoundError):
        tracker.get_registered_model(f"{model} new")


def test_no_password_of_a_location_is_shown(tracker, model):
    with pytest.raises(InvalidInputError) as error:
        tracker.register_model(model, "https://https://user:hunter2@host/m")
    assert "hunter2" not in str(error.value)
    tracker.register_model(model, "s3://user:hunter2@host/m")
    assert "hunter2" not in repr(tracker.get_model_version(model, 1))


def test_texts_are_kept_whole(tracker, stock, store, model):
    tags = {"é" * 250: "漢" * 5000, "empty": ""}
    if not store.startswith("postgresql"):
        tags["long"] = "x" * 100_000
    number = tracker.register_model(model, "s3://models/m", "d" * 5000, tags)
    found = stock.get_model_version(model, number)
    assert (found.description, found.tags) == ("d" * 5000, tags)
    assert tracker.get_model_version(model, number).tags == tags
    with pytest.raises(InvalidInputError, match="100000"):
        tracker.register_model(model, "s3://models/m", tags={"longer": "x" * 100_001})
    assert tracker.search_model_versions(f'name = "{model}"')[0].version == number


def test_a_new_version_archives_those_of_its_stage_where_it_is_told_to(tracker, stock, model):
    for _ in range(4):
        tracker.register_model(model, "s3://models/m")
    for number in (1, 2):
        tracker.transition_model_stage(model, number, "Production")
    tracker.transition_model_stage(model, 3, "Staging")
    tracker.transition_model_stage(model, 4, "production", archive_existing_versions=True)
    stages = [stock.get_model_version(model, str(number)).current_stage for number in range(1, 5)]
    assert stages == ["Archived", "Archived", "Staging", "Production"]
    updated = [stock.get_model_version(model, str(number)).last_updated_timestamp for number in (1, 2, 4)]
    assert len(set(updated)) == 1
    assert tracker.get_registered_model(model).last_updated_timestamp == updated[0]
    # The stock client goes on from there.
    stock.transition_model_version_stage(model, 3, "Production", archive_existing_versions=True)
    stages = [tracker.get_model_version(model, number).current_stage for number in range(1, 5)]
    assert stages == ["Archived", "Archived", "Production", "Archived"]


def test_a_transition_that_fails_archives_nothing(tracker, model):
    tracker.register_model(model, "s3://models/m")
    tracker.transition_model_stage(model, 1, "Production")
    with pytest.raises(NotFoundError, match="version 2"):
        tracker.transition_model_stage(model, 2, "Production", archive_existing_versions=True)
    with pytest.raises(InvalidInputError, match="Staging or Production"):
        tracker.transition_model_stage(model, 1, "Archived", archive_existing_versions=True)
    assert tracker.get_model_version(model, 1).current_stage == "Production"


def test_a_deleted_version_is_gone_for_both_and_its_number_is_not_given_again(
    tracker, stock, model, version_facts
):
    for _ in range(3):
        tracker.register_model(model, "s3://models/m", "d", {"a": "b"})
    tracker.set_model_alias(model, "champion", 2)
    tracker.set_model_alias(model, "kept", 1)
    tracker.delete_model_version(model, 2)
    stock.delete_model_version(model, "3")
    for number in (2, 3):
        with pytest.raises(NotFoundError, match=f"version {number}"):
            tracker.get_model_version(model, number)
        for change in (
            lambda number=number: tracker.delete_model_version(model, number),
            lambda number=number: tracker.set_model_version_tag(model, number, "a", "b"),
            lambda number=number: tracker.set_model_alias(model, "again", number),
            lambda number=number: tracker.transition_model_stage(model, number, "Staging"),
            lambda number=number: tracker.update_model_version(model, number, "x"),
            lambda number=number: tracker.get_model_version_download_uri(model, number),
        ):
            with pytest.raises(NotFoundError):
                change()
    quoted = model.replace("'", "")
    found = tracker.search_model_versions(f"name = '{quoted}'")
    assert [version.version for version in found] == ["1"]
    assert [version.version for version in stock.search_model_versions(f"name = '{quoted}'")] in (
        ["1"],
        [1],
    )
    assert tracker.get_registered_model(model).aliases == {"kept": "1"}
    assert stock.get_registered_model(model).aliases.keys() == {"kept"}
    assert [version.version for version in tracker.get_latest_versions(model)] == ["1"]
    assert tracker.register_model(model, "s3://models/m") == "4"


def test_a_description_and_tags_of_a_version_change_for_both(tracker, stock, model):
    number = tracker.register_model(model, "s3://models/m", "before", {"old": 1, "gone": 2})
    changed = tracker.update_model_version(model, number, "after 'é'")
    assert changed.description == stock.get_model_version(model, number).description == "after 'é'"
    tracker.set_model_version_tag(model, number, "old", 3)
    tracker.set_model_version_tag(model, number, "new", True)
    tracker.delete_model_version_tag(model, number, "gone")
    tracker.delete_model_version_tag(model, number, "never")
    assert stock.get_model_version(model, number).tags == {"old": "3", "new": "True"}
    stock.set_model_version_tag(model, number, "old", "theirs")
    stock.delete_model_version_tag(model, number, "new")
    stock.update_model_version(model, number, "theirs")
    found = tracker.get_model_version(model, number)
    assert (found.description, found.tags) == ("theirs", {"old": "theirs"})


def test_versions_stand_beside_each_other_with_the_metrics_of_their_runs(tracker, stock, model, run_id):
    pandas = pytest.importorskip("pandas")
    with tracker.run() as better:
        tracker.log_metrics({"val/loss": 0.125, "only here": 1.0})
        tracker.log_text("weights", "m/weights.txt")
    tracker.register_model(model, f"runs:/{run_id}/models/m")
    tracker.register_model(model, f"runs:/{better.run_id}/m")
    tracker.register_model(model, "s3://models/m")
    tracker.register_model(model, "s3://models/gone")
    tracker.delete_model_version(model, 4)
    tracker.transition_model_stage(model, 1, "Production")
    tracker.set_model_alias(model, "champion", 2)
    tracker.set_model_alias(model, "best", 2)

    table = tracker.compare_model_versions(model)

    assert table == [
        {
            "version": "1",
            "stage": "Production",
            "aliases": [],
            "run_id": run_id,
            "metrics.acc": 0.5,
            "metrics.only here": None,
            "metrics.val/loss": 0.25,
        },
        {
            "version": "2",
            "stage": "None",
            "aliases": ["best", "champion"],
            "run_id": better.run_id,
            "metrics.acc": None,
            "metrics.only here": 1.0,
            "metrics.val/loss": 0.125,
        },
        {
            "version": "3",
            "stage": "None",
            "aliases": [],
            "run_id": None,
            "metrics.acc": None,
            "metrics.only here": None,
            "metrics.val/loss": None,
        },
    ]
    frame = table.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(table[0])
    assert frame["metrics.val/loss"].tolist()[:2] == [0.25, 0.125]
    assert frame["metrics.val/loss"].isna().tolist() == [False, False, True]
    some = tracker.compare_model_versions(model, versions=[2, "1", 2], metrics=["val/loss", "none"])
    assert [(row["version"], row["metrics.val/loss"], row["metrics.none"]) for row in some] == [
        ("1", 0.25, None),
        ("2", 0.125, None),
    ]
    with pytest.raises(NotFoundError):
        tracker.compare_model_versions(model, versions=[4])
    with pytest.raises(NotFoundError):
        tracker.compare_model_versions(f"{model} none")


def test_a_table_of_versions_is_one_of_arrow_and_polars_too(tracker, model, run_id):
    arrow, polars = pytest.importorskip("pyarrow"), pytest.importorskip("polars")
    tracker.create_registered_model(model)
    assert tracker.compare_model_versions(model).to_pandas().columns.tolist() == [
        "version",
        "stage",
        "aliases",
        "run_id",
    ]
    tracker.register_model(model, f"runs:/{run_id}/models/m")
    tracker.register_model(model, "s3://models/m")
    tracker.set_model_alias(model, "a", 1)
    table = tracker.compare_model_versions(model, metrics="acc")
    assert table.to_arrow().to_pylist() == table
    assert table.to_arrow().schema.field("metrics.acc").type == arrow.float64()
    assert table.to_polars().to_dicts() == table
    assert table.to_polars().schema["aliases"] == polars.List(polars.String)


def test_what_was_recorded_is_in_the_store_before_a_version_is_registered(tracker, stock, model, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"onnx" * 100_000)
    run_id = tracker.start_run()
    tracker.log_artifact(tmp_path / "model.onnx", "m")
    number = tracker.register_model(model, f"runs:/{run_id}/m")
    found = stock.get_model_version(model, number)
    (file,) = stock.list_artifacts(found.run_id, "m")
    assert (Path(file.path).name, file.file_size) == ("model.onnx", 400_000)
