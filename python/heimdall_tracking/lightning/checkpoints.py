"""Checkpoints on their way to the artifacts of a run, and the best of them as a model."""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import HeimdallError, StoreUnavailableError
from ..tracker import MLflowTracker
from ..uploads import Upload

log = logging.getLogger("heimdall_tracking")

FOLDER = "checkpoints"
UNREGISTERED_TAG = "heimdall.unregistered_model"


class Checkpoints:
    """The checkpoints of one run among its artifacts."""

    def __init__(self, tracker: MLflowTracker, run_id: str, folder: str | None, keeps_all: bool) -> None:
        self._tracker = tracker
        self._run_id = run_id
        self._folder = FOLDER if folder is None else folder.strip("/")
        self._keeps_all = keeps_all
        # Time and upload of each file that was logged, by its local path.
        self._logged: dict[str, tuple[int, Upload]] = {}
        # Local files that each callback keeps.
        self._kept: dict[Any, set[str]] = {}

    def saved(self, callback: Any) -> None:
        """Log the checkpoints that a `ModelCheckpoint` has written, and remove those that it has given up."""
        files = {str(path) for path in (*callback.best_k_models, callback.best_model_path) if path}
        if callback.last_model_path:
            files.add(str(callback.last_model_path))
        files = {path for path in files if Path(path).is_file()}
        for path in sorted(files, key=lambda path: Path(path).stat().st_mtime_ns):
            changed = Path(path).stat().st_mtime_ns
            if path in self._logged and self._logged[path][0] == changed:
                continue
            target = self._target(path, callback.dirpath)
            # Lightning may write another checkpoint into the same file: the call keeps a copy of this one.
            upload = self._tracker.log_artifact(path, target.parent.as_posix(), run_id=self._run_id)
            self._logged[path] = changed, upload
        self._kept[callback.state_key] = files
        if not self._keeps_all:
            kept = set().union(*self._kept.values())
            given_up = [self._logged.pop(path)[1] for path in self._logged.keys() - kept]
            # Another callback may keep a file of the same name.
            needed = {name for _, upload in self._logged.values() for name in upload.paths}
            for name in {name for upload in given_up for name in upload.paths} - needed:
                self._tracker.delete_artifacts(name, run_id=self._run_id)

    def _target(self, path: str, dirpath: Any) -> PurePosixPath:
        file = Path(path)
        try:
            name = file.relative_to(dirpath or file.parent).as_posix()
        except ValueError:
            name = file.name
        return PurePosixPath(self._folder, name)


def log_best(
    tracker: MLflowTracker, run_id: str, trainer: Any, module: Any, registered_model_name: str | None
) -> None:
    """Log the module with the weights of its best checkpoint as an MLflow model, and register it if asked.

    Without a checkpoint it is the module as it is at the end of the training.

    Args:
        tracker: Tracker of the run.
        run_id: The run.
        trainer: Trainer whose training has ended.
        module: Its `LightningModule`.
        registered_model_name: Name to register the model under.
    """
    import torch

    from ..models.pytorch import copied_to_cpu

    callback = trainer.checkpoint_callback
    path = getattr(callback, "best_model_path", "") or ""
    metadata: dict[str, Any] = {}
    if path and Path(path).is_dir():
        log.warning("%s is a sharded checkpoint, of which no MLflow model is made", path)
        return
    best = copied_to_cpu(module)
    if path:
        # The trainer itself has written the file.
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        best.on_load_checkpoint(checkpoint)
        best.load_state_dict(checkpoint["state_dict"], strict=getattr(module, "strict_loading", True))
        score = getattr(callback, "best_model_score", None)
        metadata = {
            "checkpoint": Path(path).name,
            "epoch": checkpoint.get("epoch"),
            "global_step": checkpoint.get("global_step"),
            "monitor": getattr(callback, "monitor", None),
            "score": None if score is None else float(score),
        }
    example = module.example_input_array
    info = tracker.log_model(best, "model", input_example=example, metadata=metadata or None, run_id=run_id)
    if registered_model_name is None:
        return
    try:
        tracker.register_model(registered_model_name, info.model_uri)
    except StoreUnavailableError as error:
        # The training is over and its model logged: a registry that is away is no reason to fail it.
        log.error("%s is not registered as %s: %s", info.model_uri, registered_model_name, error)
        try:
            tracker.set_tag(UNREGISTERED_TAG, registered_model_name, run_id=run_id)
        except HeimdallError as second:
            log.error("%s", second)
