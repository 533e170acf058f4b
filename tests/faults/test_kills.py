"""After kills at any instant, every acknowledged record is in the store once, and nothing else is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import kills
from support.helpers import SEED

# Of all stores together. `make test-kills` has ten times as many.
KILLS = int(os.environ.get("HEIMDALL_KILLS", "200"))


@pytest.mark.parametrize("kind", kills.STORES)
def test_every_acknowledged_record_is_there_once_whenever_the_process_is_killed(kind: str, tmp_path: Path):
    tally = kills.kill(kind, tmp_path, kills.share(kind, KILLS), SEED)
    print(f"{kind}: {tally}")
    shown = "\n".join(tally.problems[:20])
    assert not tally.problems, f"HEIMDALL_SEED={SEED} HEIMDALL_KILLS={KILLS}: {tally}\n{shown}"
