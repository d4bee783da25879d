"""Reads the folder of provider configs: one YAML file per provider, named after it.

A file says what every provider has at the top, the provider's own under ``settings``, and under
``secrets`` which environment variables hold what must not be in a file. All files are checked
before anything is used, every problem is reported at once, and each names file, line and key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from handlers.value_checks import Check, mapping, number_from, show, text, whole
from handlers.yaml_lines import Document, KeyPath, Problem, UnreadableYaml, read
from scheduler import plugins, providers
from scheduler.errors import StartupError
from scheduler.providers.base import MOST_CONTAINERS, Provider, ProviderConfig, Surroundings

#: Names that are safe as a file, a label and part of a container's key.
_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,39}")
_VARIABLE: Final = re.compile(r"[A-Z][A-Z0-9_]*")
#: Kinds that need a library of an extra, which is named like them.
_EXTRAS: Final = ("kubernetes",)


def _names(value: object) -> str | None:
    if isinstance(value, list) and value and all(isinstance(n, str) and n for n in value):
        return None
    return "must be a list of names, such as [demo]"


def _labels(value: object) -> str | None:
    if isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(given, str) for name, given in value.items()
    ):
        return None
    return "must be a section of names with a text each"


def _count(value: object) -> str | None:
    if complaint := whole(0)(value):
        return complaint
    assert isinstance(value, int)
    return None if value <= MOST_CONTAINERS else f"must be at most {MOST_CONTAINERS}"


#: What every provider has; those without a default come first.
KEYS: Final[Mapping[str, Check]] = {
    "kind": text,
    "max_containers": _count,
    "min_containers": _count,
    "price_per_hour": number_from(0),
    "device_kind": text,
    "num_devices": whole(0),
    "replicas_per_container": whole(1),
    "models": _names,
    "labels": _labels,
    "start_timeout_s": number_from(1),
    "drain_timeout_s": number_from(0),
    "idle_s": number_from(0),
    "look_s": number_from(0.1),
    "settings": mapping,
    "secrets": mapping,
}
_NEEDED: Final = ("kind", "max_containers")


def load_folder(
    folder: Path, models: Collection[str], environment: Mapping[str, str]
) -> list[ProviderConfig]:
    """Every provider of a folder, by name; none where there is no folder.

    ``models`` are the names that a file may allow, ``environment`` has the secrets.

    Raises:
        StartupError: every problem of every file, each a line ``<file>:<line>: <key>: <what>``.
    """
    found: list[ProviderConfig] = []
    wrong = [f"{path}:1: is not read; name it {path.stem}.yaml" for path in folder.glob("*.yml")]
    for path in sorted(folder.glob("*.yaml")):
        try:
            found.append(_load(path, models, environment))
        except StartupError as error:
            wrong.append(str(error))
    if wrong:
        raise StartupError("\n".join(wrong))
    return found


def secret_variables(folder: Path) -> set[str]:
    """The environment variables that files of the folder name: for nobody but the control plane.

    A file that cannot be read names none; whoever starts the control plane is told why.
    """
    found: set[str] = set()
    for path in folder.glob("*.yaml"):
        try:
            value = read(path.read_text("utf-8")).value
        except (OSError, ValueError):
            continue
        secrets = value.get("secrets") if isinstance(value, dict) else None
        if isinstance(secrets, dict):
            found |= {name for name in secrets.values() if isinstance(name, str)}
    return found


def open_provider(config: ProviderConfig, surroundings: Surroundings) -> Provider:
    """The provider that a config describes."""
    opened: Provider = _member(config.kind).Provider(config, surroundings)
    return opened


def _member(kind: str) -> ModuleType:
    """Raises StartupError."""
    try:
        return plugins.find(providers, kind)
    except ImportError as error:
        if kind not in _EXTRAS:
            raise
        message = f"providers of kind {kind} need a library: pip install 'plait[{kind}]'"
        raise StartupError(f"{message} ({error})") from error


def _load(path: Path, models: Collection[str], environment: Mapping[str, str]) -> ProviderConfig:
    document: Document | None = None
    try:
        document = read(path.read_text("utf-8"))
        problems = list(_check(document.value, path.stem, models, environment))
    except (OSError, UnicodeDecodeError) as error:
        problems = [Problem((), f"cannot be read: {error}")]
    except UnreadableYaml as error:
        problems = error.problems
    if problems:
        raise StartupError("\n".join(_lines(path, document, problems)))
    assert document is not None
    return _build(path.stem, document.value, environment)


def _lines(path: Path, document: Document | None, problems: list[Problem]) -> list[str]:
    told = []
    for problem in problems:
        line = problem.line or (document.line(problem.path) if document else 1)
        key = f"{problem.key}: " if problem.path else ""
        told.append((line, f"{path}:{line}: {key}{problem.message}"))
    return [text for _, text in sorted(told)]


def _check(
    value: object, name: str, models: Collection[str], environment: Mapping[str, str]
) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield Problem((), f"must describe a provider by keys and values, not {show(value)}")
        return
    if not _NAME.fullmatch(name):
        yield Problem((), f"the provider's name {name!r} must match {_NAME.pattern}")
    wrong = list(_section(value, (), KEYS, _NEEDED))
    yield from wrong
    bad = {problem.path[0] for problem in wrong}
    if "models" in value.keys() - bad:
        for i, model in enumerate(value["models"]):
            if model not in models:
                known = ", ".join(sorted(models)) or "none"
                yield Problem(("models", i), f"there is no model {model!r}; there are: {known}")
    if not {"min_containers", "max_containers"} & bad and (
        (least := value.get("min_containers", 0)) > (most := value["max_containers"])
    ):
        yield Problem(("min_containers",), f"is {least}, more than max_containers, which is {most}")
    if not {"kind", "settings", "secrets"} & bad:
        yield from _own(value, environment)


def _own(value: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[Problem]:
    """What is wrong with what belongs to the kind alone."""
    try:
        member = _member(value["kind"])
    except StartupError as error:
        yield Problem(("kind",), str(error))
        return
    settings, secrets = value.get("settings", {}), value.get("secrets", {})
    yield from _section(settings, ("settings",), member.SETTINGS, member.REQUIRED)
    needed = member.secrets(settings)
    yield from _section(secrets, ("secrets",), dict.fromkeys(needed, _variable), needed)
    for key, variable in secrets.items():
        if key in needed and not _variable(variable) and not environment.get(variable):
            yield Problem(("secrets", key), f"the environment variable {variable} is not set")


def _variable(value: object) -> str | None:
    if not isinstance(value, str) or not _VARIABLE.fullmatch(value):
        return "must be the name of an environment variable, such as SALAD_API_KEY"
    if value.startswith("PLAIT_"):
        return "must be a variable of its own; those that begin with PLAIT_ are settings"
    return None


def _section(
    section: Mapping[str, Any], path: KeyPath, keys: Mapping[str, Check], needed: Collection[str]
) -> Iterator[Problem]:
    for key, value in section.items():
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, n=1, cutoff=0.7)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed are: {', '.join(keys)}"
            yield Problem((*path, str(key)), f"unknown key; {hint if keys else 'none is allowed'}")
        elif complaint := keys[key](value):
            yield Problem((*path, key), f"{complaint}; it is {show(value)}")
    for key in needed:
        if key not in section:
            yield Problem((*path, key), f"is missing; it {keys[key](None)}")


def _build(name: str, value: Mapping[str, Any], environment: Mapping[str, str]) -> ProviderConfig:
    models = value.get("models")
    given = {
        **value,
        "models": None if models is None else tuple(models),
        "secrets": {key: environment[v] for key, v in value.get("secrets", {}).items()},
    }
    return ProviderConfig(name=name, **given)
