"""A store that hands on what it does not implement to the stock store of the same URI."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from ..errors import HeimdallError, StoreUnavailableError, UndeliveredError


class HandsOn:
    """The stock store behind a bridged one, opened when it is first needed."""

    _uri: str
    _open: Callable[[], Any]

    def _begin(self, uri: str, open_stock: Callable[[], Any]) -> None:
        self._uri = uri
        self._open = open_stock
        self._opened: Any = None
        self._pid = 0
        self._opening = threading.RLock()

    @property
    def _stock(self) -> Any:
        """The stock store. A fork opens its own, as it must not use its parent's connections."""
        if self._opened is None or self._pid != os.getpid():
            if self._pid and self._pid != os.getpid():
                self._opening = threading.RLock()
            with self._opening:
                if self._opened is None or self._pid != os.getpid():
                    self._opened = self._open()
                    self._pid = os.getpid()
        return self._opened

    def _trackers(self) -> list[Any]:
        raise NotImplementedError

    def _deliver(self, *, files: bool = False) -> None:
        """Wait until the store has what this process has recorded for it, with files if asked.

        Raises:
            MlflowException: The store is away; the wait is bounded by `HEIMDALL_CONNECT_TIMEOUT`.
        """
        for tracker in self._trackers()[:1]:
            try:
                tracker._deliver_files() if files else tracker._deliver()
            except (StoreUnavailableError, UndeliveredError) as error:
                raise MlflowException(str(error), error_code=TEMPORARILY_UNAVAILABLE) from error
            except HeimdallError as error:
                raise MlflowException(str(error)) from error

    def __getattr__(self, name: str) -> Any:
        # Private state of the stock store, such as its engine, is found too.
        if name.startswith("__") or name in ("_opened", "_pid", "_opening", "_uri", "_open"):
            raise AttributeError(name)
        self._deliver()
        return getattr(self._stock, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # Parts of MLflow, such as its gateway, ask which of its own stores a store is.
        return type(self._stock) if self._opened is not None else type(self)


def handed_on(name: str) -> Any:
    """Return a method that delivers first and then calls the stock store's method of that name."""

    def method(self: HandsOn, *arguments: Any, **named: Any) -> Any:
        self._deliver()
        return getattr(self._stock, name)(*arguments, **named)

    method.__name__ = name
    return method


def _handed_on_property(name: str) -> property:
    def read(self: HandsOn) -> Any:
        return getattr(self._stock, name)

    return property(read)


def hand_on_the_rest(store: type, base: type) -> None:
    """Give a store a method for each public name of MLflow's abstract store that it does not define."""
    ours = [kind for kind in store.__mro__ if kind.__module__.startswith("heimdall_tracking")]
    own = {name for kind in ours for name in vars(kind)}
    for name in dir(base):
        if name.startswith("_") or name in own:
            continue
        member = getattr(base, name)
        if isinstance(member, property):
            setattr(store, name, _handed_on_property(name))
        elif callable(member):
            setattr(store, name, handed_on(name))
