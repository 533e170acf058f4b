"""The documents claim of the repository only what is true."""

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


def test_every_test_that_the_table_of_libraries_names_exists_and_has_a_line():
    table = (ROOT / "docs" / "doors.md").read_text().partition("## Libraries")[2].partition("## ")[0]
    named = set(re.findall(r"`(\w+\.py)::(\w+)`", table))
    files = (ROOT / "tests" / "libraries").glob("test_*.py")
    assert named == {
        (file.name, name) for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }


def test_every_variable_of_ours_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    sources = [*ROOT.glob("src/**/*.rs"), *ROOT.glob("python/**/*.py")]
    used = {name for file in sources for name in re.findall(r"\"(HEIMDALL_[A-Z_]+)\"", file.read_text())}
    assert {name for name in used if name not in readme} == set()


def test_the_readme_names_every_place_that_artifacts_go_to():
    table = (ROOT / "docs" / "artifacts.md").read_text().partition("## Where they go")[2].partition("## ")[0]
    schemes = re.findall(r"`([a-z0-9-]+:/)", table)
    assert len(schemes) >= 5
    readme = (ROOT / "README.md").read_text().partition("## Where runs go")[2].partition("## ")[0]
    assert {scheme for scheme in schemes if f"`{scheme}" not in readme} == set()


def test_every_link_between_the_documents_leads_somewhere():
    lost = []
    for document in (ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", document.read_text()):
            path, _, anchor = target.partition("#")
            file = document.parent / path if path else document
            if not file.exists() or (anchor and anchor not in anchors(file)):
                lost.append(f"{document.name}: {target}")
    assert lost == []


def anchors(document: Path) -> set[str]:
    """The headings of a document as links name them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
