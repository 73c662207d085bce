"""The options that say which server a command talks to, and how."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from storyloom._async_client import AsyncStoryClient
from storyloom._channel import DEFAULT_SERVER, TOKEN_VARIABLE, TlsOptions
from storyloom._client import StoryClient

_PANEL = "Connection"


@dataclass(frozen=True)
class Connection:
    """Where the server is, and what it is shown. The token is kept out of every text."""

    server: Annotated[
        str,
        typer.Option(
            "--server",
            "-s",
            envvar="STORYLOOM_SERVER",
            help="Host and port of the server.",
            metavar="ADDRESS",
            rich_help_panel=_PANEL,
        ),
    ] = DEFAULT_SERVER
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt the connection.", rich_help_panel=_PANEL)] = False
    ca: Annotated[
        Path | None,
        typer.Option(
            "--ca",
            metavar="FILE",
            help="Certificates to trust (PEM), with TLS.",
            dir_okay=False,
            rich_help_panel=_PANEL,
        ),
    ] = None
    cert: Annotated[
        Path | None,
        typer.Option(
            "--cert",
            metavar="FILE",
            help="Certificate to show the server (PEM), with TLS; needs --key.",
            dir_okay=False,
            rich_help_panel=_PANEL,
        ),
    ] = None
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="FILE", help="Key of --cert (PEM).", dir_okay=False, rich_help_panel=_PANEL),
    ] = None
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar=TOKEN_VARIABLE,
            metavar="TOKEN",
            help="What the server knows you by. Better in the environment, where other users do not see it.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    insecure_token: Annotated[
        bool,
        typer.Option(
            "--insecure-token", help="Send the token unencrypted to another machine, too.", rich_help_panel=_PANEL
        ),
    ] = False

    def __repr__(self) -> str:
        return f"Connection({self.server!r})"

    def client(self) -> StoryClient:
        """Returns a client.

        :raises typer.BadParameter: when the options contradict each other.
        """
        try:
            return StoryClient(self.server, tls=self._tls(), token=self.token, insecure_token=self.insecure_token)
        except (ValueError, OSError) as error:
            raise typer.BadParameter(_in_options(str(error))) from error

    def async_client(self, *, timeout: float | None) -> AsyncStoryClient:
        """Returns a client for the running event loop, as `client`."""
        try:
            return AsyncStoryClient(
                self.server,
                tls=self._tls(),
                token=self.token,
                insecure_token=self.insecure_token,
                timeout=timeout,
            )
        except (ValueError, OSError) as error:
            raise typer.BadParameter(_in_options(str(error))) from error

    def _tls(self) -> bool | TlsOptions:
        if self.ca or self.cert or self.key:
            return TlsOptions(ca=self.ca, cert=self.cert, key=self.key)
        return self.tls


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `Connection` in place of its parameter `connection`."""
    hints = get_type_hints(Connection, include_extras=True)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=getattr(Connection, name), annotation=hint)
        for name, hint in hints.items()
    ]
    own_hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=own_hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(command).parameters.values()
        if parameter.name != "connection"
    ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        connection = Connection(**{name: values.pop(name) for name in hints})
        command(connection=connection, **values)

    run.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]  # typer reads it
    # One line for each paragraph: typer would show the line ends of the source.
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    run.__doc__ = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *options)}
    return run


def _in_options(text: str) -> str:
    return text.replace("tls=True", "--tls").replace("insecure_token=True", "--insecure-token")
