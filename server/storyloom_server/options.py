"""Every setting of the server, in one typed place. Command line over environment (STORYLOOM_*) over default."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

DEFAULT_BACKEND = "storyloom_model.denoiser:Denoiser"


class ServerOptions(BaseSettings):
    """Serve stories over gRPC. Each option can also be set as STORYLOOM_<NAME> in the environment."""

    model_config = SettingsConfigDict(
        env_prefix="STORYLOOM_",
        cli_prog_name="python -m storyloom_server",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        frozen=True,
    )

    model: Annotated[list[Path], NoDecode] = Field(
        default=[Path("weights/storyloom-mini")],
        min_length=1,
        description="Folder of a model package. Repeat for more models; the first is the default one.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=50051, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    max_rows: int = Field(default=48, ge=1, description="Rows of one batch step (frames times guidance branches).")
    max_queue: int = Field(default=64, ge=0, description="Stories that may wait before new ones are refused.")
    drain_seconds: float = Field(
        default=30.0, ge=0, allow_inf_nan=False, description="Time for running stories to finish after SIGTERM."
    )
    threads: int | None = Field(default=None, ge=1, description="Compute threads of the engine; all cores if not set.")
    device: str = Field(default="cpu", description="Device that the engine computes on, such as cpu or cuda:0.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level logged.")
    log_format: Literal["text", "json"] = Field(default="text", description="Form of the log lines.")
    ready_file: Path | None = Field(default=None, description="File that gets HOST:PORT once the server is ready.")
    backend: str = Field(default=DEFAULT_BACKEND, description="Class that runs models, as module:class.")

    @field_validator("model", mode="before")
    @classmethod
    def _split_paths(cls, value: Any) -> Any:
        """The environment gives one string, with folders separated as in PATH."""
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    @field_validator("ready_file")
    @classmethod
    def _check_ready_file(cls, value: Path | None) -> Path | None:
        if value is not None and not value.parent.is_dir():
            raise ValueError(f"{value.parent} is not a folder; make it first")
        return value

    @field_validator("backend")
    @classmethod
    def _check_backend(cls, value: str) -> str:
        module, _, name = value.partition(":")
        if not module or not name:
            raise ValueError(f"write the backend as module:class, such as {DEFAULT_BACKEND}")
        return value
