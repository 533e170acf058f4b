"""A text that is not shown, after pydantic's `SecretStr`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MASK = "**********"


class Comparable:
    """The manners of a secret beyond those of `SecretStr`: it equals its text, and no pickle has it."""

    __slots__ = ()

    if TYPE_CHECKING:

        def get_secret_value(self) -> str:
            """Return the text itself."""

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            return self.get_secret_value() == other
        reveal = getattr(other, "get_secret_value", None)
        if reveal is None:
            return NotImplemented
        return bool(self.get_secret_value() == reveal())

    def __hash__(self) -> int:
        return hash(self.get_secret_value())

    def __format__(self, form: str) -> str:
        return format(str(self), form)

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: object) -> Any:
        return self

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        # A pickle may become a file that others read, such as a checkpoint.
        return type(self), ("",)


class Secret(Comparable):
    """A text that is not shown: not by `print`, an f-string, a repr, JSON or a pickle.

    It equals its text, and `get_secret_value()` returns that. With pydantic-settings it is a `SecretStr`.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def get_secret_value(self) -> str:
        """Return the text itself."""
        return self._text

    def __str__(self) -> str:
        return MASK if self._text else ""

    def __repr__(self) -> str:
        return f"Secret({str(self)!r})"

    def __len__(self) -> int:
        return len(self._text)
