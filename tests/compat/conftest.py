from __future__ import annotations

from collections.abc import Iterator

import pytest

from support import postgres

from .environments import CHOSEN, Stock


@pytest.fixture(scope="session")
def _releases() -> Iterator[dict[str, Stock]]:
    # A parameter's fixture is made anew whenever its turn comes again.
    releases: dict[str, Stock] = {}
    yield releases
    for stock in releases.values():
        stock.stop()


@pytest.fixture(scope="session", params=CHOSEN)
def stock(request: pytest.FixtureRequest, _releases: dict[str, Stock]) -> Stock:
    """A release of stock MLflow."""
    if request.param not in _releases:
        _releases[request.param] = Stock(request.param)
    return _releases[request.param]


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URI of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{request.getfixturevalue('tmp_path') / 'mlflow.db'}"
    return request.getfixturevalue("postgres_uri")


@pytest.fixture
def other_empty_database(request: pytest.FixtureRequest, empty_database: str) -> str:
    """A second one of the same kind."""
    if empty_database.startswith("sqlite"):
        return f"sqlite:///{request.getfixturevalue('tmp_path') / 'other.db'}"
    server: postgres.PostgresServer = request.getfixturevalue("postgres_server")
    name = empty_database.rpartition("/")[2]
    return server.create_database(f"{name}_other")
