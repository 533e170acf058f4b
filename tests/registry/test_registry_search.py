"""Searches for versions and models with arbitrary filters: the stock client's answer, or its refusal."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heimdall_tracking import InvalidInputError
from support.helpers import both_clients

SETTINGS = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAMES = ["plain", "Plain", "a b", "it's", 'a "b"', "100%", "a_b", "aéb", "aÉb", "日本", "a.b", "a`b"]
VALUES = ["x", "X", "", "x y", "it's", "100%", "a_b", "é", "É", "1", "a\\b"]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def filled(request, tmp_path_factory) -> SimpleNamespace:
    """A database with models, versions of both clients and both clients on it."""
    clients = both_clients(request, tmp_path_factory, "registry_searched")
    tracker, stock = clients.tracker, clients.stock
    runs = [stock.create_run("0").info.run_id for _ in range(2)]
    values, stages = itertools.cycle(VALUES), itertools.cycle(["None", "Staging", "Production"])
    for number, name in enumerate(NAMES):
        tracker.create_registered_model(name, {"k": next(values), "a b": next(values)})
        for version in range(1, 4):
            tags = {"k": next(values)} if version > 1 else {"k": next(values), "a b": next(values)}
            source = f"s3://models/{name}/{version}"
            if (number + version) % 2:
                stock.create_model_version(name, source, runs[version % 2], tags, await_creation_for=0)
            else:
                tracker.register_model(name, source, tags=tags)
            tracker.transition_model_stage(name, version, next(stages))
        tracker.delete_model_version(name, 2)
    stock.register_prompt("a-prompt", "Where is {{transmitter}}?")
    return SimpleNamespace(**vars(clients), runs=runs)


def versions(filled: SimpleNamespace, text: str, orders: list[str], max_results: int) -> tuple:
    """The versions that the two clients find; None for a client that refuses."""
    from mlflow.exceptions import MlflowException

    try:
        found = filled.tracker.search_model_versions(text, max_results, orders)
        ours = [(it.name, int(it.version)) for it in found]
    except InvalidInputError:
        ours = None
    try:
        found = filled.stock.search_model_versions(text, max_results, orders)
        theirs = [(it.name, int(it.version)) for it in found]
    # Of IS NULL it does not find the three parts that it expects.
    except (MlflowException, ValueError):
        theirs = None
    return ours, theirs


def models(filled: SimpleNamespace, text: str, orders: list[str], max_results: int) -> tuple:
    """The models that the two clients find; None for a client that refuses."""
    from mlflow.exceptions import MlflowException

    try:
        ours = [it.name for it in filled.tracker.search_registered_models(text, max_results, orders)]
    except InvalidInputError:
        ours = None
    try:
        theirs = [it.name for it in filled.stock.search_registered_models(text, max_results, orders)]
    # Of IS NULL it does not find the three parts that it expects.
    except (MlflowException, ValueError):
        theirs = None
    return ours, theirs


def quoted(text: str) -> str | None:
    return f"'{text}'" if "'" not in text else f'"{text}"' if '"' not in text else None


texts = st.sampled_from([quoted(text) for text in NAMES + VALUES] + ["'%'", "'a%'", "'_b'", "'S3://%'"])
text_operators = st.sampled_from(["=", "!=", "LIKE", "ILIKE", "like"])
keys = st.sampled_from(["k", "`a b`", '"a b"', "none", "`mlflow.prompt.is_prompt`"])
tags = st.builds("{}.{} {} {}".format, st.sampled_from(["tags", "tag"]), keys, text_operators, texts)
prompts = st.sampled_from(
    [
        "tags.`mlflow.prompt.is_prompt` = 'true'",
        "tag.`mlflow.prompt.is_prompt` != 'false'",
        "tags.`mlflow.prompt.is_prompt` != 'true'",
    ]
)
named = st.builds("{} {} {}".format, st.sampled_from(["name", "attribute.name"]), text_operators, texts)
lists = st.builds(
    "name {} ({})".format,
    st.sampled_from(["IN", "NOT IN"]),
    st.lists(texts, min_size=1, max_size=3).map(", ".join),
)
numbers = st.builds(
    "version_number {} {}".format,
    st.sampled_from(["=", "!=", "<", "<=", ">", ">="]),
    st.sampled_from(["1", "2", "3", "'3'", "100"]),
)
sources = st.builds("source_path {} {}".format, text_operators, texts | st.just("'s3://models/plain/1'"))
joined = st.sampled_from([" AND ", " and ", "\nAND  "])
version_orders = st.lists(
    st.builds(
        "{}{}".format,
        st.sampled_from(["name", "version_number", "creation_timestamp", "last_updated_timestamp"]),
        st.sampled_from(["", " ASC", " DESC", " desc"]),
    ),
    max_size=3,
)
model_orders = st.lists(
    st.builds(
        "{}{}".format,
        st.sampled_from(["name", "timestamp", "last_updated_timestamp"]),
        st.sampled_from(["", " ASC", " DESC"]),
    ),
    max_size=2,
)
counts = st.sampled_from([1, 3, 100])


@SETTINGS
@given(st.data())
def test_versions_are_found_as_the_stock_client_finds_them(filled, data):
    run = st.sampled_from([*filled.runs, "none"]).map(lambda it: f"'{it}'")
    by_run = st.builds("run_id {} {}".format, text_operators, run)
    in_runs = st.builds("run_id {} ({})".format, st.sampled_from(["IN", "NOT IN"]), run)
    parts = data.draw(
        st.lists(st.one_of(named, lists, numbers, sources, tags, prompts, by_run, in_runs), max_size=3)
    )
    text, orders = data.draw(joined).join(parts), data.draw(version_orders)
    ours, theirs = versions(filled, text, orders, data.draw(counts))
    assert ours == theirs, (text, orders)


@SETTINGS
@given(st.lists(st.one_of(named, lists, tags, prompts), max_size=3), joined, model_orders, counts)
def test_models_are_found_as_the_stock_client_finds_them(filled, parts, between, orders, count):
    text = between.join(parts)
    ours, theirs = models(filled, text, orders, count)
    assert ours == theirs, (text, orders)


FRAGMENTS = ["name", "version_number", "run_id", "source_path", "tags", "tag", "attribute", "attributes"]
FRAGMENTS += [
    "metrics",
    "stage",
    "a",
    ".",
    "`",
    "'",
    '"',
    "`a b`",
    "'x'",
    " ",
    "(",
    ")",
    ",",
    "1",
    "-1",
    "1.5",
]
FRAGMENTS += [
    "=",
    "!=",
    "<",
    " LIKE ",
    " IN ",
    " IS NULL",
    " AND ",
    " OR ",
    "NOT ",
    "--",
    "/*",
    ";",
    "%",
    "é",
]
FRAGMENTS += [
    "name = 'plain'",
    "tags.k = 'x'",
    "version_number > 1",
    "name LIKE 'a%'",
    " AND name IN ('a b')",
]


@settings(SETTINGS, max_examples=400)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=7).map("".join))
def test_an_arbitrary_filter_is_answered_as_the_stock_client_does_or_refused(filled, text):
    # Blanks alone, which the stock client refuses, are as good as nothing.
    text = text if text.strip() else ""
    for search in (versions, models):
        ours, theirs = search(filled, text, [], 100)
        assert ours is None or ours == theirs


@settings(SETTINGS, max_examples=100)
@given(
    st.lists(
        st.sampled_from(
            [*FRAGMENTS[:9], "timestamp", "creation_timestamp", "`name`", " ", "ASC", " DESC", ".", "'"]
        ),
        min_size=1,
        max_size=4,
    ).map("".join)
)
def test_an_arbitrary_order_is_taken_as_the_stock_client_does_or_refused(filled, order):
    # Blanks around it, which the stock client refuses, are as good as nothing.
    order = order.strip()
    for search in (versions, models):
        ours, theirs = search(filled, "", [order], 100)
        assert ours is None or ours == theirs, order


def test_a_search_finds_so_many_in_its_order_with_tags_and_aliases(tracker, model):
    tracker.register_model(model, "s3://models/m", tags={"of": model})
    for _ in range(10):
        tracker.register_model(model, "s3://models/m")
    tracker.set_model_alias(model, "champion", 7)
    found = tracker.search_model_versions(f"name = '{model}'", order_by="version_number")
    assert [int(it.version) for it in found] == list(range(1, 12))
    assert [it.aliases for it in found[5:8]] == [[], ["champion"], []]
    assert (found[0].tags, found[1].tags) == ({"of": model}, {})
    few = tracker.search_model_versions(f"name = '{model}'", 3, ["version_number DESC"])
    assert [int(it.version) for it in few] == [11, 10, 9]
    (registered,) = tracker.search_registered_models(f"name = '{model}'")
    assert registered == tracker.get_registered_model(model)


def test_a_search_that_makes_no_sense_is_refused_with_what_would(tracker):
    assert tracker.search_model_versions(max_results=0) == []
    assert tracker.search_registered_models(max_results=0) == []
    for search in (tracker.search_model_versions, tracker.search_registered_models):
        with pytest.raises(InvalidInputError, match="-1"):
            search(max_results=-1)
    with pytest.raises(InvalidInputError, match="version_number"):
        tracker.search_model_versions("stage = 'Production'")
    with pytest.raises(InvalidInputError, match="last_updated_timestamp"):
        tracker.search_registered_models(order_by="version_number")
