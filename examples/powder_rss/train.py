"""Train a transmitter localiser on real recordings and record the run.

    python examples/powder_rss/train.py --epochs 40 --seed 0

The recordings are those of examples/powder_rss_462mhz: the power at 29 receivers of a campus, of a
handheld radio whose position is known. Tested is on map squares that training never saw.
"""

import argparse
import time
from pathlib import Path

from heimdall_tracking import initialize_mlflow, settings
from heimdall_tracking.training import RssDataset, RssLocalizationNet, Trainer

RECORDINGS = Path(__file__).parents[1] / "powder_rss_462mhz"


def main() -> None:
    """Train, test, record, register."""
    parser = argparse.ArgumentParser(description="Train a transmitter localiser on real recordings.")
    parser.add_argument("--epochs", type=int, default=40, help="at most (default 40)")
    parser.add_argument("--seed", type=int, default=0, help="decides everything that is drawn (default 0)")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs"), help="folder for files (default outputs)"
    )
    args = parser.parse_args()

    tracker = initialize_mlflow(settings)
    dataset = RssDataset.load(RECORDINGS, test="grid_test", seed=args.seed)
    model = RssLocalizationNet(dataset.receivers, seed=args.seed)
    trainer = Trainer(tracker=tracker, max_epochs=args.epochs, seed=args.seed, default_root_dir=args.output)
    print(dataset)
    print(model)

    run_name = f"{settings.mlflow_run_name_prefix}-{time.strftime('%Y%m%d-%H%M%S')}"
    with tracker.run(run_name, tags={"phase": "training", "model": "RssLocalizationNet"}) as run:
        fitted = trainer.fit(model, dataset)
        result = trainer.test()
        version = tracker.register_model(
            "heimdall-localization",
            f"runs:/{run.run_id}/model",
            description="Position and uncertainty of a transmitter from the powers at 29 receivers",
            tags={"framework": "libtorch", "test_split": result.split},
        )

    print(f"\n{result}\n")
    print(f"trained  {len(fitted.history)} epochs in {fitted.seconds:.1f} s")
    print(f"files    {fitted.log_dir}")
    print(f"run      {run_name} ({run.run_id})")
    print(f"model    heimdall-localization, version {version}")
    print(f"see it   make ui, or: mlflow ui --backend-store-uri {tracker.tracking_uri}")


if __name__ == "__main__":
    main()
