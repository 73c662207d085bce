"""Tokens, tenants and limits."""

import asyncio
import logging
import os
from pathlib import Path

import grpc
import pytest
import yaml
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from storyloom_server import access
from storyloom_server.access import Gate, exposure_warning
from storyloom_server.rate_limit import TokenBucket
from storyloom_server.scheduler import Priority
from storyloom_server.story_error import StoryError
from storyloom_server.tenants import Tenant, TenantsFileError, digest, new_token, read_tenants
from tests.server.serving import wait_until

FIRST, SECOND = new_token(), new_token()
FILE = f"""
tenants:
  studio-a:
    weight: 2
    max_priority: high
    admin: true
    limits: {{open_stories: 2, stories_per_minute: 12, stored_mib: 1}}
    tokens: [{digest(FIRST)}]
  studio-b:
    tokens: [{digest(SECOND)}]
"""


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.yaml"
    path.write_text(FILE)
    return path


def bearer(token: str) -> list[tuple[str, str | bytes]]:
    return [("user-agent", "x"), ("authorization", f"Bearer {token}")]


def refusal(error: pytest.ExceptionInfo[StoryError]) -> tuple[grpc.StatusCode, str]:
    return error.value.code, error.value.reason


def test_a_token_tells_the_tenant(tokens: Path) -> None:
    gate = Gate(tokens)
    first = gate.tenant(bearer(FIRST))
    assert (first.name, first.weight, first.max_priority, first.admin) == ("studio-a", 2, Priority.HIGH, True)
    assert first.limits.open_stories == 2
    assert gate.tenant([("authorization", f"bearer  {SECOND} ")]).name == "studio-b"


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ([], "TOKEN_MISSING"),
        ([("x-authorization", f"Bearer {FIRST}")], "TOKEN_MISSING"),
        (bearer(FIRST[:-1]), "TOKEN_UNKNOWN"),
        (bearer(""), "TOKEN_UNKNOWN"),
        (bearer(digest(FIRST)), "TOKEN_UNKNOWN"),
        ([("authorization", f"Basic {FIRST}")], "TOKEN_UNKNOWN"),
        ([("authorization", FIRST)], "TOKEN_UNKNOWN"),
        (bearer(FIRST) + bearer(SECOND), "TOKEN_UNKNOWN"),
    ],
)
def test_calls_without_a_good_token_are_refused(
    tokens: Path, metadata: list[tuple[str, str | bytes]], reason: str
) -> None:
    with pytest.raises(StoryError) as caught:
        Gate(tokens).tenant(metadata)
    assert refusal(caught) == (grpc.StatusCode.UNAUTHENTICATED, reason)
    assert dict(caught.value.trailers)["www-authenticate"].startswith("Bearer")
    assert FIRST not in caught.value.message


def test_without_a_file_everybody_is_anonymous() -> None:
    tenant = Gate(None).tenant([])
    assert (tenant.name, tenant.admin) == ("anonymous", False)
    assert Gate(None, anonymous_admin=True).tenant(bearer("whatever")).admin


def test_a_changed_file_counts_at_once_and_a_broken_one_not_at_all(
    tokens: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate, new = Gate(tokens), new_token()

    def known(token: str) -> bool:
        try:
            gate.tenant(bearer(token))
        except StoryError:
            return False
        return True

    def change_it() -> None:
        replacement = tokens.with_suffix(".new")
        replacement.write_text(FILE + f"  studio-c:\n    tokens: [{digest(new)}]\n")
        os.replace(replacement, tokens)  # As editors and Kubernetes do.
        wait_until(lambda: known(new), 30)
        tokens.write_text("tenants: {")
        wait_until(lambda: "the old tokens stay" in caplog.text, 30)
        assert known(new)
        tokens.write_text(FILE)
        wait_until(lambda: not known(new), 30)
        assert known(FIRST)

    async def body() -> None:
        watching = asyncio.create_task(gate.watch(0.01))
        await asyncio.to_thread(change_it)
        watching.cancel()

    with caplog.at_level(logging.INFO):
        asyncio.run(body())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "the file: Input should be a valid dictionary"),
        ("tenants: {}", "tenants: Dictionary should have at least 1 item"),
        ("tenants: {a: {tokens: []}}", "tenants.a.tokens: List should have at least 1 item"),
        ("tenants: {a: {tokens: [slm_pasted]}}", "tenants.a.tokens.0: is no SHA-256 digest; make a token with"),
        (f"tenants: {{a: {{weigth: 1, tokens: [{digest('x')}]}}}}", "tenants.a.weigth: Extra inputs"),
        (f"tenants: {{A B: {{tokens: [{digest('x')}]}}}}", "tenants.A B"),
        (f"tenants: {{a: {{tokens: [{digest('x')}, {digest('x')}]}}}}", "tenants.a.tokens has a token twice"),
        (f"tenants: {{a: {{limits: {{open_stories: 0}}, tokens: [{digest('x')}]}}}}", "tenants.a.limits.open_stories"),
        ("tenants: [", "is not YAML"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_without_secrets(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "tokens.yaml"
    path.write_text(content)
    with pytest.raises(TenantsFileError) as caught:
        Gate(path)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)
    assert "slm_pasted" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(TenantsFileError, match="name a tokens file"):
        Gate(tmp_path / "none.yaml")


def test_a_new_token_works_once_it_is_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert access.main(["new", "studio-z"]) == 0
    printed = capsys.readouterr().out
    token = printed.split()[4]
    content = printed.split("for the tokens file:")[1]
    assert token not in content
    path = tmp_path / "tokens.yaml"
    path.write_text(content)
    assert Gate(path).tenant(bearer(token)).name == "studio-z"
    assert access.main(["new"]) == 2
    assert access.main([]) == 2


def test_limits_refuse_with_what_to_do(tokens: Path) -> None:
    clock = Clock()
    gate = Gate(tokens, clock=clock)
    tenant = gate.tenant(bearer(FIRST))
    assert (tenant.limits.open_stories, tenant.limits.stored_bytes) == (2, 1 << 20)
    for _ in range(2):  # The burst of 12 a minute.
        gate.count_story(tenant)
    with pytest.raises(StoryError) as caught:
        gate.count_story(tenant)
    assert refusal(caught) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STORIES")
    names = [detail.type_url.rsplit(".", 1)[1] for detail in caught.value.status().details]
    assert names == ["ErrorInfo", "RetryInfo", "QuotaFailure"]
    failure = error_details_pb2.QuotaFailure()
    caught.value.status().details[2].Unpack(failure)
    assert failure.violations[0].subject == "tenants/studio-a"

    assert caught.value.retry_seconds is not None
    clock.now += caught.value.retry_seconds
    gate.count_story(tenant)


def test_one_tenant_s_rate_is_no_other_s(tokens: Path) -> None:
    gate = Gate(tokens, clock=Clock())
    for _ in range(100):
        gate.count_story(gate.tenant(bearer(SECOND)))
    gate.count_story(gate.tenant(bearer(FIRST)))


def test_priorities_and_model_control_are_for_those_who_may(tokens: Path) -> None:
    gate = Gate(tokens)
    first, second = gate.tenant(bearer(FIRST)), gate.tenant(bearer(SECOND))
    gate.require_admin(first)
    gate.check_priority(first, Priority.HIGH)
    gate.check_priority(second, Priority.NORMAL)
    for refused in (lambda: gate.require_admin(second), lambda: gate.check_priority(second, Priority.HIGH)):
        with pytest.raises(StoryError) as caught:
            refused()
        assert caught.value.code is grpc.StatusCode.PERMISSION_DENIED


@given(st.floats(0.01, 100), st.floats(0, 50), st.lists(st.floats(0, 30), min_size=1, max_size=60))
def test_a_bucket_never_gives_more_than_its_rate(rate: float, burst: float, gaps: list[float]) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, burst, clock)
    taken = 0
    for gap in gaps:
        clock.now += gap
        wait = bucket.take()
        taken += wait == 0
        assert 0 <= wait <= 1 / rate + 1e-6
    assert taken <= max(1.0, burst) + rate * sum(gaps) + 1e-6


@given(st.floats(0.01, 100), st.floats(0, 20))
def test_waiting_as_long_as_told_is_enough(rate: float, burst: float) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, burst, clock)
    for _ in range(50):
        clock.now += bucket.take()
    wait = bucket.take()
    clock.now += wait
    assert bucket.take() == 0 if wait else True


@pytest.mark.parametrize(
    ("host", "tokens_", "encrypted", "told"),
    [
        ("127.0.0.1", True, False, None),
        ("::1", True, False, None),
        ("localhost", False, False, None),
        ("0.0.0.0", True, True, None),  # noqa: S104
        ("0.0.0.0", True, False, "in the clear"),  # noqa: S104
        ("::", False, False, "anybody"),
        ("stories.example", True, False, "in the clear"),
    ],
)
def test_exposed_servers_are_warned_of(host: str, tokens_: bool, encrypted: bool, told: str | None) -> None:
    warning = exposure_warning(host, tokens=tokens_, encrypted=encrypted)
    assert warning is None if told is None else warning is not None and told in warning


def test_the_file_in_the_documentation_is_a_good_one(tmp_path: Path) -> None:
    import storyloom_server.tenants as module

    assert module.__doc__ is not None
    path = tmp_path / "tokens.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(module.__doc__.split("tells them.")[1].split("A token stands")[0])))
    assert next(iter(read_tenants(path).values())) == Tenant(
        "studio-a", 2, Priority.HIGH, True, next(iter(read_tenants(path).values())).limits
    )
