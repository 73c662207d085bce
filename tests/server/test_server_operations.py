"""All of it together, around a tiny service: tokens over TLS, counted, traced and checked; no prompt in the log."""

import asyncio
import json
import logging
import os
import signal
import socket
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from storyloom.v1 import story_pb2, story_service_pb2, story_service_pb2_grpc
from storyloom_server import logs
from storyloom_server.authentication import current_tenant
from storyloom_server.logs import Prompts, fields
from storyloom_server.operations import Operations
from storyloom_server.options import ServerOptions
from storyloom_server.setup_error import SetupError
from storyloom_server.story_error import StoryError, abort
from storyloom_server.tenants import digest, new_token
from tests.server.certificates import Authority
from tests.server.serving import wait_until

TOKEN = new_token()
PROMPT = "a heliotrope walrus by the sea"
BAD_PROMPT = "a heliotrope dragon by the sea"
SECONDS = 30
log = logging.getLogger("storyloom.test")


class TinyService(story_service_pb2_grpc.StoryServiceServicer):
    """Does with a story what the real one does around the engine."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations
        self.tenants: list[str] = []
        self.peers: list[str] = []

    async def GenerateStory(self, request: Any, context: Any) -> None:  # noqa: N802 - the wire contract's name
        prompts = {f"story.frames[{index}].prompt": frame.prompt for index, frame in enumerate(request.story.frames)}
        trace = self.operations.tracing.story(context.invocation_metadata(), "story-1")
        try:
            self.tenants.append(current_tenant().name)
            self.peers.append(context.peer())
            self.operations.gate.count_story(current_tenant())
            log.info("story accepted", extra=fields(story_id="story-1", prompts=Prompts(prompts.values())))
            await asyncio.to_thread(self.operations.safety.check_prompts, prompts, "story-1")
            self.operations.safety.check_picture(np.zeros((8, 8, 3), np.uint8), "story.frames[0]", "story-1")
            self.operations.metrics.story_finished("mini", "done", 0.1)
            await context.write(story_service_pb2.GenerateStoryResponse(story_id="story-1"))
            trace.end("done")
        except StoryError as error:
            trace.end("failed", error=error.reason)
            await abort(context, error)


class Watcher:
    """A safety check that breaks down, with the prompt in its error."""

    name = "watcher"

    def prompt(self, text: str) -> Any:
        raise ValueError(text)

    def picture(self, rgb: Any) -> Any:
        raise ValueError(rgb)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def serving(options: ServerOptions) -> AsyncIterator[tuple[TinyService, int]]:
    operations = Operations(options, "1", ["mini"])
    server = grpc.aio.server(interceptors=operations.interceptors, options=operations.channel_options)
    service = TinyService(operations)
    story_service_pb2_grpc.add_StoryServiceServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)  # type: ignore[attr-defined]
    port = operations.add_port(server, "127.0.0.1:0")
    await server.start()
    operations.start(ready=lambda: True)
    try:
        yield service, port
    finally:
        await server.stop(0)
        await operations.stop()


async def generate(channel: Any, prompt: str, token: str | None = TOKEN) -> str:
    """How a story ends: OK, or the error's reason."""
    stub: Any = story_service_pb2_grpc.StoryServiceStub(channel)
    story = story_pb2.Story(frames=[story_pb2.Frame(prompt=prompt)])
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    request = story_service_pb2.GenerateStoryRequest(story=story)
    try:
        async for _ in stub.GenerateStory(request, timeout=SECONDS, metadata=metadata):
            pass
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    return "OK"


async def check_health(channel: Any) -> str:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.yaml"
    path.write_text(f"tenants: {{studio-a: {{limits: {{stories_per_minute: 600}}, tokens: [{digest(TOKEN)}]}}}}")
    return path


def test_a_whole_run_leaves_no_prompt_and_no_token_in_the_log(
    tmp_path: Path, tokens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority("ours")
    cert, key = authority.issue("server").write(tmp_path, "server")
    (tmp_path / "words").write_text("dragon\n")
    metrics_port = free_port()
    options = ServerOptions(
        tokens=tokens,
        tls_cert=cert,
        tls_key=key,
        metrics_port=metrics_port,
        otlp_endpoint=f"http://127.0.0.1:{free_port()}",  # Nobody listens there.
        safety="block",
        blocked_words=tmp_path / "words",
    )

    async def body() -> str:
        async with serving(options) as (service, port):
            credentials = grpc.ssl_channel_credentials(authority.pem)
            async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
                assert await check_health(channel) == "SERVING"
                assert await generate(channel, PROMPT) == "OK"
                assert (await generate(channel, PROMPT, token=None)).startswith("UNAUTHENTICATED")
                assert (await generate(channel, PROMPT, token=new_token())).startswith("UNAUTHENTICATED")
                refused = await generate(channel, BAD_PROMPT)
                assert refused.startswith("INVALID_ARGUMENT: story.frames[0].prompt: is refused here")
            assert service.tenants == ["studio-a", "studio-a"]
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.1)
            return await asyncio.to_thread(scrape, metrics_port)

    logs.set_up("debug", "json")
    try:
        scraped = asyncio.run(body())
    finally:
        logging.basicConfig(force=True)
    written = capsys.readouterr().err
    for secret in ("heliotrope", "walrus", "dragon", TOKEN):
        assert secret not in written
        assert secret not in scraped
    entries = [json.loads(line) for line in written.splitlines() if line.startswith("{")]
    accepted = next(entry for entry in entries if entry["message"] == "story accepted")
    assert (accepted["story_id"], accepted["prompts"]) == ("story-1", "<1 hidden>")
    assert any(entry["message"] == "tokens read" for entry in entries)
    counts = {
        (sample.labels["method"], sample.labels["code"]): sample.value
        for family in text_string_to_metric_families(scraped)
        for sample in family.samples
        if sample.name == "storyloom_requests_total"
    }
    generate_story = "storyloom.v1.StoryService/GenerateStory"
    assert counts == {
        ("grpc.health.v1.Health/Check", "OK"): 1,
        (generate_story, "OK"): 1,
        (generate_story, "UNAUTHENTICATED"): 2,
        (generate_story, "INVALID_ARGUMENT"): 1,
    }


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SECONDS) as answer:
        return str(answer.read().decode())


def test_a_broken_check_leaves_no_prompt_either(capsys: pytest.CaptureFixture[str]) -> None:
    options = ServerOptions(safety="block", safety_check="tests.server.test_server_operations:Watcher")

    async def body() -> None:
        async with serving(options) as (_, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert (await generate(channel, PROMPT)).startswith("INTERNAL: the safety check watcher failed")

    logs.set_up("debug", "text")
    try:
        asyncio.run(body())
    finally:
        logging.basicConfig(force=True)
    written = capsys.readouterr().err
    assert "safety check failed" in written
    assert "heliotrope" not in written


@pytest.mark.parametrize("style", ["text", "json"])
def test_prompts_are_in_the_log_when_they_are_asked_for(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    for shown in (False, True):
        logs.set_up("info", style, prompts=shown)
        log.info("story accepted", extra=fields(prompts=Prompts([PROMPT])))
        assert (PROMPT in capsys.readouterr().err) is shown
    logging.basicConfig(force=True)


def test_what_comes_without_a_token_makes_no_new_label(tokens: Path) -> None:
    async def body() -> bytes:
        async with (
            serving(ServerOptions(tokens=tokens)) as (service, port),
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            for method in ("/made/Up", "/storyloom.v1.StoryService/No"):
                untyped: Any = channel
                with pytest.raises(grpc.aio.AioRpcError):
                    await untyped.unary_unary(method)(b"", timeout=SECONDS)
            # A call is counted after its caller has had the answer.
            counted = b'storyloom_requests_total{code="UNIMPLEMENTED",method="unknown"} 2.0'
            await asyncio.to_thread(wait_until, lambda: counted in service.operations.metrics.exposition(), SECONDS)
            return service.operations.metrics.exposition()

    text = asyncio.run(body()).decode()
    assert "made/Up" not in text


def test_requests_larger_than_allowed_are_refused() -> None:
    async def body() -> None:
        async with (
            serving(ServerOptions(max_request_mib=0.01)) as (_, port),
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            assert (await generate(channel, "x" * 20_000)).startswith("RESOURCE_EXHAUSTED")
            assert await generate(channel, "x" * 5_000) == "OK"

    asyncio.run(body())


def test_connections_are_renewed_when_they_are_old() -> None:
    """A call that is open goes on; the next one comes over a new connection."""

    async def body() -> None:
        async with (
            serving(ServerOptions(max_connection_age_seconds=0.2)) as (service, port),
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watching = stub.Watch(health_pb2.HealthCheckRequest())
            await watching.read()
            assert await generate(channel, PROMPT) == "OK"
            await asyncio.sleep(1)
            assert await generate(channel, PROMPT) == "OK"
            assert len(set(service.peers)) == 2
            assert not watching.done()
            watching.cancel()

    asyncio.run(body())


def test_an_exposed_server_warns(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        operations = Operations(ServerOptions(host="0.0.0.0"), "1", [])  # noqa: S104 - it does not listen.
        operations.start(ready=lambda: True)
        await operations.stop()

    asyncio.run(body())
    assert "anybody who can reach 0.0.0.0 can use the server" in caplog.text


@pytest.mark.parametrize(
    "given",
    [
        {"tokens": "none.yaml"},
        {"tls_cert": "none.crt", "tls_key": "none.key"},
        {"otlp_endpoint": "nowhere"},
        {"safety": "flag", "blocked_words": "none.txt"},
    ],
)
def test_what_cannot_be_set_up_is_a_setup_error(given: dict[str, str]) -> None:
    with pytest.raises(SetupError):
        Operations(ServerOptions.model_validate(given), "1", [])
