"""Searches and sweeps: optuna in one thread and in two, hydra with a folder for each job."""

from __future__ import annotations

import pytest

from support.helpers import contents

from .conftest import DOORS, EXPERIMENT, PREFIX

JOBS = (1, 2)
DATABASE = "sqlite:///mlflow.db"


def check(trials, experiment):
    assert sorted(run.name for run in trials) == sorted(f"trial-{n}" for n in range(4))
    for run in trials:
        number = float(run.name.removeprefix("trial-"))
        assert (run.status, run.experiment) == ("FINISHED", experiment)
        assert run.points["inside"] == [(0, number), (1, number), (2, number)]
        assert run.points["score"] == [(0, pytest.approx(float(run.params["x"]) ** 2))]


@pytest.mark.parametrize("jobs", JOBS)
@pytest.mark.parametrize("door", DOORS[:2])
def test_optuna_s_callback_records_a_run_for_each_trial(record, door, jobs):
    trials = record("optuna_callback.py", door, jobs, imports=["optuna"])
    assert {run.parent for run in trials} == {None}
    for run in trials:
        run.name = f"trial-{run.name}"
    check(trials, "of optuna")


@pytest.mark.parametrize("jobs", JOBS)
def test_optuna_s_callback_records_trials_below_the_tracker_s_run(record, jobs):
    outer, *trials = record("optuna_callback.py", "run", jobs, "nested", imports=["optuna"])
    assert (outer.name, outer.status, outer.params, outer.points) == ("of the tracker", "FINISHED", {}, {})
    assert {run.parent for run in trials} == {outer.run_id}
    for run in trials:
        run.name = f"trial-{run.name}"
    check(trials, EXPERIMENT)


@pytest.mark.parametrize("jobs", JOBS)
@pytest.mark.parametrize("door", ["uri", "run"])
def test_trials_in_runs_of_their_own_are_below_the_study(record, door, jobs):
    runs = record("optuna_nested.py", door, jobs, imports=["optuna"])
    outer = [runs.pop(0).run_id] if door == "run" else []
    study, *trials = runs
    assert [study.parent] == (outer or [None])
    assert (study.name, study.status, study.params) == ("study", "FINISHED", {"trials": "4"})
    assert list(study.points) == ["best"]
    assert {run.parent for run in trials} == {study.run_id}
    check(trials, EXPERIMENT)


@pytest.mark.parametrize("script", ["hydra_sweep.py", "hydra_late.py"])
@pytest.mark.parametrize("door", DOORS[:2])
def test_the_jobs_of_hydra_share_one_database(record, door, script, tmp_path):
    # A relative database and a relative journal: each job has a folder of its own.
    relative = {
        "MLFLOW_TRACKING_URI": PREFIX + DATABASE if door == "uri" else DATABASE,
        "HEIMDALL_DIR": "heimdall",
    }
    arguments = ("--multirun", "+x=1,2,3", "hydra.job.chdir=True")
    runs = record(script, door, *arguments, imports=["hydra"], **relative)
    assert [path for path in contents(tmp_path) if path.endswith(".db")] == ["mlflow.db"]
    assert [(run.name, run.status, run.experiment, run.parent) for run in runs] == [
        (f"x={x}", "FINISHED", EXPERIMENT, None) for x in (1, 2, 3)
    ]
    for x, run in enumerate(runs, 1):
        assert run.params == {"x": str(x)}
        assert run.points == {"score": [(0, 0.0), (1, x), (2, 2 * x)]}
