"""A process that logs by a plan until it is killed, and the plan.

`python doomed.py log URI FOLDER ACKNOWLEDGED SEED [LAST]` logs for ever. After each call that has returned
it appends a line to the file ACKNOWLEDGED: what is in there was promised. It is written by one `write` to a
file, which the kernel has then, whatever happens to this process. With LAST, the process kills itself right
after that call.

`python doomed.py recover URI FOLDER` is the next start: it delivers what the dead have left, and leaves.
"""

from __future__ import annotations

import math
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

EXPERIMENT = "kills"
# Calls of a thread after which it only waits: delivery, alone, is what is killed then.
MOST_CALLS = 400


class Call(NamedTuple):
    """One call of the tracker: which, with what, and how long the caller computes before it."""

    kind: str
    values: dict[str, Any]
    pause: float = 0.0


def threads_of(seed: int) -> int:
    """Return the number of threads that log; all of them log into the run that the first has started."""
    return random.Random(seed).choice([1, 1, 1, 3])


def calls(seed: int, thread: int) -> Iterator[Call]:
    """Yield the calls of a thread, in order. The arguments decide them, so that the checks know them."""
    rng = random.Random(f"{seed} {thread}")
    many_runs = threads_of(seed) == 1
    burst = rng.random() < 0.4
    run = 0
    if thread == 0:
        yield Call("start_run", {"name": f"{seed}-{run}"})
    for number in range(1, MOST_CALLS):
        pause = 0.0 if burst or rng.random() < 0.7 else rng.uniform(0, 0.003)
        key = f"t{thread}"
        kind = rng.choices(list(KINDS), KINDS.values())[0]
        values: dict[str, Any] = {}
        if kind == "log_metrics":
            values["metrics"] = {f"{key}/m{i}": number + i / 8 for i in range(rng.randint(1, 5))}
            values["step"] = number
            if rng.random() < 0.1:
                values["metrics"][f"{key}/odd"] = rng.choice([math.nan, math.inf, -math.inf])
            if rng.random() < 0.2:
                values["timestamp"] = 1_700_000_000_000 + number
        elif kind == "log_params":
            values["params"] = {f"{key}/p{number}.{i}": f"{number} {i}" for i in range(rng.randint(1, 3))}
        elif kind == "set_tags":
            # Few keys, so that a later value has to win over an earlier one.
            values["tags"] = {f"{key}/tag{rng.randint(0, 2)}": f"value {number}"}
        elif kind == "log_batch":
            values["metrics"] = [
                (f"{key}/b{i % 7}", i / 4, number * 1000 + i, 1_700_000_000_000 + i)
                for i in range(rng.choice([3, 3, 200]))
            ]
            values["params"] = {f"{key}/q{number}": "é" * 10}
            values["tags"] = {f"{key}/last batch": str(number)}
        elif kind == "log_text":
            values["text"] = f"grüße {number}\n" * rng.randint(0, 200)
            values["path"] = f"{key}/notes/{rng.choice([number, 'last'])}.txt"
        elif kind == "log_artifact":
            values["content"] = rng.randbytes(rng.choice([0, 100, 5_000, 300_000]))
            values["folder"] = f"{key}/{rng.choice([number, 'last'])}"
        elif kind == "end_run":
            if not many_runs:
                continue
            yield Call(kind, {"status": rng.choice(["FINISHED", "FAILED", "KILLED"])}, pause)
            run += 1
            kind, values, pause = "start_run", {"name": f"{seed}-{run}"}, 0.0
        yield Call(kind, values, pause)


KINDS = {
    "log_metrics": 70,
    "log_params": 8,
    "set_tags": 6,
    "log_batch": 3,
    "log_text": 3,
    "log_artifact": 3,
    "flush": 1,
    "end_run": 2,
}


def make(tracker: Any, call: Call, file: Path) -> str:
    """Make a call; the id of the run that it has started."""
    values = call.values
    match call.kind:
        case "start_run":
            return tracker.start_run(values["name"])
        case "end_run":
            tracker.end_run(values["status"])
        case "log_metrics":
            tracker.log_metrics(values["metrics"], step=values["step"], timestamp=values.get("timestamp"))
        case "log_params":
            tracker.log_params(values["params"])
        case "set_tags":
            tracker.set_tags(values["tags"])
        case "log_batch":
            tracker.log_batch(**values)
        case "log_text":
            tracker.log_text(values["text"], values["path"])
        case "log_artifact":
            file.write_bytes(values["content"])
            tracker.log_artifact(file, values["folder"])
            # As a training script overwrites its checkpoint.
            file.write_bytes(b"the next one")
        case "flush":
            tracker.flush()
    return ""


def log(uri: str, folder: Path, acknowledged: Path, seed: int, last: int | None) -> None:
    """Log by the plan until somebody kills this process."""
    tracker = tracker_of(uri, folder)
    ledger = os.open(acknowledged, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    started = threading.Event()
    work = folder / f"work {seed}"
    work.mkdir()

    def follow(thread: int, made: Callable[[], None]) -> None:
        file = work / f"{thread}.ckpt"
        for number, call in enumerate(calls(seed, thread)):
            if call.pause:
                time.sleep(call.pause)
            before = time.time_ns() // 1_000_000
            run_id = make(tracker, call, file)
            after = time.time_ns() // 1_000_000
            os.write(ledger, f"{thread} {number} {before} {after} {run_id}\n".encode())
            if thread == 0 and number == last:
                os.kill(os.getpid(), signal.SIGKILL)
            made()
        threading.Event().wait()

    def wait_and_follow(thread: int) -> None:
        started.wait()
        follow(thread, lambda: None)

    for thread in range(1, threads_of(seed)):
        threading.Thread(target=wait_and_follow, args=[thread], daemon=True).start()
    follow(0, started.set)


def recover(uri: str, folder: Path) -> None:
    """Start and wait until everything that was left is delivered."""
    tracker = tracker_of(uri, folder)
    tracker.flush()
    status = tracker.status()
    print(status["pending"], status["parked"])


def tracker_of(uri: str, folder: Path) -> Any:
    from heimdall_tracking import MLflowTracker

    artifacts = None if uri.startswith("http") else str(folder / "artifacts")
    return MLflowTracker(uri, artifacts, experiment_name=EXPERIMENT)


if __name__ == "__main__":
    verb, uri, folder, *rest = sys.argv[1:]
    if verb == "log":
        log(uri, Path(folder), Path(rest[0]), int(rest[1]), int(rest[2]) if rest[2:] else None)
    else:
        recover(uri, Path(folder))
