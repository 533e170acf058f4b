"""Defaults of the Heimdall team, which locates radio transmitters: names and tags."""

EXPERIMENT_NAME = "heimdall-localization"
"""Experiment that runs are recorded in where none is named."""

DEFAULT_TAGS = {"phase": "training", "service": "training", "model": "LocalizationNet"}
"""Tags of every run of a tracker that `initialize_mlflow` makes."""

RUN_NAME_PREFIX = "rf-localization"
"""Text that training scripts begin run names with."""

ONNX_MODEL_NAME = "heimdall-localization-onnx"
"""Name that an exported network is registered under."""

ONNX_INPUT_NAME = "mel_spectrogram"
"""Name of the input of an exported network that takes spectrograms."""
