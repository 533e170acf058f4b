"""Fail where a file of src/ imports from a higher layer; docs/architecture.md begins with the list."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# From the lowest to the highest: a file imports from its own layer and from those before it.
LAYERS = (
    "os",
    "net",
    "mlflow",
    "events",
    "journal",
    "system_metrics",
    "environment",
    "config",
    "artifacts",
    "store",
    "error",
    "delivery",
    "gc",
    "tracker",
    "python",
)


# A path that begins with one of these, with or without a group in braces at its end.
PATH = re.compile(r"\b((?:crate|super|self)(?:::\w+)*)::(\{|\w+|\*)")


def paths(source: str) -> set[str]:
    """Return the paths from `crate`, `super` and `self` that a file names, without braces."""
    source = re.sub(r"//.*", "", source)
    found = set()
    for match in PATH.finditer(source):
        names = members(source, match.end()) if match[2] == "{" else {match[2]}
        found |= {f"{match[1]}::{name}" for name in names}
    return found


def members(source: str, begin: int) -> set[str]:
    """Return the paths of a group: of what stands behind its opening brace, up to the closing one."""
    found, prefixes, name = set(), [""], ""
    for character in source[begin:]:
        if character == "{":
            prefixes.append(prefixes[-1] + name)
            name = ""
        elif character in ",}":
            if name := name.partition(" as ")[0].strip():
                found.add(prefixes[-1] + name)
            name = ""
            if character == "}":
                prefixes.pop()
            if not prefixes:
                break
        elif character != "\n":
            name = (name + character).lstrip()
    return {path.removesuffix("::self") for path in found}


def imported(source: str) -> set[str]:
    """Return the layers that a file names, in `use crate::{...}` or by a path."""
    names = (path.split("::") for path in paths(source))
    return {layer for first, layer, *_ in (it for it in names if len(it) > 1) if first == "crate"} & set(
        LAYERS
    )


def main() -> int:
    """Print each import from a higher layer, and each difference between the list and the documentation."""
    wrong = []
    for file in [*sorted((ROOT / "src").glob("*/**/*.rs")), ROOT / "src" / "error.rs"]:
        layer = file.relative_to(ROOT / "src").parts[0].removesuffix(".rs")
        higher = {name for name in imported(file.read_text()) if LAYERS.index(name) > LAYERS.index(layer)}
        wrong += [f"{file.relative_to(ROOT)}: {layer} imports {name}, a higher layer" for name in higher]
    text = (ROOT / "docs" / "architecture.md").read_text()
    documented = tuple(re.findall(r"^\d+\. `src/(\w+)(?:\.rs)?`", text, re.M))
    if documented != LAYERS:
        wrong.append(f"docs/architecture.md lists the layers {documented}, not {LAYERS}")
    print("\n".join(wrong) or f"{len(LAYERS)} layers, no import from a higher one")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
