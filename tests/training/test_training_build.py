"""The build of the training wheel takes the torch that is there, and refuses others by name."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

BACKEND = Path(__file__).parents[2] / "training" / "backend" / "heimdall_build.py"


@pytest.fixture
def backend(monkeypatch, tmp_path):
    """The build backend, in an interpreter whose environment is the folder of the test."""
    spec = importlib.util.spec_from_file_location("heimdall_build", BACKEND)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv("HEIMDALL_TORCH", raising=False)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(module, "_hidden_folders", lambda: [tmp_path / "site"])
    return module


def put_torch(folder: Path, version: str) -> None:
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "version.py").write_text(
        f"from typing import Optional\n\n__version__ = '{version}'\n"
    )


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "2.15.0+cu130"])
def test_the_torch_of_the_environment_is_kept(backend, tmp_path, version):
    put_torch(tmp_path / "site", version)
    assert backend.get_requires_for_build_wheel() == []
    assert backend.installed_torch().version == version.split("+")[0]


def test_without_a_torch_the_default_one_is_installed_for_the_build(backend):
    assert backend.get_requires_for_build_wheel() == ["torch==2.13.0"]


@pytest.mark.parametrize("version", ["2.9.1", "2.16.0+cpu", "3.0.0"])
def test_another_torch_is_refused_by_name(backend, tmp_path, version):
    put_torch(tmp_path / "site", version)
    with pytest.raises(SystemExit, match=rf"torch {version.split('+')[0]} .*2\.10 to 2\.15"):
        backend.get_requires_for_build_wheel()


def test_a_torch_for_another_python_is_refused_by_name(backend, tmp_path):
    put_torch(tmp_path / "site", "2.15.0")
    (tmp_path / "site" / "torch" / "_C.cpython-39-x86_64-linux-gnu.so").touch()
    with pytest.raises(SystemExit, match=r"torch 2\.15\.0 .* another Python: .*cpython-39.*needs _C"):
        backend.get_requires_for_build_wheel()
    (tmp_path / "site" / "torch" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").touch()
    assert backend.get_requires_for_build_wheel() == []


def test_without_isolation_a_missing_or_another_torch_is_said_in_one_line(backend, tmp_path):
    with pytest.raises(SystemExit, match=r"no torch is installed .*pip install torch==2\.13\.0"):
        backend.build_wheel(str(tmp_path))
    put_torch(tmp_path / "site", "2.9.1")
    with pytest.raises(SystemExit, match=r"torch 2\.9\.1 .*2\.10 to 2\.15"):
        backend.prepare_metadata_for_build_wheel(str(tmp_path))


def test_an_isolated_pip_keeps_a_torch_of_the_user_s_or_the_system_s_packages(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", tmp_path / "venv"],
        check=True,
    )
    python = tmp_path / "venv" / "bin" / "python"
    environment = os.environ | {"PYTHONUSERBASE": str(tmp_path / "user")}
    environment.pop("PYTHONNOUSERSITE", None)
    ask = [python, "-c", "import site; print(site.getusersitepackages())"]
    said = subprocess.run(ask, env=environment, capture_output=True, text=True, check=True)
    put_torch(Path(said.stdout.strip()), "2.15.0")
    # As pip starts a backend: with a folder of its own, and without the user's packages.
    isolated = environment | {"PYTHONPATH": str(BACKEND.parent), "PYTHONNOUSERSITE": "1"}
    ask = [python, "-c", "import heimdall_build as b; print(b.get_requires_for_build_wheel(), b._torch()[0])"]
    said = subprocess.run(ask, env=isolated, capture_output=True, text=True, check=False)
    assert said.stdout == "[] 2.15.0\n", said.stderr


def test_a_checkout_below_a_folder_with_a_space_builds(backend, tmp_path, monkeypatch):
    header = tmp_path / "my projects" / "torch_versions.h"
    for name, value in {
        "PATH": "",
        "CXXFLAGS": "-O1",
        "PYTHONPATH": "",
        "CC_SHELL_ESCAPED_FLAGS": "0",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(backend, "HEADER", header)
    backend._prepare(backend.Torch("2.13.0", tmp_path / "site" / "torch"))
    assert shlex.split(os.environ["CXXFLAGS"]) == ["-O1", "-std=c++20", "-include", str(header)]
    assert os.environ["CC_SHELL_ESCAPED_FLAGS"] == "1"


def test_a_named_environment_comes_first(backend, tmp_path, monkeypatch):
    put_torch(tmp_path / "site", "2.13.0")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "named"], check=True)
    (packages,) = (tmp_path / "named").glob("lib/python3*/site-packages")
    put_torch(packages, "2.15.0")
    for named in (tmp_path / "named", tmp_path / "named" / "bin" / "python", packages):
        monkeypatch.setenv("HEIMDALL_TORCH", str(named))
        assert backend.installed_torch() == ("2.15.0", packages / "torch")
    monkeypatch.setenv("HEIMDALL_TORCH", str(tmp_path / "nothing"))
    with pytest.raises(SystemExit, match=r"HEIMDALL_TORCH=.*nothing names no environment"):
        backend.get_requires_for_build_wheel()


def test_an_environment_that_uv_hides_is_to_be_named(backend, tmp_path, monkeypatch):
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\nuv = 0.9.1\n")
    with pytest.raises(SystemExit, match=r"HEIMDALL_TORCH.*--no-build-isolation"):
        backend.get_requires_for_build_wheel()
    # pip in an environment that uv has made.
    monkeypatch.setenv("PYTHONPATH", "/tmp/pip-build-env-x/site")
    assert backend.get_requires_for_build_wheel() == ["torch==2.13.0"]


def test_a_wheel_names_the_torch_that_it_was_built_against(backend, tmp_path):
    wheel = tmp_path / "heimdall_training-0.1.0-cp310-abi3-linux_x86_64.whl"
    info = "heimdall_training-0.1.0.dist-info"
    files = {
        "heimdall_training/_libtorch.py": b'_TORCH = "2.13.0"\n',
        "heimdall_training/_native.abi3.so": b"2.13.0",
        f"{info}/METADATA": b"Name: x\nRequires-Dist: torch==2.13.0\nRequires-Dist: numpy>=1.24\n",
        f"{info}/RECORD": b"old",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    backend._rewrite(wheel, "2.15.0")
    with zipfile.ZipFile(wheel) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    assert found["heimdall_training/_libtorch.py"] == b'_TORCH = "2.15.0"\n'
    assert found["heimdall_training/_native.abi3.so"] == b"2.13.0"
    assert b"Requires-Dist: torch==2.15.0\nRequires-Dist: numpy" in found[f"{info}/METADATA"]
    lines = dict(line.rsplit(",", 2)[:2] for line in found[f"{info}/RECORD"].decode().splitlines())
    assert lines.keys() == found.keys()
    for name in found.keys() - {f"{info}/RECORD"}:
        digest = base64.urlsafe_b64encode(hashlib.sha256(found[name]).digest()).rstrip(b"=").decode()
        assert lines[name] == f"sha256={digest}"
