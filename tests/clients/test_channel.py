"""Connections: TLS, tokens, several servers, traces."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from opentelemetry import trace

from storyloom import (
    RetryPolicy,
    ServerUnavailable,
    Story,
    StoryClient,
    TlsOptions,
    Unauthenticated,
)
from storyloom._channel import plan_connection
from tests.clients.blocking import Connect
from tests.clients.scripted import ScriptedServer
from tests.clients.scripts import failing

_ROOT = Path(__file__).resolve().parents[2]
_SECRET = "s3cret-value"  # noqa: S105 - known to these tests alone
_NEVER = RetryPolicy.never()


@dataclass(frozen=True)
class _Pair:
    key: Path
    certificate: Path

    @property
    def contents(self) -> tuple[bytes, bytes]:
        return self.key.read_bytes(), self.certificate.read_bytes()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> _Pair:
    """A key and a certificate for localhost, which signs itself."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    made = _Pair(folder / "key.pem", folder / "certificate.pem")
    request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    subprocess.run(
        [
            "openssl",
            *request.split(),
            "-addext",
            "subjectAltName=DNS:localhost",
            "-keyout",
            made.key,
            "-out",
            made.certificate,
        ],
        check=True,
        capture_output=True,
    )
    return made


@pytest.fixture
def encrypted(pair: _Pair) -> Iterator[ScriptedServer]:
    running = ScriptedServer(grpc.ssl_server_credentials([pair.contents]))
    yield running
    running.stop()


def test_a_trusted_certificate_is_enough(
    connect: Connect, encrypted: ScriptedServer, pair: _Pair, story: Story
) -> None:
    for options in (
        {"tls": TlsOptions(ca=pair.certificate)},
        {"tls": TlsOptions(ca=pair.certificate.read_bytes())},
        {"credentials": grpc.ssl_channel_credentials(pair.certificate.read_bytes())},
    ):
        with connect(encrypted.address, **options) as client:
            assert len(client.generate(story).frames) == 3


def test_a_strange_certificate_is_not_trusted(connect: Connect, encrypted: ScriptedServer, story: Story) -> None:
    with connect(encrypted.address, tls=True, retry=_NEVER) as client, pytest.raises(ServerUnavailable):
        client.generate(story)


def test_the_name_in_the_certificate_may_be_another_than_the_address(
    connect: Connect, encrypted: ScriptedServer, pair: _Pair, story: Story
) -> None:
    address = f"127.0.0.1:{encrypted.port}"
    with (
        connect(address, tls=TlsOptions(ca=pair.certificate), retry=_NEVER) as client,
        pytest.raises(ServerUnavailable),
    ):
        client.generate(story)
    with connect(address, tls=TlsOptions(ca=pair.certificate, server_name="localhost")) as client:
        assert len(client.generate(story).frames) == 3


def test_a_server_that_wants_a_certificate_gets_one(connect: Connect, pair: _Pair, story: Story) -> None:
    credentials = grpc.ssl_server_credentials([pair.contents], pair.certificate.read_bytes(), require_client_auth=True)
    server = ScriptedServer(credentials)
    try:
        known = TlsOptions(ca=pair.certificate, cert=pair.certificate, key=pair.key)
        with connect(server.address, tls=known) as client:
            assert len(client.generate(story).frames) == 3
        unknown = TlsOptions(ca=pair.certificate)
        with connect(server.address, tls=unknown, retry=_NEVER) as client, pytest.raises(ServerUnavailable):
            client.generate(story)
    finally:
        server.stop()


def test_tls_options_that_make_no_sense(connect: Connect, pair: _Pair, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cert and key go together"):
        connect("localhost:1", tls=TlsOptions(cert=pair.certificate))
    with pytest.raises(ValueError, match="exclude each other"):
        connect("localhost:1", tls=True, credentials=grpc.ssl_channel_credentials())
    with pytest.raises(FileNotFoundError):
        connect("localhost:1", tls=TlsOptions(ca=tmp_path / "none.pem"))
    assert repr(TlsOptions(key=b"secret key", cert="c.pem")) == "TlsOptions(cert=..., key=...)"


def test_the_token_is_sent_with_every_call(
    connect: Connect, server: ScriptedServer, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(server.address, token=_SECRET) as client:
        client.generate(story)
        assert server.metadata["authorization"] == f"Bearer {_SECRET}"
        server.metadata = {}
        client.list_models()
        assert server.metadata["authorization"] == f"Bearer {_SECRET}"
    monkeypatch.setenv("STORYLOOM_TOKEN", "from-the-environment\n")
    with connect(server.address) as client:
        client.list_models()
        assert server.metadata["authorization"] == "Bearer from-the-environment"
    with connect(server.address, metadata=[("authorization", "Basic x")]) as client:
        client.list_models()
        assert server.metadata["authorization"] == "Basic x"
    with connect(server.address, token="") as client:
        client.list_models()
        assert "authorization" not in server.metadata


def test_the_token_is_never_shown(connect: Connect, server: ScriptedServer, story: Story) -> None:
    server.script = failing(grpc.StatusCode.UNAUTHENTICATED, "the token is not known")
    with connect(server.address, token=_SECRET) as client:
        with pytest.raises(Unauthenticated) as caught:
            client.generate(story)
        assert _SECRET not in repr(client)
    assert _SECRET not in f"{caught.value!r} {caught.value} {caught.value.details} {caught.value.__cause__!r}"
    for bad in (f"{_SECRET} x", f"{_SECRET}\nx", f"{_SECRET}é"):
        with pytest.raises(ValueError, match="characters that no token has") as refused:
            connect(server.address, token=bad)
        assert _SECRET not in str(refused.value)
    with pytest.raises(ValueError, match="give one of them"):
        connect(server.address, token=_SECRET, metadata=[("Authorization", "x")])


@pytest.mark.parametrize(
    "target",
    [
        "storyloom.example:443",
        "10.0.0.1:50051",
        "dns:///storyloom.example:1",
        "127.0.0.1:1,10.0.0.1:1",
        "[2001:db8::1]:1",
    ],
)
def test_a_token_does_not_go_unencrypted_to_another_machine(connect: Connect, target: str) -> None:
    with pytest.raises(ValueError, match="would go unencrypted to") as refused:
        connect(target, token=_SECRET)
    assert _SECRET not in str(refused.value)
    with connect(target, token=_SECRET, insecure_token=True), connect(target, token=_SECRET, tls=True), connect(target):
        pass


@pytest.mark.parametrize(
    "target",
    ["localhost:1", "LOCALHOST:1", "127.0.0.1:1", "127.8.0.1:1", "[::1]:1", "dns:///localhost:1", "unix:/tmp/s",
     "ipv4:127.0.0.1:1", "ipv6:[::1]:1", "localhost:1,127.0.0.1:2"],
)  # fmt: skip
def test_a_token_goes_unencrypted_on_this_machine(target: str) -> None:
    with StoryClient(target, token=_SECRET):
        pass


def test_calls_go_round_several_servers(connect: Connect, story: Story) -> None:
    servers = [ScriptedServer(), ScriptedServer()]
    try:
        addresses = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        with connect(addresses) as client:
            for _ in range(40):
                client.list_models()
                if all(server.calls for server in servers):
                    break
        assert all(server.calls for server in servers)
    finally:
        for server in servers:
            server.stop()


def test_one_server_of_several_may_be_away(connect: Connect, server: ScriptedServer, story: Story) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        addresses = f"127.0.0.1:{unused.getsockname()[1]},127.0.0.1:{server.port}"
        with connect(addresses) as client:
            for _ in range(3):
                assert len(client.generate(story).frames) == 3


@pytest.mark.parametrize(
    ("server", "target"),
    [
        ("localhost:1", "localhost:1"),
        ("dns:///a.example:1", "dns:///a.example:1"),
        ("10.0.0.1:1, 10.0.0.2:1", "ipv4:10.0.0.1:1,10.0.0.2:1"),
        ("localhost:1,localhost:2", "ipv4:127.0.0.1:1,127.0.0.1:2"),
        ("[::1]:1,[2001:db8::2]:1", "ipv6:[::1]:1,[2001:db8::2]:1"),
        ("ipv4:10.0.0.1:1,10.0.0.2:1", "ipv4:10.0.0.1:1,10.0.0.2:1"),
    ],
)
def test_addresses_are_what_grpc_takes(server: str, target: str) -> None:
    assert plan_connection(server, tls=False, credentials=None, options=()).target == target


@pytest.mark.parametrize("server", ["a.example:1,b.example:1", "10.0.0.1:1,[::1]:1", "10.0.0.1:1,"])
def test_a_list_of_names_is_refused(server: str) -> None:
    with pytest.raises(ValueError, match=r"dns:///NAME:PORT"):
        StoryClient(server)


def test_the_callers_trace_goes_on_in_the_server(connect: Connect, server: ScriptedServer) -> None:
    context = trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1))
    with connect(server.address) as client:
        client.list_models()
        assert "traceparent" not in server.metadata
        with trace.use_span(trace.NonRecordingSpan(context)):
            client.list_models()
    assert server.metadata["traceparent"] == f"00-{0xABC:032x}-{0xDEF:016x}-01"


def test_opentelemetry_need_not_be_there(server: ScriptedServer) -> None:
    # None in sys.modules is Python's own mark for a package that is not there.
    code = (
        "import sys; sys.modules['opentelemetry'] = None; from storyloom import StoryClient; "
        f"print(len(StoryClient({server.address!r}).list_models()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(_ROOT / "clients" / "python")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr
