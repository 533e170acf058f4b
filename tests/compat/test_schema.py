"""A database that heimdall_tracking makes for a release of MLflow is the one that the release makes."""

from __future__ import annotations

from heimdall_tracking import MLflowTracker

from .catalog import catalog


def test_every_table_column_key_index_and_trigger_is_the_releases_own(
    stock, empty_database, other_empty_database, tmp_path, monkeypatch
):
    monkeypatch.setenv("HEIMDALL_MLFLOW_VERSION", stock.version)
    MLflowTracker(empty_database, experiment_name="Default")
    stock.make_database(other_empty_database)

    ours, theirs = catalog(empty_database), catalog(other_empty_database)

    assert ours.keys() == theirs.keys()
    for aspect, found in ours.items():
        assert found == theirs[aspect], aspect
