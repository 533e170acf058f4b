"""Serve a network of several inputs or outputs, or of bfloat16, by mlflow.pyfunc.

Written beside the model by heimdall-tracking, which is not needed to load it.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> Network:
    import torch

    device = (model_config or {}).get("device") or os.environ.get("MLFLOW_DEFAULT_PREDICTION_DEVICE")
    if not device:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    file = str(Path(path) / "model.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model: Any = torch.jit.load(file, map_location=device)  # type: ignore[no-untyped-call]
        except RuntimeError:
            # The file is a pickle.
            if os.environ.get("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "").lower() in ("false", "0"):
                raise
            model = torch.load(file, map_location=device, weights_only=False)
    interface = json.loads((Path(path) / "interface.json").read_text(encoding="utf-8"))
    return Network(model.eval(), device, interface)


class Network:
    """A network with its inputs and outputs by name."""

    def __init__(self, model: Any, device: str, interface: dict[str, Any]) -> None:
        self.model = model
        self.device = device
        self.interface = interface

    def get_raw_model(self) -> Any:
        """Return the network."""
        return self.model

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        """Return the outputs by name, each an array; for a single output without a name, the array.

        Args:
            data: An array or DataFrame for one input, else a dict of arrays by the inputs' names.
            params: Not used.
        """
        import torch

        inputs = self.interface["inputs"]
        if not isinstance(data, dict):
            if len(inputs) != 1:
                names = [it["name"] for it in inputs]
                raise TypeError(f"the model has the inputs {names}: give a dict of arrays by these names")
            data = {inputs[0]["name"]: data.to_numpy() if hasattr(data, "to_numpy") else data}
        tensors = {
            it["name"]: torch.as_tensor(data[it["name"]]).to(self.device, getattr(torch, it["dtype"]))
            for it in inputs
        }
        with torch.no_grad():
            output = self.model(**tensors) if self.interface["by_keyword"] else self.model(*tensors.values())
        kind = self.interface["kind"]
        if kind == "tensor":
            return _array(output)
        values = output.values() if kind == "dict" else output
        return {name: _array(value) for name, value in zip(self.interface["outputs"], values, strict=True)}


def _array(tensor: Any) -> Any:
    tensor = tensor.detach().cpu()
    # NumPy has no numbers of these types.
    is_unknown = "bfloat16" in str(tensor.dtype) or "float8" in str(tensor.dtype)
    return (tensor.float() if is_unknown else tensor).numpy()
