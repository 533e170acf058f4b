"""Variables of the process and, behind them, those of a `.env` file."""

from __future__ import annotations

import os
import sys

from . import _start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_VARIABLE = "HEIMDALL_ENV_FILE"

# Variables that belong together: those of a file are not mixed with those of the process.
CREDENTIALS = (
    ("MLFLOW_S3_ACCESS_KEY_ID", "MLFLOW_S3_SECRET_ACCESS_KEY"),
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"),
    ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
)

# Variables that settings are made of. They are read here and need not be in the environment.
OF_SETTINGS = frozenset(
    (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_ARTIFACT_URI",
        "MLFLOW_BACKEND_STORE_URI",
        "MLFLOW_REGISTRY_URI",
        "MLFLOW_S3_ACCESS_KEY_ID",
        "MLFLOW_S3_SECRET_ACCESS_KEY",
        "MLFLOW_EXPERIMENT_NAME",
        "MLFLOW_RUN_NAME_PREFIX",
        FILE_VARIABLE,
    )
)

# Beginnings of the variables that the native module and the libraries under it read from the environment.
READ = ("HEIMDALL_", "MLFLOW_", "AWS_", "GOOGLE_", "AZURE_")
READ_TOO = frozenset(
    (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "PGDATABASE",
        "PGHOST",
        "PGHOSTADDR",
        "PGOPTIONS",
        "PGPASSFILE",
        "PGPASSWORD",
        "PGPORT",
        "PGSSLCERT",
        "PGSSLKEY",
        "PGSSLMODE",
        "PGSSLROOTCERT",
        "PGUSER",
    )
)

# A file of settings has some lines; a longer one is something else.
LONGEST = 1 << 20


class EnvFile:
    """A `.env` file that was read."""

    def __init__(self, path: str, text: str) -> None:
        from . import _dotenv

        self.path = path
        self.values, self.lines, self.unreadable = _dotenv.values(text, _untouched())


_read: dict[str, tuple[object, EnvFile | None]] = {}
_warned: set[str] = set()
# The variables that `load` has set: value and place in the file.
_loaded: dict[str, tuple[str, str]] = {}


def env_file() -> EnvFile | None:
    """Return the `.env` file of this process, if there is one.

    Raises:
        ConfigurationError: `HEIMDALL_ENV_FILE` names a file that cannot be read.
    """
    named = os.environ.get(FILE_VARIABLE)
    if named is not None:
        return _named(named) if named else None
    seen = set()
    for folder in _folders():
        if folder in seen:
            continue
        seen.add(folder)
        path = os.path.join(folder, ".env")
        if os.path.isfile(path) and _is_trusted(path, folder):
            try:
                return _content(path)
            except OSError as error:
                _warn(path, f"{path} is not read: {error.strerror or error}")
    return None


def get(name: str) -> str | None:
    """Return a variable of the process, else of the `.env` file."""
    if name in os.environ:
        return os.environ[name]
    return _of_file(name)


def process_has(name: str) -> bool:
    """Return True where the process itself was given the variable, and not empty."""
    return bool(os.environ.get(name)) and _loaded_place(name) is None


def place(name: str) -> str | None:
    """Return in words where a variable comes from; None where nobody has set it."""
    if (loaded := _loaded_place(name)) is not None:
        return loaded
    if name in os.environ:
        return f"environment {name}"
    file = env_file()
    if file is None or _of_file(name) is None:
        return None
    return f"{file.path}:{file.lines[name]}"


def names() -> set[str]:
    """Return the names of all variables of the process and of the file."""
    file = env_file()
    return set(os.environ) | (set(file.values) if file else set())


def load() -> None:
    """Put variables of the `.env` file that the native module reads into the environment.

    Those that the process has stay. Settings (URIs, MLflow's S3 keys, PostgreSQL's password) are read from
    the file where they are needed and are not put there.
    """
    file = env_file()
    if file is None:
        return
    for name, value in file.values.items():
        is_read = name.startswith(READ) or name.upper() in READ_TOO
        if not is_read or name in OF_SETTINGS or name in os.environ or _of_file(name) is None:
            continue
        if name == "MLFLOW_MIRROR_URIS":
            uris = value.replace(",", " ").split()
            value = " ".join(_start.store(uri) for uri in uris)
        elif name == "HEIMDALL_DIR" and value:
            value = _start.path(value)
        _loaded[name] = (value, f"{file.path}:{file.lines[name]}")
    for name, (value, _) in _loaded.items():
        if name in file.values:
            os.environ.setdefault(name, value)


def _loaded_place(name: str) -> str | None:
    value, where = _loaded.get(name, (None, None))
    return where if value is not None and os.environ.get(name) == value else None


def _untouched() -> dict[str, str]:
    """Return the environment without the variables that come from the file."""
    return {name: value for name, value in os.environ.items() if _loaded_place(name) is None}


def _of_file(name: str) -> str | None:
    file = env_file()
    if file is None or name not in file.values:
        return None
    for group in CREDENTIALS:
        if name in group and any(process_has(other) for other in group):
            return None
    return file.values[name]


def _folders() -> Iterator[str]:
    """Iterate over the folders to search: from the script's upwards, then from that of the start."""
    home = os.path.realpath(os.path.expanduser("~"))
    for folder in (_folder_of_script(), _start.FOLDER):
        while folder is not None:
            yield folder
            parent = os.path.dirname(folder)
            folder = None if parent == folder or os.path.realpath(folder) == home else parent


def _folder_of_script() -> str | None:
    """Return the folder of the script that runs; None for a notebook, a prompt and an installed program."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if not isinstance(file, str):
        return None
    file = _start.path(file)
    folder = os.path.dirname(file)
    parts = folder.split(os.sep)
    # Programs such as `heimdall` and `pytest` are no scripts of the user's.
    programs = {
        os.path.join(prefix, name) for prefix in (sys.prefix, sys.base_prefix) for name in ("bin", "Scripts")
    }
    library = os.path.dirname(os.path.abspath(os.__file__))
    is_installed = (
        folder in programs
        or "site-packages" in parts
        or "dist-packages" in parts
        or f"{folder}{os.sep}".startswith(f"{library}{os.sep}")
        or folder.startswith(os.path.dirname(os.path.abspath(__file__)))
    )
    return None if is_installed else folder


def _is_trusted(path: str, folder: str) -> bool:
    """Return False, with one warning, for a file that another user may have put there."""
    if not hasattr(os, "geteuid"):
        return True
    try:
        status, place = os.stat(path), os.stat(folder)
    except OSError:
        return False
    for_all = 0o002
    if status.st_uid in (os.geteuid(), 0) or not (status.st_mode | place.st_mode) & for_all:
        return True
    _warn(
        path,
        f"{path} is not read: it belongs to another user, and everybody may write there; "
        f"{FILE_VARIABLE}={path} has it read all the same, and an empty {FILE_VARIABLE} ends this warning",
    )
    return False


def _named(given: str) -> EnvFile | None:
    path = _start.path(os.path.expanduser(given))
    try:
        return _content(path)
    except OSError as error:
        from .errors import ConfigurationError

        raise ConfigurationError(
            f"{FILE_VARIABLE} {given!r} cannot be read: {error.strerror or error}; it must name a file of "
            "NAME=value lines, or be empty for none"
        ) from error


def _content(path: str) -> EnvFile | None:
    """Return the content of a file, read again where it has changed."""
    status = os.stat(path)
    version = (status.st_mtime_ns, status.st_size, status.st_ino)
    known, file = _read.get(path, (None, None))
    # A pipe can be read once.
    if known == version or (file is not None and not os.path.isfile(path)):
        return file
    with open(path, encoding="utf-8", errors="surrogateescape") as opened:
        text = opened.read(LONGEST + 1)
    if len(text) > LONGEST:
        _warn(path, f"{path} is not read: it is longer than {LONGEST} characters")
        file = None
    else:
        file = EnvFile(path, text)
        # The environment has no form for the character 0.
        file.values = {name: value for name, value in file.values.items() if "\0" not in name + value}
        if file.unreadable:
            lines = ", ".join(str(line) for line in file.unreadable)
            _warn(path, f"{path} has lines that are no NAME=value and are left out: {lines}")
    _read[path] = (version, file)
    return file


def _warn(path: str, message: str) -> None:
    if path not in _warned:
        import logging

        _warned.add(path)
        logging.getLogger("heimdall_tracking").warning(message)
