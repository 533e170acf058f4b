"""Models of a run: folders that stock MLflow loads, and that load without MLflow.

`MLflowTracker.log_model`, `load_model` and `export_onnx` are the calls of users. A file here is named for
its subject: the folder around the weights (`folder`), inputs and outputs (`signature`), the flavours
(`pytorch`, `onnx`), writing (`log`, `history`), reading (`load`, `stored`) and the step from one flavour to
the other (`export`). They know a tracker by its `protocol`, so that the tracker can import them.
"""

from __future__ import annotations

from .export import OnnxExport, export_onnx
from .folder import ModelInfo
from .log import log_model
from .stored import load_model

__all__ = ["ModelInfo", "OnnxExport", "export_onnx", "load_model", "log_model"]
