"""Every setting of the server, in one typed place, in the groups in which ``--help`` shows them.

``option_layers`` reads them: command line over environment (STORYLOOM_*) over file over default.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from storyloom_server.engine.backend import SHORT_NAMES

DEFAULT_SCHEDULER = "storyloom_server.scheduler:Scheduler"


def state_home() -> Path:
    """The folder for Storyloom's state by the XDG rules; one in the working directory for users without a home."""
    given = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(given):
        return Path(given) / "storyloom"
    try:
        return Path.home() / ".local" / "state" / "storyloom"
    except RuntimeError:  # A container that runs as an arbitrary user id.
        return Path("storyloom-state")


def _option(default: Any, metavar: str, description: str, **constraints: Any) -> Any:
    """An option: its default, what stands for its value in the help text, and what the help text says of it.

    ``shown`` replaces the default in the help text, for defaults that depend on something.
    """
    extra = {"metavar": metavar, "shown": constraints.pop("shown", None)}
    return Field(default, description=description, json_schema_extra=extra, **constraints)


def _class_name(value: str, example: str) -> str:
    module, _, name = value.partition(":")
    if not module or not name:
        raise ValueError(f"write a class as module:class, such as {example}")
    return value


class ModelGroup(BaseModel):
    """Models"""

    model: list[Path] = _option(
        [Path("weights/storyloom-mini")],
        "FOLDER",
        "Model package to serve. Repeat it for more; the first is the default one.",
        min_length=1,
    )
    backend: str | None = _option(
        None,
        "NAME",
        f"What runs the models: {', '.join(SHORT_NAMES)} or module:class.",
        shown="what the package's storyloom.yaml says, or torch",
    )

    @field_validator("model", "model_folder", mode="before")
    @classmethod
    def _split_paths(cls, value: Any) -> Any:
        """The environment gives one string, with folders separated as in PATH."""
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    scheduler: str = _option(DEFAULT_SCHEDULER, "MODULE:CLASS", "Class that orders the engine's work.")
    model_folder: list[Path] = _option(
        [],
        "FOLDER",
        "Folder of model packages that may be loaded by name while the server runs. Repeat it for more.",
        shown="none",
    )

    @field_validator("backend")
    @classmethod
    def _check_backend(cls, value: str | None) -> str | None:
        if value is None or value in SHORT_NAMES or (":" in value and all(value.split(":", 1))):
            return value
        raise ValueError(f"{value} is no backend; use {', '.join(SHORT_NAMES)}, or write a class as module:class")

    @field_validator("scheduler")
    @classmethod
    def _check_scheduler(cls, value: str) -> str:
        return _class_name(value, DEFAULT_SCHEDULER)


class NetworkGroup(BaseModel):
    """Network"""

    host: str = _option("127.0.0.1", "ADDRESS", "Address to listen on.", min_length=1)
    port: int = _option(50051, "PORT", "Port to listen on; 0 takes a free one.", ge=0, le=65535)
    tls_cert: Path | None = _option(None, "FILE", "Certificate chain of the server (PEM); calls are then encrypted.")
    tls_key: Path | None = _option(None, "FILE", "Private key of the certificate (PEM).")
    tls_client_ca: Path | None = _option(
        None, "FILE", "Certificate authorities (PEM); clients must then show a certificate of theirs."
    )
    max_connection_age_seconds: float = _option(
        0,
        "SECONDS",
        "Age at which clients are asked to connect anew, so that they find new replicas; 0: never.",
        ge=0,
        allow_inf_nan=False,
    )


class AccessGroup(BaseModel):
    """Access"""

    tokens: Path | None = _option(
        None, "FILE", "Tenants and their API tokens (YAML); without it, anybody may use the server."
    )
    admin: bool = _option(False, "", "Without a tokens file: let anybody load and unload models.")


class LimitGroup(BaseModel):
    """Limits"""

    max_rows: int = _option(48, "N", "Rows of one batch step (frames times guidance branches).", ge=1)
    max_active: int = _option(32, "N", "Stories that are worked on at once.", ge=1)
    max_queue: int = _option(64, "N", "Stories that may wait before new ones are refused.", ge=0)
    max_request_mib: float = _option(16, "MIB", "Largest request.", gt=0, le=1024)
    max_image_megapixels: float = _option(16, "MP", "Largest reference picture.", gt=0, le=1000)


class EngineGroup(BaseModel):
    """Engine"""

    device: str = _option("cpu", "DEVICE", "Device to compute on, such as cpu or cuda:0.", min_length=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _option(
        "auto", "TYPE", "Number format: float32, bfloat16, float16, or auto for what suits the device."
    )
    threads: int | None = _option(None, "N", "Compute threads.", ge=1, shown="all cores")
    compile: bool = _option(False, "", "Run the model through torch.compile: a slow start, then faster steps.")
    cuda_graphs: bool = _option(True, "", "Record batch steps as CUDA graphs, where the device is a GPU.")
    hang_seconds: float = _option(
        120, "SECONDS", "Silence after which the engine process is taken for hung and is restarted.", gt=0
    )
    max_restarts: int = _option(
        5, "N", "Restarts of the engine process, each within a minute of the last, before the server gives up.", ge=0
    )


class StoreGroup(BaseModel):
    """Store"""

    state_folder: Path = _option(
        None,
        "FOLDER",
        "Where accepted stories and their pictures are kept. Each server needs its own.",
        validate_default=True,
        shown="~/.local/state/storyloom, or by XDG_STATE_HOME",
    )
    database_url: str | None = _option(
        None, "URL", "Database for stories, as SQLAlchemy writes it.", shown="SQLite in the state folder"
    )
    pictures_url: str | None = _option(
        None,
        "URL",
        "Folder for pictures, as fsspec writes it: s3://bucket/folder.",
        shown="in the state folder",
    )
    retention_hours: float = _option(
        168, "HOURS", "Age at which finished stories are removed; 0: never.", ge=0, allow_inf_nan=False
    )
    tenant_quota_mib: float = _option(
        0, "MIB", "Size of one tenant's stories above which its oldest ended ones are removed; 0: no limit.", ge=0
    )
    checkpoint_steps: int = _option(
        5, "N", "Least steps between checkpoints, from which stories go on after a crash; 0: no checkpoints.", ge=0
    )
    checkpoint_seconds: float = _option(5, "SECONDS", "Least seconds between checkpoints.", ge=0, allow_inf_nan=False)

    @field_validator("state_folder", mode="before")
    @classmethod
    def _default_folder(cls, value: Any) -> Any:
        return state_home() if value is None else value


class SafetyGroup(BaseModel):
    """Safety"""

    safety: Literal["off", "flag", "block"] = _option(
        "off", "MODE", "off: check nothing; flag: mark what the checks find; block: refuse it."
    )
    blocked_words: Path | None = _option(None, "FILE", "Words and phrases that prompts may not have, one a line.")
    picture_classifier: Path | None = _option(
        None, "FOLDER", "Image classifier (transformers, local files) that looks at every picture."
    )
    refused_labels: str = _option(
        "", "LABELS", "Labels of the classifier that are refused, separated by commas.", shown="none"
    )
    refused_score: float = _option(0.5, "SCORE", "Probability from which such a label counts.", gt=0, le=1)
    safety_check: str | None = _option(None, "MODULE:CLASS", "A check of your own; see storyloom_server.safety.")

    @field_validator("safety_check")
    @classmethod
    def _check_safety_check(cls, value: str | None) -> str | None:
        return None if value is None else _class_name(value, "my_checks:NoDragons")


class TelemetryGroup(BaseModel):
    """Metrics, traces and logs"""

    metrics_port: int = _option(
        0, "PORT", "Port for /metrics, /livez and /readyz over HTTP, on the same address; 0: off.", ge=0, le=65535
    )
    otlp_endpoint: str | None = _option(None, "URL", "Where traces go (OTLP over gRPC), such as http://localhost:4317.")
    log_level: Literal["debug", "info", "warning", "error"] = _option(
        "info", "LEVEL", "Least level logged: debug, info, warning or error."
    )
    log_format: Literal["text", "json"] = _option("text", "FORMAT", "Form of the log lines: text or json.")
    log_prompts: bool = _option(False, "", "Write prompts into the log, too.")


class LifeGroup(BaseModel):
    """Start and stop"""

    ready_file: Path | None = _option(None, "FILE", "File that gets HOST:PORT once the server is ready.")
    drain_seconds: float = _option(
        30, "SECONDS", "Time for running stories to finish after SIGTERM.", ge=0, allow_inf_nan=False
    )

    @field_validator("ready_file")
    @classmethod
    def _check_ready_file(cls, value: Path | None) -> Path | None:
        if value is not None and not value.parent.is_dir():
            raise ValueError(f"{value.parent} is not a folder; make it first")
        return value


_SAFETY_CHECKS = ("blocked_words", "picture_classifier", "safety_check")

GROUPS: tuple[type[BaseModel], ...] = (
    ModelGroup,
    NetworkGroup,
    AccessGroup,
    LimitGroup,
    EngineGroup,
    StoreGroup,
    SafetyGroup,
    TelemetryGroup,
    LifeGroup,
)


class ServerOptions(
    ModelGroup,
    NetworkGroup,
    AccessGroup,
    LimitGroup,
    EngineGroup,
    StoreGroup,
    SafetyGroup,
    TelemetryGroup,
    LifeGroup,
):
    """All of them. ``option_layers.read_options`` gathers their values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Options that do not go together: the one to change, and what to do."""
        if self.tls_key is not None and self.tls_cert is None:
            yield "tls_key", "is a key without a certificate; give tls_cert too"
        if self.tls_cert is not None and self.tls_key is None:
            yield "tls_cert", "is a certificate without its key; give tls_key too"
        if self.tls_client_ca is not None and self.tls_cert is None:
            yield "tls_client_ca", "needs encrypted calls; give tls_cert and tls_key too"
        if self.tokens is not None and self.admin:
            yield "admin", "is for servers without a tokens file; mark the tenant as admin in the file instead"
        if self.port and self.metrics_port == self.port:
            yield "metrics_port", f"{self.port} is the port of the stories; choose another"
        yield from self._safety_conflicts()

    def _safety_conflicts(self) -> Iterator[tuple[str, str]]:
        checks = [name for name in _SAFETY_CHECKS if getattr(self, name) is not None]
        if self.safety == "off":
            for name in checks:
                yield name, "has no effect while safety is off; set safety to flag or block"
        elif not checks:
            yield "safety", f"has nothing to check with; give one of {', '.join(_SAFETY_CHECKS)}"
        if (self.picture_classifier is None) != (not self.refused_labels.strip()):
            yield "refused_labels", "and picture_classifier go together; give both or neither"
