"""TLS and mutual TLS between a real server and real clients, with certificates made here."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from storyloom_server.tls import TlsError, TlsFiles, server_credentials
from tests.server.certificates import Authority, Identity, locked

AUTHORITY, STRANGER = Authority("ours"), Authority("theirs")
DAY = timedelta(days=1)
SECONDS = 30


def files(folder: Path, identity: Identity | None = None, client_ca: bytes | None = None) -> TlsFiles:
    cert, key = (identity or AUTHORITY.issue("server")).write(folder, "server")
    if client_ca is None:
        return TlsFiles(cert, key)
    (folder / "ca.crt").write_bytes(client_ca)
    return TlsFiles(cert, key, folder / "ca.crt")


@asynccontextmanager
async def serving(tls: TlsFiles) -> AsyncIterator[int]:
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)  # type: ignore[attr-defined]
    port = server.add_secure_port("127.0.0.1:0", server_credentials(tls))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


async def answer(port: int, root: bytes, identity: Identity | None = None) -> grpc.StatusCode:
    """How a health check over a new connection ends."""
    credentials = grpc.ssl_channel_credentials(
        root, identity.key if identity else None, identity.cert if identity else None
    )
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
        try:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


def test_clients_that_trust_the_authority_get_through(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(files(tmp_path)) as port:
            assert await answer(port, AUTHORITY.pem) is grpc.StatusCode.OK
            assert await answer(port, STRANGER.pem) is grpc.StatusCode.UNAVAILABLE
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as plain:
                with pytest.raises(grpc.aio.AioRpcError):
                    await health_pb2_grpc.HealthStub(plain).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)

    asyncio.run(body())


def test_mutual_tls_wants_a_certificate_of_the_right_authority(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(files(tmp_path, client_ca=AUTHORITY.pem)) as port:
            assert await answer(port, AUTHORITY.pem, AUTHORITY.issue("client")) is grpc.StatusCode.OK
            assert await answer(port, AUTHORITY.pem) is grpc.StatusCode.UNAVAILABLE
            assert await answer(port, AUTHORITY.pem, STRANGER.issue("client")) is grpc.StatusCode.UNAVAILABLE

    asyncio.run(body())


def served_certificate(port: int) -> bytes:
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=SECONDS).encode()


def test_a_renewed_certificate_is_served_and_a_broken_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = AUTHORITY.issue("first"), AUTHORITY.issue("second")

    async def body() -> None:
        async with (
            serving(files(tmp_path, first)) as port,
            grpc.aio.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(AUTHORITY.pem)) as channel,
        ):
            check = health_pb2_grpc.HealthStub(channel).Check
            await check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
            assert await asyncio.to_thread(served_certificate, port) == first.cert
            second.write(tmp_path, "server")
            assert await asyncio.to_thread(served_certificate, port) == second.cert
            (tmp_path / "server.key").write_bytes(first.key)
            assert await asyncio.to_thread(served_certificate, port) == second.cert
            await check(health_pb2.HealthCheckRequest(), timeout=SECONDS)  # Over the first connection.

    with caplog.at_level(logging.INFO):
        asyncio.run(body())
    assert [record.message for record in caplog.records if record.name == "storyloom.tls"] == [
        "TLS certificate renewed",
        "the TLS files cannot be used; the old certificate stays",
    ]


def test_files_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    def told(tls: TlsFiles) -> str:
        with pytest.raises(TlsError) as caught:
            server_credentials(tls)
        return str(caught.value)

    good = files(tmp_path)
    other_key = AUTHORITY.issue("other").write(tmp_path, "other")[1]
    assert "is not the key of" in told(TlsFiles(good.cert, other_key))
    assert "cannot read" in told(TlsFiles(tmp_path / "none.crt", good.key))
    assert "not a certificate and its key" in told(TlsFiles(good.key, good.cert))
    assert "has no certificate authorities" in told(TlsFiles(good.cert, good.key, good.key))
    (tmp_path / "empty").write_bytes(b"")
    assert "not a certificate and its key" in told(TlsFiles(tmp_path / "empty", good.key))
    (tmp_path / "locked.key").write_bytes(locked(AUTHORITY.issue("locked").key))
    assert "in PEM form without a password" in told(TlsFiles(good.cert, tmp_path / "locked.key"))
    assert "expired; renew it" in told(files(tmp_path, AUTHORITY.issue("old", begins=-3 * DAY, ends=-2 * DAY)))
    assert "not yet valid" in told(files(tmp_path, AUTHORITY.issue("early", begins=2 * DAY, ends=3 * DAY)))
