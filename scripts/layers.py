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


def imported(source: str) -> set[str]:
    """Return the layers that a file names, in `use crate::{...}` or by a path."""
    source = re.sub(r"//.*", "", source)
    names = set(re.findall(r"\bcrate::(\w+)", source))
    for group in re.findall(r"\bcrate::\{(.*?)\};", source, re.S):
        # Of nested braces only the outermost names are layers.
        while "{" in group:
            group = re.sub(r"\{[^{}]*\}", "", group)
        names |= set(re.findall(r"(?:^|,)\s*(\w+)", group))
    return names & set(LAYERS)


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
