"""Models that stock MLflow has written are loaded as ours are."""

from __future__ import annotations

import sys

import torch

from support.models import BESIDE, ROWS, expected_of


def test_what_stock_mlflow_has_logged_loads_too(tracker, net, tmp_path):
    import mlflow

    net.eval()
    for form in ("pickle", "pt2"):
        mlflow.pytorch.save_model(net, tmp_path / form, input_example=ROWS.numpy(), serialization_format=form)
        loaded = tracker.load_model(tmp_path / form)
        torch.testing.assert_close(loaded(ROWS), expected_of(net, ROWS), rtol=0, atol=1e-6)


def test_code_that_stock_mlflow_has_put_beside_a_model_is_found(tracker, tmp_path, run_script):
    (tmp_path / "beside_the_model.py").write_text(BESIDE)
    run = run_script(
        """
        import sys, torch, mlflow
        sys.path.insert(0, ".")
        from beside_the_model import Scaled
        mlflow.pytorch.save_model(
            Scaled(), "model", code_paths=["beside_the_model.py"], serialization_format="pickle"
        )
        """
    )
    assert run.code == 0, run.err
    (tmp_path / "beside_the_model.py").unlink()
    loaded = tracker.load_model(tmp_path / "model")
    assert type(loaded).__name__ == "Scaled"
    sys.path.pop(0)
