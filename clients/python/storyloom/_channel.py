"""How this package connects: limits, keepalive, retries and load balancing."""

from __future__ import annotations

import json

import grpc
import grpc.aio

from storyloom._version import __version__

DEFAULT_SERVER = "localhost:50051"
Options = tuple[tuple[str, str | int], ...]

# Retries happen inside gRPC and only until the first event of a story arrives, so no story is generated twice.
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "storyloom.v1.StoryService"}, {"service": "storyloom.v1.ModelService"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}

OPTIONS: Options = (
    ("grpc.primary_user_agent", f"storyloom-python/{__version__}"),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
)


def open_channel(server: str, credentials: grpc.ChannelCredentials | None, options: Options) -> grpc.Channel:
    """Opens a channel to `server`; `options` come after, and so win over, this package's own."""
    merged = (*OPTIONS, *options)
    if credentials is None:
        return grpc.insecure_channel(server, options=merged)
    return grpc.secure_channel(server, credentials, options=merged)


def open_async_channel(server: str, credentials: grpc.ChannelCredentials | None, options: Options) -> grpc.aio.Channel:
    """As `open_channel`, for asyncio; the channel belongs to the running event loop."""
    merged = (*OPTIONS, *options)
    if credentials is None:
        return grpc.aio.insecure_channel(server, options=merged)
    return grpc.aio.secure_channel(server, credentials, options=merged)
