"""Packages that a single call needs: imported by that call, named where they are missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .errors import MissingPackageError

# Names by which packages are installed, where they differ from the names of the modules.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}


def need(module: str, what: str) -> Any:
    """Import a module.

    Args:
        module: Dotted name of the module.
        what: The call that needs the module.

    Raises:
        MissingPackageError: The module is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        package = DISTRIBUTIONS.get(package, package)
        raise MissingPackageError(f"{what} needs {package}: pip install {package}") from error
