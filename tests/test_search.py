"""Searches with arbitrary keys, values and filters: the stock client's answer, or its refusal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heimdall_tracking import Dataset, InvalidInputError, MLflowTracker
from support.helpers import both_clients

# Characters that have a meaning in filters, SQL, LIKE or JSON.
NASTY = "'\"`\\%_;-- ()[]{}?$1:@#*,.=<>!&|~^\t\nàÀßKéÉ日😀\u200b\u00a0\u2028"
characters = st.one_of(
    st.sampled_from(NASTY), st.characters(exclude_categories=["Cs"], exclude_characters="\0")
)
texts = st.text(characters, max_size=12)
words = st.sampled_from(["", "a", "A", "0.1", "null", "x'y", 'x"y', "100%", "a_b", "a\\b", "%", "é", "É"])
values = st.one_of(words, texts)
# Keys that every store takes.
key_characters = st.one_of(st.sampled_from("ab_-. :/é日"), st.characters(categories=["L", "Nd"]))
keys = st.one_of(
    st.sampled_from(["lr", "val/loss", "a b", "and", "IN", "select", "a.b", "1", "é"]),
    st.text(key_characters, min_size=1, max_size=8).filter(lambda key: is_valid(key)),
)
numbers = st.one_of(
    st.floats(), st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf, -math.inf, 1e308, 5e-324])
)


def is_valid(key: str) -> bool:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_metric_name

    try:
        _validate_metric_name(key)
    except MlflowException:
        return False
    return True


@st.composite
def runs(draw: Callable) -> list[dict]:
    """Some runs that share some of their keys and values."""
    shared_keys = draw(st.lists(keys, min_size=1, max_size=4, unique=True))
    shared_values = draw(st.lists(values, min_size=1, max_size=4))
    key, value = st.sampled_from(shared_keys), st.sampled_from(shared_values)
    one = st.fixed_dictionaries(
        {
            "params": st.dictionaries(key, value, max_size=3),
            "tags": st.dictionaries(key, value, max_size=3),
            "metrics": st.dictionaries(key, numbers, max_size=3),
            "dataset": st.none() | value.filter(lambda name: len(name.strip()) > 0),
            "name": value.filter(lambda name: name.strip()) | st.just("a run"),
        }
    )
    return draw(st.lists(one, min_size=2, max_size=5))


def quoted(draw: Callable, text: str) -> str:
    mark = draw(st.sampled_from("'\""))
    return f"{mark}{text}{mark}"


@st.composite
def filters(draw: Callable, given_runs: list[dict]) -> tuple[str, list[str]]:
    """A filter and an order about what the runs have, and sometimes about what they have not."""
    some_keys = {key for run in given_runs for kind in ("params", "tags", "metrics") for key in run[kind]}
    some_values = {value for run in given_runs for kind in ("params", "tags") for value in run[kind].values()}
    key = st.sampled_from(sorted(some_keys)) | keys if some_keys else keys
    value = st.sampled_from(sorted(some_values)) | values if some_values else values
    comparisons = []
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["metrics", "params", "tags", "attributes", "datasets"]))
        text = quoted(draw, draw(value))
        like = draw(st.sampled_from(["=", "!=", "LIKE", "ILIKE", "like"]))
        null = draw(st.sampled_from(["IS NULL", "IS NOT NULL"]))
        name = f"{kind}.`{draw(key)}`"
        match kind:
            case "metrics":
                compare = draw(st.sampled_from(["=", "!=", "<", "<=", ">", ">="]))
                bound = draw(st.floats(allow_nan=False, allow_infinity=False) | st.just(1))
                comparisons.append(f"{name} {compare} {bound!r}")
            case "params" | "tags":
                comparisons.append(draw(st.sampled_from([f"{name} {like} {text}", f"{name} {null}"])))
            case "attributes":
                attribute = draw(st.sampled_from(["run_name", "status", "user_id", "attributes.run_name"]))
                comparisons.append(f"{attribute} {like} {text}")
            case "datasets":
                comparisons.append(f"datasets.{draw(st.sampled_from(['name', 'digest']))} {like} {text}")
    orders = st.builds(
        "{}.`{}` {}".format,
        st.sampled_from(["metrics", "params", "tags"]),
        key,
        st.sampled_from(["ASC", "DESC"]),
    )
    separator = draw(st.sampled_from([" AND ", " and ", "  AND\n"]))
    return separator.join(comparisons), draw(st.lists(orders, max_size=2))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def store(request, tmp_path_factory) -> SimpleNamespace:
    """A database with both clients on it."""
    clients = both_clients(request, tmp_path_factory, "searched")
    return SimpleNamespace(**vars(clients), numbers=itertools.count())


def both(store: SimpleNamespace, experiment: str, text: str, orders: list[str], max_results: int) -> tuple:
    """The runs that the two clients find, in order; None for a client that refuses the search."""
    from mlflow.exceptions import MlflowException

    experiment_id = store.tracker.get_experiment(experiment).experiment_id
    try:
        found = store.tracker.search_runs(
            text, order_by=orders, max_results=max_results, experiment_names=[experiment]
        )
        ours = [run.run_id for run in found]
    except InvalidInputError:
        ours = None
    try:
        found = store.stock.search_runs([experiment_id], text, order_by=orders, max_results=max_results)
        theirs = [run.info.run_id for run in found]
    except MlflowException:
        theirs = None
    return ours, theirs


def logged(store: SimpleNamespace, given_runs: list[dict]) -> str:
    """An experiment with these runs."""
    experiment = f"search {next(store.numbers)}"
    tracker = MLflowTracker(store.uri, experiment_name=experiment)
    for run in given_runs:
        with tracker.run(run["name"], run["tags"]):
            tracker.log_params(run["params"])
            for key, value in run["metrics"].items():
                tracker.log_metric(key, value)
            if run["dataset"] is not None:
                tracker.log_input(Dataset("file:///d", name=run["dataset"], digest="1"))
    tracker.flush()
    return experiment


SETTINGS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@SETTINGS
@given(st.data())
def test_any_keys_and_values_are_found_as_the_stock_client_finds_them(store, data):
    given_runs = data.draw(runs())
    experiment = logged(store, given_runs)
    for _ in range(8):
        text, orders = data.draw(filters(given_runs))
        max_results = data.draw(st.sampled_from([1, 2, 100]))
        ours, theirs = both(store, experiment, text, orders, max_results)
        assert ours == theirs, (text, orders)


FRAGMENTS = ["metrics", "params", "tags", "datasets", "attributes", "status", "run_id", "start_time", "name"]
FRAGMENTS += ["a", ".", "`", "'", '"', "`a b`", "'x'", " ", "(", ")", ",", "1", "-1", "1e3", "0x1", "é", "%"]
FRAGMENTS += [
    "\\",
    ";",
    "=",
    "!=",
    "<",
    " LIKE ",
    " IN ",
    " IS NULL",
    " AND ",
    " OR ",
    "NOT ",
    "ASC",
    "--",
    "/*",
]
FRAGMENTS += ["params.a = 'x'", "metrics.`a b` > 1", "tags.a LIKE 'x%'", "status = 'FINISHED'"]
# Like the stock client we do without an AND, which it does not before IN.
FRAGMENTS += [" AND run_id IN ('x')"]


@settings(SETTINGS, max_examples=1500)
@given(st.one_of(texts, st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join)))
def test_an_arbitrary_filter_is_answered_as_the_stock_client_does_or_refused(store, text):
    if not hasattr(store, "arbitrary"):
        some = {"tags": {"a": "x"}, "params": {"a": "x"}, "metrics": {"a b": 2}}
        others = {"tags": {}, "params": {"a": "X"}, "metrics": {"a b": 0, "a": 1}}
        given_runs = [some | {"name": "a", "dataset": "a"}, others | {"name": "x", "dataset": None}]
        store.arbitrary = logged(store, given_runs)
    # Blanks alone, which the stock client refuses, are as good as nothing.
    ours, theirs = both(store, store.arbitrary, text if text.strip() else "", [], 100)
    assert ours is None or ours == theirs


@pytest.mark.parametrize("values", [[0.5] * 150, [i // 3 for i in range(150)], [math.nan] * 60 + [1, 2] * 45])
def test_the_first_of_many_runs_are_those_of_the_stock_client(store, values):
    given_runs = [
        {"name": "a", "tags": {"odd": str(i % 2)}, "params": {}, "metrics": {"m": value}, "dataset": None}
        for i, value in enumerate(values)
    ]
    experiment = logged(store, given_runs)
    if store.uri.startswith("postgresql"):
        # Of so few runs the planner would rather join them all.
        no_joins = "options=-cenable_hashjoin%3Doff%20-cenable_mergejoin%3Doff"
        tracker = MLflowTracker(f"{store.uri}?{no_joins}", experiment_name="searched")
        store = SimpleNamespace(uri=store.uri, stock=store.stock, tracker=tracker)
    for text, order, count in itertools.product(["", "tags.odd = '1'"], ["ASC", "DESC"], [1, 5, 50, 80, 200]):
        orders = [f"metrics.m {order}", "tags.odd DESC"]
        ours, theirs = both(store, experiment, text, orders, count)
        assert ours == theirs, (text, orders, count)
