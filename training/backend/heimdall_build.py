"""Builds the wheel of the training loop against the torch of the environment that it is installed into.

It is maturin's build backend, which is told where that torch is. The native module is linked to its
libtorch, so the wheel requires exactly that torch.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import NamedTuple

DEFAULT = "2.13.0"
OLDEST, NEWEST = (2, 10), (2, 15)
HEADER = Path(__file__).parents[1] / "torch_versions.h"
SAID = re.compile(r"""^__version__ = ['"]([^'"]+)['"]""", re.MULTILINE)


class Torch(NamedTuple):
    """A torch that is installed: its version without a local part, and the folder that holds the package."""

    version: str
    folder: Path


class UnsupportedTorchError(Exception):
    """There is no torch to build against."""


def installed_torch() -> Torch | None:
    """Return the torch to build against; None where there is none, and the default one is to be installed.

    It is that of `HEIMDALL_TORCH`: a Python, the folder of an environment, or the folder that holds the
    package. Else it is that of this interpreter. pip builds with the interpreter of the environment that it
    installs into, also where it hides the packages of that environment.

    Raises:
        UnsupportedTorchError: The torch is not from 2.10 to 2.15, is for another Python, or is not where
            `HEIMDALL_TORCH` says.
    """
    named = os.environ.get("HEIMDALL_TORCH", "").strip()
    if named:
        folders = _folders_of(named)
        found = _in(folders)
        if found is None:
            raise UnsupportedTorchError(f"HEIMDALL_TORCH={named} names no environment that has torch")
        return _supported(found)
    found = _in([Path(path) for path in sys.path if path]) or _in(_hidden_folders())
    return None if found is None else _supported(found)


def _supported(torch: Torch) -> Torch:
    numbers = tuple(int(number) for number in torch.version.split(".")[:2])
    if OLDEST <= numbers <= NEWEST:
        return _for_this_python(torch)
    oldest, newest = (".".join(map(str, numbers)) for numbers in (OLDEST, NEWEST))
    raise UnsupportedTorchError(
        f"torch {torch.version} in {torch.folder.parent} is not supported: it must be from {oldest} to "
        f"{newest}, for example pip install torch=={DEFAULT}"
    )


def _for_this_python(torch: Torch) -> Torch:
    present = [path.name for path in torch.folder.glob("_C.*.so")]
    needed = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not present or needed in present:
        return torch
    raise UnsupportedTorchError(
        f"torch {torch.version} in {torch.folder.parent} is for another Python: it has {present[0]}, and "
        f"{sys.executable}, which builds, needs {needed}; build with the Python that has this torch"
    )


def _hidden_folders() -> list[Path]:
    """Return where the interpreter looks for packages by itself, such as the user's and the system's folders.

    pip hides them from an isolated build by an environment variable.
    """
    return _folders_of(sys.executable)


def _folders_of(named: str) -> list[Path]:
    path = Path(named).expanduser()
    if (path / "torch" / "version.py").is_file():
        return [path]
    python = path if path.is_file() else path / "bin" / "python"
    code = (
        "import sys, sysconfig; print(*sys.path, *map(sysconfig.get_path, ('purelib', 'platlib')), sep='\\n')"
    )
    try:
        asked = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, env=_plain())
    except (OSError, subprocess.CalledProcessError):
        return []
    return [Path(line) for line in asked.stdout.splitlines() if line]


def _plain() -> dict[str, str]:
    of_pip = ("PYTHONPATH", "PYTHONHOME", "PYTHONNOUSERSITE")
    return {name: value for name, value in os.environ.items() if name not in of_pip}


def _in(folders: list[Path]) -> Torch | None:
    for folder in folders:
        version = folder / "torch" / "version.py"
        if version.is_file() and (said := SAID.search(version.read_text(encoding="utf-8"))):
            return Torch(said[1].split("+")[0], folder / "torch")
    return None


def _is_hidden_by_uv() -> bool:
    configuration = Path(sys.prefix) / "pyvenv.cfg"
    is_of_uv = configuration.is_file() and "\nuv = " in "\n" + configuration.read_text(encoding="utf-8")
    return is_of_uv and "pip-build-env" not in os.environ.get("PYTHONPATH", "")


def _prepare(torch: Torch) -> None:
    """Tell torch-sys, by the environment, where torch is, and make its C++ fit."""
    os.environ["LIBTORCH_USE_PYTORCH"] = os.environ["LIBTORCH_BYPASS_VERSION_CHECK"] = "1"
    # It asks the first `python3` for torch, which an isolated build hides.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if str(torch.folder.parent) not in sys.path:
        paths = [os.environ.get("PYTHONPATH", ""), str(torch.folder.parent)]
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    flags = os.environ.get("CXXFLAGS", "")
    if HEADER.name not in flags:
        # The headers of torch 2.15 need C++20.
        header = str(HEADER)
        if any(letter.isspace() for letter in header):
            # Flags end at a space unless they are read as a shell reads them.
            os.environ["CC_SHELL_ESCAPED_FLAGS"] = "1"
            header = shlex.quote(header)
        os.environ["CXXFLAGS"] = f"{flags} -std=c++20 -include {header}".strip()


def _torch() -> Torch:
    found = _found()
    if found is None:
        raise SystemExit(
            f"heimdall-training: no torch is installed for {sys.executable} to build against: install one "
            f"first, for example by pip install torch=={DEFAULT}, or leave out --no-build-isolation"
        )
    return found


def _found() -> Torch | None:
    try:
        return installed_torch()
    except UnsupportedTorchError as error:
        raise SystemExit(f"heimdall-training: {error}") from error


def get_requires_for_build_wheel(config_settings: dict[str, object] | None = None) -> list[str]:
    """Return the torch to install for the build, where there is none."""
    if _found():
        return []
    if _is_hidden_by_uv():
        raise SystemExit(
            "heimdall-training: uv builds in an environment of its own, which does not tell the torch that "
            "the wheel is for: set HEIMDALL_TORCH=/path/to/the/environment/with/torch, or install with "
            "--no-build-isolation"
        )
    return [f"torch=={DEFAULT}"]


def get_requires_for_build_sdist(config_settings: dict[str, object] | None = None) -> list[str]:
    """Return nothing: a source distribution needs no torch."""
    return []


def build_sdist(sdist_directory: str, config_settings: dict[str, object] | None = None) -> str:
    """Build the source distribution."""
    import maturin

    name: str = maturin.build_sdist(sdist_directory, config_settings)
    return name


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: dict[str, object] | None = None
) -> str:
    """Write the metadata, which require the torch to build against."""
    torch = _torch()
    import maturin

    name: str = maturin.prepare_metadata_for_build_wheel(metadata_directory, config_settings)
    metadata = Path(metadata_directory) / name / "METADATA"
    metadata.write_text(_with_torch(metadata.read_text(encoding="utf-8"), torch.version), encoding="utf-8")
    return name


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, object] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Build the wheel against the torch that is installed."""
    torch = _torch()
    import maturin

    _prepare(torch)
    name: str = maturin.build_wheel(wheel_directory, config_settings, None)
    if torch.version != DEFAULT:
        _rewrite(Path(wheel_directory) / name, torch.version)
    return name


def _with_torch(text: str, version: str) -> str:
    return text.replace(f"Requires-Dist: torch=={DEFAULT}", f"Requires-Dist: torch=={version}")


def _rewrite(wheel: Path, version: str) -> None:
    """Make a wheel require, and name, the torch that it was built against."""
    changed = wheel.with_suffix(".new")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as new:
        contents = {item.filename: old.read(item) for item in old.infolist() if not item.is_dir()}
        records = next(name for name in contents if name.endswith(".dist-info/RECORD"))
        for name, content in contents.items():
            if name.endswith(".dist-info/METADATA"):
                contents[name] = _with_torch(content.decode(), version).encode()
            elif name == "heimdall_training/_libtorch.py":
                contents[name] = content.replace(f'"{DEFAULT}"'.encode(), f'"{version}"'.encode())
        contents[records] = _record(contents, records)
        for item in old.infolist():
            if not item.is_dir():
                new.writestr(item, contents[item.filename], zipfile.ZIP_DEFLATED)
    shutil.move(changed, wheel)


def _record(contents: dict[str, bytes], records: str) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for name, content in contents.items():
        if name != records:
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            writer.writerow([name, f"sha256={digest}", len(content)])
    writer.writerow([records, "", ""])
    return text.getvalue().encode()
