"""Count comments that begin with a question word.

A comment is a sentence with a subject, or begins with a verb.

Prints the share for each folder, and the comments themselves with --list. Fails above 3 %.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("src", "training/src", "python", "training/python", "tests", "benches", "scripts")
COMMENTS = {
    ".rs": re.compile(r"^\s*//[/!]?\s+(\S.*)"),
    ".py": re.compile(r'^\s*(?:#|""")\s*(\w.*)'),
    ".pyi": re.compile(r'^\s*(?:#|""")\s*(\w.*)'),
}
QUESTION = re.compile(r"(What|Whether|How|Where|That|Who)\b")
LIMIT = 0.03
# File, line and text.
Comment = tuple[Path, int, str]


def comments(file: Path) -> list[tuple[int, str]]:
    """Return the first line of each comment of a file, with its number."""
    found: list[tuple[int, str]] = []
    pattern, last = COMMENTS[file.suffix], -1
    for number, line in enumerate(file.read_text().splitlines(), 1):
        match = pattern.match(line)
        if match:
            if last != number - 1:
                found.append((number, match[1]))
            last = number
    return found


def found_in(folder: str) -> tuple[list[Comment], list[Comment]]:
    """Return the comments of a folder that begin with a question word, and all of them."""
    files = [file for suffix in COMMENTS for file in (ROOT / folder).rglob(f"*{suffix}")]
    all_of = [(file, number, text) for file in sorted(files) for number, text in comments(file)]
    return [it for it in all_of if QUESTION.match(it[2])], all_of


def total() -> tuple[int, int]:
    """Return how many comments begin with a question word, and how many there are."""
    found = [found_in(folder) for folder in FOLDERS]
    return sum(len(questions) for questions, _ in found), sum(len(all_of) for _, all_of in found)


def main() -> int:
    """Print the shares; return 1 where the whole is above the limit."""
    for folder in FOLDERS:
        questions, all_of = found_in(folder)
        print(f"{folder:16} {len(questions):4} of {len(all_of):5} comments")
        if "--list" in sys.argv:
            for file, number, text in questions:
                print(f"  {file.relative_to(ROOT)}:{number}: {text}")
    asked, every = total()
    print(f"{asked / every:.1%} of {every} comments begin with a question word; at most {LIMIT:.0%} may")
    return 1 if asked / every > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
