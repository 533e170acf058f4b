"""Settings: what the environment says, and what is never shown."""

from __future__ import annotations

import pytest

from heimdall_tracking import Settings


@pytest.fixture
def postgres(monkeypatch):
    """Settings of some of PostgreSQL's variables."""

    def settings(**variables: str) -> Settings:
        for name, value in variables.items():
            monkeypatch.setenv(f"POSTGRES_{name}", value)
        return Settings()

    return settings


@pytest.mark.parametrize(
    ("variables", "uri"),
    [
        ({"HOST": "db"}, "postgresql://postgres@db/postgres"),
        (
            {"HOST": "db", "PORT": "5433", "USER": "ml", "PASSWORD": "secret", "DB": "mlflow"},
            "postgresql://ml:secret@db:5433/mlflow",
        ),
        ({"HOST": "db", "USER": "ml"}, "postgresql://ml@db/ml"),
        (
            {"HOST": "db", "USER": "a b", "PASSWORD": "p@:/?#%ü", "DB": "m/l"},
            "postgresql://a%20b:p%40%3A%2F%3F%23%25%C3%BC@db/m%2Fl",
        ),
        ({"HOST": "::1", "PORT": "1"}, "postgresql://postgres@[::1]:1/postgres"),
        (
            {"HOST": "/var/run/postgresql", "PORT": "1", "PASSWORD": "x"},
            "postgresql://postgres:x@/postgres?host=%2Fvar%2Frun%2Fpostgresql&port=1",
        ),
        ({"PASSWORD": "secret"}, "sqlite:///mlflow.db"),
        ({"HOST": ""}, "sqlite:///mlflow.db"),
    ],
)
def test_the_variables_of_postgres_name_the_database(postgres, variables, uri):
    assert postgres(**variables).mlflow_tracking_uri == uri


def test_sqlalchemy_reads_the_same_password_out_of_it(postgres):
    from sqlalchemy.engine import make_url

    url = make_url(postgres(HOST="db", USER="u/ü", PASSWORD="p@:/?#% ü", DB="d b").mlflow_tracking_uri)
    assert (url.username, url.password, url.host, url.database) == ("u/ü", "p@:/?#% ü", "db", "d b")


def test_a_tracking_uri_wins_over_the_variables_of_postgres(postgres, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert postgres(HOST="db").mlflow_tracking_uri == "http://server:5000"


def test_a_password_is_not_shown(postgres):
    assert "secret" not in repr(postgres(HOST="db", PASSWORD="secret"))
