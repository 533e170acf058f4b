"""The format of `.env` files, as python-dotenv reads it, without python-dotenv.

A statement is `NAME=value` or `export NAME=value`. A value in single or double quotes may have several lines;
in double quotes the escapes of C are understood, in single quotes only those of the quote and the backslash.
Text after ` #` is a comment. `${NAME}` and `${NAME:-default}` are replaced, quoted or not, by the variable of
the process, else by the value that the file has given before.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# White space, and white space within a line.
_SPACE = re.compile(r"\s*")
_BLANKS = re.compile(r"[^\S\r\n]*")
_EXPORT = re.compile(r"(?:export[^\S\r\n]+)?")
_QUOTED_NAME = re.compile(r"'([^']+)'")
_NAME = re.compile(r"([^=#\s]+)")
_EQUALS = re.compile(r"=([^\S\r\n]*)")
# A backslash takes the next character with it, so that an escaped quote ends nothing.
_SINGLE = re.compile(r"'((?:\\.|[^'\\])*)'", re.DOTALL)
_DOUBLE = re.compile(r'"((?:\\.|[^"\\])*)"', re.DOTALL)
_BARE = re.compile(r"([^\r\n]*)")
_END = re.compile(r"(?:[^\S\r\n]*#[^\r\n]*)?[^\S\r\n]*(?:\r\n|\n|\r|$)")
_REST = re.compile(r"[^\r\n]*(?:\r|\n|\r\n)?")
_COMMENT = re.compile(r"\s+#.*")
_NEWLINE = re.compile(r"\r\n|\n|\r")
_SINGLE_ESCAPE = re.compile(r"\\([\\'])")
_DOUBLE_ESCAPE = re.compile(r"\\([\\'\"abfnrtv])")
_ESCAPES = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
}
_VARIABLE = re.compile(r"\$\{([^}:]*)(?::-([^}]*))?\}")


class _Unreadable(Exception):
    """A statement that breaks the format."""


class _Reader:
    """A position in a text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def take(self, pattern: re.Pattern[str]) -> str:
        """Move behind the pattern and return its group, or else all of it."""
        found = pattern.match(self.text, self.at)
        if found is None:
            raise _Unreadable
        self.at = found.end()
        return found[1] if pattern.groups else found[0]

    def next_is(self, *texts: str) -> bool:
        """Return True where one of the texts comes next."""
        return self.text.startswith(texts, self.at)

    def value(self) -> str:
        """Move behind a value and return it."""
        blanks = self.take(_EQUALS)
        if blanks and self.next_is("#"):
            return ""
        if self.next_is("'"):
            return _SINGLE_ESCAPE.sub(r"\1", self.take(_SINGLE))
        if self.next_is('"'):
            return _DOUBLE_ESCAPE.sub(lambda it: _ESCAPES.get(it[1], it[1]), self.take(_DOUBLE))
        return _COMMENT.sub("", self.take(_BARE)).rstrip()

    def statement(self) -> tuple[str | None, str | None]:
        """Move behind a statement and return its name and value; a comment has neither."""
        self.take(_EXPORT)
        name = None
        if not self.next_is("#"):
            name = self.take(_QUOTED_NAME if self.next_is("'") else _NAME)
        self.take(_BLANKS)
        value = self.value() if self.next_is("=") else None
        self.take(_END)
        return name, value


def statements(text: str) -> tuple[list[tuple[str, str | None, int]], list[int]]:
    """Return the names, raw values and lines of the statements, and the lines that cannot be read.

    Args:
        text: The content of a file.

    Returns:
        A name without `=` has the value None. Lines count from 1.
    """
    reader = _Reader(text.removeprefix("\ufeff"))
    found: list[tuple[str, str | None, int]] = []
    unreadable: list[int] = []
    line, counted = 1, 0
    while True:
        reader.take(_SPACE)
        if reader.at >= len(reader.text):
            return found, unreadable
        line += len(_NEWLINE.findall(reader.text, counted, reader.at))
        counted = reader.at
        try:
            name, value = reader.statement()
        except _Unreadable:
            reader.take(_REST)
            unreadable.append(line)
            continue
        if name is not None:
            found.append((name, value, line))


def values(text: str, environment: Mapping[str, str]) -> tuple[dict[str, str], dict[str, int], list[int]]:
    """Return the values by their names, their lines, and the lines that cannot be read.

    Args:
        text: The content of a file.
        environment: The variables of the process; they win over those of the file in `${NAME}`.
    """
    found: dict[str, str | None] = {}
    lines: dict[str, int] = {}
    parsed, unreadable = statements(text)

    def replaced(match: re.Match[str]) -> str:
        name, default = match[1], match[2] or ""
        if name in environment:
            return environment[name]
        return found.get(name, default) or ""

    for name, value, line in parsed:
        found[name] = None if value is None else _VARIABLE.sub(replaced, value)
        lines[name] = line
    given = {name: value for name, value in found.items() if value is not None}
    return given, {name: lines[name] for name in given}, unreadable
