"""Trains a network of YOLO on two pictures; its callbacks record by MLflow."""

from pathlib import Path

import numpy as np
from PIL import Image
from ultralytics import YOLO

for part in ("images", "labels"):
    Path("data", part).mkdir(parents=True)
for number in range(2):
    Image.fromarray(np.full((32, 32, 3), 100 * number, np.uint8)).save(f"data/images/{number}.png")
    Path(f"data/labels/{number}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
Path("data.yaml").write_text(f"path: {Path('data').resolve()}\ntrain: images\nval: images\nnames: [thing]\n")
Path("network.yaml").write_text(
    "nc: 1\nbackbone:\n  - [-1, 1, Conv, [8, 3, 8]]\nhead:\n  - [[0], 1, Detect, [nc]]\n"
)
YOLO("network.yaml", task="detect").train(
    data="data.yaml",
    epochs=2,
    imgsz=32,
    batch=2,
    workers=0,
    device="cpu",
    project="of yolo",
    name="of the command",
    plots=False,
    amp=False,
    verbose=False,
)
