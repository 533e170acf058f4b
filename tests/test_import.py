"""The package as an editor and an import see it."""

from __future__ import annotations

import ast
import doctest
import inspect
from collections.abc import Iterable
from pathlib import Path

import pytest

import heimdall_tracking
from heimdall_tracking import _native, errors

STUB = ast.parse((Path(heimdall_tracking.__file__).parent / "_native.pyi").read_text())
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}
TYPES_ONLY = {"RunInfo", "BestRun", "Synced", "JournalInfo", "FoundGarbage", "StoreCheck", "ArtifactCheck"}
UNKNOWN = object()


def functions(nodes: list[ast.stmt], prefix: str = "") -> dict[str, ast.FunctionDef]:
    return {prefix + node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}


# Every function, method and property of the stub by its dotted name.
MEMBERS = functions(STUB.body)
for name in sorted(CLASSES.keys() - TYPES_ONLY):
    MEMBERS |= functions(CLASSES[name].body, f"{name}.")
DOCUMENTED = {name: ast.get_docstring(node) or "" for name, node in (CLASSES | MEMBERS).items()}


def runtime(dotted: str) -> object:
    value = _native
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def is_property(node: ast.FunctionDef) -> bool:
    return any(isinstance(name, ast.Name) and name.id == "property" for name in node.decorator_list)


def stub_parameters(node: ast.FunctionDef) -> list[tuple[str, object]]:
    """Name and default of each parameter; None of them is keyword-only or variadic."""
    arguments = node.args
    assert [arguments.kwonlyargs, arguments.vararg, arguments.kwarg] == [[], None, None]
    names = [argument.arg for argument in arguments.posonlyargs + arguments.args]
    defaults = [inspect.Parameter.empty] * (len(names) - len(arguments.defaults))
    return list(zip(names, defaults + [literal(value) for value in arguments.defaults], strict=True))


def literal(value: ast.expr) -> object:
    try:
        return ast.literal_eval(value)
    except ValueError:
        return UNKNOWN  # A name, such as the built-in `min`.


def test_importing_the_package_loads_nothing_heavy(run_script):
    run = run_script(
        """
        import sys
        import heimdall_tracking
        print(sorted({name.partition(".")[0] for name in sys.modules}))
        """
    )
    loaded = set(ast.literal_eval(run.out))
    heavy = {"torch", "mlflow", "numpy", "pandas", "sqlalchemy", "heimdall_training", "matplotlib", "PIL"}
    assert loaded.isdisjoint(heavy | {"typing", "dataclasses", "json", "hashlib", "csv", "logging"})


def test_a_process_that_only_imports_the_package_leaves_nothing(run_script, tmp_path):
    before = set(tmp_path.rglob("*"))
    run = run_script("import heimdall_tracking")
    assert (run.code, run.out, run.err) == (0, "", "")
    assert set(tmp_path.rglob("*")) == before


def test_every_public_name_exists():
    missing = [name for name in heimdall_tracking.__all__ if not hasattr(heimdall_tracking, name)]
    assert missing == []


def test_the_package_is_marked_as_typed():
    assert (Path(heimdall_tracking.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("InvalidInputError", ValueError),
        ("WrongTypeError", TypeError),
        ("ConfigurationError", ValueError),
        ("RunStateError", RuntimeError),
        ("NotFoundError", LookupError),
        ("ArtifactNotFoundError", FileNotFoundError),
        ("ArtifactError", OSError),
        ("StoreUnavailableError", ConnectionError),
        ("UndeliveredError", TimeoutError),
        ("MissingPackageError", ImportError),
        ("JournalError", OSError),
        ("ExportError", RuntimeError),
    ],
)
def test_every_error_is_caught_by_the_root_and_by_the_builtin_that_fits(name, builtin):
    error = getattr(errors, name)
    assert issubclass(error, heimdall_tracking.HeimdallError)
    assert issubclass(error, builtin)
    assert name in heimdall_tracking.__all__


def test_the_stub_describes_exactly_what_the_extension_has():
    def public(names: Iterable[str]) -> set[str]:
        return {name for name in names if not name.startswith("_")} | {"__version__"}

    described = CLASSES.keys() - TYPES_ONLY | functions(STUB.body).keys()
    assert public(described) == public(vars(_native))
    for name in CLASSES.keys() - TYPES_ONLY:
        assert public(functions(CLASSES[name].body)) == public(vars(getattr(_native, name))), name


@pytest.mark.parametrize("name", MEMBERS)
def test_a_signature_in_the_stub_is_that_of_the_extension(name):
    node = MEMBERS[name]
    if is_property(node):
        assert inspect.isgetsetdescriptor(runtime(name))
        return
    expected = stub_parameters(node)
    # A class has the signature of its constructor, without `self`.
    if name.endswith(".__init__"):
        name, expected = name.removesuffix(".__init__"), expected[1:]
    signature = inspect.signature(runtime(name))
    found = [(parameter.name, parameter.default) for parameter in signature.parameters.values()]
    assert [parameter for parameter, _ in found] == [parameter for parameter, _ in expected]
    for (parameter, default), (_, stubbed) in zip(found, expected, strict=True):
        if stubbed is not UNKNOWN and default is not Ellipsis:
            assert default == stubbed, parameter


def documented_in_python() -> dict[str, str]:
    """Documentation of the classes and methods that are written in Python, by their dotted names."""
    found = {}
    found["load_model"] = inspect.getdoc(heimdall_tracking.load_model) or ""
    for name in ("Dataset", "MLflowTracker", "RunList", "Settings", "Upload"):
        cls = getattr(heimdall_tracking, name)
        members = {f"{name}.{member}": value for member, value in vars(cls).items() if member[0] != "_"}
        for dotted, value in {name: cls, **members}.items():
            found[dotted] = inspect.getdoc(value) or ""
    return found


EXAMPLES = {name: text for name, text in (DOCUMENTED | documented_in_python()).items() if ">>>" in text}


def test_every_public_name_of_python_s_own_is_documented():
    assert [name for name, text in documented_in_python().items() if not text] == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_does_what_it_says(name, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    if ".client" in EXAMPLES[name]:
        request.getfixturevalue("fluent")
    public = {name: getattr(heimdall_tracking, name) for name in heimdall_tracking.__all__}
    example = doctest.DocTestParser().get_doctest(EXAMPLES[name], public, name, None, None)
    report: list[str] = []
    results = doctest.DocTestRunner().run(example, out=report.append)
    assert results.attempted > 0
    assert results.failed == 0, "".join(report)


def test_the_version_is_that_of_the_wheel():
    from importlib.metadata import version

    assert heimdall_tracking.__version__ == version("heimdall-tracking")


def test_an_interpreter_that_knows_only_the_package_can_log(run_script, uri):
    run = run_script(
        """
        import sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1])
        with tracker.run() as run:
            tracker.log_metrics({"loss": 1})
        print(tracker.get_run_info(run.run_id)["metrics"], "numpy" in sys.modules)
        """,
        uri,
    )
    assert (run.out, run.err) == ("{'loss': 1.0} False\n", "")
