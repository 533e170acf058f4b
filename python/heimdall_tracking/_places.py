"""Folders on this machine that artifact URIs name."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote


def local_folder(uri: str) -> Path | None:
    """Return the folder that an artifact URI names on this machine, or None for a URI of another place.

    Percent-escapes are decoded in a path without a scheme too, as stock MLflow does.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or "/" in scheme:
        return Path(unquote(uri)) if uri else None
    if rest.startswith("//"):
        rest = rest[2:].removeprefix("localhost")
    return Path(unquote(rest)) if scheme == "file" and rest.startswith("/") else None
