"""Kills of a logging process at random instants, and what must be in the store afterwards.

`make test-kills`, or `python tests/faults/kills.py [--kills 2000] [--seed N] [sqlite|postgresql|server]…`,
kills and prints a summary; `test_kills.py` does the same with fewer kills.

A round is one store, one folder of journals and some kills. Each process that logs is the next start after
the one that was killed before it, so that recovery is killed as well as start-up, logging and delivery. At
the end of the round comes a recovery, which is killed some times too, and then the store is read by plain
SQL, its folder of artifacts by plain reads, and both are compared with what the processes were promised.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import math
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


import psycopg

import doomed
from support import postgres
from support.helpers import PATIENCE_S, clean_environment, contents, free_port
from support.stock import server_command, serving

STORES = {"sqlite": 0.4, "postgresql": 0.35, "server": 0.25}
KILLS_OF_A_ROUND = 10
# The kernel's clock that a journal may read ticks at up to 4 ms.
TICK_MS = 5
HAS_SYNC = importlib.util.find_spec("heimdall_tracking.cli") is not None


@dataclass
class Tally:
    """The outcome of some kills."""

    kills: int = 0
    kills_of_recoveries: int = 0
    records: int = 0
    runs: int = 0
    lost: int = 0
    duplicated: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def __str__(self) -> str:
        others = len(self.problems) - self.lost - self.duplicated
        return (
            f"{self.kills:,} kills ({self.kills_of_recoveries:,} of a recovery alone), {self.runs:,} runs, "
            f"{self.records:,} acknowledged records: {self.lost:,} lost, {self.duplicated:,} duplicated, "
            f"{others:,} other defects"
        )


class Store(NamedTuple):
    """The store of a round, and functions that read it without any code of ours."""

    uri: str
    folder: Path
    query: Callable[[str], list[tuple]]
    # Folder of the artifacts of a run, from its artifact URI.
    artifacts: Callable[[str], Path]


def plain_path(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def sqlite_rows(db: Path) -> Callable[[str], list[tuple]]:
    def query(statement: str) -> list[tuple]:
        with contextlib.closing(sqlite3.connect(db, timeout=PATIENCE_S)) as connection:
            try:
                return connection.execute(statement).fetchall()
            except sqlite3.OperationalError as error:
                # All were killed before anything was recorded.
                if "no such table" in str(error):
                    return []
                raise

    return query


@contextlib.contextmanager
def stores(kind: str, folder: Path) -> Iterator[Iterator[Store]]:
    """Yield stores of a kind, one for each round."""
    rounds = (folder / f"round{i}" for i in itertools.count())
    if kind == "sqlite":
        yield (
            Store(f"sqlite:///{place}/mlflow.db", place, sqlite_rows(place / "mlflow.db"), plain_path)
            for place in rounds
        )
    elif kind == "postgresql":
        with postgres.running() as server:

            def of(place: Path) -> Store:
                uri = server.create_database(place.name)

                def query(statement: str) -> list[tuple]:
                    try:
                        return server.execute(statement, place.name)
                    except psycopg.errors.UndefinedTable:
                        return []

                return Store(uri, place, query, plain_path)

            yield (of(place) for place in rounds)
    else:
        port = free_port()
        options = ["--artifacts-destination", str(folder / "served")]
        command = server_command(port, f"sqlite:///{folder / 'mlflow.db'}", *options)
        with serving(command, f"http://127.0.0.1:{port}", folder / "server.log"):
            query = sqlite_rows(folder / "mlflow.db")

            def served(uri: str) -> Path:
                return folder / "served" / uri.removeprefix("mlflow-artifacts:/").lstrip("/")

            yield (Store(f"http://127.0.0.1:{port}", place, query, served) for place in rounds)


class Acknowledged(NamedTuple):
    """A call that had returned, in milliseconds since 1970 before and after it."""

    before: int
    after: int
    run_id: str


class Logger:
    """A process that logs and is killed."""

    def __init__(self, store: Store, seed: int, rng: random.Random) -> None:
        self.seed = seed
        self.ledger = store.folder / f"{seed}.acknowledged"
        self.ledger.touch()
        self.errors = store.folder / f"{seed}.errors"
        last: list[int] = []
        match rng.choice(["start", "start", "logging", "logging", "logging", "logging", "call", "call"]):
            case "start":
                self.phase, delay = "start", rng.uniform(0, 0.25)
            case "logging":
                self.phase, delay = "logging", rng.expovariate(1 / 0.15)
            case _:
                self.phase, delay, last = "call", math.inf, [int(rng.expovariate(1 / 40))]
        process = start(store, self.errors, "log", str(self.ledger), str(seed), *map(str, last))
        with process:
            if self.phase == "logging":
                give_up = time.monotonic() + PATIENCE_S
                while not self.ledger.stat().st_size and process.poll() is None:
                    assert time.monotonic() < give_up, f"no call returned: {self.errors.read_text()}"
                    time.sleep(0.001)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(min(delay, PATIENCE_S))
            process.kill()
        self.code = process.returncode
        self.killed = time.time_ns() // 1_000_000
        self.acknowledged: dict[int, list[Acknowledged]] = defaultdict(list)
        for line in self.ledger.read_text().splitlines():
            thread, number, before, after, run_id = line.split(" ")
            assert int(number) == len(self.acknowledged[int(thread)])
            self.acknowledged[int(thread)].append(Acknowledged(int(before), int(after), run_id))


def start(store: Store, errors: Path, verb: str, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, doomed.__file__, verb, store.uri, str(store.folder), *arguments]
    return popen(store, command, errors)


def popen(store: Store, command: list[str], errors: Path) -> subprocess.Popen:
    with errors.open("ab") as output:
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            cwd=store.folder,
            env=clean_environment(HEIMDALL_DIR=store.folder / "heimdall"),
        )


@dataclass
class Promised:
    """A run as it was promised. What was in flight at the kill is in `perhaps`: it may be there or not."""

    name: str
    run_id: str = ""
    status: str = ""
    perhaps_status: str = ""
    first: int = 0
    # Before and after the last call that recorded something, in milliseconds since 1970.
    last: tuple[int, int] = (0, 0)
    killed: int = 0
    points: dict[tuple[str, int], tuple[float, int, int]] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    perhaps: list[Promised] = field(default_factory=list)

    def take(self, call: doomed.Call, at: Acknowledged, file: str) -> None:
        values = call.values
        if call.kind == "flush":
            return
        self.last = (max(self.last[0], at.before), max(self.last[1], at.after))
        match call.kind:
            case "start_run":
                self.run_id, self.first = at.run_id, at.before
            case "end_run":
                self.status = values["status"]
            case "log_metrics":
                times = (at.before - TICK_MS, at.after + TICK_MS)
                times = (values["timestamp"],) * 2 if "timestamp" in values else times
                self.points |= {(k, values["step"]): (v, *times) for k, v in values["metrics"].items()}
            case "log_batch":
                self.points |= {(k, step): (v, t, t) for k, v, step, t in values["metrics"]}
            case "log_text":
                self.files[values["path"]] = values["text"].encode()
            case "log_artifact":
                self.files[f"{values['folder']}/{file}"] = values["content"]
        self.params |= values.get("params", {})
        self.tags |= values.get("tags", {})


def promised_by(logger: Logger) -> list[Promised]:
    """The runs of a process, those that were in flight among them."""
    runs: list[Promised] = []
    for thread in range(doomed.threads_of(logger.seed)):
        made = logger.acknowledged[thread]
        if thread and not runs:
            break
        for number, call in enumerate(doomed.calls(logger.seed, thread)):
            if call.kind == "start_run":
                runs.append(Promised(call.values["name"], killed=logger.killed))
            file = f"{thread}.ckpt"
            if number < len(made):
                runs[-1 if thread == 0 else 0].take(call, made[number], file)
                continue
            flying = Promised(runs[-1].name)
            flying.take(call, Acknowledged(0, logger.killed, ""), file)
            runs[-1 if thread == 0 else 0].perhaps.append(flying)
            break
    return runs


def stored(value: float) -> tuple[float, bool]:
    """A value as MLflow's tables keep it."""
    if math.isnan(value):
        return 0.0, True
    return max(-sys.float_info.max, min(sys.float_info.max, value)), False


class Check:
    """Compares a store with what was promised."""

    def __init__(self, store: Store, loggers: list[Logger]) -> None:
        self.store, self.tally = store, Tally()
        promised = {run.name: run for logger in loggers for run in promised_by(logger)}
        found: dict[str, list[tuple]] = defaultdict(list)
        columns = "name, run_uuid, status, start_time, end_time, artifact_uri"
        for row in store.query(f"SELECT {columns} FROM runs"):
            found[row[0]].append(row[1:])
        if "http" not in store.uri:
            for name in found.keys() - promised.keys():
                self.problem(f"run {name} was never started")
        ids = [row[0] for name in promised for row in found[name]]
        chosen = ", ".join(f"'{run_id}'" for run_id in ids or ["none"])
        self.rows: dict[str, dict[str, list[tuple]]] = {}
        for table, columns in {
            "metrics": "key, step, value, is_nan, timestamp",
            "latest_metrics": "key, step, value, is_nan, timestamp",
            "params": "key, value",
            "tags": "key, value",
        }.items():
            of_run: dict[str, list[tuple]] = defaultdict(list)
            for run_id, *row in store.query(
                f"SELECT run_uuid, {columns} FROM {table} WHERE run_uuid IN ({chosen})"
            ):
                of_run[run_id].append(tuple(row))
            self.rows[table] = of_run
        for name, run in promised.items():
            if len(found[name]) > 1:
                self.tally.duplicated += 1
                self.problem(f"run {name} is there {len(found[name])} times")
            if not found[name] and run.run_id:
                self.tally.lost += 1
                self.problem(f"run {name} is lost")
            for row in found[name]:
                self.tally.runs += 1
                self.check_run(run, *row)
        self.check_leftovers()

    def problem(self, text: str) -> None:
        self.tally.problems.append(text)

    def lost(self, what: str) -> None:
        self.tally.lost += 1
        self.problem(f"{what} is lost")

    def check_run(
        self, run: Promised, run_id: str, status: str, begun: int, ended: int | None, artifacts: str
    ) -> None:
        tags = dict(self.rows["tags"][run_id])
        if run.run_id and run.run_id not in (run_id, tags.get("heimdall.run_id")):
            self.problem(f"run {run.name} has the id {run_id} and was promised as {run.run_id}")
        landed = not run.run_id
        landed |= self.check_points(run, run_id)
        landed |= self.check_named(run, "params", dict(self.rows["params"][run_id]))
        planned = {key: value for key, value in tags.items() if key.startswith(("t0/", "t1/", "t2/"))}
        landed |= self.check_named(run, "tags", planned)
        landed |= self.check_named(run, "files", contents(self.store.artifacts(artifacts)))
        self.tally.records += bool(run.run_id) + bool(run.status)
        self.check_end(run, status, begun, ended, landed)

    def check_points(self, run: Promised, run_id: str) -> bool:
        rows: dict[tuple[str, int], list[tuple]] = defaultdict(list)
        latest: dict[str, tuple] = {}
        for key, step, value, is_nan, timestamp in self.rows["metrics"][run_id]:
            rows[key, step].append((value, bool(is_nan), timestamp))
            point = (step, timestamp, value, bool(is_nan))
            latest[key] = max(latest.get(key, point), point)
        perhaps = {place: point for flying in run.perhaps for place, point in flying.points.items()}
        self.tally.records += len(run.points)
        landed = False
        for place, there in rows.items():
            if len(there) > 1:
                self.tally.duplicated += 1
                self.problem(f"run {run.name}: metric {place} is there {len(there)} times")
            landed |= place not in run.points
            expected = run.points.get(place) or perhaps.get(place)
            if expected is None:
                self.problem(f"run {run.name}: metric {place} was never logged")
                continue
            value, earliest, newest = expected
            if there[0][:2] != stored(value) or not earliest <= there[0][2] <= newest:
                self.problem(f"run {run.name}: metric {place} is {there[0]} instead of {expected}")
        for place in run.points.keys() - rows.keys():
            self.lost(f"run {run.name}: metric {place}")
        shown = {
            key: (step, timestamp, value, bool(is_nan))
            for key, step, value, is_nan, timestamp in self.rows["latest_metrics"][run_id]
        }
        if shown != latest:
            self.problem(f"run {run.name}: the latest metrics are {shown} instead of {latest}")
        return landed

    def check_named(self, run: Promised, what: str, there: dict[str, Any]) -> bool:
        """Check what has a name and one value. True if something in flight is there."""
        sure: dict[str, Any] = getattr(run, what)
        perhaps: dict[str, list[Any]] = defaultdict(list)
        for flying in run.perhaps:
            for key, value in getattr(flying, what).items():
                perhaps[key].append(value)
        self.tally.records += len(sure)
        landed = False
        for key, value in there.items():
            if value in perhaps[key]:
                landed = True
            elif key not in sure:
                self.problem(f"run {run.name}: {what} {key} was never logged")
            elif value != sure[key]:
                self.problem(
                    f"run {run.name}: {what} {key} is {value[:50]!r} ({len(value)}) instead of "
                    f"{sure[key][:50]!r} ({len(sure[key])})"
                )
        for key in sure.keys() - there.keys():
            self.lost(f"run {run.name}: {what} {key}")
        return landed

    def check_end(self, run: Promised, status: str, begun: int, ended: int | None, landed: bool) -> None:
        possible = {run.status or "FAILED", *(flying.status for flying in run.perhaps if flying.status)}
        if status not in possible:
            self.problem(f"run {run.name} is {status} instead of {' or '.join(possible)}")
        earliest = run.last[0] - TICK_MS
        newest = run.killed if landed or status != "FAILED" else run.last[1] + TICK_MS
        if len(possible) > 1:
            newest = run.killed
        if ended is None or not max(earliest, begun) <= ended <= newest:
            self.problem(
                f"run {run.name} ({status}) ends at {ended}, not between {earliest} and {newest}; it was "
                f"killed at {run.killed}"
            )
        if run.first and not run.first - TICK_MS <= begun <= run.last[1] + TICK_MS:
            self.problem(f"run {run.name} begins at {begun}, not at {run.first}")

    def check_leftovers(self) -> None:
        heimdall = self.store.folder / "heimdall"
        left = [path.relative_to(heimdall).as_posix() for path in heimdall.glob("journal/**/*")]
        # A folder that its process had only begun to make; a start removes it once it is old enough.
        begun = [path.name for path in heimdall.glob("journal/.*") if not (path / "manifest.json").exists()]
        left = [path for path in left if path.split("/")[1] not in begun]
        left += [path.relative_to(heimdall).as_posix() for path in heimdall.glob("dead_letter/*")]
        if left:
            self.problem(f"left behind: {', '.join(sorted(left)[:10])}")


def recover(store: Store, rng: random.Random, way: str) -> Tally:
    """Recover until nothing is left, with some kills in the middle of it."""
    tally = Tally()
    errors = store.folder / "recovery.errors"
    if way == "sync":
        command = [sys.executable, "-m", "heimdall_tracking.cli", "sync", str(store.folder / "heimdall")]
        command += ["--uri", store.uri]
    else:
        command = [sys.executable, doomed.__file__, "recover", store.uri, str(store.folder)]
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        with popen(store, command, errors) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0.03, 0.4))
            process.kill()
        if process.returncode == -9:
            tally.kills += 1
            tally.kills_of_recoveries += 1
    process = popen(store, command, errors)
    out, _ = process.communicate(timeout=PATIENCE_S)
    if process.returncode or (way == "start" and out != "0 0\n"):
        tally.problems.append(f"recovery ended with {process.returncode}: {out}{errors.read_text()}")
    return tally


def kill_round(store: Store, seed: int, kills: int, way: str) -> Tally:
    """One round of at least so many kills; its problems name the seed."""
    rng = random.Random(seed)
    store.folder.mkdir(parents=True)
    tally = Tally()
    loggers = []
    for _ in range(kills):
        logger = Logger(store, rng.getrandbits(48), rng)
        loggers.append(logger)
        tally.kills += 1
        if logger.code != -9:
            tally.problems.append(f"a logging process ended with {logger.code}: {logger.errors.read_text()}")
    tally.add(recover(store, rng, way))
    tally.add(Check(store, loggers).tally)
    phases = Counter(logger.phase for logger in loggers)
    where = f"seed {seed}, {len(loggers)} kills ({dict(phases)}), recovery by {way}"
    tally.problems = [f"{where}: {problem}" for problem in tally.problems]
    return tally


def kill(
    kind: str, folder: Path, kills: int, seed: int, shown: Callable[[str], None] = lambda _: None
) -> Tally:
    """Kill at least so many times on a kind of store."""
    tally = Tally()
    rng = random.Random(f"{seed} {kind}")
    ways = itertools.cycle(["start", "sync"] if HAS_SYNC else ["start"])
    with stores(kind, folder) as places:
        while tally.kills < kills:
            of_round = min(KILLS_OF_A_ROUND, kills - tally.kills)
            tally.add(kill_round(next(places), rng.getrandbits(48), of_round, next(ways)))
    return tally


def share(kind: str, kills: int) -> int:
    """Return the number of kills that a kind of store gets of all."""
    return math.ceil(STORES[kind] * kills)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=int(os.environ.get("HEIMDALL_KILLS", "2000")))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("stores", nargs="*", choices=[[], *STORES])
    arguments = parser.parse_args()
    total = Tally()
    print(f"seed {arguments.seed}", flush=True)
    for kind in arguments.stores or STORES:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="kills") as folder:
            tally = kill(kind, Path(folder), share(kind, arguments.kills), arguments.seed)
        print(f"{kind:10}: {tally} in {time.monotonic() - begun:.0f} s", flush=True)
        for problem in tally.problems[:20]:
            print(f"    {problem}", flush=True)
        total.add(tally)
    print(f"{'all':10}: {total}")
    sys.exit(bool(total.problems))


if __name__ == "__main__":
    main()
