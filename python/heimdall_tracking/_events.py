"""Events of the tracker's threads, handed to `logging`, or to structlog where that is configured."""

from __future__ import annotations

import os
import sys

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Event = tuple[str, str, str, dict[str, int | str]]

NAME = "heimdall_tracking"


def level() -> str | None:
    """Return the level from which events are collected; None collects none.

    `HEIMDALL_LOG` says it (`debug`, `info`, `warning` or `error`), and prints to stderr where no handler is
    configured. Otherwise it is the level of the logger `heimdall_tracking`, where logging is imported.
    """
    given = os.environ.get("HEIMDALL_LOG")
    if given:
        _print_from(given)
        return given
    if _structlog() is not None:
        return "debug"
    logging = sys.modules.get("logging")
    if logging is None:
        return None
    effective: int = logging.getLogger(NAME).getEffectiveLevel()
    if effective <= logging.DEBUG:
        return "debug"
    return "info" if effective <= logging.INFO else None


def emit(events: list[Event], dropped: int) -> None:
    """Hand over events: each has a level, the name of its logger, a name, and fields."""
    structlog = _structlog()
    if structlog is not None:
        for level, logger, name, fields in events:
            getattr(structlog.get_logger(logger), level)(name, **fields)
        return
    import logging

    if dropped:
        logging.getLogger(NAME).info("%d events of the log were dropped: nobody took them in time", dropped)
    for level, logger, name, fields in events:
        said = " ".join(f"{key}={value}" for key, value in fields.items())
        number = getattr(logging, level.upper())
        extra: dict[str, Any] = {"event": name, "fields": fields}
        logging.getLogger(logger).log(number, "%s %s", name, said, extra=extra)


def _structlog() -> Any:
    structlog = sys.modules.get("structlog")
    return structlog if structlog is not None and structlog.is_configured() else None


def _print_from(given: str) -> None:
    """Print events from a level on, where the user has configured no handler."""
    import logging

    number = getattr(logging, given.strip().upper(), None)
    logger = logging.getLogger(NAME)
    if not isinstance(number, int):
        return
    logger.setLevel(number)
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
        logger.addHandler(handler)
