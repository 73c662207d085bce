"""A TLS connection, with a certificate made for the test."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import grpc
import pytest

from storyloom import ServerUnavailable, Story, StoryClient
from tests.clients.scripted import ScriptedServer


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_tls_with_the_callers_credentials(tmp_path: Path, story: Story) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    subprocess.run(
        ["openssl", *request.split(), "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    trusted = certificate.read_bytes()
    server = ScriptedServer(grpc.ssl_server_credentials([(key.read_bytes(), trusted)]))
    try:
        with StoryClient(server.address, credentials=grpc.ssl_channel_credentials(trusted)) as client:
            assert len(client.generate(story).frames) == 3
        stranger = StoryClient(server.address, credentials=grpc.ssl_channel_credentials())
        with stranger, pytest.raises(ServerUnavailable):
            stranger.generate(story)
    finally:
        server.stop()
