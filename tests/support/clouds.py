"""Servers of the tests' own for the other two clouds: Azurite is Microsoft's, moto stands in for Google's.

Of the servers that packages bring, none has Google's XML API, which the tracker speaks: gcp-storage-emulator
2026.7 knows neither HEAD nor DELETE there, nor lists, ETags and uploads in parts, and fake-gcs-server 1.54
takes no object by it. What the tracker asks of that API is what S3's has by the same words, but for the
signature, so that a server of S3 answers it that asks nobody who he is. It does not show what Google's own
errors are, nor that Google accepts the token.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

import pytest

from support import s3_proxy
from support.helpers import PATIENCE_S
from support.s3 import MotoServer, Server


class Google(MotoServer):
    """moto, found by a service account as Google hands them out, whose key is real."""

    completes = staticmethod(s3_proxy.completes)

    def __init__(self) -> None:
        super().__init__()
        make = ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]
        self.account = self.folder / "account.json"
        self.account.write_text(
            json.dumps(
                {
                    "type": "service_account",
                    "client_email": "tests@project.iam.gserviceaccount.com",
                    "private_key": subprocess.run(make, check=True, capture_output=True, text=True).stdout,
                    "private_key_id": "1",
                }
            )
        )

    def variables_at(self, url: str) -> dict[str, str]:
        """Variables by which a tracker finds the server: with a key, since moto fails on an empty token."""
        return {"GOOGLE_APPLICATION_CREDENTIALS": str(self.account), "GOOGLE_BASE_URL": url}

    def uri(self, bucket: str) -> str:
        """The top of a bucket, as an artifact URI names it."""
        return f"gs://{bucket}"

    def resume(self, bucket: str) -> None:
        """Start again. It keeps nothing on disk, so that what was in the bucket, parts too, is gone."""
        self.start()
        self.create_bucket(bucket)


class Azure(Server):
    """Azurite, which verifies signatures. The tests themselves come with one of another kind (a SAS)."""

    account = "heimdall"
    # Decoded it is no text; encoded it has what a URL might trip over.
    key = base64.b64encode(bytes(range(240, 256)) * 4).decode()

    def variables_at(self, url: str) -> dict[str, str]:
        """Variables by which a tracker finds the server."""
        return {
            "AZURE_STORAGE_USE_EMULATOR": "true",
            "AZURITE_BLOB_STORAGE_URL": url,
            "AZURE_STORAGE_ACCOUNT_KEY": self.key,
        }

    def uri(self, bucket: str) -> str:
        """The top of a container, as an artifact URI names it."""
        return f"wasbs://{bucket}@{self.account}.blob.core.windows.net"

    def start(self) -> None:
        self.run(
            program() or "azurite-blob",
            "--blobHost",
            "127.0.0.1",
            "--blobPort",
            str(self.port),
            "--location",
            str(self.folder),
            "--disableTelemetry",
            AZURITE_ACCOUNTS=f"{self.account}:{self.key}",
        )

    def resume(self, bucket: str) -> None:
        """Start again, with all that there was."""
        self.start()

    @staticmethod
    def completes(request: s3_proxy.Request) -> bool:
        """Return whether it makes an object of parts."""
        return request.query.get("comp") == "blocklist"

    def forget_parts(self, bucket: str, key: str) -> None:
        """Forget what was sent of an object that is not complete: one of another writer makes it do so."""
        self.ask("PUT", f"{bucket}/{key}", b"of another", {"x-ms-blob-type": "BlockBlob"})

    def takes_objects(self) -> bool:
        try:
            self.keys("probe")
        except urllib.error.HTTPError as refused:
            return refused.code == 404
        return True

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        **query: str,
    ) -> bytes:
        """The answer to a request that may do everything."""
        may = {
            "sp": "rwdlac",
            "ss": "b",
            "srt": "sco",
            "st": "",
            "se": "2100-01-01T00:00:00Z",
            "sip": "",
            "spr": "",
            "sv": "2019-12-12",
        }
        text = "\n".join([self.account, *may.values(), ""])
        signature = hmac.digest(base64.b64decode(self.key), text.encode(), hashlib.sha256)
        asked = query | {name: value for name, value in may.items() if value}
        asked["sig"] = base64.b64encode(signature).decode()
        url = f"{self.url}/{self.account}/{quote(path)}?{urlencode(asked)}"
        request = urllib.request.Request(url, body, headers or {}, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.read()

    def create_bucket(self, name: str = "") -> str:
        name = name or f"bucket{next(self._buckets)}"
        self.ask("PUT", name, restype="container")
        return name

    def delete_bucket(self, name: str) -> None:
        self.ask("DELETE", name, restype="container")

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        page = self.ask("GET", bucket, restype="container", comp="list", prefix=prefix)
        listed = ElementTree.fromstring(page.decode("utf-8-sig"))
        # It lists 5,000 at a time, which no test has.
        assert not listed.findtext("NextMarker")
        return sorted(name.text or "" for name in listed.iterfind("Blobs/Blob/Name"))

    def read(self, bucket: str, key: str) -> bytes:
        return self.ask("GET", f"{bucket}/{key}")


def program() -> str | None:
    """Azurite, where `make` has found an npm to install it by; or the one that is in PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which("azurite-blob", path=path)


@contextlib.contextmanager
def running(cloud: str) -> Iterator[Google | Azure]:
    """Run the server of a cloud for a `with` block."""
    if cloud == "azure" and not (program() and shutil.which("node")):
        pytest.skip("Azurite is not installed: `make test-python` does that where there is an npm")
    server = Azure() if cloud == "azure" else Google()
    try:
        server.start()
        yield server
    finally:
        server.stop()
