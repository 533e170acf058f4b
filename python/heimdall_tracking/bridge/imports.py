"""A call that is made once a module has been imported."""

from __future__ import annotations

import sys

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


def watch(name: str, then: Callable[[], None]) -> None:
    """Call a function right after a module has been imported for the first time.

    Args:
        name: Full name of the module, which is not imported yet.
        then: The function. If it raises, the import succeeds all the same, and the user is told.
    """
    if not any(isinstance(finder, _Finder) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(name, then))


class _Finder:
    """Finds one module by the other finders, and lets its loader make the call."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self.name = name
        self.then = then

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if finder is self or find is None else find(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(self, spec.loader)  # type: ignore[assignment]
                return spec
        return None

    def imported(self) -> None:
        """Make the call, and watch no longer."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        try:
            self.then()
        except Exception as error:
            from logging import getLogger

            getLogger("heimdall_tracking").warning(
                "the bridge to MLflow is off, as it does not fit this release of MLflow: %s: %s",
                type(error).__name__,
                error,
            )


class _Loader:
    """Loads the module as its own loader does, and makes the call afterwards."""

    def __init__(self, finder: _Finder, loader: Any) -> None:
        self._finder = finder
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The module shows its own loader, as without the bridge.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._finder.imported()
