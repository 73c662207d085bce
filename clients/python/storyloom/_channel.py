"""How this package connects: addresses, TLS, tokens, limits, keepalive and load balancing."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import grpc
import grpc.aio

from storyloom._version import __version__

DEFAULT_SERVER = "localhost:50051"
TOKEN_VARIABLE = "STORYLOOM_TOKEN"  # noqa: S105 - its name, not its value
Options = tuple[tuple[str, str | int], ...]
Pem = str | PathLike[str] | bytes

# No retry policy of gRPC's own: this package repeats a call with its request id, and goes on with broken streams.
_SERVICE_CONFIG: dict[str, list[dict[str, dict[str, str]]]] = {"loadBalancingConfig": [{"round_robin": {}}]}

OPTIONS: Options = (
    ("grpc.primary_user_agent", f"storyloom-python/{__version__}"),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Without a cap a channel comes back up to two minutes after its server.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
)


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """Certificates of a TLS connection: PEM files, or their contents as bytes.

    :ivar ca: certificates to trust; None: those that come with gRPC.
    :ivar cert: the client's own certificate chain, for servers that ask for one; `key` belongs to it.
    :ivar server_name: name in the server's certificate, where it is not the one that the address gives.
    """

    ca: Pem | None = None
    cert: Pem | None = None
    key: Pem | None = None
    server_name: str = ""

    def __repr__(self) -> str:
        # Not the default, which would show a key that is given as bytes.
        given = [name for name in ("ca", "cert", "key", "server_name") if getattr(self, name)]
        return f"TlsOptions({', '.join(f'{name}=...' for name in given)})"

    def credentials(self) -> grpc.ChannelCredentials:
        """Returns the credentials for gRPC.

        :raises ValueError: when the certificate or its key is given alone.
        :raises OSError: when a file cannot be read.
        """
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together: give the client's certificate and its private key, or neither")
        return grpc.ssl_channel_credentials(_pem(self.ca), _pem(self.key), _pem(self.cert))


@dataclass(frozen=True, slots=True)
class Connection:
    """Everything that a channel is made of.

    :ivar target: for gRPC.
    :ivar credentials: None for a plain connection.
    """

    target: str
    credentials: grpc.ChannelCredentials | None
    options: Options

    def open(self) -> grpc.Channel:
        """Opens a channel."""
        if self.credentials is None:
            return grpc.insecure_channel(self.target, options=self.options)
        return grpc.secure_channel(self.target, self.credentials, options=self.options)

    def open_async(self) -> grpc.aio.Channel:
        """Opens a channel for asyncio; it belongs to the running event loop."""
        if self.credentials is None:
            return grpc.aio.insecure_channel(self.target, options=self.options)
        return grpc.aio.secure_channel(self.target, self.credentials, options=self.options)


def plan_connection(
    server: str, *, tls: bool | TlsOptions, credentials: grpc.ChannelCredentials | None, options: Options
) -> Connection:
    """Returns how to connect to `server`; `options` come after, and so win over, this package's own.

    :raises ValueError: when the arguments contradict each other, or an address makes no sense.
    """
    if tls and credentials is not None:
        raise ValueError("tls and credentials exclude each other: give one of them")
    name: Options = ()
    if tls:
        chosen = tls if isinstance(tls, TlsOptions) else TlsOptions()
        credentials = chosen.credentials()
        if chosen.server_name:
            name = (("grpc.ssl_target_name_override", chosen.server_name),)
    return Connection(_target(server), credentials, (*OPTIONS, *name, *options))


def authorization(token: str | None, *, target: str | None, insecure_token: bool) -> tuple[tuple[str, str], ...]:
    """Returns the metadata that carries the token, or nothing where there is none.

    :param token: None: the one in the environment variable STORYLOOM_TOKEN, if it is set.
    :param target: of a plain connection; None where the connection is encrypted or the caller's own.
    :param insecure_token: allow it on a plain connection to another machine, where anyone on the way can read it.
    :raises ValueError: when the token cannot be sent, or must not be. No message shows it.
    """
    token = (os.environ.get(TOKEN_VARIABLE, "") if token is None else token).strip()
    if not token:
        return ()
    if not re.fullmatch(r"[!-~]+", token):
        raise ValueError("the token holds characters that no token has (spaces, line ends or non-ASCII letters)")
    if target is not None and not insecure_token and not _is_loopback(target):
        raise ValueError(
            f"the token would go unencrypted to {target}: use TLS (tls=True), or say insecure_token=True if nobody "
            "else can read that network"
        )
    return (("authorization", f"Bearer {token}"),)


def _target(server: str) -> str:
    # Several addresses: gRPC resolves a list of numbers only, and names that stand for several servers with dns:///.
    if "," not in server or re.match(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds):", server):
        return server
    addresses = [re.sub(r"^localhost(?=:|$)", "127.0.0.1", address.strip()) for address in server.split(",")]
    versions = {_ip_version(address) for address in addresses}
    if len(versions) != 1 or None in versions:
        raise ValueError(
            f'a list of servers holds numeric addresses of one kind, such as "10.0.0.1:50051,10.0.0.2:50051", and not '
            f'"{server}"; for a name that stands for several servers write dns:///NAME:PORT'
        )
    return f"ipv{versions.pop()}:{','.join(addresses)}"


def _ip_version(address: str) -> int | None:
    ip = _ip(address)
    return ip.version if ip else None


def _ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(_host(address))
    except ValueError:
        return None


def _host(address: str) -> str:
    if match := re.fullmatch(r"\[([^\]]*)\](:\d+)?", address):
        return match[1]
    return address if address.count(":") > 1 else address.partition(":")[0]


def _is_loopback(target: str) -> bool:
    if re.match(r"unix(-abstract)?:", target):
        return True
    addresses = re.sub(r"^(dns:(//[^/]*/)?|ipv[46]:)", "", target).split(",")
    hosts = [_ip(address) or _host(address).lower().rstrip(".") for address in addresses]
    return all(host == "localhost" if isinstance(host, str) else host.is_loopback for host in hosts)


def _pem(source: Pem | None) -> bytes | None:
    return source if source is None or isinstance(source, bytes) else Path(source).read_bytes()
