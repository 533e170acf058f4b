"""Print figures of the code and of what is built: long files, import circles, sizes, the time of an import.

Run it with `make measure`: it measures what is installed in `.venv`. With `--check` it prints only the
figures of the code that are over their limit, and fails where there is one.
"""

from __future__ import annotations

import ast
import io
import itertools
import re
import statistics
import subprocess
import sys
import time
import tokenize
import zlib
from collections.abc import Iterable, Iterator
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

import layers
import prose

ROOT = layers.ROOT
# Hand-written code, without tests.
FOLDERS = ("src", "training/src", "python", "training/python", "benches", "examples", "scripts")
# Each is one program of its own: its files import each other.
PROGRAMS = ("src", "training/src", "python", "training/python")
GENERATED = re.compile(r"/schema/mlflow_\w+\.rs$")
LONG_FILE = 500
LONG_FUNCTION = 10
# Files of an import circle and lines with `keep_waiting`, at most.
CIRCLES = {"src": 4}
WAITING_LINES = 59
STARTS = 15
TEST_MODULE = re.compile(r"#\[cfg\(test\)\]\s*(?:#\[[^\]]*\]\s*)*(?:pub(?:\([^)]*\))? )?mod (\w+)\s*([;{])")
PUB_USE = re.compile(r"\bpub(?:\([^)]*\))? use ([^;]*);")
# A string, a character or a comment of Rust: braces inside of these do not count.
TOKEN = re.compile(
    r'//[^\n]*|/\*.*?\*/|b?r(#*)".*?"\1|b?"(?:\\.|[^"\\])*"|' + r"b?'(?:\\(?:u\{\w+\}|x\w\w|.)|[^'\\\n])'",
    re.S,
)


def main() -> None:
    """Print one table."""
    is_check = "--check" in sys.argv[1:]
    over = [row for row in of_the_code() if not row.is_met]
    for row in over if is_check else itertools.chain(of_the_code(), of_what_is_built()):
        print(f"{row.name:44} {row.value:>12}")
        for remark in row.remarks:
            print(f"    {remark}")
    if is_check and over:
        sys.exit("the limits are at the top of scripts/measure.py")


class Row(NamedTuple):
    """A figure."""

    name: str
    value: str
    remarks: list[str]
    is_met: bool = True


def of_the_code() -> Iterator[Row]:
    """Yield the figures of the code, each of which has a limit."""
    long = [(code, file) for file in hand_written() if (code := lines_of_code(file)) > LONG_FILE]
    yield Row(
        f"files over {LONG_FILE} lines of code",
        files(len(long)),
        [f"{code} {relative(file)}" for code, file in sorted(long, reverse=True)],
        not long,
    )
    for folder in PROGRAMS:
        circle = biggest_circle(imports(ROOT / folder))
        yield Row(
            f"biggest import circle, {folder}",
            files(len(circle)),
            [relative(it) for it in circle],
            len(circle) <= CIRCLES.get(folder, 0),
        )
    waiting = sum("keep_waiting" in line for file in rust("src") for line in file.read_text().splitlines())
    yield Row("lines with keep_waiting, src", str(waiting), [], waiting <= WAITING_LINES)
    functions = sorted(binding_functions(), reverse=True)
    yield Row(
        "longest body of a #[pymethods] function",
        f"{functions[0][0]} lines",
        [f"{lines} {name}" for lines, name in functions if lines > LONG_FUNCTION] or [functions[0][1]],
        functions[0][0] <= LONG_FUNCTION,
    )


def of_what_is_built() -> Iterator[Row]:
    """Yield the figures of what is installed, and of the comments, whose limit is in `prose.py`."""
    asked, every = prose.total()
    yield Row("comments that begin with a question word", f"{asked / every:.1%}", [f"{asked} of {every}"])
    for package in ("heimdall_tracking", "heimdall_training"):
        yield from (Row(*size) for size in sizes(package))
    yield Row(
        "import heimdall_tracking",
        f"{import_ms():.1f} ms",
        [f"median of {STARTS}, over a bare interpreter"],
    )
    yield Row("cost of calls", "", ["python benches/calls.py calls"])


def files(number: int) -> str:
    """Return a number of files for a reader."""
    return f"{number} files"


def relative(file: Path) -> str:
    """Return a file's path in the checkout."""
    return str(file.relative_to(ROOT))


def rust(folder: str) -> list[Path]:
    """Return the Rust files of a folder that are not tests."""
    return [it for it in sorted((ROOT / folder).rglob("*.rs")) if not {"tests", "tests.rs"} & set(it.parts)]


def hand_written() -> list[Path]:
    """Return the files whose length counts."""
    found = [it for folder in FOLDERS for it in rust(folder)]
    found += [it for folder in FOLDERS for it in sorted((ROOT / folder).rglob("*.py*"))]
    return [it for it in found if it.suffix in {".rs", ".py", ".pyi"} and not GENERATED.search(str(it))]


def lines_of_code(file: Path) -> int:
    """Count lines which are not blank, comment, documentation or test."""
    text = file.read_text()
    if file.suffix == ".rs":
        return sum(bool(line.strip()) for line in plain_rust(text).splitlines())
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str()), lineno=first, end_lineno=int(last)):
                documented |= set(range(first, last + 1))
    blank = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {n for it in tokens if it.type not in blank for n in range(it.start[0], it.end[0] + 1)}
    return len(lines - documented)


def plain_rust(text: str) -> str:
    """Return a Rust file without comments and test modules; strings are empty but keep their lines."""

    def bare(match: re.Match[str]) -> str:
        if match[0].startswith("/"):
            return ""
        # A line of a string is a line of code.
        return '"' + "\n\\".join([""] * (match[0].count("\n") + 1)) + '"'

    text = TOKEN.sub(bare, text)
    while match := TEST_MODULE.search(text):
        end = match.end() if match[2] == ";" else closing_brace(text, match.end())
        text = text[: match.start()] + text[end:]
    return text


def closing_brace(text: str, begin: int) -> int:
    """Return the place behind the brace that closes the one before `begin`."""
    depth = 1
    for match in re.compile(r"[{}]").finditer(text, begin):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.end()
    raise ValueError("a brace is not closed")


def imports(folder: Path) -> dict[Path, set[Path]]:
    """Return the files that each file of a program imports."""
    if folder.name == "src":
        modules = {file: plain_rust(file.read_text()) for file in rust(relative(folder))}
        found = {file: set(rust_imports(file, folder, modules)) for file in modules}
    else:
        found = {file: set(python_imports(file, folder)) for file in sorted(folder.rglob("*.py"))}
    return {file: targets - {file} for file, targets in found.items()}


def rust_imports(file: Path, folder: Path, modules: dict[Path, str]) -> Iterator[Path]:
    """Yield the files of the paths that a Rust file names.

    `mod` and `pub use` are no imports: the file of a name that is handed on is the one that has it.
    """
    module = module_of(file, folder)
    text = PUB_USE.sub("", modules[file])
    for path in layers.paths(text):
        yield from rust_file(folder, resolved(path, module), modules)
    for name in re.findall(r"\buse (\w+)::", text):
        if (file.parent / f"{name}.rs").exists() or (file.parent / name / "mod.rs").exists():
            yield from rust_file(folder, [*module, name], modules)


def module_of(file: Path, folder: Path) -> list[str]:
    """Return the names of a Rust file's module, from the crate on."""
    names = list(file.relative_to(folder).with_suffix("").parts)
    return names[:-1] if names[-1] in {"mod", "lib"} else names


def resolved(path: str, module: list[str]) -> list[str]:
    """Return a path of a module from the crate on."""
    first, *names = path.split("::")
    at = [] if first == "crate" else module[:-1] if first == "super" else list(module)
    for name in names:
        at = at[:-1] if name == "super" else at if name == "*" else [*at, name]
    return at


def rust_file(folder: Path, path: list[str], modules: dict[Path, str]) -> list[Path]:
    """Return the file of the longest module that a path begins with, or the one that it has a name from."""
    for length in range(len(path), -1, -1):
        place = folder.joinpath(*path[:length])
        for file in (place.with_suffix(".rs"), place / "mod.rs", place / "lib.rs"):
            if file in modules:
                return handed_on(folder, file, path[length:], modules) or [file]
    return []


def handed_on(folder: Path, file: Path, names: list[str], modules: dict[Path, str]) -> list[Path]:
    """Return the file that a module has a name from by `pub use`."""
    module = module_of(file, folder)
    for use in PUB_USE.findall(modules[file]) if names else ():
        text = use if use.startswith(("crate", "super", "self")) else f"self::{use}"
        for path in layers.paths(text + ";"):
            if path.endswith(f"::{names[0]}"):
                return rust_file(folder, resolved(path, module), modules)
    return []


def python_imports(file: Path, folder: Path) -> Iterator[Path]:
    """Yield the files of the modules that a Python file imports: at its top, in functions, and for types."""
    package = list(file.relative_to(folder).parts[:-1])
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for name in names:
            yield from python_file(folder, name)


def python_file(folder: Path, name: list[str]) -> list[Path]:
    """Return the file of the longest module that a dotted name begins with."""
    for length in range(len(name), 0, -1):
        place = folder.joinpath(*name[:length])
        for file in (place.with_suffix(".py"), place.with_suffix(".pyi"), place / "__init__.py"):
            if file.exists():
                return [file]
    return []


def biggest_circle(graph: dict[Path, set[Path]]) -> list[Path]:
    """Return the files of the biggest circle: each of them imports each other one, by whatever way."""
    reached = {file: reach(graph, file) for file in graph}
    circles = [[it for it in reached[file] if file in reached.get(it, ())] for file in graph]
    biggest: list[Path] = max(circles, key=lambda circle: len(circle), default=[])
    return sorted(biggest)


def reach(graph: dict[Path, set[Path]], begin: Path) -> set[Path]:
    """Return the files that one file imports, and those that they import, and so on."""
    found: set[Path] = set()
    new = set(graph[begin])
    while new:
        found |= new
        new = {target for file in new for target in graph.get(file, ())} - found
    return found


def binding_functions() -> Iterator[tuple[int, str]]:
    """Yield the lines of each body of a `#[pymethods]` function, with its name."""
    for file in [*rust("src"), *rust("training/src")]:
        text = plain_rust(file.read_text())
        for block in re.finditer(r"#\[pymethods\]\s*impl[^{]*\{", text):
            methods = text[block.end() : closing_brace(text, block.end()) - 1]
            for function in re.finditer(r"\bfn (\w+)[^{;]*\{", methods):
                body = methods[function.end() : closing_brace(methods, function.end()) - 1]
                lines = sum(bool(line.strip()) for line in body.splitlines())
                yield lines, f"{relative(file)}: {function[1]}"


def sizes(package: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the size of an installed package: of its module, and of all that its wheel has."""
    try:
        installed = [Path(str(it.locate())) for it in metadata.files(package.replace("_", "-")) or ()]
    except metadata.PackageNotFoundError:
        yield f"{package}", "-", ["not installed"]
        return
    modules = [it for it in installed if it.suffix in {".so", ".pyd"}]
    yield f"{package}, native module", mib(it.stat().st_size for it in modules), []
    in_wheel = (it for it in installed if it.exists() and it.suffix != ".pyc")
    yield f"{package}, about its wheel", mib(len(zlib.compress(it.read_bytes())) for it in in_wheel), []


def mib(sizes: Iterable[int]) -> str:
    """Return a sum of bytes for a reader."""
    return f"{sum(sizes) / 2**20:.2f} MiB"


def import_ms() -> float:
    """Return the milliseconds of an import in a new interpreter, over those of a bare one."""
    if util.find_spec("heimdall_tracking") is None:
        return float("nan")
    statements = ("pass", "import heimdall_tracking")
    taken: dict[str, list[float]] = {statement: [] for statement in statements}
    for _ in range(STARTS + 1):  # in turn, so that a machine that slows down slows both
        for statement in statements:
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True, cwd="/")
            taken[statement].append((time.perf_counter() - begun) * 1e3)
    # The first of each has warmed the file cache.
    bare, whole = (statistics.median(taken[statement][1:]) for statement in statements)
    return whole - bare


if __name__ == "__main__":
    main()
