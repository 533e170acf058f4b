"""Measure how fast files go to the stores and come back, beside boto3 and the stock client, in turns.

Run it with `make bench`, or `python benches/artifacts.py [large|tls|local|many|proxy|ranges|files|fetch]…
[--mib 1024] [--files 2000] [--bytes 20000] [--rounds 5] [--quick]` in an environment that has all of them and
SeaweedFS. Written down are medians and ranges.

* large: one file to S3, beside boto3's `upload_file` with its defaults (10 threads, parts of 8 MiB).
* tls: the same over https, as most stores are reached.
* local: the same into a local folder, beside the stock client's copy.
* many: a folder of small files to S3, beside the stock client's `log_artifacts` and boto3 in 10 threads.
* proxy: the same by the artifact proxy of a `mlflow server`, beside the stock client.
* ranges, files: the large file and the small ones back from S3.
* fetch: the small ones back by the artifact proxy of a `mlflow server`, beside the stock client.

Each figure is of a process of its own, which has imported and connected when the clock starts; "processor" is
what that process used, in seconds, "MiB" what it grew by at most, "blocked" how long the caller was kept. The
servers run on the same machine and take their share of it: the time that passes is theirs as well. What S3
keeps is in memory where there is room for it (/dev/shm): another machine's store does not share our disk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["HEIMDALL_BRIDGE"] = "0"  # the stock client is the peer
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support import s3
from support.helpers import clean_environment, free_port
from support.stock import server_command, serving

CASES = ["large", "tls", "local", "many", "proxy", "ranges", "files", "fetch"]


# Functions that a process of its own runs.


def peak() -> float:
    """Most memory of this process so far, in MiB."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+)", status)
    assert found
    return int(found[1]) / 1024


class Measured:
    """Measures some work from `begin` on."""

    def begin(self) -> None:
        # The high-water mark is that of what comes from here on.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self.before = peak()
        self.blocked: float | None = None
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def returned(self) -> None:
        self.blocked = time.perf_counter() - self.wall

    def end(self) -> None:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        blocked = wall if self.blocked is None else self.blocked
        print(json.dumps({"wall": wall, "processor": cpu, "MiB": peak() - self.before, "blocked": blocked}))


def boto_client() -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])


def heimdall(work: str, task: dict[str, str], measured: Measured) -> None:
    from heimdall_tracking import MLflowTracker

    tracker = MLflowTracker(task["uri"], task["artifacts"] or None, experiment_name="bench")
    if work == "download":
        measured.begin()
        tracker.download_artifacts(task["run"], "", task["target"])
        measured.end()
        return
    tracker.start_run()
    tracker.log_text("the connection is there", "warm.txt")
    tracker.flush()
    measured.begin()
    call = tracker.log_artifacts_dir if Path(task["source"]).is_dir() else tracker.log_artifact
    upload = call(task["source"], "", immutable=work == "immutable")
    measured.returned()
    upload.wait()
    measured.end()
    tracker.end_run()


def mlflow(work: str, task: dict[str, str], measured: Measured) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(task["uri"], task["uri"])
    if work == "download":
        Path(task["target"]).mkdir()
        measured.begin()
        client.download_artifacts(task["run"], "", task["target"])
        measured.end()
        return
    experiment = client.get_experiment_by_name("stock")
    if experiment is None:
        client.create_experiment("stock", task["artifacts"] or None)
        experiment = client.get_experiment_by_name("stock")
    run_id = client.create_run(experiment.experiment_id).info.run_id
    client.log_text(run_id, "the connection is there", "warm.txt")
    call = client.log_artifacts if Path(task["source"]).is_dir() else client.log_artifact
    measured.begin()
    call(run_id, task["source"])
    measured.end()


def boto3(work: str, task: dict[str, str], measured: Measured) -> None:
    from concurrent.futures import ThreadPoolExecutor

    client, bucket = boto_client(), task["bucket"]
    if work == "download":
        prefix, target = task["prefix"], Path(task["target"])
        target.mkdir()
        client.list_objects_v2(Bucket=bucket, MaxKeys=1)
        measured.begin()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [item["Key"] for page in pages for item in page["Contents"]]

        def fetch(key: str) -> None:
            client.download_file(bucket, key, str(target / key.rpartition("/")[2]))

        with ThreadPoolExecutor(10) as threads:
            list(threads.map(fetch, keys))
        measured.end()
        return
    client.put_object(Bucket=bucket, Key="warm.txt", Body=b"the connection is there")
    source = Path(task["source"])
    measured.begin()
    if source.is_dir():
        with ThreadPoolExecutor(10) as threads:
            list(threads.map(lambda file: client.upload_file(str(file), bucket, file.name), source.iterdir()))
    else:
        client.upload_file(str(source), bucket, source.name)
    measured.end()


PEERS: dict[str, Callable[[str, dict[str, str], Measured], None]] = {
    "heimdall": heimdall,
    "mlflow": mlflow,
    "boto3": boto3,
}


# The bench itself.


def place_of_stores(mib: int) -> Path | None:
    """Return where an S3 server keeps its files: in memory if that has room for some large ones."""
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > 6 * mib << 20
    return memory if has_room else None


class Bench:
    """Sources, servers and what is measured with them."""

    def __init__(self, folder: Path, server: s3.S3Server, options: argparse.Namespace) -> None:
        self.folder, self.server, self.options = folder, server, options
        self.large, self.many = folder / "large.ckpt", folder / "many"

    def prepare(self) -> None:
        with self.large.open("wb") as file:
            for _ in range(self.options.mib):
                file.write(os.urandom(1 << 20))
        self.many.mkdir()
        for number in range(self.options.files):
            (self.many / f"{number:05}.bin").write_bytes(os.urandom(self.options.bytes))

    def measure(self, peer: str, work: str, **task: object) -> dict[str, float]:
        """Return what a fresh process measures."""
        # A journal of its own, which goes with it.
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            told = {name: str(value) for name, value in task.items()}
            done = subprocess.run(
                [sys.executable, __file__, "--measure", peer, work, json.dumps(told)],
                capture_output=True,
                text=True,
                cwd=place,
                env=clean_environment(HEIMDALL_DIR=f"{place}/heimdall", **self.server.variables),
            )
        if done.returncode:
            raise RuntimeError(f"{peer} {work} ended with {done.returncode}: {done.stderr}")
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found

    def database(self, name: str) -> str:
        return f"sqlite:///{self.folder}/{name}.db"

    @contextlib.contextmanager
    def bucket(self) -> Iterator[str]:
        """A bucket, which makes room for the next when it is left."""
        name = self.server.create_bucket()
        yield name
        self.server.delete_bucket(name)

    def in_turns(
        self, title: str, contestants: dict[str, Callable[[], dict[str, float]]], over: list[str]
    ) -> None:
        """Measure all as often as was asked for, each round with another first."""
        figures: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
        names = list(contestants)
        for number in range(self.options.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                figures[name].append(contestants[name]())
        print(f"\n{title}")
        print(f"  {'':34} {'seconds':>24} {'processor':>10} {'MiB':>7} {'blocked':>9}  times")

        def median(name: str, what: str) -> float:
            return statistics.median(it[what] for it in figures[name])

        for name in names:
            walls = [it["wall"] for it in figures[name]]
            spread = f"{median(name, 'wall'):.2f} ({min(walls):.2f} … {max(walls):.2f})"
            times = "  ".join(f"{median(peer, 'wall') / median(name, 'wall'):.2f} x {peer}" for peer in over)
            print(
                f"  {name:34} {spread:>24} {median(name, 'processor'):10.2f} {median(name, 'MiB'):7.1f} "
                f"{median(name, 'blocked'):9.3f}  {times if name not in over else ''}",
                flush=True,
            )

    def upload(self, peer: str, work: str, source: Path) -> dict[str, float]:
        with self.bucket() as bucket:
            # The experiment of a database has one place: each has its own.
            uri = self.database(f"{peer}-{bucket}")
            found = self.measure(
                peer, work, uri=uri, artifacts=f"s3://{bucket}/runs", source=source, bucket=bucket
            )
            sizes = [path.stat().st_size for path in ([source] if source.is_file() else source.iterdir())]
            self.check(bucket, sizes)
            return found

    def check(self, bucket: str, sizes: list[int]) -> None:
        """Assert that everything has arrived: a fast upload of nothing is none."""
        pages = self.server.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        items = [it for page in pages for it in page["Contents"] if not it["Key"].endswith("warm.txt")]
        assert sorted(it["Size"] for it in items) == sorted(sizes)

    def run_large(self) -> None:
        self.large_to("S3")

    def run_tls(self) -> None:
        plain = self.server
        with s3.running(place_of_stores(self.options.mib), tls=True) as self.server:
            self.large_to("S3 over https")
        self.server = plain

    def large_to(self, where: str) -> None:
        self.in_turns(
            f"one file of {self.options.mib} MiB to {where}",
            {
                "heimdall": lambda: self.upload("heimdall", "copy", self.large),
                "heimdall, immutable=True": lambda: self.upload("heimdall", "immutable", self.large),
                "boto3 upload_file": lambda: self.upload("boto3", "upload", self.large),
            },
            ["boto3 upload_file"],
        )

    def local(self, peer: str, work: str) -> dict[str, float]:
        place = self.folder / "artifacts"
        try:
            uri = self.database(f"local-{peer}-{time.time_ns()}")
            found = self.measure(peer, work, uri=uri, artifacts=place, source=self.large)
            [file] = place.rglob(self.large.name)
            assert file.stat().st_size == self.large.stat().st_size
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return found

    def run_local(self) -> None:
        self.in_turns(
            f"one file of {self.options.mib} MiB into a local folder",
            {
                "heimdall": lambda: self.local("heimdall", "copy"),
                "heimdall, immutable=True": lambda: self.local("heimdall", "immutable"),
                "mlflow log_artifact": lambda: self.local("mlflow", "upload"),
                "boto3 upload_file, to S3": lambda: self.upload("boto3", "upload", self.large),
            },
            ["mlflow log_artifact", "boto3 upload_file, to S3"],
        )

    def run_many(self) -> None:
        self.in_turns(
            f"{self.options.files:,} files of {self.options.bytes:,} bytes to S3",
            {
                "heimdall": lambda: self.upload("heimdall", "copy", self.many),
                "heimdall, immutable=True": lambda: self.upload("heimdall", "immutable", self.many),
                "mlflow log_artifacts": lambda: self.upload("mlflow", "upload", self.many),
                "boto3 in 10 threads": lambda: self.upload("boto3", "upload", self.many),
            },
            ["mlflow log_artifacts", "boto3 in 10 threads"],
        )

    @contextlib.contextmanager
    def proxy(self, name: str) -> Iterator[tuple[str, Path]]:
        """The URL of a `mlflow server` with an artifact proxy, and the folder that it keeps artifacts in."""
        port, served = free_port(), self.folder / name
        options = ["--serve-artifacts", "--artifacts-destination", str(served)]
        command = server_command(port, self.database(name), *options, workers=2)
        url = f"http://127.0.0.1:{port}"
        with serving(command, url, self.folder / f"{name}.log"):
            yield url, served

    def run_proxy(self) -> None:
        with self.proxy("served") as (url, served):

            def through(peer: str, work: str) -> dict[str, float]:
                found = self.measure(peer, work, uri=url, artifacts="", source=self.many)
                assert sum(1 for _ in served.rglob("*.bin")) == self.options.files
                shutil.rmtree(served)
                return found

            self.in_turns(
                f"{self.options.files:,} files of {self.options.bytes:,} bytes by a mlflow server",
                {
                    "heimdall": lambda: through("heimdall", "copy"),
                    "heimdall, immutable=True": lambda: through("heimdall", "immutable"),
                    "mlflow log_artifacts": lambda: through("mlflow", "upload"),
                },
                ["mlflow log_artifacts"],
            )

    def logged(self, uri: str, place: str | None, source: Path) -> str:
        """The id of a run with a file, or with those of a folder, among its artifacts."""
        from heimdall_tracking import MLflowTracker

        os.environ.update(self.server.variables)
        os.environ["HEIMDALL_DIR"] = str(self.folder / "heimdall")
        tracker = MLflowTracker(uri, place, experiment_name="bench")
        with tracker.run() as run:
            call = tracker.log_artifacts_dir if source.is_dir() else tracker.log_artifact
            call(source, "")
        tracker.flush()
        return run.run_id

    def download(self, peer: str, source: Path, **task: object) -> dict[str, float]:
        """Measure the download of files that are the same as `source`."""
        target = Path(tempfile.mkdtemp(dir=self.folder)) / "downloaded"
        found = self.measure(peer, "download", artifacts="", target=target, **task)
        sizes = [path.stat().st_size for path in ([source] if source.is_file() else source.iterdir())]
        assert sorted(path.stat().st_size for path in target.rglob("*") if path.is_file()) == sorted(sizes)
        if source.is_file():
            # The small ones stay: ext4 looks for longer where many files were deleted just before.
            shutil.rmtree(target)
        return found

    def back(self, title: str, source: Path) -> None:
        """Measure the way back from S3."""
        with self.bucket() as bucket:
            uri = self.database(f"back-{bucket}")
            run_id = self.logged(uri, f"s3://{bucket}/runs", source)
            task = {"uri": uri, "run": run_id, "bucket": bucket, "prefix": f"runs/{run_id}/artifacts/"}
            self.in_turns(
                title,
                {
                    "heimdall": lambda: self.download("heimdall", source, **task),
                    "mlflow download_artifacts": lambda: self.download("mlflow", source, **task),
                    "boto3 download_file, 10 threads": lambda: self.download("boto3", source, **task),
                },
                ["mlflow download_artifacts", "boto3 download_file, 10 threads"],
            )

    def run_ranges(self) -> None:
        self.back(f"one file of {self.options.mib} MiB back from S3", self.large)

    def run_files(self) -> None:
        title = f"{self.options.files:,} files of {self.options.bytes:,} bytes back from S3"
        self.back(title, self.many)

    def run_fetch(self) -> None:
        with self.proxy("fetched") as (url, _):
            task = {"uri": url, "run": self.logged(url, None, self.many)}
            self.in_turns(
                f"{self.options.files:,} files of {self.options.bytes:,} bytes back by a mlflow server",
                {
                    "heimdall": lambda: self.download("heimdall", self.many, **task),
                    "mlflow download_artifacts": lambda: self.download("mlflow", self.many, **task),
                },
                ["mlflow download_artifacts"],
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure uploads and downloads beside boto3 and mlflow.")
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="default: all of them")
    parser.add_argument("--mib", type=int, default=1024, help="length of the large file (default 1024)")
    parser.add_argument("--files", type=int, default=2000, help="number of small files (default 2000)")
    parser.add_argument("--bytes", type=int, default=20_000, help="length of each (default 20000)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (default 5)")
    parser.add_argument("--quick", action="store_true", help="little of everything, once: that it runs")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        peer, work, task = options.measure
        PEERS[peer](work, json.loads(task), Measured())
        return
    if options.quick:
        options.mib, options.files, options.rounds = 24, 20, 1
    with (
        tempfile.TemporaryDirectory(prefix="bench") as folder,
        s3.running(place_of_stores(options.mib)) as server,
    ):
        bench = Bench(Path(folder), server, options)
        bench.prepare()
        for case in options.cases or CASES:
            getattr(bench, f"run_{case}")()


if __name__ == "__main__":
    main()
