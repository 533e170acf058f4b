"""`python -m heimdall_tracking.train`: the command `heimdall train`, for torchrun as well."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
