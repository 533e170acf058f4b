"""Keys of params, metrics and tags: exactly those that stock MLflow takes."""

from __future__ import annotations

from itertools import product

import pytest

from heimdall_tracking import InvalidInputError, WrongTypeError

TELLING = ["k" * 250, "k" * 251, "é" * 250, "é" * 251]
TELLING += ["val/loss", "a.b-c_d:e f", " a", "a ", "système/µ", "日本", "٣", "²", "½", "Ⅷ", "ß"]
TELLING += ["a#b", "a%b", "a\\b", "a\tb", "a\0b", "a,b", "a'b", 'a"b', "a`b", "(a)", "a\u200bb", "😀"]
# All short keys of the characters that the rules about paths are made of.
PATHS = ["".join(key) for length in range(6) for key in product("a./ ", repeat=length)]


def stock_takes(key: str) -> bool:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_metric, _validate_param, _validate_tag

    answers = set()
    for validate in (lambda: _validate_metric(key, 1.0, 0, 0), lambda: _validate_param(key, "")):
        try:
            validate()
        except MlflowException:
            answers.add(False)
        else:
            answers.add(True)
    assert len(answers) == 1, f"stock MLflow differs between params and metrics: {key!r}"
    try:
        _validate_tag(key, "")
    except MlflowException:
        return False
    return answers.pop()


def metric_key_is_taken(tracker, key: str) -> bool:
    """Return whether a key passes, without writing anything: the value is refused after it."""
    with pytest.raises((InvalidInputError, WrongTypeError)) as refused:
        tracker.log_metrics({key: None})
    return refused.type is WrongTypeError


@pytest.mark.strict
@pytest.mark.parametrize("keys", [TELLING, PATHS], ids=["telling", "paths"])
def test_a_metric_key_is_taken_exactly_when_stock_mlflow_takes_it(tracker, keys):
    tracker.start_run()
    differing = [key for key in keys if metric_key_is_taken(tracker, key) != stock_takes(key)]
    assert differing == []


@pytest.mark.strict
@pytest.mark.parametrize("what", ["params", "tags"])
def test_params_and_tags_have_the_rules_of_metrics(tracker, what):
    def is_taken(key: str) -> bool:
        try:
            if what == "tags":
                tracker.start_run(tags={key: "x"})
            else:
                tracker.log_params({key: "x"})
        except InvalidInputError:
            return False
        finally:
            if what == "tags":
                tracker.end_run()
        return True

    if what == "params":
        tracker.start_run()
    assert [key for key in TELLING if is_taken(key) != stock_takes(key)] == []


@pytest.mark.strict
def test_a_line_break_at_the_end_which_stock_mlflow_overlooks_is_refused(tracker):
    tracker.start_run()
    assert not metric_key_is_taken(tracker, "loss\n")


@pytest.mark.strict
def test_the_message_names_the_key(tracker):
    tracker.start_run()
    with pytest.raises(InvalidInputError, match="val//loss"):
        tracker.log_metrics({"val//loss": 1})
