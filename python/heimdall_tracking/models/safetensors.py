"""Tensors in a file that runs no code when it is read: the format of the package safetensors.

Eight bytes of length, a header in JSON, the numbers (https://huggingface.co/docs/safetensors, "Format"). It
is so small that a dependency would be more than it: reading and writing are here, and tested against the
package.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._optional import need
from ..errors import InvalidInputError

# The package safetensors reads no longer header either.
LONGEST_HEADER = 100_000_000
# The format's name of each type of torch; types without such a name are left out.
NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}


def save(tensors: Mapping[str, Any], file: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors into a file. Tensors that share their numbers are written each on its own.

    Args:
        tensors: Tensors of torch by name, on any device.
        file: The file; replaced if it is there.
        metadata: Texts to keep beside them.

    Raises:
        InvalidInputError: A tensor is sparse, quantised or of a type that the format has no name for.
    """
    torch = need("torch", "writing safetensors")
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        kind = NAMES.get(str(tensor.dtype).removeprefix("torch."))
        if kind is None or tensor.layout != torch.strided:
            raise InvalidInputError(
                f"tensor {name!r} cannot be written as safetensors: there is no form for {tensor.dtype} "
                f"({tensor.layout})"
            )
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    # The numbers begin at a multiple of eight, for readers that map the file.
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            flat = tensor.detach().to("cpu").contiguous().reshape(-1)
            if flat.numel():
                stream.write(memoryview(flat.view(torch.uint8).numpy()))


def load(file: Path) -> dict[str, Any]:
    """Read the tensors of a file.

    Args:
        file: The file.

    Returns:
        Tensors of torch by name, on the CPU, each with memory of its own.

    Raises:
        InvalidInputError: The file is not of the format, or its header contradicts its content.
    """
    torch = need("torch", "reading safetensors")
    types = {kind: getattr(torch, name, None) for name, kind in NAMES.items()}
    size = file.stat().st_size
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\xff"))
        if length > min(size - 8, LONGEST_HEADER):
            raise _broken(file, "its header is longer than the file")
        try:
            header = json.loads(stream.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            described = [
                (name, types[it["dtype"]], tuple(map(int, it["shape"])), *map(int, it["data_offsets"]))
                for name, it in entries.items()
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _broken(file, f"its header makes no sense: {error}") from error
        tensors: dict[str, Any] = {}
        for name, dtype, shape, begin, end in described:
            if dtype is None:
                raise _broken(file, f"torch {torch.__version__} has no type for tensor {name!r}")
            size_of_it = math.prod(shape) * dtype.itemsize if min(shape, default=0) >= 0 else -1
            if end - begin != size_of_it:
                raise _broken(file, f"tensor {name!r} has not the size of its shape")
            if begin < 0 or 8 + length + end > size:
                raise _broken(file, f"tensor {name!r} is beyond its end")
            tensor = torch.empty(shape, dtype=dtype)
            if tensor.numel():
                stream.seek(8 + length + begin)
                stream.readinto(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
            tensors[name] = tensor
    return tensors


def _broken(file: Path, why: str) -> InvalidInputError:
    return InvalidInputError(f"{file} is no file of safetensors: {why}")
