"""Real S3 servers of the tests' own: SeaweedFS, which verifies signatures and checksums, and moto."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.helpers import PATIENCE_S, certificate_in, clean_environment, free_port, wait_until

ACCESS_KEY = "heimdall"
# Its characters are those that a signature, a URL or a configuration file may treat wrongly.
SECRET_KEY = "s/cr+t=key%20"
# Somebody whom the server knows and lets read only.
READER_KEY, READER_SECRET = "reader", "reader's own"
REGION = "us-east-1"


def die_with_the_tests() -> None:
    """Ask the kernel to kill this process when the one that has started it is gone (Linux)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class Server:
    """An S3 server on 127.0.0.1 with data in a temporary folder, below `place` if that is given."""

    def __init__(self, place: Path | None = None, tls: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="s3", dir=place))
        self.port = free_port()
        self.certificate = certificate_in(self.folder) if tls else None
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"
        self.log = self.folder / "log"
        self.process: subprocess.Popen | None = None
        self._buckets = itertools.count()

    @property
    def variables(self) -> dict[str, str]:
        """Variables by which boto3, MLflow and a tracker find the server."""
        variables = {
            "MLFLOW_S3_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": REGION,
        }
        if self.certificate:
            variables["AWS_CA_BUNDLE"] = str(self.certificate[0])
        return variables

    @functools.cache  # noqa: B019 - there are a handful of servers, and a client takes half a second
    def client(self, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY, **config: Any) -> Any:
        """boto3's client, with all rights unless it is given other keys."""
        import boto3
        import botocore.session
        from botocore.config import Config

        # It is to see the store as it is, whatever a test has the environment say.
        unset = (None, None, None, None)
        environment = {"profile": unset, "config_file": unset, "credentials_file": unset, "ca_bundle": unset}
        session = boto3.Session(botocore_session=botocore.session.Session(environment))
        return session.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            region_name=REGION,
            verify=str(self.certificate[0]) if self.certificate else None,
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}, **config),
        )

    def create_bucket(self, name: str = "") -> str:
        """Create a bucket and return its name."""
        name = name or f"bucket{next(self._buckets)}"
        self.client().create_bucket(Bucket=name)
        return name

    def delete_bucket(self, name: str) -> None:
        """Delete a bucket with all that is in it."""
        client = self.client()
        for key in self.keys(name):
            client.delete_object(Bucket=name, Key=key)
        client.delete_bucket(Bucket=name)

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Keys of the objects of a bucket."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", []))

    def read(self, bucket: str, key: str) -> bytes:
        """Return the content of an object."""
        return self.client().get_object(Bucket=bucket, Key=key)["Body"].read()

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """The objects below a prefix, by what follows it in their keys."""
        return {
            key.removeprefix(prefix).lstrip("/"): self.read(bucket, key) for key in self.keys(bucket, prefix)
        }

    def unfinished(self, bucket: str) -> list[str]:
        """Keys of uploads in parts that nobody has completed or given up."""
        return [it["Key"] for it in self.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])]

    def takes_objects(self) -> bool:
        """Return whether it has room: a server answers before it has."""
        client, name = self.client(), "probe"
        client.create_bucket(Bucket=name)
        client.put_object(Bucket=name, Key="probe", Body=b"probe")
        client.delete_object(Bucket=name, Key="probe")
        client.delete_bucket(Bucket=name)
        return True

    def run(self, *command: str, **variables: str) -> None:
        """Start the server and wait until it takes objects."""
        with self.log.open("ab") as output:
            self.process = process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                env=clean_environment(AWS_EC2_METADATA_DISABLED="true", **variables),
                preexec_fn=die_with_the_tests,
            )

        def takes_objects() -> bool:
            assert process.poll() is None, self.log.read_text()
            with contextlib.suppress(Exception):
                return self.takes_objects()
            return False

        wait_until(takes_objects, "the server takes objects")

    def halt(self) -> None:
        """End the process; what it has on disk stays."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(timeout=PATIENCE_S)

    def stop(self) -> None:
        self.halt()
        shutil.rmtree(self.folder, ignore_errors=True)


class S3Server(Server):
    """SeaweedFS: one program with everything in it. A bucket that nobody has created does not exist."""

    def start(self) -> None:
        everything = ["Admin", "Read", "Write", "List", "Tagging"]
        identities = [
            (ACCESS_KEY, SECRET_KEY, everything),
            (READER_KEY, READER_SECRET, ["Read", "List"]),
        ]
        config = self.folder / "identities.json"
        config.write_text(
            json.dumps(
                {
                    "identities": [
                        {
                            "name": key,
                            "credentials": [{"accessKey": key, "secretKey": secret}],
                            "actions": actions,
                        }
                        for key, secret, actions in identities
                    ]
                }
            )
        )
        # Its parts talk to each other by ports of their own.
        self.ports = {
            f"{part}.port.grpc": free_port() for part in ("s3", "master", "volume", "filer", "admin")
        }
        self.ports |= {f"{part}.port": free_port() for part in ("master", "volume", "filer", "admin")}
        tls: list[str] = []
        if self.certificate:
            certificate, key = self.certificate
            tls = [f"-s3.cert.file={certificate}", f"-s3.key.file={key}"]
        self.run(
            str(Path(sys.executable).with_name("weed")),
            "-logtostderr=true",
            "mini",
            f"-dir={self.folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-s3.port={self.port}",
            "-s3.port.lance=0",
            "-s3.port.iceberg=0",
            f"-s3.config={config}",
            f"-s3.localSocket={self.folder / 's3.sock'}",
            f"-filer.localSocket={self.folder / 'filer.sock'}",
            "-s3.autoCreateBucket=false",
            # Each bucket takes one of these, which is a file; the default are as many as the disk has GiB.
            "-volume.max=10000",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
            *(f"-{name}={port}" for name, port in self.ports.items()),
            *tls,
        )

    def stop(self) -> None:
        super().stop()
        for name, port in getattr(self, "ports", {}).items():
            # It has these sockets in a place that it does not ask about, and leaves them where it is killed.
            part = name.partition(".")[0]
            Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock").unlink(missing_ok=True)


class MotoServer(Server):
    """moto's server. It asks nobody who he is, but has an STS, and another opinion of S3."""

    def start(self) -> None:
        program = Path(sys.executable).with_name("moto_server")
        self.run(str(program), "-H", "127.0.0.1", "-p", str(self.port))


@contextlib.contextmanager
def running(place: Path | None = None, tls: bool = False) -> Iterator[S3Server]:
    """Run SeaweedFS for a `with` block."""
    server = S3Server(place, tls)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def running_moto() -> Iterator[MotoServer]:
    """Run moto for a `with` block."""
    server = MotoServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()
