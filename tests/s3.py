"""A real S3 server of the tests' own: SeaweedFS, which verifies signatures and checksums."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers import PATIENCE_S, clean_environment, free_port, wait_until

ACCESS_KEY = "heimdall"
# Everything that a signature or a URL might trip over.
SECRET_KEY = "s/cr+t=key"
REGION = "us-east-1"


class S3Server:
    """A server on 127.0.0.1 with data in a temporary folder."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="s3"))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None
        self._buckets = itertools.count()

    @property
    def variables(self) -> dict[str, str]:
        """What finds the server for boto3, MLflow and a tracker."""
        return {
            "MLFLOW_S3_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": REGION,
        }

    def client(self) -> Any:
        """boto3's client, with all rights."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name=REGION,
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
        )

    def create_bucket(self) -> str:
        """Create a bucket and return its name."""
        name = f"bucket{next(self._buckets)}"
        self.client().create_bucket(Bucket=name)
        return name

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Keys of the objects of a bucket."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", []))

    def start(self) -> None:
        (self.folder / "data").mkdir(exist_ok=True)
        identity = {
            "name": ACCESS_KEY,
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        config = self.folder / "identities.json"
        config.write_text(json.dumps({"identities": [identity]}))
        # Its parts talk to each other by ports of their own.
        ports = [
            f"-{part}.port{kind}={free_port()}"
            for part in ("master", "volume", "filer", "admin")
            for kind in ("", ".grpc")
        ]
        command = [
            str(Path(sys.executable).with_name("weed")),
            "mini",
            f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-s3.port={self.port}",
            f"-s3.port.grpc={free_port()}",
            "-s3.port.lance=0",
            "-s3.port.iceberg=0",
            f"-s3.config={config}",
            "-webdav=false",
            "-admin.ui=false",
            *ports,
        ]
        log = self.folder / "log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=output, cwd=self.folder, env=clean_environment()
            )

        def answers() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, log.read_text()
            with contextlib.suppress(Exception):
                self.client().list_buckets()
                # It takes buckets before it has room for objects.
                client, name = self.client(), "probe"
                client.create_bucket(Bucket=name)
                client.put_object(Bucket=name, Key="probe", Body=b"probe")
                client.delete_object(Bucket=name, Key="probe")
                client.delete_bucket(Bucket=name)
                return True
            return False

        wait_until(answers, "the S3 server answers")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextlib.contextmanager
def running() -> Iterator[S3Server]:
    """Run a server for a `with` block."""
    server = S3Server()
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.folder, ignore_errors=True)
