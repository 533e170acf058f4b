"""Load libtorch and the module that is linked to it, in this order, or name the package to install."""

_TORCH = "2.13.0"
"""The torch whose libtorch the native module is linked to."""

try:
    # First of all: the native module uses the libtorch that torch has loaded.
    import torch
except ImportError as error:
    raise ImportError(
        f"heimdall_training needs torch {_TORCH}, which cannot be imported ({error}); "
        f"install it with: pip install torch=={_TORCH}"
    ) from error

if torch.__version__.split("+")[0] != _TORCH:
    raise ImportError(
        f"heimdall_training is linked to torch {_TORCH}, but torch {torch.__version__} is installed; "
        f"change it with: pip install torch=={_TORCH}"
    )

try:
    from . import _native  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"the native module of heimdall_training cannot be loaded ({error}); "
        "reinstall it with: pip install --force-reinstall --no-deps heimdall-training"
    ) from error
