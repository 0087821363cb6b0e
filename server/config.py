"""The settings: one tree, declared once, read from ``headrace.yaml``, ``HEADRACE_*`` variables and flags.

Flags win over the environment, the environment over the file. A field's description is its documentation: it
becomes the flag's help text and the table in ``docs/configuration.md``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from headrace.server.setting_sources import EnvironmentSource, FileSource

Port = Annotated[int, Field(ge=0, le=65535)]
GrpcTransport = Literal["asyncio", "grpcio"]
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def _present_gpus() -> int:
    """Count NVIDIA's device files: the server itself never loads a framework that could ask the driver."""
    return sum(1 for entry in Path("/dev").glob("nvidia[0-9]*") if entry.name[6:].isdigit())


def _compute_type() -> str:
    return "cuda" if _present_gpus() else "cpu"


class ConfigError(Exception):
    """The settings cannot be used; the text says which and why."""


def _default_cores() -> int:
    return len(os.sched_getaffinity(0))


class Settings(BaseSettings):
    """Everything that can be set for ``headrace serve``."""

    model_config = SettingsConfigDict(
        env_prefix="HEADRACE_", yaml_file="headrace.yaml", extra="forbid", cli_kebab_case=True,
        cli_implicit_flags=True, cli_hide_none_type=True, cli_avoid_json=True, protected_namespaces=(),
    )  # fmt: skip

    model_repository: list[Path] = Field(
        default=[Path(".cache/demo")],
        description="Folders that hold models, each as Triton lays them out or as a Hugging Face folder.",
    )
    model_control_mode: Literal["explicit", "none"] = Field(
        default="explicit",
        description="`explicit` allows load and unload by request; `none` serves what is there at start.",
    )
    load_models: list[str] = Field(
        default=["*"], description="Models to load at start; `*` for all. Others can be loaded later."
    )
    server_id: str = Field(default="headrace", description="The `name` in KServe server metadata.")

    grpc_host: str = Field(default="127.0.0.1", description="Address of the gRPC port.")
    grpc_port: Port = Field(default=8001, description="gRPC port; 0 lets the system choose.")
    grpc_transport: GrpcTransport = Field(
        default="asyncio",
        description="What speaks HTTP/2 on the gRPC port and to Envoy: `asyncio` is Headrace's own, at a "
        "third of the cost of `grpcio`, gRPC's library, which TLS uses in any case.",
    )
    http_host: str = Field(default="127.0.0.1", description="Address of the REST port (Envoy).")
    http_port: Port = Field(default=8000, description="REST port, which also passes gRPC and gRPC-Web.")
    metrics_port: Port | None = Field(
        default=None, description="Extra port that answers GET /metrics only; none unless set."
    )
    front_processes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Processes that take requests, on one gRPC port and behind one Envoy, and share the "
        "models; more than one is for machines with many cores.",
    )
    envoy: bool = Field(default=True, description="Run Envoy; without it there is gRPC only.")
    allow_anonymous: bool = Field(
        default=False,
        description="Permit listening on addresses other than loopback without keys or mutual TLS.",
    )
    api_keys: list[SecretStr] = Field(
        default=[],
        description="Keys, one of which each request has to bring as `Authorization: Bearer KEY`; health, "
        "metrics, `/info`, `/v1/models` and the documentation stay open. None: everybody may call.",
    )
    tls_certificate: Path | None = Field(
        default=None,
        description="PEM file with the server's certificate and those of intermediate authorities: the gRPC "
        "and the REST port then speak TLS only.",
    )
    tls_key: Path | None = Field(
        default=None, description="PEM file with the private key of `tls_certificate`, not encrypted."
    )
    tls_client_ca: Path | None = Field(
        default=None,
        description="PEM file with authorities: every caller has to present a certificate that one of them "
        "signed (mutual TLS).",
    )
    cors_allow_origins: list[str] = Field(
        default=["*"], description="Origins that browsers may call from; empty for none."
    )
    max_body_bytes: int = Field(
        default=64 * 2**20, ge=1024, description="Largest REST body in bytes, after decompression too."
    )

    cores: int = Field(
        default_factory=_default_cores, ge=1, description="Processor cores to plan threads and instances for."
    )
    gpus: int = Field(
        default_factory=_present_gpus, ge=0, description="CUDA devices to plan instances for; 0 for none."
    )
    max_queue_size: int = Field(
        default=1024, ge=1, description="Parts (texts, tensor requests) that may wait per model."
    )
    max_client_batch_size: int = Field(
        default=32, ge=1, description="Most texts that one TEI request may carry."
    )
    tuning: Literal["auto", "load", "cached", "off"] = Field(
        default="auto",
        description="Threads, instances and batch limits where a model's configuration leaves them open: "
        "`load` measures them when a model is first loaded on this machine, `cached` only uses what was "
        "measured before, `off` uses fixed rules. `auto` is `load` with more than 4 cores and no GPU, else "
        "`cached`.",
    )
    tuning_seconds: float = Field(
        default=10.0, gt=0, description="How long `tuning: load` may measure one model, in seconds."
    )
    tuning_tolerance: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of the processors that other programs may use while a model is measured; what was "
        "measured on a busier machine is not used.",
    )
    tuning_cache: Path = Field(
        default=Path(".cache/tuning"), description="Folder that keeps what was measured."
    )
    fuse_attention: bool = Field(
        default=True,
        description="Run ONNX text encoders on the CPU with fused attention where their graphs allow it; a "
        "model's parameter of the same name can switch it off for that model.",
    )
    share_weights: bool = Field(
        default=True,
        description="Keep the weights of ONNX models on the CPU in memory once for all instances; a model's "
        "parameter of the same name can switch it off for that model.",
    )
    graph_cache: Path = Field(
        default=Path(".cache/graphs"),
        description="Folder that keeps the fused and packed graphs of text encoders, and shared weights.",
    )
    tgi_max_best_of: int = Field(
        default=2, ge=1, description="Most samples that one TGI request may choose the best of."
    )
    tgi_max_stop_sequences: int = Field(
        default=4, ge=0, le=64, description="Most stop texts of one TGI request."
    )
    tgi_max_top_n_tokens: int = Field(
        default=5, ge=0, le=20, description="Most alternatives that TGI tells with each token."
    )
    compute_type: str = Field(
        default_factory=_compute_type, description="The header `x-compute-type` of TGI's and TEI's answers."
    )
    worker_restart_attempts: int = Field(
        default=5, ge=0, description="Restarts in a row after which a crashing model is marked failed."
    )
    drain_seconds: float = Field(
        default=30.0, ge=0, description="How long running requests may finish after SIGTERM, in seconds."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is logged."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        default="auto", description="`console` on a terminal, `json` elsewhere, unless set."
    )

    @property
    def shared_weights(self) -> str:
        """The folder of shared weights as workers get it; empty when they are not shared."""
        return str(self.graph_cache.absolute() / "shared") if self.share_weights else ""

    @property
    def fused_graphs(self) -> str:
        """The folder of fused graphs as workers get it; empty when attention is not fused."""
        return str(self.graph_cache.absolute()) if self.fuse_attention else ""

    @field_validator("model_repository")
    @classmethod
    def _some_repository(cls, value: list[Path]) -> list[Path]:
        if not value:
            msg = "at least one folder is needed"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _whole_tls(self) -> Settings:
        needed = {"tls_certificate": self.tls_certificate, "tls_key": self.tls_key}
        given = [name for name, path in {**needed, "tls_client_ca": self.tls_client_ca}.items() if path]
        missing = [name for name, path in needed.items() if path is None]
        if given and missing:
            msg = f"{' and '.join(given)} cannot be used without {' and '.join(missing)}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _loopback_or_allowed(self) -> Settings:
        for field in ("grpc_host", "http_host"):
            host = getattr(self, field)
            if host not in LOOPBACK and not (self.allow_anonymous or self.api_keys or self.tls_client_ca):
                msg = (
                    f"{field} is '{host}', which others can reach, and there is no authentication; "
                    "listen on 127.0.0.1, set api_keys or tls_client_ca, or say allow_anonymous: true "
                    "(--allow-anonymous)"
                )
                raise ValueError(msg)
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order of precedence: given values (flags), environment, YAML file."""
        return init_settings, EnvironmentSource(settings_cls), FileSource(settings_cls)


def load(arguments: Sequence[str] = (), *, file: Path | None = None) -> Settings:
    """Read the settings.

    Args:
        arguments: command-line flags after ``serve``.
        file: another file than ``headrace.yaml``; it must exist.

    Raises:
        ConfigError: an unknown or illegal setting, or a file that is not YAML; the text names it.
    """
    if file is not None and not file.is_file():
        msg = f"configuration file {file} does not exist"
        raise ConfigError(msg)

    class FromFile(Settings):
        model_config = SettingsConfigDict(yaml_file=file or "headrace.yaml", cli_prog_name="headrace serve")

    try:
        source: CliSettingsSource[Any] = CliSettingsSource(FromFile, cli_parse_args=list(arguments))
        return FromFile(_cli_settings_source=source)  # type: ignore[call-arg] # a keyword of every settings class
    except ValidationError as error:
        raise ConfigError("\n".join(map(_said, error.errors()))) from None
    except SettingsError as error:
        cause = error.__cause__  # what a source raises about one value comes wrapped
        raise ConfigError(str(cause if isinstance(cause, SettingsError) else error)) from None


def _said(problem: ErrorDetails) -> str:
    """Return what is wrong: our own validators' words as they are, without pydantic's introduction."""
    field = ".".join(map(str, problem["loc"]))  # none for what several settings say together, who names them
    said = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else problem["msg"]
    return f"{field}: {said}" if field else said


def require_repositories(folders: Sequence[Path], *, taker: str = "--model-repository") -> None:
    """See that the model repositories can be listed; one without any model is none the worse.

    Args:
        folders: the repositories.
        taker: what to give another folder.

    Raises:
        ConfigError: a folder does not exist, is no folder or cannot be read; the text says what to do.
    """
    for folder in folders:
        try:
            with os.scandir(folder):
                continue
        except FileNotFoundError:
            wrong = f"there is no folder '{folder}'"
        except NotADirectoryError:
            wrong = f"'{folder}' is not a folder"
        except OSError as error:
            wrong = f"the folder '{folder}' cannot be read ({error.strerror})"
        msg = (
            f"{wrong}: give {taker} an existing folder, or run `headrace pull demo` for the default one, "
            ".cache/demo"
        )
        raise ConfigError(msg)
