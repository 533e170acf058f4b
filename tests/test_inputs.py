"""Inputs: datasets that a run was given, of this package and of mlflow.data."""

from __future__ import annotations

import json

import numpy as np
import pytest

from heimdall_tracking import ArtifactNotFoundError, Dataset, InvalidInputError, WrongTypeError


def read(client, run_id: str) -> list[tuple[dict, dict]]:
    inputs = client.get_run(run_id).inputs.dataset_inputs
    return [(it.dataset.to_dictionary(), {tag.key: tag.value for tag in it.tags}) for it in inputs]


@pytest.mark.filterwarnings("ignore")
def test_a_dataset_of_mlflow_is_logged_as_by_mlflow(tracker, client, fluent):
    import mlflow
    import pandas

    datasets = [
        mlflow.data.from_numpy(np.arange(12.0).reshape(3, 4), source="a.npy", name="array"),
        mlflow.data.from_pandas(
            pandas.DataFrame({"x": [1, 2], "y": ["a", "b"]}), source="b.csv", targets="y"
        ),
    ]
    ours = tracker.start_run()
    for dataset in datasets:
        tracker.log_input(dataset, context="training", tags={"fold": 1})
    tracker.end_run()
    tracker.flush()
    with mlflow.start_run(experiment_id=tracker.experiment_id) as theirs:
        for dataset in datasets:
            mlflow.log_input(dataset, context="training", tags={"fold": "1"})
    by_name = [sorted(read(client, run), key=str) for run in (ours, theirs.info.run_id)]
    assert by_name[0] == by_name[1]
    assert len(by_name[0]) == 2


def test_a_dataset_of_ours_is_read_by_the_stock_client(tracker, client, tmp_path):
    from mlflow.data import get_source

    file = tmp_path / "july.csv"
    file.write_text("lat,lon\n1,2\n")
    dataset = Dataset(file, schema={"lat": "double"}, profile={"rows": 1})
    run_id = tracker.start_run()
    tracker.log_input(dataset, "validation")
    tracker.flush()
    (found,) = client.get_run(run_id).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("july.csv", dataset.digest)
    assert json.loads(found.dataset.schema) == {"lat": "double"}
    assert json.loads(found.dataset.profile) == {"rows": 1}
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "validation")]
    assert get_source(found).load() == str(file)


def test_a_run_gives_back_its_inputs(tracker):
    run_id = tracker.start_run()
    tracker.log_input(Dataset("https://example.org/a.csv", digest="1234"), "test", {"a": 1})
    (found,) = tracker.get_run(run_id).inputs
    assert (found.name, found.digest, found.source_type) == ("a.csv", "1234", "http")
    assert json.loads(found.source) == {"url": "https://example.org/a.csv"}
    assert (found.schema, found.profile) == (None, None)
    assert found.tags == {"mlflow.data.context": "test", "a": "1"}


def test_the_same_dataset_again_is_one_input(tracker, client):
    run_id = tracker.start_run()
    for _ in range(3):
        tracker.log_input(Dataset("x", data=b"1"))
    tracker.flush()
    assert len(read(client, run_id)) == 1


def test_the_digest_tells_content_shape_and_type_apart(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"12")
    array = np.arange(6.0)
    data = [b"1", b"2", array, array + 1, array.reshape(2, 3), array.astype("f4"), array[::2]]
    digests = [Dataset("x", data=it).digest for it in data] + [Dataset(tmp_path / "folder").digest]
    assert len(set(digests)) == len(digests)
    assert Dataset("y", data=np.arange(6.0)).digest == digests[2]
    assert Dataset("y", data=np.arange(12.0)[:6]).digest == digests[2]


def test_a_dataset_whose_version_cannot_be_known_is_refused():
    with pytest.raises(ArtifactNotFoundError, match="digest"):
        Dataset("s3://nowhere/x")
    with pytest.raises(WrongTypeError, match="object"):
        Dataset("x", data=object())


@pytest.mark.strict
@pytest.mark.parametrize(
    "fields",
    [{"name": "n" * 501}, {"digest": "d" * 37}, {"schema": "s" * 1_048_576}, {"name": "a\0b"}],
    ids=lambda fields: next(iter(fields)),
)
def test_what_mlflow_has_no_room_for_is_refused(tracker, client, fields):
    run_id = tracker.start_run()
    with pytest.raises(InvalidInputError, match="dataset"):
        tracker.log_input(Dataset("x", **{"digest": "1", **fields}))
    tracker.flush()
    assert read(client, run_id) == []


@pytest.mark.strict
@pytest.mark.parametrize("tags", [{"k" * 256: 1}, {"k": "v" * 501}])
def test_tags_that_mlflow_has_no_room_for_are_refused(tracker, tags):
    tracker.start_run()
    with pytest.raises(InvalidInputError, match="tag"):
        tracker.log_input(Dataset("x", digest="1"), tags=tags)


@pytest.mark.strict
def test_what_is_no_dataset_is_refused(tracker):
    tracker.start_run()
    with pytest.raises(WrongTypeError, match="list"):
        tracker.log_input([1, 2])
