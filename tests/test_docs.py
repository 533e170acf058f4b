"""What the documents claim of the repository."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_test_that_the_promises_name_exists():
    text = (ROOT / "docs" / "durability.md").read_text()
    named = re.findall(r"`([\w/.]+)::(\w+)`", text)
    assert len(named) > 50
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not re.search(rf"(?:def|fn) {name}\b", (ROOT / file).read_text())
    ]
    assert missing == []


def test_every_variable_of_ours_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    sources = [*ROOT.glob("src/**/*.rs"), *ROOT.glob("python/**/*.py")]
    used = {name for file in sources for name in re.findall(r"\"(HEIMDALL_[A-Z_]+)\"", file.read_text())}
    assert {name for name in used if name not in readme} == set()
