"""What is recorded with no logger at all: scikit-learn and keras by autologging, YOLO by its callbacks."""

from __future__ import annotations

import pytest

from .conftest import DOORS, the_only

OF_YOLO = ("torchvision", "cv2")


@pytest.mark.parametrize("door", DOORS)
def test_a_search_of_scikit_learn_is_a_run_with_a_child_for_each_candidate(record, door):
    search, *candidates = record("sklearn_search.py", door, imports=["sklearn.linear_model", "pandas"])
    assert (search.name == "of the tracker") == (door == "run")
    assert (search.status, search.parent, search.params["cv"]) == ("FINISHED", None, "2")
    assert search.params["best_alpha"] == "0.5"
    assert {"best_cv_score", "training_r2_score"} <= set(search.points)
    assert [(run.status, run.parent) for run in candidates] == [("FINISHED", search.run_id)] * 3
    assert sorted(run.params["alpha"] for run in candidates) == ["0.5", "1.0", "2.0"]
    assert all("mean_test_score" in run.points for run in candidates)


@pytest.mark.parametrize("door", DOORS)
def test_keras_is_one_run(record, door):
    runs = record("keras_autolog.py", door, imports=["keras"])
    run = the_only(runs, "of the tracker" if door == "run" else runs[0].name)
    assert (run.params["epochs"], run.params["optimizer_learning_rate"]) == ("2", "0.125")
    assert run.steps["loss"] == [0, 1]


@pytest.mark.parametrize("door", DOORS)
def test_yolo_is_one_run(record, door, uri):
    run = the_only(
        record("yolo.py", door, imports=OF_YOLO), "of the tracker" if door == "run" else "of the command"
    )
    assert (run.params["epochs"], run.params["imgsz"]) == ("2", "32")
    assert run.steps["train/box_loss"] == [0, 1]
    assert run.steps["lr/pg0"] == [0, 1]
    assert len(run.points["val/box_loss"]) >= 2
