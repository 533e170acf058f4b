"""Small modules to log, their input, and what their files say."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import yaml
from torch import nn


class Net(nn.Module):
    """Dropout and batch statistics: it says something else while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)
        )

    def forward(self, rows):
        return self.layers(rows)

    def twice(self, rows):
        return 2 * self(rows)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Linear(4, 2)
        self.sigma = nn.Linear(4, 2)

    def forward(self, rows):
        return self.position(rows), nn.functional.softplus(self.sigma(rows))


class Sum(nn.Module):
    def forward(self, left, right):
        return {"sum": left + right}


ROWS = torch.linspace(-1, 1, 12).reshape(3, 4)


def expected_of(model, *inputs):
    """Return the output of a module in evaluation mode; the module itself is not changed."""
    with torch.no_grad():
        return copy.deepcopy(model).eval()(*inputs)


def mlmodel(folder: Path) -> dict:
    return yaml.safe_load((folder / "MLmodel").read_text())


BESIDE = """
import math, torch
FACTOR = 3.0
def scaled(rows):
    return rows * FACTOR * math.pi
class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)
    def forward(self, rows):
        return scaled(self.linear(rows))
"""
