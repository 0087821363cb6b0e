"""Where settings come from beside flags: the YAML file and the environment, with refusals that help."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import Any

import yaml
from pydantic.fields import FieldInfo
from pydantic_settings import EnvSettingsSource, SettingsError, YamlConfigSettingsSource

_SERVICE_HOST = "_service_host"
_SWITCH = "tag:yaml.org,2002:bool"
_TEXT = "tag:yaml.org,2002:str"


class _Loader(yaml.SafeLoader):
    """YAML as of version 1.2, where only ``true`` and ``false`` are switches.

    ``off`` is a word that some settings have, and ``no`` may be a model's name; what is a switch takes them
    as text just as well.
    """

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        tag: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call] # PyYAML has no types
        return _TEXT if tag == _SWITCH and value.lower() not in {"true", "false"} else tag


class FileSource(YamlConfigSettingsSource):
    """The settings of a YAML file."""

    def __call__(self) -> dict[str, Any]:
        """Return what the file says.

        Raises:
            SettingsError: there is no such setting.
        """
        names = list(self.settings_cls.model_fields)
        for unknown in sorted(name for name in self.yaml_data if name.lower() not in names):
            near = _nearest(unknown, names)
            msg = f"configuration file {self.yaml_file_path}: {unknown}: {_no_such_setting(near)}"
            raise SettingsError(msg)
        return super().__call__()

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        """Read one file.

        Raises:
            SettingsError: it cannot be read, is no YAML, or is something else than settings by name.
        """
        try:
            with file_path.open(encoding="utf-8") as stream:
                found: object = yaml.load(stream, Loader=_Loader) or {}  # noqa: S506 # a safe loader's subclass
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            msg = f"configuration file {file_path} is not YAML that can be read: {error}"
            raise SettingsError(msg) from None
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
            msg = f"configuration file {file_path}: expected lines such as 'http_port: 8000' at the top"
            raise SettingsError(msg)
        return found


class EnvironmentSource(EnvSettingsSource):
    """The settings of ``HEADRACE_*`` variables; a list is one bare value, or a JSON list."""

    def __call__(self) -> dict[str, Any]:
        """Read the variables.

        Raises:
            SettingsError: there is no such setting, or a list cannot be read.
        """
        prefix = self.env_prefix.lower()  # names are compared in lower case
        names = list(self.settings_cls.model_fields)
        for unknown in _unknown(self.env_vars, prefix, names):
            near = _nearest(unknown, names)
            hint = _no_such_setting(near and self._variable(near))
            msg = f"environment variable {self._variable(unknown)}: {hint}"
            raise SettingsError(msg)
        return super().__call__()

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """Read a list, which is what every setting of several values is.

        Raises:
            SettingsError: several bare values, none, or wrong JSON; the text does not show the value.
        """
        text = str(value).strip()
        if text and not text.startswith("[") and "," not in text:
            return [text]
        try:
            return super().decode_complex_value(field_name, field, text)
        except ValueError:
            name = self._variable(field_name)
            example = f"""{name}='["a", "b"]'"""
            msg = f"environment variable {name}: expected one value or a JSON list, as in {example}"
            raise SettingsError(msg) from None

    def _variable(self, name: str) -> str:
        return (self.env_prefix + name).upper()


def _nearest(unknown: str, names: Sequence[str]) -> str:
    """Return the setting that was probably meant, "" if none is near."""
    return next(iter(difflib.get_close_matches(unknown.lower().replace("-", "_"), names, n=1)), "")


def _no_such_setting(near: str) -> str:
    hint = f"did you mean {near}?" if near else "docs/configuration.md lists all"
    return f"there is no such setting; {hint}"


def _unknown(given: Collection[str], prefix: str, names: Sequence[str]) -> list[str]:
    """Return the variables that name no setting, without the prefix.

    Kubernetes gives each container variables about every Service: for one that is called ``headrace``, or
    begins so, they begin with ``HEADRACE_`` too and are nobody's mistake.
    """
    services = [name.removesuffix(_SERVICE_HOST) for name in given if name.endswith(_SERVICE_HOST)]
    links = tuple(f"{service}_{what}" for service in services for what in ("service_", "port"))
    ours = [name for name in given if name.startswith(prefix) and not name.startswith(links)]
    return sorted({name.removeprefix(prefix) for name in ours} - set(names))
