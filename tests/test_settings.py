"""Settings: what the environment says, and what is never shown."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import pickle
import re
import types
from pathlib import Path
from types import SimpleNamespace

import pydantic
import pytest
from pydantic_settings import SettingsConfigDict

from heimdall_tracking import ConfigurationError, MLflowTracker, Settings, initialize_mlflow
from heimdall_tracking._plain_settings import PlainSettings
from heimdall_tracking.settings import values_of
from support.helpers import write


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


NAMES = [
    "mlflow_tracking_uri",
    "mlflow_artifact_uri",
    "mlflow_backend_store_uri",
    "mlflow_registry_uri",
    "mlflow_s3_endpoint_url",
    "mlflow_s3_access_key_id",
    "mlflow_s3_secret_access_key",
    "mlflow_experiment_name",
    "mlflow_run_name_prefix",
]

# Whoever imports them afterwards has no pydantic-settings.
WITHOUT_PYDANTIC = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pydantic", "pydantic_settings", "dotenv"):
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(params=["pydantic", "plain"])
def kind(request):
    """The class of settings, with and without pydantic-settings."""
    return Settings if request.param == "pydantic" else PlainSettings


def test_the_class_is_a_model_of_pydantic_settings_where_that_is_installed():
    from pydantic_settings import BaseSettings

    assert issubclass(Settings, BaseSettings)
    assert list(Settings.model_fields) == NAMES


def test_the_class_is_a_plain_one_elsewhere(run_script):
    done = run_script(
        WITHOUT_PYDANTIC
        + """
from heimdall_tracking import Settings, initialize_mlflow, settings

class Mine(Settings):
    lr: float = 1e-3

mine = Mine(mlflow_experiment_name="mine", lr=0.5)
print(type(settings) is Settings, list(settings.model_dump()))
print(mine.lr, Mine().lr, repr(mine).startswith("Mine("), initialize_mlflow(mine).experiment_name)
try:
    Mine(learning_rate=1)
except TypeError as error:
    print(error)
"""
    )
    expected = f"True {NAMES}\n0.5 0.001 True mine\nMine() has no field 'learning_rate'\n"
    assert (done.out, done.err) == (expected, "")


def test_the_settings_of_the_process_cost_no_import_of_pydantic(run_script):
    done = run_script(
        """
        import sys
        from heimdall_tracking import initialize_mlflow, settings
        initialize_mlflow(settings)
        print({"pydantic", "dotenv", "re", "typing"} & set(sys.modules) - {"re"})
        from heimdall_tracking import Settings
        print(isinstance(settings, Settings), isinstance(Settings(), Settings), "pydantic" in sys.modules)
        """
    )
    assert done.out.splitlines()[-1] == "True True True", done.err
    assert "pydantic" not in done.out.splitlines()[0]


def test_both_classes_have_the_same_values(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_S3_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("POSTGRES_HOST", "db")
    write(tmp_path / ".env", b"MLFLOW_S3_SECRET_ACCESS_KEY=ignored\nMLFLOW_EXPERIMENT_NAME=e\n")
    model, plain = (
        Settings(mlflow_registry_uri="sqlite:///r.db"),
        PlainSettings(mlflow_registry_uri="sqlite:///r.db"),
    )
    assert {name: getattr(model, name) for name in NAMES} == {name: getattr(plain, name) for name in NAMES}
    assert list(plain.model_dump()) == list(model.model_dump()) == NAMES


def test_fields_of_a_class_of_ones_own_are_read_too(monkeypatch, tmp_path):
    class Mine(Settings):
        lr: float = 1e-3
        layers: list[int] = [1]  # noqa: RUF012 - pydantic copies it

    write(tmp_path / ".env", b"LR=0.5\nLAYERS=[3, 4]\nUNKNOWN=1\n")
    assert (Mine().lr, Mine().layers) == (0.5, [3, 4])
    monkeypatch.setenv("LR", "0.25")
    assert (Mine().lr, Mine(lr=2).lr) == (0.25, 2.0)
    assert initialize_mlflow(Mine()).experiment_name == "heimdall-localization"


def test_a_file_that_a_class_of_ones_own_names_comes_before_ours(tmp_path, monkeypatch):
    class Mine(Settings):
        model_config = SettingsConfigDict(env_file=str(tmp_path / "own.env"))

    write(tmp_path / ".env", b"MLFLOW_EXPERIMENT_NAME=ours\nMLFLOW_RUN_NAME_PREFIX=ours\n")
    write(tmp_path / "own.env", b"MLFLOW_EXPERIMENT_NAME=own\n")
    assert (Mine().mlflow_experiment_name, Mine().mlflow_run_name_prefix) == ("own", "ours")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "process")
    assert Mine().mlflow_experiment_name == "process"


@pytest.mark.parametrize(
    "show", [repr, str, pickle.dumps, lambda it: f"{it} {it!r:>9}", lambda it: [it], lambda it: {"s": it}]
)
def test_a_secret_is_shown_nowhere(kind, show):
    settings = kind(
        mlflow_s3_access_key_id="hush1",
        mlflow_s3_secret_access_key="hush2",
        mlflow_s3_endpoint_url="http://me:hush3@host",
    )
    settings.mlflow_s3_access_key_id = "hush4"
    assert "hush" not in str(show(settings))
    assert not re.search("hush[124]", repr(settings.model_dump()))


def test_a_secret_is_in_no_json():
    settings = Settings(mlflow_s3_access_key_id="hush1", mlflow_tracking_uri="postgresql://me:hush2@db/ml")
    assert "hush" not in settings.model_dump_json() + json.dumps(settings.model_dump(mode="json"))
    with pytest.raises(TypeError):
        json.dumps(settings.model_dump())
    assert "hush1" not in json.dumps(settings.model_dump(), default=str)


def test_a_secret_is_a_secretstr_that_equals_its_text(kind):
    secret = kind(mlflow_s3_access_key_id="key").model_dump()["mlflow_s3_access_key_id"]
    assert secret == "key"
    assert secret != "other"
    assert secret.get_secret_value() == "key"
    assert {secret} == {"key"}
    assert (str(secret), f"{secret:>3}", len(secret)) == ("**********", "**********", 3)
    assert copy.deepcopy(secret) == copy.copy(secret) == "key"
    if kind is Settings:
        assert isinstance(secret, pydantic.SecretStr)


def test_a_pickle_finds_its_secrets_where_it_is_read(kind, monkeypatch):
    monkeypatch.setenv("MLFLOW_S3_ACCESS_KEY_ID", "hush")
    monkeypatch.setenv("MLFLOW_S3_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("POSTGRES_HOST", "db")
    monkeypatch.setenv("POSTGRES_PASSWORD", "hush")
    settings = kind(mlflow_experiment_name="mine")
    packed = pickle.dumps(settings)
    assert b"hush" not in packed
    assert pickle.loads(packed) == settings
    assert copy.deepcopy(settings) == copy.copy(settings) == settings
    monkeypatch.delenv("MLFLOW_S3_ACCESS_KEY_ID")
    monkeypatch.delenv("MLFLOW_S3_SECRET_ACCESS_KEY")
    assert pickle.loads(packed).mlflow_s3_access_key_id is None


def test_an_error_of_a_field_shows_no_secret(kind):
    with pytest.raises(ValueError, match="mlflow_s3_secret_access_key") as caught:
        kind(mlflow_s3_secret_access_key=["hush"])
    assert "hush" not in str(caught.value)


def test_names_of_the_original_come_before_those_of_aws(kind, monkeypatch):
    for prefix in ("MLFLOW_S3", "AWS"):
        monkeypatch.setenv(f"{prefix}_ACCESS_KEY_ID", f"{prefix} key")
        monkeypatch.setenv(f"{prefix}_SECRET_ACCESS_KEY", f"{prefix} secret")
    settings = kind()
    assert settings.mlflow_s3_access_key_id == "MLFLOW_S3 key"
    assert settings.mlflow_s3_secret_access_key == "MLFLOW_S3 secret"


def test_a_postgresql_of_the_process_wins_over_a_uri_of_the_file(kind, tmp_path, monkeypatch):
    write(tmp_path / ".env", b"MLFLOW_TRACKING_URI=sqlite:///file.db\nPOSTGRES_PASSWORD=secret\n")
    assert kind().mlflow_tracking_uri == "sqlite:///file.db"
    monkeypatch.setenv("POSTGRES_HOST", "db")
    assert kind().mlflow_tracking_uri == "postgresql://postgres:secret@db/postgres"


@dataclasses.dataclass
class OfADataclass:
    mlflow_tracking_uri: str = "sqlite:///mine.db"
    mlflow_experiment_name: str | None = "mine"


class Original(pydantic.BaseModel):
    """The original's class, with what it has besides."""

    mlflow_tracking_uri: str = "sqlite:///mine.db"
    mlflow_artifact_uri: str = "files"
    mlflow_backend_store_uri: str = "sqlite:///mine.db"
    mlflow_registry_uri: str = "sqlite:///mine.db"
    mlflow_s3_endpoint_url: pydantic.AnyUrl = pydantic.AnyUrl("http://127.0.0.1:9")
    mlflow_s3_access_key_id: pydantic.SecretStr = pydantic.SecretStr("key")
    mlflow_s3_secret_access_key: pydantic.SecretStr = pydantic.SecretStr("secret")
    mlflow_experiment_name: str = "mine"
    mlflow_run_name_prefix: str = "rf"
    postgres_port: int = 5432


@pytest.mark.parametrize(
    "given",
    [
        {"mlflow_tracking_uri": "sqlite:///mine.db", "mlflow_experiment_name": "mine", "lr": 1},
        types.MappingProxyType(
            {"mlflow_tracking_uri": "sqlite:///mine.db", "mlflow_experiment_name": "mine"}
        ),
        SimpleNamespace(mlflow_tracking_uri="sqlite:///mine.db", mlflow_experiment_name="mine"),
        argparse.Namespace(mlflow_tracking_uri="sqlite:///mine.db", mlflow_experiment_name="mine"),
        OfADataclass(),
        OfADataclass,
        Original(),
        PlainSettings(mlflow_tracking_uri="sqlite:///mine.db", mlflow_experiment_name="mine"),
    ],
    ids=lambda it: getattr(it, "__name__", type(it).__name__),
)
def test_whatever_has_the_fields_makes_a_tracker(given, tmp_path):
    tracker = initialize_mlflow(given)
    assert tracker.tracking_uri == tracker.registry_uri == f"sqlite:///{tmp_path}/mine.db"
    assert tracker.experiment_name == "mine"


def test_what_is_missing_has_its_default(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of the environment")
    assert initialize_mlflow({}).experiment_name == "of the environment"
    assert initialize_mlflow({"mlflow_experiment_name": None}).experiment_name == "of the environment"
    # A registry belongs to its tracking store.
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:///theirs.db")
    tracker = initialize_mlflow({"mlflow_tracking_uri": "sqlite:///mine.db"})
    assert tracker.registry_uri == tracker.tracking_uri
    assert initialize_mlflow({}).registry_uri == f"sqlite:///{tmp_path}/theirs.db"


def test_without_an_argument_the_settings_of_the_process_are_used(run_script, tmp_path):
    code = "from heimdall_tracking import initialize_mlflow; print(initialize_mlflow().experiment_name)"
    assert run_script(code, MLFLOW_EXPERIMENT_NAME="e").out == "e\n"


@pytest.mark.parametrize("field", NAMES)
@pytest.mark.parametrize("wrong", [3, ["hush"], b"hush", object(), {}])
def test_a_wrong_type_is_refused_by_the_name_of_its_field(field, wrong):
    with pytest.raises(ConfigurationError, match=field) as caught:
        initialize_mlflow({field: wrong})
    if "key" in field:
        assert "hush" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["sqlite:///mine.db", Path("mine.db"), 3, b"x", ["a"]])
def test_what_can_be_no_settings_is_refused(wrong):
    with pytest.raises(ConfigurationError, match="mlflow_tracking_uri"):
        initialize_mlflow(wrong)


def test_a_url_of_sqlalchemy_brings_its_password(monkeypatch):
    from sqlalchemy.engine import make_url

    url = make_url("postgresql://me:secret@127.0.0.1:1/db")
    assert (
        values_of({"mlflow_tracking_uri": url})["mlflow_tracking_uri"]
        == "postgresql://me:secret@127.0.0.1:1/db"
    )


class TestRunNames:
    """Names of runs that are given none."""

    STAMPED = r"_\d{8}_\d{6}"

    @pytest.mark.parametrize(
        ("given", "pattern"),
        [({}, "rf-localization"), ({"mlflow_run_name_prefix": "mine"}, "mine")],
    )
    def test_they_begin_with_the_prefix_of_the_settings(self, uri, given, pattern):
        tracker = initialize_mlflow({"mlflow_tracking_uri": uri} | given)
        with tracker.run() as run:
            pass
        assert re.fullmatch(pattern + self.STAMPED, tracker.get_run(run.run_id).run_name)

    def test_they_are_random_without_a_prefix(self, uri):
        for tracker in (
            initialize_mlflow({"mlflow_tracking_uri": uri, "mlflow_run_name_prefix": ""}),
            MLflowTracker(uri),
        ):
            with tracker.run() as run:
                pass
            assert re.fullmatch(r"[a-z]+-[a-z]+-\d+", tracker.get_run(run.run_id).run_name)

    def test_a_name_that_is_given_is_kept(self, uri):
        tracker = MLflowTracker(uri, run_name_prefix="mine")
        with tracker.run("given") as run:
            pass
        assert tracker.get_run(run.run_id).run_name == "given"
        with tracker.run(tags={"mlflow.runName": "by tag"}) as tagged:
            pass
        assert tracker.get_run(tagged.run_id).run_name == "by tag"
        with tracker.run(run_id=run.run_id):
            pass
        assert tracker.get_run(run.run_id).run_name == "given"

    def test_the_variable_sets_it(self, uri, monkeypatch):
        monkeypatch.setenv("MLFLOW_RUN_NAME_PREFIX", "by-variable")
        tracker = initialize_mlflow({"mlflow_tracking_uri": uri})
        with tracker.run() as run:
            pass
        assert tracker.get_run(run.run_id).run_name.startswith("by-variable_")


def test_the_keys_of_the_original_open_the_store(s3_server, bucket, uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_S3_ACCESS_KEY_ID", s3_server.variables["AWS_ACCESS_KEY_ID"])
    monkeypatch.setenv("MLFLOW_S3_SECRET_ACCESS_KEY", s3_server.variables["AWS_SECRET_ACCESS_KEY"])
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", s3_server.url)
    for tracker in (
        MLflowTracker(uri, f"s3://{bucket}/bare", experiment_name="bare"),
        initialize_mlflow(
            {
                "mlflow_tracking_uri": uri,
                "mlflow_artifact_uri": f"s3://{bucket}/settings",
                "mlflow_experiment_name": "settings",
            }
        ),
    ):
        with tracker.run() as run:
            tracker.log_text("text", "a.txt")
        tracker.flush()
        assert tracker.load_text(run.run_id, "a.txt") == "text"
