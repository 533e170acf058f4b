"""The fields of the settings: their variables, their defaults, and the class that needs no pydantic."""

from __future__ import annotations

from ._native import without_credentials
from ._uris import PREFIX
from .heimdall_defaults import EXPERIMENT_NAME, RUN_NAME_PREFIX

# Spelled out, as importing `typing` and `dataclasses` would cost more than all the rest of this package.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

    from ._secret import Secret

    Lookup = Callable[[str], str | None]
    Found = dict[str, tuple[str, tuple[str, ...]]]

FIELDS = {
    "mlflow_tracking_uri": ("MLFLOW_TRACKING_URI",),
    "mlflow_artifact_uri": ("MLFLOW_ARTIFACT_URI",),
    "mlflow_backend_store_uri": ("MLFLOW_BACKEND_STORE_URI",),
    "mlflow_registry_uri": ("MLFLOW_REGISTRY_URI",),
    "mlflow_s3_endpoint_url": ("MLFLOW_S3_ENDPOINT_URL",),
    "mlflow_s3_access_key_id": ("MLFLOW_S3_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID"),
    "mlflow_s3_secret_access_key": ("MLFLOW_S3_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY"),
    "mlflow_experiment_name": ("MLFLOW_EXPERIMENT_NAME",),
    "mlflow_run_name_prefix": ("MLFLOW_RUN_NAME_PREFIX",),
}
"""The fields and the variables of each, the first that is set wins."""

DEFAULTS = {
    "mlflow_tracking_uri": "sqlite:///mlflow.db",
    "mlflow_experiment_name": EXPERIMENT_NAME,
    "mlflow_run_name_prefix": RUN_NAME_PREFIX,
}
"""Values of fields that nobody has set; the other fields are None then."""

SECRETS = ("mlflow_s3_access_key_id", "mlflow_s3_secret_access_key")

# An empty prefix means something: runs have MLflow's random names.
MAY_BE_EMPTY = ("mlflow_run_name_prefix",)


def found(get: Lookup | None = None) -> Found:
    """Return the values of the fields that variables set, each with the names of these variables.

    Args:
        get: Function that returns a variable; by default those of the process, else of the `.env` file.
    """
    from . import _environment

    get = get or _environment.get
    values: Found = {}
    for field, names in FIELDS.items():
        value = get(names[0])
        if value or (value is not None and field in MAY_BE_EMPTY):
            values[field] = (value, names[:1])
    if not any(field in values for field in SECRETS):
        # A key is useless with the secret of another one, so both have the same origin.
        for field in SECRETS:
            if value := get(FIELDS[field][1]):
                values[field] = (value, FIELDS[field][1:])
    named = "mlflow_tracking_uri" in values
    # A host that the process was given is meant, whatever a file says.
    is_of_process = _environment.process_has("POSTGRES_HOST")
    if not named or (is_of_process and not _environment.process_has("MLFLOW_TRACKING_URI")):
        uri = _postgres_uri(get)
        if uri is not None:
            names = tuple(f"POSTGRES_{name}" for name in ("HOST", "PORT", "USER", "PASSWORD", "DB"))
            values["mlflow_tracking_uri"] = (uri, tuple(name for name in names if get(name)))
    for field, (value, names) in values.items():
        if field.endswith("_uri"):
            # The prefix is for stock MLflow, which finds the bridge by it.
            values[field] = (value.removeprefix(PREFIX), names)
    return values


def text_of(field: str, value: object) -> str | None:
    """Return the text of a field's value: a str, a path, a secret or a URL of some library.

    Raises:
        ConfigurationError: The value is none of these.
    """
    if value is None or type(value) is str:
        return value
    if isinstance(value, str):
        # A member of an enumeration, for example; its own `str()` may be its name.
        return str.__str__(value)
    if (reveal := getattr(value, "get_secret_value", None)) is not None:
        return text_of(field, reveal())
    if hasattr(value, "__fspath__"):
        import os

        return os.fsdecode(value)
    if field.endswith(("_uri", "_url")):
        # SQLAlchemy's URL masks its password in `str()`.
        if (render := getattr(value, "render_as_string", None)) is not None:
            return str(render(hide_password=False))
        is_url = "url" in type(value).__name__.lower() or "dsn" in type(value).__name__.lower()
        if is_url:
            return str(value)
    _refuse(field, value)


def _refuse(field: str, value: object) -> NoReturn:
    from .errors import ConfigurationError

    kind = type(value).__name__
    shown = kind if field in SECRETS else f"{kind} ({without_credentials(repr(value)[:60])})"
    form = "a text, a path or a URL" if field.endswith(("_uri", "_url")) else "a text"
    raise ConfigurationError(f"the setting {field} must be {form}, not {shown}")


def shown(field: str, value: object) -> object:
    """Return the value of a field as it may be shown: URIs without user and password."""
    if isinstance(value, str) and field.endswith(("_uri", "_url", "_uris")):
        return without_credentials(value)
    if field in SECRETS and value is not None and not hasattr(value, "get_secret_value"):
        from ._secret import Secret

        return Secret(str(value))
    return value


def pickled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values for a pickle, which has no keys and no passwords."""
    state = {field: shown(field, value) for field, value in values.items()}
    return {field: value for field, value in state.items() if field not in SECRETS}


def unpickled(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a pickle, with the keys and passwords of the environment where it is read."""
    here = PlainSettings()
    values = dict(state)
    for field in FIELDS:
        value = getattr(here, field)
        if field in SECRETS or (value is not None and shown(field, value) == values.get(field)):
            values[field] = value
    return values


class PlainSettings:
    """The places and the name under which runs are recorded.

    A setting that is not given is read, when the object is made, from its environment variable, else from the
    same variable in a `.env` file: that beside the script or in the nearest folder above it, else in the
    folder where the process started or above that. `HEIMDALL_ENV_FILE` names another file, and an empty one
    turns this off. An empty variable counts as none.

    The class is a model of pydantic-settings where that is installed, and a plain class with the same fields
    else. A class that extends it may have fields of its own.

    Args:
        mlflow_tracking_uri: Store of the runs; `MLFLOW_TRACKING_URI`, else the PostgreSQL database that
            `POSTGRES_HOST` and, where they are set, `POSTGRES_PORT`, `POSTGRES_USER`, `POSTGRES_PASSWORD` and
            `POSTGRES_DB` name, else `sqlite:///mlflow.db`.
        mlflow_artifact_uri: Folder for artifacts of a new experiment; `MLFLOW_ARTIFACT_URI`, else the
            folder `mlruns` beside SQLite's file, with PostgreSQL in the folder where the process started, and
            with a server the folder that the server names.
        mlflow_backend_store_uri: Database behind the tracking URI; `MLFLOW_BACKEND_STORE_URI`. Must be the
            same as the tracking URI where both name a database.
        mlflow_registry_uri: Registry of the models; `MLFLOW_REGISTRY_URI`, else the tracking URI.
        mlflow_s3_endpoint_url: S3 endpoint; `MLFLOW_S3_ENDPOINT_URL`.
        mlflow_s3_access_key_id: S3 access key; `MLFLOW_S3_ACCESS_KEY_ID`, else `AWS_ACCESS_KEY_ID`. A secret:
            it equals its text, is never shown, and `get_secret_value()` returns it.
        mlflow_s3_secret_access_key: S3 secret key; `MLFLOW_S3_SECRET_ACCESS_KEY`, else
            `AWS_SECRET_ACCESS_KEY`. A secret as well.
        mlflow_experiment_name: Experiment; `MLFLOW_EXPERIMENT_NAME`, else `heimdall-localization`.
        mlflow_run_name_prefix: Beginning of the name of a run that is given none; a time stamp follows.
            `MLFLOW_RUN_NAME_PREFIX`, else `rf-localization`. With an empty one such a run has a random name.
        others: Fields that a class which extends this one has of its own.

    Raises:
        ConfigurationError: A value has the wrong type, or `HEIMDALL_ENV_FILE` names no file.
    """

    if TYPE_CHECKING:
        mlflow_tracking_uri: str
        mlflow_artifact_uri: str | None
        mlflow_backend_store_uri: str | None
        mlflow_registry_uri: str | None
        mlflow_s3_endpoint_url: str | None
        mlflow_s3_access_key_id: Secret | None
        mlflow_s3_secret_access_key: Secret | None
        mlflow_experiment_name: str
        mlflow_run_name_prefix: str

    def __init__(
        self,
        *,
        mlflow_tracking_uri: object = None,
        mlflow_artifact_uri: object = None,
        mlflow_backend_store_uri: object = None,
        mlflow_registry_uri: object = None,
        mlflow_s3_endpoint_url: object = None,
        mlflow_s3_access_key_id: object = None,
        mlflow_s3_secret_access_key: object = None,
        mlflow_experiment_name: object = None,
        mlflow_run_name_prefix: object = None,
        **others: object,
    ) -> None:
        given = {
            "mlflow_tracking_uri": mlflow_tracking_uri,
            "mlflow_artifact_uri": mlflow_artifact_uri,
            "mlflow_backend_store_uri": mlflow_backend_store_uri,
            "mlflow_registry_uri": mlflow_registry_uri,
            "mlflow_s3_endpoint_url": mlflow_s3_endpoint_url,
            "mlflow_s3_access_key_id": mlflow_s3_access_key_id,
            "mlflow_s3_secret_access_key": mlflow_s3_secret_access_key,
            "mlflow_experiment_name": mlflow_experiment_name,
            "mlflow_run_name_prefix": mlflow_run_name_prefix,
        }
        variables = found()
        for field, value in given.items():
            text = text_of(field, value)
            if not text and not (text is not None and field in MAY_BE_EMPTY):
                text = variables[field][0] if field in variables else DEFAULTS.get(field)
            setattr(self, field, text)
        own = {name for cls in type(self).__mro__ for name in getattr(cls, "__annotations__", ())}
        for name, value in others.items():
            if name not in own:
                raise TypeError(f"{type(self).__name__}() has no field {name!r}")
            setattr(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        if name in FIELDS:
            value = text_of(name, value)
        if name in SECRETS and value is not None:
            from ._secret import Secret

            value = Secret(str(value))
        super().__setattr__(name, value)

    def model_dump(self) -> dict[str, Any]:
        """Return the fields as a dict, as pydantic does; secrets stay secrets."""
        own = {
            name: getattr(self, name)
            for cls in reversed(type(self).__mro__)
            for name in getattr(cls, "__annotations__", ())
            if hasattr(self, name)
        }
        return own | vars(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PlainSettings):
            return NotImplemented
        return self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        name = "Settings" if type(self) is PlainSettings else type(self).__name__
        fields = (
            (field, shown(field, value)) for field, value in self.model_dump().items() if field not in SECRETS
        )
        return f"{name}({', '.join(f'{field}={value!r}' for field, value in fields)})"

    def __getstate__(self) -> dict[str, Any]:
        return pickled(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in unpickled(state).items():
            setattr(self, name, value)

    def __copy__(self) -> PlainSettings:
        copy = object.__new__(type(self))
        vars(copy).update(vars(self))
        return copy

    def __deepcopy__(self, memo: dict[int, Any]) -> PlainSettings:
        from copy import deepcopy

        copy = object.__new__(type(self))
        vars(copy).update(deepcopy(vars(self), memo))
        return copy


def _postgres_uri(get: Lookup) -> str | None:
    """Return the database that the variables of PostgreSQL's container image name, if they name its host."""
    host = get("POSTGRES_HOST")
    if not host:
        return None
    user = get("POSTGRES_USER") or "postgres"
    database = _percent_encoded(get("POSTGRES_DB") or user)
    password = get("POSTGRES_PASSWORD")
    port = get("POSTGRES_PORT")
    account = _percent_encoded(user) + (f":{_percent_encoded(password)}" if password else "")
    if host.startswith("/"):
        # A URI cannot have a folder of sockets as its host.
        options = f"?host={_percent_encoded(host)}" + (f"&port={port}" if port else "")
        return f"postgresql://{account}@/{database}{options}"
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"postgresql://{account}@{host}{f':{port}' if port else ''}/{database}"


def _percent_encoded(text: str) -> str:
    """Encode a text for any part of a URI; `urllib.parse` would cost more than the rest of this module."""
    safe = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~"
    encoded = text.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if byte in safe else f"%{byte:02X}" for byte in encoded)
