"""Images and figures as the bytes of a file, by MLflow's rules for arrays of pixels."""

from __future__ import annotations

import io
import re
import sys
import tempfile
import warnings
from pathlib import Path, PurePosixPath
from typing import Any

from ._optional import need
from .errors import InvalidInputError, WrongTypeError

# The longer side of the small copies that MLflow's UI shows in its grid of images.
SMALL_SIDE = 256
KEY = re.compile(r"[a-zA-Z0-9_\-./ ]+")
FORBIDDEN = re.compile(r"[^a-zA-Z0-9_\-./ ]")
PLOTLY_IMAGES = (".png", ".jpeg", ".webp", ".svg", ".pdf")


def as_pil(image: Any) -> Any:
    """Return an image as one of Pillow's.

    Args:
        image: An image of Pillow or of MLflow, an array or a tensor.

    Raises:
        WrongTypeError: It is none of these, or its numbers are of a kind that no pixel has.
        InvalidInputError: It has a shape or whole numbers that no image has.
    """
    pil = need("PIL.Image", "log_image")
    if isinstance(image, pil.Image):
        return image
    if hasattr(image, "to_pil"):
        return image.to_pil()
    if hasattr(image, "detach"):
        array = _of_tensor(image)
    elif hasattr(image, "__array__"):
        array = need("numpy", "log_image").asarray(image)
    else:
        raise WrongTypeError(
            f"an image must be an array, a tensor or an image of Pillow, not {type(image).__name__}"
        )
    return pil.fromarray(_pixels(array))


def _of_tensor(image: Any) -> Any:
    array = image.detach().cpu().numpy()
    channels = (1, 3, 4)
    # Torch keeps the channels first; an array has them last.
    if array.ndim == 3 and array.shape[0] in channels and array.shape[2] not in channels:
        array = array.transpose(1, 2, 0)
    return array


def _pixels(array: Any) -> Any:
    numpy = need("numpy", "log_image")
    if array.dtype.kind not in "biuf":
        raise WrongTypeError(f"an image must have bools, whole numbers or floats, not {array.dtype}")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        raise InvalidInputError(
            f"an image has the shape (height, width) or (height, width, 1, 3 or 4), not {array.shape}"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    whole = array.dtype.kind in "iu"
    low, high = array.min(), array.max()
    if whole and (low < 0 or high > 255):
        raise InvalidInputError(
            f"an image of whole numbers must have them from 0 to 255, not {low} to {high}"
        )
    if not whole and (low < 0 or high > 1):
        warnings.warn(
            f"an image of floats has them from 0 to 1, and this one from {low} to {high}: it is scaled to "
            "the whole range",
            stacklevel=4,
        )
        array = (array - low) / (high - low)
    return (array if whole else array * 255).astype(numpy.uint8)


def encoded(image: Any, artifact_file: str) -> bytes:
    """Return an image of Pillow as the bytes of a file of that name.

    Raises:
        InvalidInputError: The name's ending is none of an image.
    """
    ending = PurePosixPath(artifact_file).suffix.lower()
    kind = need("PIL.Image", "log_image").registered_extensions().get(ending)
    if kind is None:
        raise InvalidInputError(f"artifact file {artifact_file!r} has no ending of an image, such as .png")
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def small(image: Any) -> Any:
    """Return the copy that MLflow's UI shows: the longer side 256 pixels, the proportions kept."""
    width, height = image.size
    longer = max(width, height)
    size = (max(1, int(width * SMALL_SIDE / longer)), max(1, int(height * SMALL_SIDE / longer)))
    return image.resize(size)


def figure_bytes(figure: Any, artifact_file: str, save_kwargs: dict[str, Any]) -> bytes:
    """Return a figure of Matplotlib or Plotly as the bytes of a file of that name.

    Raises:
        WrongTypeError: It is neither.
        InvalidInputError: The name's ending is none that the figure can be saved as.
    """
    ending = PurePosixPath(artifact_file).suffix
    # Only an imported library can have made the figure.
    if "matplotlib" in sys.modules:
        import matplotlib.figure

        if isinstance(figure, matplotlib.figure.Figure):
            if not ending and "format" not in save_kwargs:
                raise InvalidInputError(f"artifact file {artifact_file!r} needs an ending, such as .png")
            buffer = io.BytesIO()
            known = figure.canvas.get_supported_filetypes()
            kind = save_kwargs.get("format", ending[1:].lower())
            if kind not in known:
                raise InvalidInputError(
                    f"artifact file {artifact_file!r} cannot hold a figure: its ending must be one of "
                    f"{', '.join(sorted(known))}"
                )
            figure.savefig(buffer, **{**save_kwargs, "format": kind})
            return buffer.getvalue()
    if "plotly" in sys.modules and _is_plotly(figure):
        if ending != ".html" and ending not in PLOTLY_IMAGES:
            raise InvalidInputError(
                f"artifact file {artifact_file!r} cannot hold a figure of Plotly: its ending must be one of "
                f".html, {', '.join(PLOTLY_IMAGES)}"
            )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"figure{ending}"
            if ending == ".html":
                figure.write_html(path, **{"include_plotlyjs": "cdn", "auto_open": False, **save_kwargs})
            else:
                figure.write_image(path, **save_kwargs)
            return path.read_bytes()
    raise WrongTypeError(f"a figure must be one of Matplotlib or Plotly, not {type(figure).__name__}")


def _is_plotly(figure: Any) -> bool:
    graph_objects = need("plotly.graph_objects", "log_figure")
    return isinstance(figure, graph_objects.Figure)
