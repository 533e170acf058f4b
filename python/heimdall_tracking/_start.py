"""The folder in which the process started: relative URIs and paths of settings are below it.

Hydra and other launchers give each job a working directory of its own. All jobs of a sweep share one database
all the same, as this folder is noted once, when the package is imported, be it in the first job.
"""

from __future__ import annotations

import os
import sys


def _folder() -> str:
    """Return the folder in which the process started; a job of Hydra has left it by now."""
    hydra = sys.modules.get("hydra.core.hydra_config")
    if hydra is not None and hydra.HydraConfig.initialized():
        return str(hydra.HydraConfig.get().runtime.cwd)
    return _working_directory()


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        # Somebody has deleted the folder.
        return os.environ.get("PWD") or os.sep


FOLDER = _folder()
"""The working directory when this package was imported, or that of the launcher."""


def has_left() -> bool:
    """Return True where the process works in another folder by now."""
    return _working_directory() != FOLDER


def path(given: str) -> str:
    """Return a path as an absolute one; a relative path is below the folder of the start."""
    return os.path.normpath(os.path.join(FOLDER, given))


def store(uri: str) -> str:
    """Return the URI of a store, with an absolute path where it names a file of SQLite."""
    scheme, separator, file = uri.partition(":///")
    is_file = separator and scheme.lower().partition("+")[0] == "sqlite"
    if not is_file or not file or file.startswith(("/", ":memory:")):
        return uri
    return f"{scheme}:///{path(file)}"


def artifacts(uri: str) -> str:
    """Return the URI of artifacts, with an absolute path where it names a local folder by a relative one."""
    scheme, colon, rest = uri.partition(":")
    is_file = colon and scheme == "file"
    if not uri or (rest if is_file else uri).startswith("/") or (colon and "/" not in scheme and not is_file):
        return uri
    from urllib.parse import quote, unquote

    folder = path(unquote(rest if is_file else uri))
    if is_file:
        return "file://" + quote(folder)
    # A path is read with percent-escapes.
    return folder.replace("%", "%25")
