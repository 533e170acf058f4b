"""Seconds per epoch of the training loop, beside the same network in a plain PyTorch loop.

Run it with `make bench`, or `python benches/train_loop.py [--quick]`. Both train on one thread, on the same
rows in batches of the same size, validate after each epoch and write at least one checkpoint then; they take
turns.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from heimdall_tracking.training import RssDataset, RssLocalizationNet, Trainer  # noqa: E402
from support.torch_twin import TorchTwin, gaussian_nll  # noqa: E402

ROUNDS, EPOCHS, BATCH = (1, 1, 128) if "--quick" in sys.argv else (3, 8, 128)


def ours(dataset: RssDataset, folder: Path) -> float:
    trainer = Trainer(
        max_epochs=EPOCHS, batch_size=BATCH, drop_receivers=0.0, default_root_dir=folder,
        enable_progress_bar=False, save_top_k=1,
    )  # fmt: skip
    return trainer.fit(RssLocalizationNet(dataset.receivers), dataset).seconds / EPOCHS


def plain(dataset: RssDataset, folder: Path) -> float:
    model = TorchTwin(dataset.receivers)
    rss, val = (torch.from_numpy(dataset.rss(part)) for part in ("train", "val"))
    truth, val_truth = (
        model.to_local(torch.from_numpy(dataset.positions(part))) for part in ("train", "val")
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    begun = time.perf_counter()
    for _ in range(EPOCHS):
        model.train()
        order = torch.randperm(len(rss))
        for rows in order.split(BATCH)[: len(rss) // BATCH]:
            loss = gaussian_nll(model(rss[rows]), truth[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        model.eval()
        with torch.no_grad():
            gaussian_nll(model(val), val_truth).item()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, folder / "last.ckpt")
    return (time.perf_counter() - begun) / EPOCHS


def main() -> None:
    torch.set_num_threads(1)
    dataset = RssDataset.load(ROOT / "examples" / "powder_rss_462mhz")
    taken: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, train in (("heimdall_training", ours), ("plain PyTorch", plain)):
            with tempfile.TemporaryDirectory() as folder:
                taken.setdefault(name, []).append(train(dataset, Path(folder)))
    print(f"{'ms per epoch':24} {'median':>9} {'min':>9} {'max':>9}")
    for name, seconds in taken.items():
        numbers = [statistics.median(seconds), min(seconds), max(seconds)]
        print(f"{name:24} " + " ".join(f"{number * 1e3:9.1f}" for number in numbers))


if __name__ == "__main__":
    main()
