"""Registered models, their tags and aliases on every store, and the refusals of both clients."""

from __future__ import annotations

import pytest

from heimdall_tracking import AlreadyExistsError, InvalidInputError, NotFoundError


def test_both_clients_read_the_same_of_a_model(tracker, stock, model, model_facts):
    created = tracker.create_registered_model(model, {"team": "rf", "n": 1}, "what it is")
    assert model_facts(created) == model_facts(stock.get_registered_model(model))
    assert (created.description, created.tags) == ("what it is", {"team": "rf", "n": "1"})
    assert (created.latest_versions, created.aliases) == ([], {})
    for stage in ("None", "Production", "Production", "Staging"):
        number = tracker.register_model(model, "s3://models/m", tags={"for": stage})
        tracker.transition_model_stage(model, number, stage)
    tracker.set_model_alias(model, "champion", 3)
    ours = tracker.get_registered_model(model)
    assert model_facts(ours) == model_facts(stock.get_registered_model(model))
    assert [(it.version, it.current_stage, it.aliases) for it in ours.latest_versions] == [
        ("1", "None", []),
        ("3", "Production", ["champion"]),
        ("4", "Staging", []),
    ]


def test_the_newest_version_of_each_stage_is_the_stock_clients(tracker, stock, model, version_facts):
    for stage in ("Staging", "None", "Production", "Production", "Archived"):
        number = tracker.register_model(model, "s3://models/m")
        tracker.transition_model_stage(model, number, stage)
    tracker.set_model_alias(model, "champion", 4)
    for stages in (None, [], ["production"], ["Staging", "NONE"], ["Archived", "Production"]):
        ours = tracker.get_latest_versions(model, stages)
        theirs = sorted(stock.get_latest_versions(model, stages), key=lambda it: int(it.version))
        assert [version_facts(it) for it in ours] == [version_facts(it) for it in theirs]
    assert tracker.get_latest_versions(model, ["Production"])[0].aliases == ["champion"]
    with pytest.raises(InvalidInputError, match="Live"):
        tracker.get_latest_versions(model, ["Live"])


def test_a_model_is_renamed_with_all_it_has(tracker, stock, model, model_facts):
    tracker.create_registered_model(model, {"a": "b"}, "d")
    tracker.register_model(model, "s3://models/m", "v", {"c": "d"})
    tracker.set_model_alias(model, "champion", 1)
    before = tracker.get_registered_model(model)
    renamed = tracker.rename_registered_model(model, f"{model} new")
    assert renamed.name == f"{model} new"
    assert model_facts(renamed) == model_facts(stock.get_registered_model(f"{model} new"))
    assert (renamed.tags, renamed.aliases, renamed.description) == ({"a": "b"}, {"champion": "1"}, "d")
    version = tracker.get_model_version(f"{model} new", 1)
    assert (version.tags, version.aliases, version.source) == ({"c": "d"}, ["champion"], "s3://models/m")
    assert version.last_updated_timestamp == renamed.last_updated_timestamp
    assert renamed.last_updated_timestamp >= before.last_updated_timestamp
    with pytest.raises(NotFoundError):
        tracker.get_registered_model(model)
    assert tracker.register_model(f"{model} new", "s3://models/m") == "2"
    stock.rename_registered_model(f"{model} new", f"{model} theirs")
    assert tracker.get_model_version_by_alias(f"{model} theirs", "champion").version == "1"


def test_a_model_is_deleted_with_all_it_has(tracker, stock, model):
    from mlflow.exceptions import MlflowException

    tracker.create_registered_model(model, {"a": "b"}, "d")
    for _ in range(2):
        tracker.register_model(model, "s3://models/m", "v", {"c": "d"})
    tracker.set_model_alias(model, "champion", 1)
    tracker.delete_model_version(model, 2)
    tracker.delete_registered_model(model)
    with pytest.raises(NotFoundError, match="registered model"):
        tracker.get_registered_model(model)
    with pytest.raises(MlflowException, match="not found"):
        stock.get_registered_model(model)
    # Nothing of it is left for another one of that name.
    assert tracker.register_model(model, "s3://models/m") == "1"
    again = tracker.get_registered_model(model)
    assert (again.tags, again.aliases, again.description) == ({}, {}, "")
    assert again.latest_versions[0].tags == {}
    stock.delete_registered_model(model)
    with pytest.raises(NotFoundError):
        tracker.get_model_version(model, 1)


def test_a_description_and_tags_of_a_model_change_for_both(tracker, stock, model, model_facts):
    tracker.create_registered_model(model, {"old": 1, "gone": 2}, "before")
    assert tracker.update_registered_model(model, "after 'é'").description == "after 'é'"
    tracker.set_registered_model_tag(model, "old", 3)
    tracker.set_registered_model_tag(model, "new/one", "é" * 5000)
    tracker.delete_registered_model_tag(model, "gone")
    tracker.delete_registered_model_tag(model, "never")
    theirs = stock.get_registered_model(model)
    assert (theirs.description, theirs.tags) == ("after 'é'", {"old": "3", "new/one": "é" * 5000})
    stock.set_registered_model_tag(model, "old", "theirs")
    stock.delete_registered_model_tag(model, "new/one")
    stock.update_registered_model(model, "theirs")
    ours = tracker.get_registered_model(model)
    assert (ours.description, ours.tags) == ("theirs", {"old": "theirs"})
    assert model_facts(ours) == model_facts(stock.get_registered_model(model))


def test_an_alias_is_of_one_version_and_moves(tracker, stock, model):
    for _ in range(3):
        tracker.register_model(model, "s3://models/m")
    tracker.set_model_alias(model, "Champion_1-é", 1)
    tracker.set_model_alias(model, "other", 1)
    tracker.set_model_alias(model, "Champion_1-é", 3)
    assert tracker.get_model_version_by_alias(model, "Champion_1-é").version == "3"
    assert int(stock.get_model_version_by_alias(model, "Champion_1-é").version) == 3
    assert tracker.get_model_version(model, 1).aliases == ["other"]
    assert stock.get_model_version(model, "3").aliases == ["Champion_1-é"]
    stock.set_registered_model_alias(model, "theirs", "2")
    stock.set_registered_model_alias(model, "other", "2")
    assert tracker.get_model_version_by_alias(model, "theirs").version == "2"
    assert tracker.get_model_version(model, 2).aliases == ["other", "theirs"]
    tracker.delete_model_alias(model, "theirs")
    tracker.delete_model_alias(model, "never")
    assert tracker.get_registered_model(model).aliases == {"Champion_1-é": "3", "other": "2"}
    for alias in ("latest", "LATEST"):
        assert tracker.get_model_version_by_alias(model, alias).version == "3"


@pytest.mark.parametrize("alias", ["", "a b", "a.b", "a/b", "a" * 256, "latest", "Latest", "v1", "V12"])
def test_what_is_no_alias_for_mlflow_is_none_here(tracker, stock, model, alias):
    from mlflow.exceptions import MlflowException

    tracker.register_model(model, "s3://models/m")
    with pytest.raises(InvalidInputError):
        tracker.set_model_alias(model, alias, 1)
    with pytest.raises(MlflowException):
        stock.set_registered_model_alias(model, alias, "1")
    assert tracker.get_registered_model(model).aliases == {}


# Each with what MLflow calls it, its code, and our error.
REFUSALS = {
    "create": (
        lambda tracker, name: tracker.create_registered_model(name),
        lambda stock, name: stock.create_registered_model(name),
        AlreadyExistsError,
    ),
    "create without a name": (
        lambda tracker, name: tracker.create_registered_model(" "),
        lambda stock, name: stock.create_registered_model(" "),
        InvalidInputError,
    ),
    "tag without a key": (
        lambda tracker, name: tracker.set_registered_model_tag(name, "", "x"),
        lambda stock, name: stock.set_registered_model_tag(name, "", "x"),
        InvalidInputError,
    ),
    "tag of a version with a bad key": (
        lambda tracker, name: tracker.set_model_version_tag(name, 1, "a//b", "x"),
        lambda stock, name: stock.set_model_version_tag(name, "1", "a//b", "x"),
        InvalidInputError,
    ),
    "get": (
        lambda tracker, name: tracker.get_registered_model(f"{name}x"),
        lambda stock, name: stock.get_registered_model(f"{name}x"),
        NotFoundError,
    ),
    "get a version": (
        lambda tracker, name: tracker.get_model_version(name, 7),
        lambda stock, name: stock.get_model_version(name, "7"),
        NotFoundError,
    ),
    "get a version that is no number": (
        lambda tracker, name: tracker.get_model_version(name, "x"),
        lambda stock, name: stock.get_model_version(name, "x"),
        InvalidInputError,
    ),
    "get a version of another model": (
        lambda tracker, name: tracker.get_model_version(f"{name}x", 1),
        lambda stock, name: stock.get_model_version(f"{name}x", "1"),
        NotFoundError,
    ),
    "rename to a name that is taken": (
        lambda tracker, name: tracker.rename_registered_model(name, f"{name} other"),
        lambda stock, name: stock.rename_registered_model(name, f"{name} other"),
        AlreadyExistsError,
    ),
    "rename to no name": (
        lambda tracker, name: tracker.rename_registered_model(name, "a/b"),
        lambda stock, name: stock.rename_registered_model(name, "a/b"),
        InvalidInputError,
    ),
    "rename what is not there": (
        lambda tracker, name: tracker.rename_registered_model(f"{name}x", "y"),
        lambda stock, name: stock.rename_registered_model(f"{name}x", "y"),
        NotFoundError,
    ),
    "update": (
        lambda tracker, name: tracker.update_registered_model(f"{name}x", "d"),
        lambda stock, name: stock.update_registered_model(f"{name}x", "d"),
        NotFoundError,
    ),
    "update a version": (
        lambda tracker, name: tracker.update_model_version(name, 7, "d"),
        lambda stock, name: stock.update_model_version(name, "7", "d"),
        NotFoundError,
    ),
    "delete": (
        lambda tracker, name: tracker.delete_registered_model(f"{name}x"),
        lambda stock, name: stock.delete_registered_model(f"{name}x"),
        NotFoundError,
    ),
    "delete a version": (
        lambda tracker, name: tracker.delete_model_version(name, 7),
        lambda stock, name: stock.delete_model_version(name, "7"),
        NotFoundError,
    ),
    "set a tag": (
        lambda tracker, name: tracker.set_registered_model_tag(f"{name}x", "k", "v"),
        lambda stock, name: stock.set_registered_model_tag(f"{name}x", "k", "v"),
        NotFoundError,
    ),
    "delete a tag": (
        lambda tracker, name: tracker.delete_registered_model_tag(f"{name}x", "k"),
        lambda stock, name: stock.delete_registered_model_tag(f"{name}x", "k"),
        NotFoundError,
    ),
    "set a tag of a version": (
        lambda tracker, name: tracker.set_model_version_tag(name, 7, "k", "v"),
        lambda stock, name: stock.set_model_version_tag(name, "7", "k", "v"),
        NotFoundError,
    ),
    "delete a tag of a version": (
        lambda tracker, name: tracker.delete_model_version_tag(name, 7, "k"),
        lambda stock, name: stock.delete_model_version_tag(name, "7", "k"),
        NotFoundError,
    ),
    "set an alias": (
        lambda tracker, name: tracker.set_model_alias(name, "a", 7),
        lambda stock, name: stock.set_registered_model_alias(name, "a", "7"),
        NotFoundError,
    ),
    "delete an alias": (
        lambda tracker, name: tracker.delete_model_alias(f"{name}x", "a"),
        lambda stock, name: stock.delete_registered_model_alias(f"{name}x", "a"),
        NotFoundError,
    ),
    "get by an alias of another model": (
        lambda tracker, name: tracker.get_model_version_by_alias(f"{name}x", "a"),
        lambda stock, name: stock.get_model_version_by_alias(f"{name}x", "a"),
        NotFoundError,
    ),
    "an unknown stage": (
        lambda tracker, name: tracker.transition_model_stage(name, 1, "Live"),
        lambda stock, name: stock.transition_model_version_stage(name, "1", "Live"),
        InvalidInputError,
    ),
    "a stage of what is not there": (
        lambda tracker, name: tracker.transition_model_stage(f"{name}x", 1, "Staging"),
        lambda stock, name: stock.transition_model_version_stage(f"{name}x", "1", "Staging"),
        NotFoundError,
    ),
    "where a version is not": (
        lambda tracker, name: tracker.get_model_version_download_uri(name, 7),
        lambda stock, name: stock.get_model_version_download_uri(name, "7"),
        NotFoundError,
    ),
    "the newest of what is not there": (
        lambda tracker, name: tracker.get_latest_versions(f"{name}x"),
        lambda stock, name: stock.get_latest_versions(f"{name}x"),
        NotFoundError,
    ),
}
CODES = {
    "RESOURCE_DOES_NOT_EXIST": NotFoundError,
    "RESOURCE_ALREADY_EXISTS": AlreadyExistsError,
    "INVALID_PARAMETER_VALUE": InvalidInputError,
}


def test_what_the_stock_client_refuses_is_refused_by_the_error_of_its_code(
    tracker, stock, model, model_facts, subtests
):
    from mlflow.exceptions import MlflowException

    tracker.register_model(model, "s3://models/m")
    tracker.create_registered_model(f"{model} other")
    before = model_facts(tracker.get_registered_model(model))
    for refusal, (ours, theirs, expected) in REFUSALS.items():
        with subtests.test(refusal):
            with pytest.raises(MlflowException) as refused:
                theirs(stock, model)
            assert CODES[refused.value.error_code] is expected
            with pytest.raises(expected):
                ours(tracker, model)
    assert model_facts(tracker.get_registered_model(model)) == before


def test_an_alias_that_a_model_does_not_have_is_not_found(tracker, model):
    tracker.register_model(model, "s3://models/m")
    with pytest.raises(NotFoundError, match='alias "champion"'):
        tracker.get_model_version_by_alias(model, "champion")
    tracker.delete_model_version(model, 1)
    with pytest.raises(NotFoundError, match="a version of model"):
        tracker.get_model_version_by_alias(model, "latest")


def test_what_is_no_text_for_a_store_is_refused(tracker, model):
    with pytest.raises(InvalidInputError):
        tracker.create_registered_model("a\0b")
    with pytest.raises(InvalidInputError):
        tracker.create_registered_model("a\udc80b")
    tracker.register_model(model, "s3://models/m")
    for wrong in ("a\0b", "a\udc80b"):
        for change in (
            lambda wrong=wrong: tracker.update_registered_model(model, wrong),
            lambda wrong=wrong: tracker.update_model_version(model, 1, wrong),
            lambda wrong=wrong: tracker.set_registered_model_tag(model, "k", wrong),
            lambda wrong=wrong: tracker.set_model_version_tag(model, 1, "k", wrong),
            lambda wrong=wrong: tracker.set_model_alias(model, wrong, 1),
        ):
            with pytest.raises(InvalidInputError):
                change()
    with pytest.raises(InvalidInputError, match="5000"):
        tracker.update_registered_model(model, "d" * 5001)


def test_versions_and_models_are_shown_and_compared_by_what_they_are(tracker, model):
    number = tracker.register_model(model, "s3://models/m")
    tracker.set_model_alias(model, "champion", number)
    version, again = tracker.get_model_version(model, number), tracker.get_model_version(model, number)
    assert version == again
    assert repr(version).startswith(f'ModelVersion(name="{model}", version="1", current_stage="None"')
    assert "champion" in repr(version)
    registered = tracker.get_registered_model(model)
    assert registered == tracker.get_registered_model(model)
    assert repr(registered) == f'RegisteredModel(name="{model}", newest_version="1")'
    with pytest.raises(AttributeError):
        version.description = "another"
