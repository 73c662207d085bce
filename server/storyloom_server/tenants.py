"""Tenants and their API tokens, as a YAML file tells them.

    tenants:
      studio-a:
        weight: 2              # share of the server beside other tenants
        max_priority: high     # highest priority that its stories may have: low, normal or high
        admin: true            # may load and unload models
        limits: {open_stories: 20, stories_per_minute: 60, stored_mib: 2048}
        tokens:
          - 5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5

A token stands there as its SHA-256 digest only. Tokens are 256 random bits, so a plain digest cannot be turned back.
"""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storyloom_server.scheduler import Priority
from storyloom_server.setup_error import SetupError

_TOKEN_PREFIX = "slm_"  # noqa: S105 - it lets scanners for leaked secrets find tokens.
_TOKEN_BYTES = 32
ANONYMOUS_NAME = "anonymous"


class TenantsFileError(SetupError):
    """The file cannot be used. The message names the file and everything that is wrong."""


class TenantLimits(BaseModel):
    """What a tenant may have at most; None: no limit of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    open_stories: int | None = Field(default=None, ge=1)
    stories_per_minute: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    stored_mib: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @property
    def stored_bytes(self) -> int | None:
        """``stored_mib`` in bytes."""
        return None if self.stored_mib is None else int(self.stored_mib * 1024 * 1024)


@dataclass(frozen=True, slots=True)
class Tenant:
    """Somebody who uses the server. ``weight`` is the share of the server relative to the other tenants' weights."""

    name: str
    weight: float = 1.0
    max_priority: Priority = Priority.NORMAL
    admin: bool = False
    limits: TenantLimits = field(default_factory=TenantLimits)


class _TenantEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    weight: float = Field(default=1.0, gt=0, le=1000)
    max_priority: Literal["low", "normal", "high"] = "normal"
    admin: bool = False
    limits: TenantLimits = TenantLimits()
    tokens: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(min_length=1)


class _TenantsFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tenants: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")], _TenantEntry] = Field(min_length=1)


def new_token() -> str:
    """A token that nobody has guessed or will guess."""
    return f"{_TOKEN_PREFIX}{secrets.token_urlsafe(_TOKEN_BYTES)}"


def digest(token: str) -> str:
    """What the file holds of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def read_tenants(path: Path) -> Mapping[str, Tenant]:
    """Tenants by the digests of their tokens.

    Raises:
        TenantsFileError: the file cannot be read, or something in it is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = _TenantsFile.model_validate(content).tenants
    except OSError as error:
        raise TenantsFileError(f"cannot read {path} ({error.strerror}); name a tokens file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TenantsFileError(f"{path} is not YAML ({' '.join(str(error).split())})") from error
    except ValidationError as error:
        raise TenantsFileError(f"{path}: {'; '.join(_problems(error))}") from error
    return _by_digest(path, entries)


def _by_digest(path: Path, entries: Mapping[str, _TenantEntry]) -> Mapping[str, Tenant]:
    found: dict[str, Tenant] = {}
    for name, entry in entries.items():
        tenant = Tenant(name, entry.weight, Priority[entry.max_priority.upper()], entry.admin, entry.limits)
        for each in entry.tokens:
            if each in found:
                raise TenantsFileError(f"{path}: tenants.{name}.tokens has a token twice, or one of {found[each].name}")
            found[each] = tenant
    return found


def _problems(error: ValidationError) -> list[str]:
    """One a mistake, without the values: somebody may have pasted a token where its digest belongs."""
    problems = []
    for detail in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in detail["loc"] if part != "[key]") or "the file"
        what = detail["msg"]
        if "tokens" in detail["loc"] and detail["type"] == "string_pattern_mismatch":
            what = "is no SHA-256 digest; make a token with python -m storyloom_server.access new TENANT"
        problems.append(f"{where}: {what}")
    return problems
