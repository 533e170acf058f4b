"""The comparison of store URIs."""

from __future__ import annotations

from . import _start

# Prefix by which stock MLflow finds the bridge; a tracker is what it stands for.
PREFIX = "heimdall+"
DEFAULT_PORTS = {"postgresql": 5432, "http": 80, "https": 443}


def without_prefix(uri: str) -> str:
    """Return the URI by which stock MLflow opens the store of a `heimdall+…` URI."""
    return uri[len(PREFIX) :] if uri.startswith(PREFIX) else uri


# Identities that are known, as MLflow asks at each of its calls. Loading `functools` would cost each import.
_known: dict[tuple[str, str], tuple[object, ...]] = {}
_MOST_KNOWN = 256


def same_store(one: str, other: str) -> bool:
    """Return true for two URIs of one store, whatever their credentials and drivers are.

    A relative file of SQLite is below the folder of the start, wherever the process works by now.
    """
    return one == other or identity(one) == identity(other)


def fingerprint(uri: str) -> str:
    """Return a text that is the same for all URIs of one store, and that tells nobody where the store is."""
    from hashlib import sha256

    return sha256(repr(identity(uri)).encode()).hexdigest()[:16]


def identity(uri: str) -> tuple[object, ...]:
    """Return what names the store of a URI: the same for all URIs of one store."""
    key = (uri, _start.FOLDER)
    if (known := _known.get(key)) is None:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        known = _known[key] = _identity_of(*key)
    return known


def _identity_of(uri: str, folder: str) -> tuple[object, ...]:
    from pathlib import Path
    from urllib.parse import parse_qs, unquote, urlsplit

    parts = urlsplit(without_prefix(str(uri)))
    scheme = parts.scheme.partition("+")[0].lower()
    if scheme == "sqlite":
        path = parts.path.partition("?")[0]
        # `sqlite:///a` is relative, `sqlite:////a` absolute.
        return scheme, Path(folder, unquote(path[1:])).resolve()
    if scheme == "postgres":
        scheme = "postgresql"
    try:
        port = parts.port
    except ValueError:
        port = None
    host = parts.hostname or ",".join(parse_qs(parts.query).get("host", []))
    return scheme, host, port or DEFAULT_PORTS.get(scheme), parts.path.rstrip("/")
