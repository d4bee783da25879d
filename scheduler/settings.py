"""Every setting, declared once: name, type, default, unit and one sentence.

A setting comes from the command line, else from the environment as ``PLAIT_<NAME>``, else its
default. One that is malformed, out of range or unknown stops start-up and names itself; a default
is never a fallback for a typo. ``docs/settings.md`` is the table of these, checked by a test.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from scheduler import plugins, policies
from scheduler.errors import StartupError

PREFIX = "PLAIT_"
#: Set by Plait for its own child processes; not settings.
INTERNAL_VARIABLES = frozenset({"PLAIT_STATE_DIR"})

Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseSettings):
    """What a Plait process is told from outside."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, protected_namespaces=()
    )

    host: str = Field("127.0.0.1", description="Address the gateway listens on.")
    http_port: Port = Field(8700, description="Port of the HTTP gateway.")
    grpc_port: Port = Field(8701, description="Port of the gRPC gateway and of the runners.")
    state: Path = Field(
        Path(".plait"), description="Folder for the store, logs and TorchServe's files."
    )
    store: SecretStr = Field(
        SecretStr(""),
        description="Where tasks are kept: empty for SQLite in the state folder, "
        "or a postgresql:// URL.",
    )
    model_configs: Path = Field(
        Path("model_configs"), description="Folder with one YAML file per model."
    )
    model_store: Path = Field(
        Path("archives"), description="TorchServe's model store; replica folders are built here."
    )
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        ("demo",), description="Models to serve: names of files in model_configs, comma separated."
    )
    weights: Path = Field(
        Path(".plait/weights"),
        description="Folder that fetched models' files are kept in; processes of a machine share "
        "one.",
    )
    weights_bytes: int = Field(
        0,
        ge=0,
        description="Bytes that folder may hold; 0: as many as its disk, less those kept free.",
    )
    prefetch: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Models a runner fetches before a replica needs them, comma separated; "
        "all: all it serves.",
    )
    download_connections: int = Field(
        8, ge=1, le=64, description="Connections over which files are fetched, together."
    )
    download_bytes_per_s: float = Field(
        0.0, ge=0, description="Most bytes a second a process fetches; 0: as many as come."
    )
    torchserve_config: Path = Field(
        Path("config.properties"), description="TorchServe's settings, ports excepted."
    )
    control_address: str = Field(
        "", description="host:port a runner connects to; empty: the gRPC port of this machine."
    )
    node: str = Field("", description="Name of this machine in listings; empty: its host name.")
    provider: str = Field(
        "", description="Who rents us the container this is, such as kubernetes; empty: nobody."
    )
    container: str = Field("", description="What the provider calls this container.")
    provider_configs: Path = Field(
        Path("provider_configs"),
        description="Folder with one YAML file per provider of containers; it may be absent.",
    )
    journal_interval_s: float = Field(
        0.1,
        ge=0,
        le=5,
        description="Most seconds output is gathered where nothing is ever lost before it is sent.",
    )
    lease_ttl_s: float = Field(
        10.0, gt=0, description="Seconds a lease lasts unless a heartbeat renews it."
    )
    heartbeat_s: float = Field(2.0, gt=0, description="Seconds between heartbeats of a runner.")
    max_attempts: int = Field(
        5, ge=1, description="Attempts a task may lose to faults of machines before it fails."
    )
    retry_first_s: float = Field(
        1.0,
        ge=0,
        description="Seconds a task waits after its second lost attempt; each doubles it.",
    )
    retry_most_s: float = Field(
        60.0, ge=0, description="Most seconds a task waits after a lost attempt."
    )
    preempt_after_s: float = Field(
        2.0,
        ge=0,
        description="Seconds a higher class waits until work of a lower one is parked; 0: never.",
    )
    preempt_slice_s: float = Field(
        5.0, ge=0, description="Seconds for which begun work is not parked."
    )
    retention_s: float = Field(
        7 * 24 * 3600.0,
        ge=0,
        description="Seconds for which a task is kept after its end; 0: for ever.",
    )
    max_queued: int = Field(
        1_000_000, ge=1, description="Tasks that may be queued, of all tenants together."
    )
    min_free_disk_bytes: int = Field(
        512 * 1024 * 1024,
        ge=0,
        description="Bytes of the store's disk kept for accepted work; with less, new is refused.",
    )
    require_keys: bool = Field(
        False, description="Whether every request needs a key, and operators' an operator's."
    )
    join_token: SecretStr = Field(
        SecretStr(""), description="Token by which a runner joins; empty: that of its state folder."
    )
    api_key: SecretStr = Field(
        SecretStr(""), description="Key that the command line shows to the gateway; empty: none."
    )
    policy: str = Field(
        "virtual_time",
        description="How tenants share a model: a file in scheduler/policies.",
    )
    reconcile_s: float = Field(
        2.0, gt=0, description="Seconds between two looks of the sidecar at what should run."
    )
    scale_s: float = Field(
        5.0,
        gt=0,
        description="Seconds between two decisions on how many replicas a model needs.",
    )
    max_body_bytes: int = Field(
        8 * 1024 * 1024, ge=1024, description="Largest request body the gateway takes, in bytes."
    )
    ready_timeout_s: float = Field(
        900.0, gt=0, description="Seconds `plait up` waits for the models to be READY."
    )
    log_level: str = Field(
        "info",
        pattern="^(debug|info|warning|error)$",
        description="Least level that is logged: debug, info, warning or error.",
    )

    @field_validator("models", "prefetch", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("store")
    @classmethod
    def _is_store(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value()
        if url and not url.startswith(("postgresql://", "postgres://")):
            raise ValueError("must be empty, or a URL that begins with postgresql://")
        return value

    @field_validator("policy")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in (known := plugins.names(policies)):
            raise ValueError(f"there is no such policy; there are: {', '.join(known)}")
        return value

    @property
    def runner_target(self) -> str:
        """``host:port`` of the control plane's gRPC server, for a runner."""
        return self.control_address or f"{self.host}:{self.grpc_port}"

    def to_environment(self) -> dict[str, str]:
        """The settings as environment variables, for a child process, but for those that are
        secret; paths are made absolute."""
        values = self.model_dump(exclude=set(SECRETS))
        return {PREFIX + name.upper(): _as_text(value) for name, value in values.items()}


#: Settings that are shown to nobody: not in messages, and not to processes that do not need them.
SECRETS = ("api_key", "join_token", "store")


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process that needs no secret of ours."""
    secret = {PREFIX + name.upper() for name in SECRETS}
    return {name: value for name, value in environment.items() if name not in secret}


def load(given: Mapping[str, Any] | None = None) -> Settings:
    """Settings from ``given`` (None values count as not given), then the environment.

    Raises:
        StartupError: a setting is malformed, out of range or unknown; the message names each.
    """
    _refuse_unknown(os.environ)
    try:
        return Settings(**{k: v for k, v in (given or {}).items() if v is not None})
    except ValidationError as error:
        problems = "; ".join(_problem(e["loc"], e["msg"], e["input"]) for e in error.errors())
        # Not as its cause, which repeats what was given.
        raise StartupError(f"wrong settings: {problems}") from None


def _problem(location: tuple[int | str, ...], message: str, given: object) -> str:
    shown = "" if location[0] in SECRETS else f" (given: {given!r})"
    return f"{'.'.join(map(str, location))}: {message}{shown}"


def _as_text(value: object) -> str:
    if isinstance(value, Path):
        return str(value.absolute())
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | INTERNAL_VARIABLES
    unknown = sorted(name for name in environment if name.startswith(PREFIX) and name not in known)
    if unknown:
        allowed = ", ".join(sorted(known - INTERNAL_VARIABLES))
        raise StartupError(f"unknown settings: {', '.join(unknown)}; known are: {allowed}")
