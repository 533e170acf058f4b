"""A network as those that are exported, and what it says, by torch and by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn


class Block(nn.Module):
    """A block of a ConvNeXt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, maps):
        rows = self.norm(self.mix(maps).permute(0, 2, 3, 1))
        rows = self.scale * self.narrow(nn.functional.gelu(self.wide(rows)))
        return maps + rows.permute(0, 3, 1, 2)


def head(width: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(width, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.3)),
        *(nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2)),
        nn.Linear(64, 2),
    )


class LocalizationNet(nn.Module):
    """The documented shapes: spectrograms in, positions and sigmas out, on a trunk like ConvNeXt's."""

    backbone_name = "convnext_atto"

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        layers, before = [nn.Conv2d(3, width, 4, 4), Block(width)], width
        for after in (2 * width, 4 * width, 8 * width):
            layers += [nn.Conv2d(before, after, 2, 2), Block(after)]
            before = after
        self.trunk = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(before)
        self.position_head, self.uncertainty_head = head(before), head(before)

    def forward(self, spectrogram):
        features = self.norm(self.trunk(spectrogram).mean((2, 3)))
        sigma = nn.functional.softplus(self.uncertainty_head(features)).clamp(0.01, 1.0)
        return self.position_head(features), sigma


SPECTROGRAMS = torch.randn(3, 3, 128, 32, generator=torch.Generator().manual_seed(9))


def said_by(folder: Path, rows) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: np.asarray(rows)})


def expected_of(net: nn.Module, rows=SPECTROGRAMS) -> list[np.ndarray]:
    training = net.training
    with torch.no_grad():
        outputs = [output.numpy() for output in net.eval()(rows)]
    net.train(training)
    return outputs
