"""Measure the time of `import heimdall_tracking` over a bare interpreter, beside the stock client.

Run it with `make bench`, or `python benches/import_time.py [--quick]` in an environment that has both.
"""

import statistics
import subprocess
import sys
import time

RUNS = 1 if "--quick" in sys.argv else 15
STATEMENTS = {
    "bare interpreter": "pass",
    "import heimdall_tracking": "import heimdall_tracking",
    "import mlflow": "import mlflow",
}


def seconds(statement: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, cwd="/")
    return time.perf_counter() - begun


def main() -> None:
    times = {name: [] for name in STATEMENTS}
    for statement in STATEMENTS.values():
        seconds(statement)  # warms the file cache
    for _ in range(RUNS):  # in turn, so that a machine that slows down slows all of them
        for name, statement in STATEMENTS.items():
            times[name].append(seconds(statement))
    bare = statistics.median(times["bare interpreter"])
    print(f"{'':26} {'median ms':>10} {'min':>8} {'max':>8} {'over bare':>10}")
    for name, taken in times.items():
        median = statistics.median(taken)
        print(
            f"{name:26} {median * 1e3:10.1f} {min(taken) * 1e3:8.1f} {max(taken) * 1e3:8.1f} "
            f"{(median - bare) * 1e3:10.1f}"
        )


if __name__ == "__main__":
    main()
