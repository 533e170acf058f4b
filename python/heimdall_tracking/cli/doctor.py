"""`heimdall doctor`: checks of the settings, the stores and this machine, each with what to do."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .. import _environment, _native
from .._places import local_folder
from ..errors import HeimdallError, PermissionDeniedError, StoreUnavailableError
from ..settings import values_of
from .config import MASK, is_secret

State = Literal["ok", "warning", "fail"]

# Revisions of MLflow's database, in order, from that of MLflow 2.8 to that of 3.17; a release behind the
# revision that its databases have.
REVISIONS = [
    "acf3f17fdcc7=2.8",
    "867495a8f9d4",
    "5b0e9adcef9c",
    "4465047574b1",
    "f5a4f2784254",
    "0584bdc529eb=2.22",
    "400f98739977",
    "6953534de441",
    "bda7b8c39065=3.1",
    "cbc13b556ace",
    "770bee3ae1dd",
    "a1b2c3d4e5f6",
    "de4033877273",
    "1a0cddfcaa16",
    "534353b11cbc",
    "71994744cf8e",
    "3da73c924c2f",
    "bf29a5ff90ea",
    "1bd49d398cd23",
    "b7c8d9e0f1a2",
    "5d2d30f0abce",
    "c9d4e5f6a7b8",
    "2c33131f4dae",
    "d3e4f5a6b7c8",
    "d0e1f2a3b4c5",
    "c8d9e0f1a2b3",
    "1b5f0d9ad7c1",
    "e1f2a3b4c5d6",
    "76601a5f987d",
    "c3d6457b6d8a",
    "a5b4c3d2e1f0",
    "ae8bbe7743c9",
    "7d34483879f0",
    "da6fb0208061",
    "89d3d66ed43f",
    "b7e4c1a90f23",
    "a8b9c0d1e2f3",
    "c1d2e3f4a5b6",
    "c3d9e7f1a2b4",
    "6f8d9c3b2a1e",
    "1971f2d9a75b",
    "17e22815139b",
    "b7e2c1a4d9f3",
    "75868b020152",
    "dc11669786a5=3.17",
    "f4a9b2c7d1e6=3.18",
]

# S3 refuses requests whose time differs by more than 15 minutes.
SKEW_S = 60
LEAST_ROOM = 1 << 30

FILE_SYSTEMS = {
    "nfs": "it is on the network: locks and pages of files may be lost with the connection",
    "cifs": "it is on the network: locks and pages of files may be lost with the connection",
    "smb": "it is on the network: locks and pages of files may be lost with the connection",
    "9p": "it is on the host of this machine: a power cut may lose what the host has not written",
    "fuse": "a program keeps it (FUSE): locks and pages of files are what that program makes of them",
    "tmpfs": "it is in memory: what waits there is lost when the machine restarts",
    "ramfs": "it is in memory: what waits there is lost when the machine restarts",
    "overlay": "it is the container's own layer: what waits there is lost with the container",
}


@dataclass(frozen=True)
class Check:
    """The outcome of a check."""

    check: str
    """Name of the check."""
    state: State
    """`ok`, `warning` or `fail`."""
    found: str
    """Findings, in a sentence."""
    advice: str = ""
    """Action that helps; empty where nothing needs one."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "doctor",
        description=(
            "Check that a training which starts now can record: the settings, the tracking store and its "
            "schema, the registry, the artifact location (a small file is written, read and deleted), the "
            "clock, HEIMDALL_DIR and torch. Creates no experiment and no table. Exit code 1: a check failed."
        ),
    )
    parser.add_argument("--uri", help="the store of the runs; default what the environment says")
    parser.add_argument("--experiment", help="the experiment; default what the environment says")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")
    parser.set_defaults(run=run, reads_file=False)


def run(given: argparse.Namespace) -> int:
    """Print each check as it ends, and return 1 where one has failed."""
    outcomes = []
    for outcome in checks(given.uri, given.experiment):
        outcome = _masked(outcome)
        outcomes.append(outcome)
        if not given.json:
            print(f"{outcome.state:8}{outcome.check}: {outcome.found}", flush=True)
            if outcome.advice:
                print(f"        {outcome.advice}", flush=True)
    failed = any(outcome.state == "fail" for outcome in outcomes)
    if given.json:
        print(json.dumps({"ok": not failed, "checks": [asdict(outcome) for outcome in outcomes]}, indent=2))
    return 1 if failed else 0


def checks(uri: str | None = None, experiment: str | None = None) -> Iterable[Check]:
    """Carry out the checks, one after the other."""
    yield _python()
    outcome = _env_file()
    yield outcome
    if outcome.state == "fail":
        return
    _environment.load()
    given: dict[str, str | None] = {"mlflow_tracking_uri": uri, "mlflow_experiment_name": experiment}
    try:
        settings = values_of(given)
        seconds = _connect_timeout()
    except HeimdallError as error:
        yield Check("settings", "fail", str(error), "`heimdall config` shows where each setting comes from")
        return
    tracking = settings["mlflow_tracking_uri"] or ""
    name = settings["mlflow_experiment_name"] or ""
    outcome, store = _store("tracking store", tracking, name, seconds)
    yield outcome
    registry = settings["mlflow_registry_uri"]
    if registry and registry != tracking:
        yield _store("model registry", registry, name, seconds)[0]
    else:
        yield Check("model registry", "ok", "it is the tracking store")
    for mirror in os.environ.get("MLFLOW_MIRROR_URIS", "").replace(",", " ").split():
        yield _store("mirror", mirror, name, seconds)[0]
    outcome, probe = _artifacts(settings, store, seconds)
    yield outcome
    yield _bounded("clock", seconds, lambda: _clock(settings, store, probe, seconds))
    yield from _heimdall_dir(seconds)
    yield _bounded("torch", seconds, _torch)


def _connect_timeout() -> float:
    text = os.environ.get("HEIMDALL_CONNECT_TIMEOUT", "").strip() or "5"
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        from ..errors import ConfigurationError

        raise ConfigurationError(
            f"HEIMDALL_CONNECT_TIMEOUT {text!r} is not valid: it must be a number of at least 0"
        )
    # A check has to have some time, whatever a training waits.
    return max(seconds, 1.0)


def _bounded(name: str, seconds: float, check: Callable[[], Check]) -> Check:
    """Return the outcome of a check, or a failure where it takes too long: a file system may hang."""
    done, outcome = _in_time(check, seconds + 5)
    if not done:
        advice = "the file system or the server does not answer: see whether it is mounted and reachable"
        return Check(name, "fail", f"no answer within {seconds + 5:g} s", advice)
    if isinstance(outcome, Check):
        return outcome
    return Check(name, "fail", f"the check itself failed: {outcome}")


def _in_time(call: Callable[[], Any], seconds: float) -> tuple[bool, Any]:
    """Return True and the result or exception of a call; False where it takes longer."""
    answers: list[Any] = []

    def work() -> None:
        try:
            answers.append(call())
        except Exception as error:
            answers.append(error)

    # A thread that hangs must not keep the process.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers), answers[0] if answers else None


def _python() -> Check:
    version, kind = platform.python_version(), platform.python_implementation()
    shown = f"{kind} {version}, heimdall-tracking {_native.__version__}"
    if sys.version_info < (3, 10) or kind != "CPython":
        return Check("python", "fail", shown, "use CPython 3.10 or newer")
    return Check("python", "ok", shown)


def _env_file() -> Check:
    try:
        file = _environment.env_file()
    except HeimdallError as error:
        return Check(".env", "fail", str(error))
    if file is None:
        off = os.environ.get(_environment.FILE_VARIABLE) == ""
        why = f"{_environment.FILE_VARIABLE} is empty" if off else "there is none here or in a folder above"
        return Check(".env", "ok", f"no file is read: {why}")
    shown = f"{file.path} sets {len(file.values)} variables"
    if file.unreadable:
        lines = ", ".join(map(str, file.unreadable))
        return Check(".env", "warning", f"{shown}; it has unreadable lines: {lines}", "write NAME=value")
    with contextlib.suppress(OSError):
        others = 0o044
        if any(map(is_secret, file.values)) and Path(file.path).stat().st_mode & others:
            advice = f"keep its secrets to yourself: chmod 600 {file.path}"
            return Check(".env", "warning", f"{shown}; other users may read it", advice)
    return Check(".env", "ok", shown)


def _store(what: str, uri: str, experiment: str, seconds: float) -> tuple[Check, dict[str, Any] | None]:
    """Check a tracking store or a registry; return what was found of it as well."""
    shown = _native.without_credentials(uri)
    begun = time.time()
    done, found = _in_time(lambda: _native.check_store(uri, experiment, seconds), seconds + 5)
    if not done or found is None:
        advice = "start it, correct the host and port, or wait longer by HEIMDALL_CONNECT_TIMEOUT"
        return Check(what, "fail", f"{shown} does not answer within {seconds:g} s", advice), None
    if isinstance(found, StoreUnavailableError):
        advice = "start it, or correct the host and port; runs that start now wait in the journal"
        return Check(what, "fail", str(found), advice), None
    if isinstance(found, PermissionDeniedError):
        advice = "correct the user and password; `heimdall config` shows where they come from"
        return Check(what, "fail", str(found), advice), None
    if isinstance(found, Exception):
        return Check(what, "fail", str(found), "`heimdall config` shows where the URI comes from"), None
    return _judged(what, found, experiment), {**found, "asked": (begun, time.time())}


def _judged(what: str, found: dict[str, Any], experiment: str) -> Check:
    shown = found["uri"]
    if not found["has_tables"]:
        return Check(what, "ok", f"{shown} has no tables yet; the first tracker creates them")
    if not found["is_writable"]:
        advice = "grant this user INSERT, UPDATE and DELETE on MLflow's tables"
        return Check(what, "fail", f"{shown} can be read, and not written by this user", advice)
    if found["is_deleted"]:
        advice = "name another one by MLFLOW_EXPERIMENT_NAME, or restore it with `mlflow experiments restore`"
        return Check(what, "fail", f"{shown}: the experiment {experiment!r} is deleted", advice)
    if found["revision"] is None:
        return Check(what, "ok", f"{shown} answers")
    release = _release(found["revision"])
    if release is None:
        advice = "nothing is to be done while runs arrive; a newer heimdall-tracking may know it"
        text = (
            f"{shown} has the schema revision {found['revision']}, which is newer than those that are known"
        )
        return Check(what, "warning", f"{text}; all columns that are needed are there", advice)
    return Check(what, "ok", f"{shown} has the schema of MLflow {release} (revision {found['revision']})")


def _release(revision: str) -> str | None:
    """Return the release of MLflow whose databases have a revision, in words."""
    before = None
    for entry in REVISIONS:
        known, _, release = entry.partition("=")
        if known == revision:
            if release:
                return release
            later = REVISIONS[REVISIONS.index(entry) :]
            after = next(it.partition("=")[2] for it in later if "=" in it)
            return f"between {before} and {after}"
        before = release or before
    return None


def _artifacts(
    settings: dict[str, str | None], store: dict[str, Any] | None, seconds: float
) -> tuple[Check, dict[str, Any] | None]:
    """Write, read and delete a small file at the artifact location."""
    what = "artifacts"
    known = store or {}
    location = known.get("artifact_location") or settings["mlflow_artifact_uri"]
    location = location or known.get("default_location")
    tracking = settings["mlflow_tracking_uri"] or ""
    if not location and store is not None:
        # A server names the location when it creates the experiment; that of its first one is like it.
        _, first = _in_time(lambda: _native.check_store(tracking, "Default", seconds), seconds + 5)
        location = first.get("artifact_location") if isinstance(first, dict) else None
        if not location or ":" not in location:
            return Check(
                what, "ok", "the server names the place with the experiment; nothing was tried"
            ), None
    if not location:
        text = "the place is not known, as the tracking store does not answer; nothing was tried"
        return Check(what, "warning", text, "correct the tracking store first"), None
    shown = _native.without_credentials(location)
    name = f"heimdall-doctor-{os.getpid()}-{os.urandom(8).hex()}.txt"
    new = _new_folders(location)
    with tempfile.NamedTemporaryFile(prefix="heimdall-doctor-") as file:
        file.write(os.urandom(16).hex().encode())
        file.flush()
        config = {
            "tracking_uri": tracking,
            "location": location,
            "path": name,
            "file": file.name,
            "s3_endpoint_url": settings["mlflow_s3_endpoint_url"],
            "s3_access_key_id": settings["mlflow_s3_access_key_id"],
            "s3_secret_access_key": settings["mlflow_s3_secret_access_key"],
            "timeout": seconds + 5,
        }
        done, probe = _in_time(lambda: _native.check_artifacts(config), seconds + 10)
    for folder in new:
        with contextlib.suppress(OSError):
            folder.rmdir()
    if not done or probe is None:
        advice = "start it, or correct MLFLOW_S3_ENDPOINT_URL, the proxy or the network"
        return Check(what, "fail", f"{shown} does not answer within {seconds + 5:g} s", advice), None
    if isinstance(probe, Exception):
        return Check(what, "fail", str(probe), "`heimdall config` shows where the settings come from"), None
    return _judged_artifacts(what, shown, name, probe), probe


def _judged_artifacts(what: str, shown: str, name: str, probe: dict[str, Any]) -> Check:
    steps = {
        "write": "let the keys write there (s3:PutObject); see that bucket and endpoint are right",
        "read": "let the keys read there (s3:GetObject): downloads and the registry need it",
        "delete": f"let the keys delete (s3:DeleteObject) for `heimdall gc`; {shown}/{name} is left",
    }
    missing = [step for step in steps if step not in probe["done"]]
    if not missing:
        return Check(what, "ok", f"{shown}: a file was written, read and deleted")
    state: State = "warning" if missing == ["delete"] else "fail"
    return Check(what, state, f"{shown}: {missing[0]} failed: {probe['error']}", steps[missing[0]])


def _new_folders(location: str) -> list[Path]:
    """Return the folders that writing below a local location creates, the innermost first."""
    path = local_folder(location)
    if path is None:
        return []
    path = path.absolute()
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def _clock(
    settings: dict[str, str | None],
    store: dict[str, Any] | None,
    probe: dict[str, Any] | None,
    seconds: float,
) -> Check:
    """Compare the clock of this machine with those of the stores."""
    skews = {}
    if store and store.get("clock") is not None:
        skews["the database"] = _difference(store["clock"] / 1000, *store["asked"])
    if probe and probe["modified"] is not None:
        begun, ended = probe["written"]
        skews["the artifact store"] = _difference(probe["modified"] / 1000, begun / 1000, ended / 1000)
    tracking, endpoint = settings["mlflow_tracking_uri"] or "", settings["mlflow_s3_endpoint_url"]
    asked = {"the tracking server": tracking}
    if "the artifact store" not in skews and endpoint:
        asked["the S3 endpoint"] = endpoint
    for name, url in asked.items():
        if url.startswith(("http://", "https://")):
            skew = _skew_of(url, seconds)
            if skew is not None:
                skews[name] = skew
    if not skews:
        return Check("clock", "ok", "no store tells its time; nothing was compared")
    name, skew = max(skews.items(), key=lambda it: abs(it[1]))
    if abs(skew) > SKEW_S:
        advice = "set the clock of this machine by NTP: S3 refuses requests that are 15 minutes off"
        direction = "behind" if skew > 0 else "ahead of"
        state: State = "fail" if abs(skew) >= 15 * 60 else "warning"
        return Check("clock", state, f"this machine is {abs(skew):.0f} s {direction} {name}", advice)
    return Check("clock", "ok", f"it differs by less than {SKEW_S} s from that of {' and '.join(skews)}")


def _skew_of(url: str, seconds: float) -> float | None:
    """Return by how many seconds the `Date` of a server is later than our time; None where it has none."""
    import ssl
    import urllib.error
    import urllib.request
    from email.utils import parsedate_to_datetime
    from urllib.parse import urlsplit, urlunsplit

    parts = urlsplit(url)
    # No credentials are needed for the time, so none are sent.
    plain = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path or "/", "", ""))
    context = None
    if parts.scheme == "https":
        # Nothing secret is sent, and the time alone is read.
        context = ssl._create_unverified_context()
    try:
        before = time.time()
        try:
            request = urllib.request.Request(plain, method="HEAD")
            with urllib.request.urlopen(request, timeout=seconds, context=context) as answer:
                date = answer.headers.get("Date")
        except urllib.error.HTTPError as error:
            date = error.headers.get("Date")
        if not date:
            return None
        theirs = parsedate_to_datetime(date).timestamp()
    except (OSError, ValueError, TypeError):
        return None
    return _difference(theirs, before, time.time())


def _difference(theirs: float, before: float, after: float) -> float:
    """Return by how many seconds another clock is ahead, which was read between two times of ours."""
    # Many stores count in seconds.
    if before - 1 <= theirs <= after + 1:
        return 0.0
    return theirs - after if theirs > after else theirs - before


def _heimdall_dir(seconds: float) -> Iterable[Check]:
    """Check room, kind and locks of the file system that the journals are on."""
    from .folder import heimdall_dir

    folder = heimdall_dir(None).absolute()
    yield _bounded("HEIMDALL_DIR", seconds, lambda: _room(folder))
    yield _bounded("file system", seconds, lambda: _file_system(folder))


def _room(folder: Path) -> Check:
    what = "HEIMDALL_DIR"
    place = _existing(folder)
    if not place.is_dir():
        return Check(what, "fail", f"{place} is no folder", f"name another folder by {what}")
    if not os.access(place, os.W_OK | os.X_OK):
        return Check(what, "fail", f"{place} cannot be written", f"name another folder by {what}")
    free = shutil.disk_usage(place).free
    shown = f"{folder} has {free / 2**30:.1f} GiB of room"
    if free < LEAST_ROOM:
        return Check(what, "warning", shown, f"make room, or name a folder on a larger disk by {what}")
    return Check(what, "ok", shown)


def _file_system(folder: Path) -> Check:
    what = "file system"
    place = _existing(folder)
    locked = _locks(place)
    kind = _kind_of_file_system(place)
    if locked:
        advice = "name a folder on a local disk by HEIMDALL_DIR"
        return Check(what, "fail", f"{folder} is on {kind or 'a file system'}, where {locked}", advice)
    warned = next((text for name, text in FILE_SYSTEMS.items() if (kind or "").startswith(name)), None)
    if warned:
        advice = "name a folder on a local disk by HEIMDALL_DIR; in a container, one of a volume"
        return Check(what, "warning", f"{folder} is on {kind}: {warned}", advice)
    return Check(what, "ok", f"{folder} is on {kind or 'a file system of unknown kind'}, and locks work")


# Reports by its exit code whether a lock of its parent's holds for it too.
TRY_TO_LOCK = """
import fcntl, sys
for lock in (fcntl.flock, fcntl.lockf):
    with open(sys.argv[1], "r+b") as file:
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        sys.exit(3)
"""


def _locks(place: Path) -> str | None:
    """Return in words why files cannot be locked or mapped there; None where they can."""
    import mmap

    try:
        import fcntl
    except ImportError:
        return None
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".heimdall-doctor-") as file:
            file.truncate(mmap.PAGESIZE)
            with mmap.mmap(file.fileno(), mmap.PAGESIZE) as memory:
                memory[0] = 1
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with Path(file.name).open("r+b") as again:
                fcntl.lockf(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
                command = [sys.executable, "-I", "-S", "-c", TRY_TO_LOCK, file.name]
                other = subprocess.run(command, check=False, timeout=10, capture_output=True)
            return "a locked file can be locked by another process" if other.returncode == 3 else None
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"a file cannot be locked or mapped: {error}"


def _kind_of_file_system(place: Path) -> str | None:
    """Return the kind of file system of a folder, as Linux names it."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found, longest = None, -1
    resolved = place.resolve()
    for line in mounts:
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].replace("\\040", " "))
        # Of mounts at one point the last covers the others.
        if resolved.is_relative_to(point) and len(point.parts) >= longest:
            found, longest = after.split()[0], len(point.parts)
    return found


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def _torch() -> Check:
    """Compare the torch that is installed with the one that the training loop is linked to."""
    import re
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    spec = find_spec("heimdall_training")
    if spec is None or not spec.submodule_search_locations:
        return Check("torch", "ok", "heimdall-training is not installed: nothing is linked to torch")
    source = Path(next(iter(spec.submodule_search_locations)), "_libtorch.py").read_text(encoding="utf-8")
    linked = re.search(r'^_TORCH = "([\d.]+)"', source, re.MULTILINE)
    wanted = linked[1] if linked else None
    try:
        has = version("torch")
    except PackageNotFoundError:
        has = None
    if wanted is None:
        return Check("torch", "warning", f"torch {has}; heimdall-training does not tell the one it needs")
    if has is None or has.split("+")[0] != wanted:
        text = f"heimdall-training is linked to torch {wanted}, and {has or 'none'} is installed"
        return Check("torch", "fail", text, f"pip install torch=={wanted}")
    return Check("torch", "ok", f"torch {has} is the one that heimdall-training is linked to")


def _masked(outcome: Check) -> Check:
    """Return the outcome without any secret that the environment has, whatever a server has answered."""
    texts = {name: str(value) for name, value in asdict(outcome).items()}
    for secret in _secrets():
        texts = {
            name: text if name in ("check", "state") else text.replace(secret, MASK)
            for name, text in texts.items()
        }
    return Check(**texts)  # type: ignore[arg-type]


def _secrets() -> list[str]:
    try:
        named = {_environment.get(name) for name in _environment.names() if is_secret(name)}
    except HeimdallError:
        # The file of the environment cannot be read, so nothing of it is known.
        named = {value for name, value in os.environ.items() if is_secret(name)}
    # Something shorter is a part of other words.
    return sorted((text for text in named if text and len(text) >= 4), key=len, reverse=True)
