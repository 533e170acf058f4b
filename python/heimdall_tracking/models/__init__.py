"""Models of a run: folders that stock MLflow loads, and that load without MLflow.

`MLflowTracker.log_model`, `load_model` and `export_onnx` are what users call; a file here is named for what
it
knows: the folder around the weights (`folder`), inputs and outputs (`signature`), the flavours (`pytorch`,
    `onnx`),
reading (`load`) and the step from one flavour to the other (`export`).
"""

from __future__ import annotations

from .export import OnnxExport, export_onnx
from .folder import ModelInfo
from .load import load_model
from .log import log_model

__all__ = ["ModelInfo", "OnnxExport", "export_onnx", "load_model", "log_model"]
