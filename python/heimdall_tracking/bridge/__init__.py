"""The bridge: stock MLflow in this process uses the journal of the tracker for the same store.

`attach` is called for each tracker. Nothing happens until MLflow is imported; then its stores, its stack of
active runs and its default experiment are those of the trackers, for the stores that have one. Other stores
stay as they are.
"""

from __future__ import annotations

import sys

from . import attached
from .stock import FLUENT

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def attach(tracker: Any) -> None:
    """Let stock MLflow use a tracker: at once where MLflow is imported, else when it is.

    Args:
        tracker: A `MLflowTracker`. The bridge holds no reference that keeps it alive.
    """
    attached.add(tracker)
    if FLUENT in sys.modules:
        _install()
    else:
        from . import imports

        imports.watch(FLUENT, _install)


def _install() -> None:
    from . import installation

    installation.install()
