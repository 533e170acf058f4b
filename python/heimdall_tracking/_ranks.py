"""Ranks of a distributed training: how those behind rank 0 come to know its run."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

# Longest wait of a rank for rank 0 to start its run; it may have to load a dataset first.
PATIENCE = timedelta(minutes=5)

_started = 0
_attached = 0


def tell_other_ranks(run_id: str) -> None:
    """Leave the id of a run that rank 0 has started where the other ranks look for it."""
    global _started
    store = _store()
    if store is not None:
        store.set(f"heimdall/run/{_started}", run_id)
    _started += 1


def run_of_rank_zero() -> str:
    """Return the id of rank 0's run: of the first one at the first call, of the second at the second.

    Raises:
        RunStateError: Nothing says which run it is.
    """
    global _attached
    store = _store()
    if store is None:
        run_id = os.environ.get("MLFLOW_RUN_ID")
        if run_id:
            return run_id
        reason = "torch.distributed is not initialised"
    else:
        key = f"heimdall/run/{_attached}"
        try:
            store.wait([key], PATIENCE)
            found: bytes = store.get(key)
            _attached += 1
            return found.decode()
        except Exception as error:
            reason = f"rank 0 has not started a run within {PATIENCE}: {error}"
    from .errors import RunStateError

    raise RunStateError(
        f"the run of rank 0 is not known here ({reason}): call torch.distributed.init_process_group() before "
        "start_run(), or name the run by start_run(run_id=...) or MLFLOW_RUN_ID"
    )


def _store() -> Any:
    """Return the key-value store that torch.distributed's processes share, if there is one."""
    import sys

    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed.distributed_c10d._get_default_store()
