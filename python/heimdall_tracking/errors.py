"""Exceptions of heimdall_tracking: one root, each child also the built-in exception that fits."""


class HeimdallError(Exception):
    """Root of every exception this package raises on purpose."""


class InvalidInputError(HeimdallError, ValueError):
    """A key, value, path, status or stage that MLflow would not take; nothing was recorded."""


class WrongTypeError(HeimdallError, TypeError):
    """A value of a type that cannot be recorded there, such as a metric that is no number."""


class ConfigurationError(HeimdallError, ValueError):
    """A setting that cannot work: a URI, a folder, an experiment."""


class RunStateError(HeimdallError, RuntimeError):
    """The call needs an active run, or needs that there is none, or its own process."""


class NotFoundError(HeimdallError, LookupError):
    """The run, model, model version or alias does not exist."""


class AlreadyExistsError(HeimdallError, ValueError):
    """There is a registered model of that name already."""


class RegistrationError(HeimdallError, RuntimeError):
    """A model version was registered and is not ready: in time, or at all."""


class ArtifactNotFoundError(HeimdallError, FileNotFoundError):
    """The local file or folder to log does not exist; nothing was logged."""


class ArtifactError(HeimdallError, OSError):
    """The artifact store refused a file."""


class StoreUnavailableError(HeimdallError, ConnectionError):
    """The store cannot answer at present."""


class PermissionDeniedError(HeimdallError, PermissionError):
    """The store does not accept the credentials, or does not let this user do that."""


class MissingPackageError(HeimdallError, ImportError):
    """A package that this call needs is not installed; the message names it."""


class UndeliveredError(HeimdallError, TimeoutError):
    """Not everything was delivered in the time allowed; it stays in the journal and is not lost."""


class JournalError(HeimdallError, OSError):
    """The journal on local disk cannot be used."""


class ExportError(HeimdallError, RuntimeError):
    """A network cannot be exported, or the exported one differs from it; nothing was logged."""
