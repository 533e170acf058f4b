"""The data that objects hold, as params and files of JSON have it."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from .errors import WrongTypeError


def held(value: Any) -> Any:
    """Return the dict or list that an object holds; the object itself where it is none that holds data."""
    kind = type(value)
    if isinstance(value, (dict, list, str, type)):
        return value
    if (omegaconf := sys.modules.get("omegaconf")) and omegaconf.OmegaConf.is_config(value):
        try:
            return omegaconf.OmegaConf.to_container(value, resolve=True)
        except Exception:
            # An interpolation leads nowhere: it is kept as it is written.
            return omegaconf.OmegaConf.to_container(value, resolve=False)
    if dataclasses.is_dataclass(value):
        return {it.name: getattr(value, it.name, None) for it in dataclasses.fields(value)}
    if (attributes := getattr(kind, "__attrs_attrs__", None)) is not None:
        return {it.name: getattr(value, it.name, None) for it in attributes}
    if hasattr(kind, "model_fields") and callable(getattr(value, "model_dump", None)):
        return value.model_dump()
    if hasattr(kind, "__fields__") and callable(getattr(value, "dict", None)):
        # This is a model of pydantic 1.
        return value.dict()
    if isinstance(value, SimpleNamespace) or kind.__name__ == "Namespace":
        return dict(vars(value))
    if isinstance(value, Mapping):
        return dict(value)
    return value


def pairs(given: Any) -> list[tuple[Any, Any]]:
    """Return keys and values of a mapping, of an object that holds data, or of pairs.

    Objects with `key` and `value` are pairs as well.

    Raises:
        WrongTypeError: It is none of these.
    """
    found = held(given)
    if isinstance(found, dict):
        return list(found.items())
    if hasattr(found, "_asdict"):
        return list(found._asdict().items())
    wrong = WrongTypeError(
        f"a mapping, an object that holds data, or objects with key and value are expected, not "
        f"{type(given).__name__}"
    )
    if given is None or isinstance(given, (str, bytes, int, float, complex, type)):
        raise wrong
    if hasattr(given, "keys") and hasattr(given, "__getitem__"):
        return [(key, given[key]) for key in given.keys()]  # noqa: SIM118
    if hasattr(given, "__iter__") or hasattr(given, "__getitem__"):
        return [_pair(entity) for entity in given]
    try:
        attributes = vars(given)
    except TypeError:
        raise wrong from None
    return [(name, value) for name, value in list(attributes.items()) if not name.startswith("_")]


def _pair(entity: Any) -> tuple[Any, Any]:
    if isinstance(entity, tuple) and len(entity) == 2 and not hasattr(entity, "_fields"):
        return entity
    try:
        return entity.key, entity.value
    except AttributeError:
        raise WrongTypeError(
            f"objects with key and value are expected, and one is {type(entity).__name__}"
        ) from None


def text(value: Any) -> str:
    """Return the text of a param: containers and objects that hold data as JSON, all else by `str()`."""
    found = held(value)
    if not isinstance(found, (dict, list)):
        return str(value)
    try:
        return as_json(found)
    except (TypeError, ValueError, RecursionError):
        # It contains itself, or is deeper than the interpreter recurses.
        return str(value)


def as_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON; a key or a value that JSON has no form for is a text by `str()`.

    Raises:
        ValueError: The value contains itself.
        RecursionError: The value is deeper than the interpreter recurses.
    """
    try:
        return json.dumps(held(value), indent=indent, default=_default)
    except TypeError:
        # A key is none that JSON has a form for.
        return json.dumps(plain(value), indent=indent, default=str)


def plain(value: Any) -> Any:
    """Return a value whose dicts have keys of JSON, and whose objects are the data that they hold."""
    found = held(value)
    if isinstance(found, dict):
        return {_key(key): plain(it) for key, it in found.items()}
    if isinstance(found, (list, tuple)):
        return [plain(it) for it in found]
    return found


def _key(key: Any) -> Any:
    return key if isinstance(key, (str, int, float, bool, type(None))) else str(key)


def _default(value: Any) -> Any:
    found = held(value)
    return str(value) if found is value else found
