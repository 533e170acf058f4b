"""`heimdall config`: every setting, its value and where it comes from; secrets are masked."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable

from .. import _environment, _native
from .._plain_settings import DEFAULTS, FIELDS, SECRETS, found

MASK = "****"

# Variables beside those of the settings that the package reads by itself, with their defaults.
DEFAULTS_OF_VARIABLES = {
    "HEIMDALL_DIR": ".heimdall",
    "HEIMDALL_MODE": "online",
    "MLFLOW_MIRROR_URIS": None,
    "HEIMDALL_RANKS": "zero",
    "HEIMDALL_DURABILITY": "process",
    "HEIMDALL_STRICT": "false",
    "HEIMDALL_CONNECT_TIMEOUT": "5",
    "HEIMDALL_END_TIMEOUT": "10",
    "HEIMDALL_EXIT_TIMEOUT": "30",
    "HEIMDALL_TERM_GRACE": "10",
    "HEIMDALL_JOURNAL_LIMIT": "10737418240",
    "HEIMDALL_MEMORY_LIMIT": "268435456",
    "HEIMDALL_LOG": None,
    "HEIMDALL_LOG_ENVIRONMENT": "false",
    "HEIMDALL_SET_ENVIRONMENT": "true",
    "HEIMDALL_BRIDGE": "true",
    "HEIMDALL_JOURNALED": None,
    "HEIMDALL_CONSOLE_LIMIT": "67108864",
    "HEIMDALL_MLFLOW_VERSION": None,
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
}

# Variables that are shown where they are set.
OTHERS = (
    "MLFLOW_RUN_ID",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL",
    "MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING",
    "MLFLOW_SYSTEM_METRICS_NODE_ID",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_INSECURE_TLS",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_HTTP_REQUEST_TIMEOUT",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD",
    "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE",
    "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE",
    "MLFLOW_S3_IGNORE_TLS",
    "MLFLOW_S3_UPLOAD_EXTRA_ARGS",
    "MLFLOW_S3_EXPECTED_BUCKET_OWNER",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_CA_BUNDLE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_CONNECTION_STRING",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
)

# Parts of the names of variables whose values are secrets.
SECRET_PARTS = ("KEY", "SECRET", "TOKEN", "PASSWORD", "CONNECTION_STRING", "EXTRA_ARGS")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "config",
        description=(
            "Show the value of each setting and where it comes from: a variable of the environment, a line "
            "of the .env file, or the default. Secrets are masked, and URIs have no password. A script may "
            "give other values as arguments. The .env file is searched from the working directory upwards, "
            "for a script from the script's folder."
        ),
    )
    parser.add_argument("--json", action="store_true", help="print the settings as JSON")
    parser.set_defaults(run=run, reads_file=False)


def run(given: argparse.Namespace) -> int:
    """Print a line for each setting."""
    file = _environment.env_file()
    rows = [*_settings(), *_variables()]
    if given.json:
        members = ("name", "value", "source")
        listed = [dict(zip(members, row, strict=True)) for row in rows]
        print(json.dumps({"env_file": file.path if file else None, "settings": listed}, indent=2))
        return 0
    print(f".env file: {file.path if file else 'none'}\n")
    shown = [(name, "-" if value is None else value, source) for name, value, source in rows]
    widths = [max(len(row[column]) for row in shown) for column in (0, 1)]
    for name, value, source in shown:
        print(f"{name:{widths[0]}}  {value:{widths[1]}}  {source}")
    return 0


def _settings() -> Iterable[tuple[str, str | None, str]]:
    values = found()
    for field in FIELDS:
        value, names = values.get(field, (DEFAULTS.get(field), ()))
        if field in SECRETS and value:
            value = MASK
        yield field, without_secrets(field.upper(), value), _source(names)


def _variables() -> Iterable[tuple[str, str | None, str]]:
    for name in (*DEFAULTS_OF_VARIABLES, *OTHERS):
        value = _environment.get(name)
        if value or name in DEFAULTS_OF_VARIABLES:
            place = _source((name,)) if value else "default"
            yield name, without_secrets(name, value or DEFAULTS_OF_VARIABLES.get(name)), place


def _source(names: Iterable[str]) -> str:
    places = [place for name in names if (place := _environment.place(name))]
    return ", ".join(dict.fromkeys(places)) or "default"


def is_secret(name: str) -> bool:
    """Return True for the name of a variable whose value is a secret."""
    # The names of files and of chunks of a file have such parts too.
    ends_plainly = name.endswith(("_FILE", "_PATH", "_SIZE"))
    return not ends_plainly and any(part in name for part in SECRET_PARTS)


def without_secrets(name: str, value: str | None) -> str | None:
    """Return the value of a variable as it may be shown."""
    if not value:
        return value
    if is_secret(name):
        return MASK
    if name.endswith("_URIS"):
        return " ".join(map(_native.without_credentials, value.replace(",", " ").split()))
    return _native.without_credentials(value) if "://" in value else value
