"""Recordings of noise at a few sites, and a small backbone, for tests of trainings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

# It takes milliseconds for a batch, waits as long as SLOW says, and leaves its weights in FOLDER at the end.
BACKBONE = """
import atexit, os, time
import torch
from torch import nn

class Tiny(nn.Module):
    last = None

    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d((8, 2))
        self.linear = nn.Linear(48, 16)

    def forward(self, spectrograms):
        Tiny.last = self
        if self.training:
            time.sleep(float(os.environ.get("SLOW", "0")))
        return torch.relu(self.linear(self.pool(spectrograms).flatten(1)))

def save():
    if "FOLDER" in os.environ and Tiny.last is not None:
        rank = os.environ.get("RANK", "0")
        torch.save(Tiny.last.state_dict(), f"{os.environ['FOLDER']}/{rank}.pt")

def make():
    return Tiny()

def text():
    return "no module"

atexit.register(save)
"""


def save_session(
    folder: Path, name: str, seed: int, position: tuple[float, float], **metadata: object
) -> None:
    """Write a session of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(size=(3, 4096, 2)).astype(np.float32)
    np.save(folder / f"{name}_iq.npy", noise.view(np.complex64)[..., 0])
    np.save(folder / f"{name}_label.npy", np.array(position))
    (folder / f"{name}_meta.json").write_text(json.dumps({"sample_rate": 12_000, **metadata}))


def save_sessions(folder: Path, sites: int = 8, per_site: int = 3) -> Path:
    """Write sessions at sites that are kilometres apart; those of a site are metres apart."""
    for site in range(sites):
        for number in range(per_site):
            position = (45.0 + 0.02 * site + 1e-5 * number, 8.0 + 0.01 * (site % 3))
            save_session(folder, f"s{site}-{number}", 10 * site + number, position)
    return folder


def save_backbone(folder: Path) -> Path:
    """Write the module `tiny`, whose function `make` makes a backbone."""
    (folder / "tiny.py").write_text(BACKBONE)
    return folder
