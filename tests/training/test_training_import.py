"""The tracker does without torch, and what is missing is said in one sentence."""

from __future__ import annotations

import ast
import doctest
from pathlib import Path

import pytest
import torch

import heimdall_tracking.training
import heimdall_training

PACKAGE = Path(heimdall_training.__file__).parent
TORCH = torch.__version__.split("+")[0]


def test_importing_the_tracker_loads_neither_torch_nor_the_loop(run_script):
    script = run_script(
        """
        import sys
        import heimdall_tracking, heimdall_tracking.training
        assert "Trainer" in dir(heimdall_tracking.training)
        print([name for name in ("torch", "heimdall_training") if name in sys.modules])
        """
    )
    assert script.out == "[]\n", script.err


def test_both_packages_have_the_same_names():
    names = heimdall_tracking.training.__all__
    assert {*heimdall_training.__all__} == {*names, "__version__"}
    for name in names:
        assert getattr(heimdall_tracking.training, name) is getattr(heimdall_training, name)


def test_without_the_wheel_the_error_says_what_to_install(run_script):
    script = run_script(
        """
        import sys
        sys.modules["heimdall_training"] = None  # as if it were not installed
        from heimdall_tracking.training import Trainer
        """
    )
    last = script.err.splitlines()[-1]
    assert last.startswith("ImportError: heimdall_tracking.training.Trainer needs the wheel")
    assert "pip install 'heimdall-tracking[training]'" in last


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("sys.modules['torch'] = None", f"needs torch {TORCH}, which cannot be imported"),
        (
            "import torch; torch.__version__ = '2.9.1+cpu'",
            f"is linked to torch {TORCH}, but torch 2.9.1+cpu is installed",
        ),
    ],
)
def test_without_its_torch_the_error_says_which_one(run_script, spoil, message):
    script = run_script(f"import sys; {spoil}\nimport heimdall_tracking.training as t; t.Trainer")
    last = script.err.splitlines()[-1]
    assert last.startswith("ImportError: heimdall_training")
    assert message in last
    assert last.endswith(f"pip install torch=={TORCH}")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Learner'"):
        heimdall_tracking.training.Learner  # noqa: B018


@pytest.mark.parametrize(
    "name",
    ["_native.pyi", "trainer.py", "pipeline.py", "localization_net.py", "model_config.py", "torch_net.py"],
)
def test_the_examples_in_the_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    report: list[str] = []
    for node in ast.walk(ast.parse((PACKAGE / name).read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            docstring = ast.get_docstring(node) or ""
            where = getattr(node, "name", name)
            test = parser.get_doctest(docstring, {"folder": tmp_path}, where, name, 0)
            runner.run(test, out=report.append)
    assert runner.tries > 0
    assert runner.failures == 0, "".join(report)
