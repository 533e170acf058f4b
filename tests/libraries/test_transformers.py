"""The Trainer of transformers, whose callback for MLflow starts and ends runs by itself."""

from __future__ import annotations

import pytest

from heimdall_tracking import MLflowTracker

from .conftest import DOORS, EXPERIMENT, SCRIPTS, the_only

SCRIPT = "transformers_trainer.py"
IMPORTS = ("torch", "transformers.trainer", "transformers.models.bert.modeling_bert")
OF_TRAINER = "of the trainer"


def check(run):
    # The params of the network and of the training, and all that was logged at each step.
    assert (run.params["hidden_size"], run.params["learning_rate"]) == ("8", "0.125")
    assert len(run.params) > 100
    assert (run.steps["loss"], run.steps["eval_loss"]) == ([1, 2, 3, 4], [2, 4])
    assert run.points["epoch"][0] == (1, 0.5)


@pytest.mark.parametrize("door", DOORS)
def test_a_training_is_one_run(record, door):
    runs = record(SCRIPT, door, imports=IMPORTS)
    check(the_only(runs, "of the tracker" if door == "run" else OF_TRAINER))


def test_a_nested_run_is_below_the_tracker_s(record):
    variables = {
        "MLFLOW_NESTED_RUN": "TRUE",
        "MLFLOW_TAGS": '{"kind": "demo"}',
        "MLFLOW_FLATTEN_PARAMS": "TRUE",
    }
    outer, inner = record(SCRIPT, "run", imports=IMPORTS, **variables)
    assert (outer.name, outer.status, outer.params, outer.points) == ("of the tracker", "FINISHED", {}, {})
    assert (inner.name, inner.status, inner.parent) == (OF_TRAINER, "FINISHED", outer.run_id)
    assert inner.tags["kind"] == "demo"
    check(inner)


def test_the_run_of_the_environment_is_gone_on_with(record, uri):
    begun = MLflowTracker(uri, experiment_name=EXPERIMENT, bridge=False)
    with begun.run("begun") as run:
        begun.log_param("of the first", 1)
    found = the_only(record(SCRIPT, "uri", imports=IMPORTS, MLFLOW_RUN_ID=run.run_id), OF_TRAINER)
    assert (found.run_id, found.params["of the first"]) == (run.run_id, "1")
    check(found)


def test_a_training_that_breaks_is_failed(record_in_processes):
    (run,) = record_in_processes("uri", SCRIPTS / SCRIPT, "breaks", code=1)
    assert (run.name, run.status, run.experiment) == (OF_TRAINER, "FAILED", EXPERIMENT)
    assert run.params["hidden_size"] == "8"
