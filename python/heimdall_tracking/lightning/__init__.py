"""A logger for Lightning that records into a tracker.

    from heimdall_tracking.lightning import HeimdallLogger

    trainer = Trainer(logger=HeimdallLogger(tracker=tracker))

It takes the arguments of Lightning's `MLFlowLogger` and serves the trainers of both packages, `lightning` and
`pytorch_lightning`, version 2. Importing this module imports the package of the two that is imported already,
else the first one that is installed.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from .._optional import need
from .logger import MODULES, LoggerMethods, register

__all__ = ["HeimdallLogger"]


def _chosen() -> str:
    """Return the module that the logger's base class is taken from."""
    for module in MODULES.values():
        if module in sys.modules:
            return module
    for package, module in MODULES.items():
        if package in sys.modules or find_spec(package) is not None:
            return module
    return MODULES["lightning"]


if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

    class HeimdallLogger(LoggerMethods, Logger):
        """The logger: see `LoggerMethods`."""
else:
    _module = _chosen()
    need(_module, "heimdall_tracking.lightning")

    class HeimdallLogger(LoggerMethods, need(f"{_module}.loggers", "HeimdallLogger").Logger):  # noqa: D101
        __doc__ = LoggerMethods.__doc__
        _package = _module

    register(HeimdallLogger)
