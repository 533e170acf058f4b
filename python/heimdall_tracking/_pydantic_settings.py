"""The settings as a model of pydantic-settings. Whoever imports this module has that package."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, FieldSerializationInfo, SecretStr, field_serializer
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from . import _environment
from ._plain_settings import (
    DEFAULTS,
    FIELDS,
    MAY_BE_EMPTY,
    SECRETS,
    PlainSettings,
    found,
    pickled,
    shown,
    text_of,
    unpickled,
)
from ._secret import Comparable

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass as _ModelMetaclass
else:
    _ModelMetaclass = type(BaseSettings)


class Secret(Comparable, SecretStr):
    """A `SecretStr` that equals its text, and that no pickle has."""


class _Found(PydanticBaseSettingsSource):
    """The variables of the process and, unless told otherwise, of the `.env` file."""

    def __init__(self, settings_cls: type[BaseSettings], of_process_only: bool = False) -> None:
        super().__init__(settings_cls)
        self.get = os.environ.get if of_process_only else _environment.get

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return nothing: all fields are found at once."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        return {field: value for field, (value, _) in found(self.get).items()}


class _OwnFields(DotEnvSettingsSource):
    """The `.env` file for the fields that a class of the user's adds."""

    def __call__(self) -> dict[str, Any]:
        known = self.settings_cls.model_fields.keys() - FIELDS.keys()
        return {name: value for name, value in super().__call__().items() if name in known}


class _Kind(_ModelMetaclass):
    """The kind of class that counts the plain settings of this process among its instances."""

    def __instancecheck__(cls, instance: object) -> bool:
        return super().__instancecheck__(instance) or (
            cls is Settings and isinstance(instance, PlainSettings)
        )


def _text(field: str) -> BeforeValidator:
    def text(value: object) -> str | None:
        given = text_of(field, value)
        return given if given or (given is not None and field in MAY_BE_EMPTY) else DEFAULTS.get(field)

    return BeforeValidator(text)


class Settings(BaseSettings, metaclass=_Kind):
    __doc__ = PlainSettings.__doc__

    model_config = SettingsConfigDict(
        extra="ignore",
        env_ignore_empty=True,
        validate_assignment=True,
        # The message of an error would show a secret of the wrong type.
        hide_input_in_errors=True,
    )

    mlflow_tracking_uri: Annotated[str, _text("mlflow_tracking_uri")] = DEFAULTS["mlflow_tracking_uri"]
    mlflow_artifact_uri: Annotated[str | None, _text("mlflow_artifact_uri")] = None
    mlflow_backend_store_uri: Annotated[str | None, _text("mlflow_backend_store_uri")] = None
    mlflow_registry_uri: Annotated[str | None, _text("mlflow_registry_uri")] = None
    mlflow_s3_endpoint_url: Annotated[str | None, _text("mlflow_s3_endpoint_url")] = None
    mlflow_s3_access_key_id: Annotated[Secret | None, _text("mlflow_s3_access_key_id")] = None
    mlflow_s3_secret_access_key: Annotated[Secret | None, _text("mlflow_s3_secret_access_key")] = None
    mlflow_experiment_name: Annotated[str, _text("mlflow_experiment_name")] = DEFAULTS[
        "mlflow_experiment_name"
    ]
    mlflow_run_name_prefix: Annotated[str, _text("mlflow_run_name_prefix")] = Field(
        default=DEFAULTS["mlflow_run_name_prefix"]
    )

    def __init__(self, **values: Any) -> None:
        # None of a field is no value, as with the plain class.
        empty = [
            name
            for name, value in values.items()
            if name in FIELDS and (value is None or (value == "" and name not in MAY_BE_EMPTY))
        ]
        super().__init__(**{name: value for name, value in values.items() if name not in empty})

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources: arguments, variables, `.env`, and the file that a user's class names."""
        sources = [init_settings]
        file = _environment.env_file()
        if getattr(dotenv_settings, "env_file", None):
            sources += [_Found(settings_cls, of_process_only=True), env_settings, dotenv_settings]
            sources += [_Found(settings_cls)]
        else:
            sources += [_Found(settings_cls), env_settings]
        if file is not None and settings_cls.model_fields.keys() - FIELDS.keys():
            sources += [_OwnFields(settings_cls, env_file=file.path, env_file_encoding="utf-8")]
        return (*sources, file_secret_settings)

    @field_serializer(*(name for name in FIELDS if name.endswith(("_uri", "_url"))), when_used="json")
    def _without_credentials(self, value: str | None, info: FieldSerializationInfo) -> object:
        return shown(info.field_name, value)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            if name not in SECRETS:
                yield name, value if name is None else shown(name, value)

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return {**state, "__dict__": pickled(state["__dict__"])}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        values = unpickled(state["__dict__"])
        for name in SECRETS:
            if values[name] is not None:
                values[name] = Secret(values[name].get_secret_value())
        super().__setstate__({**state, "__dict__": values})


# Users import the class from the package itself.
Settings.__module__ = "heimdall_tracking"
