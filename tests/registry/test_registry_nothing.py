"""A version is registered of files: a place without any is refused, and leaves nothing behind."""

from __future__ import annotations

import pytest

from heimdall_tracking import NotFoundError


@pytest.fixture
def files(tmp_path):
    """A folder with two folders in it, of which one has a file."""
    (tmp_path / "files" / "empty").mkdir(parents=True)
    (tmp_path / "files" / "deep" / "below").mkdir(parents=True)
    (tmp_path / "files" / "deep" / "below" / "a b.bin").write_bytes(b"weights")
    return tmp_path / "files"


def test_a_path_of_a_run_without_files_is_refused_and_leaves_no_model(tracker, stock, model, run_id):
    for path in ("nothing", "models/n", "models/m/model.onnx/x", "models/m/model"):
        with pytest.raises(NotFoundError, match=f"no files of runs:/{run_id}/{path} in"):
            tracker.register_model(model, f"runs:/{run_id}/{path}")
    with pytest.raises(NotFoundError):
        tracker.get_registered_model(model)
    assert tracker.register_model(model, f"runs:/{run_id}/models/m") == "1"
    with pytest.raises(NotFoundError):
        tracker.register_model(model, f"runs:/{run_id}/nothing")
    assert [int(found.version) for found in stock.search_model_versions(f"name = '{model}'")] == [1]


def test_a_run_without_any_file_is_refused(tracker, model):
    with tracker.run() as run:
        tracker.log_metric("loss", 1.0)
    for uri in (f"runs:/{run.run_id}/model", f"runs:/{run.run_id}/", f"runs:/{run.run_id}"):
        with pytest.raises(NotFoundError, match="no files"):
            tracker.register_model(model, uri)


def test_files_need_no_mlmodel_and_may_lie_deep_or_alone(tracker, model, run_id, files):
    with tracker.run(run_id=run_id):
        tracker.log_artifacts_dir(files, "files")
    for path in ("files", "files/deep", "files/deep/below/a b.bin", "models/m/model.onnx", ""):
        number = tracker.register_model(model, f"runs:/{run_id}/{path}")
        assert tracker.get_model_version(model, number).source.endswith(f"/{path}" if path else "/artifacts")


def test_what_is_still_on_its_way_counts_as_files(tracker, model, tmp_path):
    run_id = tracker.start_run()
    for number in range(3):
        (tmp_path / f"{number}.bin").write_bytes(bytes(1 << 20))
        tracker.log_artifact(tmp_path / f"{number}.bin", f"model-{number}")
        assert tracker.register_model(model, f"runs:/{run_id}/model-{number}") == str(number + 1)


def test_a_local_folder_without_files_is_refused(tracker, store, model, files, monkeypatch):
    monkeypatch.chdir(files)
    for place in ("no-such-folder", "empty", files / "empty", f"file://{files}/empty", str(files / "gone")):
        with pytest.raises(NotFoundError, match="no files"):
            tracker.register_model(model, place)
    with pytest.raises(NotFoundError):
        tracker.get_registered_model(model)
    if not store.startswith("http"):
        assert tracker.register_model(model, files) == "1"


def test_versions_and_places_of_others_are_not_looked_into(tracker, stock, model):
    stock.create_registered_model(model)
    stock.create_model_version(model, "/no/such/folder/on/this/machine" if _is_local(tracker) else "s3://m/m")
    assert tracker.register_model(f"{model} copy", f"models:/{model}/1") == "1"
    assert tracker.register_model(f"{model} copy", "s3://models/m") == "2"


def _is_local(tracker) -> bool:
    return not tracker.tracking_uri.startswith("http")
