"""Models that come and go while the server runs."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from storyloom.v1 import model_service_pb2 as models_pb
from storyloom.v1 import model_service_pb2_grpc
from storyloom.v1 import story_service_pb2 as pb
from storyloom_server.tenants import digest, new_token
from tests.server.serving import (
    ServerProcess,
    create,
    ended,
    error_details,
    serving,
    story,
    until_step,
    wait_until,
    watch,
)

ADMIN, USER = new_token(), new_token()


def package(folder: Path, tiny_package: Path, name: str, inside: str = "") -> None:
    """A package named ``inside``, in a folder of its own."""
    shutil.copytree(tiny_package, folder / name)
    manifest = folder / name / "storyloom.yaml"
    text = manifest.read_text()
    assert "name: tiny\n" in text
    manifest.write_text(text.replace("name: tiny\n", f"name: {inside or name}\n"))


@pytest.fixture(scope="module")
def model_folder(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "packages"
    folder.mkdir()
    package(folder, tiny_package, "second")
    package(folder, tiny_package, "other-inside", inside="something-else")
    package(folder, tiny_package, "break-load")
    (folder / "empty").mkdir()
    package(folder.parent, tiny_package, "outside")
    return folder


@pytest.fixture(scope="module")
def server(tiny_package: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(
        tmp_path_factory.mktemp("server"),
        tiny_package,
        *("--admin", "--model-folder", str(model_folder)),
        environment={"STORYLOOM_TEST_STEP_SECONDS": "0.02"},
    ) as running:
        yield running


def call(channel: grpc.Channel, method: str, name: str = "", metadata: Any = None, timeout: float = 60) -> Any:
    """One call of the model service."""
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    request = getattr(models_pb, f"{method}Request")(**({} if method == "ListModels" else {"name": name}))
    return getattr(stub, method)(request, timeout=timeout, metadata=metadata)


def names(channel: grpc.Channel) -> list[str]:
    return [model.name for model in call(channel, "ListModels").models]


@contextmanager
def refused(code: grpc.StatusCode, reason: str) -> Iterator[None]:
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert (caught.value.code(), error_details(caught.value)["ErrorInfo"].reason) == (code, reason)


def test_a_model_is_described_by_its_name_or_as_the_default(channel: grpc.Channel) -> None:
    model = call(channel, "GetModel", "tiny").model
    assert (model.name, model.is_default) == ("tiny", True)
    assert call(channel, "GetModel").model == model
    with refused(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"):
        call(channel, "GetModel", "second")


def test_a_model_is_loaded_used_warmed_and_unloaded(server: ServerProcess, channel: grpc.Channel) -> None:
    loaded = call(channel, "LoadModel", "second")
    assert (loaded.model.name, loaded.model.is_default) == ("second", False)
    assert loaded.seconds > 0
    assert names(channel) == ["tiny", "second"]
    assert call(channel, "LoadModel", "second").seconds == 0  # It is there.
    assert call(channel, "WarmModel", "second").seconds > 0
    found = ended(channel, create(channel, story("a dog", model="second")))
    assert (found.state, found.story.settings.model) == (pb.STORY_STATE_FINISHED, "second")
    call(channel, "UnloadModel", "second")
    assert names(channel) == ["tiny"]
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_STORY"):
        create(channel, story("a dog", model="second"))
    for method in ("WarmModel", "UnloadModel", "GetModel"):
        with refused(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"):
            call(channel, method, "second")
    # And again.
    assert call(channel, "LoadModel", "second").seconds > 0
    assert ended(channel, create(channel, story("a dog", model="second"))).state == pb.STORY_STATE_FINISHED
    call(channel, "UnloadModel", "second")


def test_a_model_in_use_is_unloaded_when_its_stories_have_ended(channel: grpc.Channel) -> None:
    call(channel, "LoadModel", "second")
    story_id = create(channel, story("a dog", steps=60, model="second"))
    until_step(watch(channel, story_id))
    with ThreadPoolExecutor(1) as caller:
        unloading = caller.submit(call, channel, "UnloadModel", "second")
        found = ended(channel, story_id)
        unloading.result()
    assert found.state == pb.STORY_STATE_FINISHED
    assert names(channel) == ["tiny"]


def test_a_model_that_is_loaded_again_while_it_is_unloaded_stays(channel: grpc.Channel) -> None:
    call(channel, "LoadModel", "second")
    story_id = create(channel, story("a dog", steps=60, model="second"))
    until_step(watch(channel, story_id))
    with ThreadPoolExecutor(1) as caller:
        unloading = caller.submit(call, channel, "UnloadModel", "second")
        while "second" in names(channel):
            pass
        call(channel, "LoadModel", "second")
        unloading.result()
    assert ended(channel, story_id).state == pb.STORY_STATE_FINISHED
    assert names(channel) == ["tiny", "second"]
    assert ended(channel, create(channel, story("a dog", model="second"))).state == pb.STORY_STATE_FINISHED
    call(channel, "UnloadModel", "second")


def leave(channel: grpc.Channel, method: str, name: str) -> None:
    """Calls, and is gone before the answer."""
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, name, timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_what_a_caller_began_is_done_when_it_has_left(tiny_package: Path, model_folder: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    slow = {"STORYLOOM_TEST_STEP_SECONDS": "0.02", "STORYLOOM_TEST_LOAD_GATE": str(gate)}
    arguments = ("--admin", "--model-folder", str(model_folder))
    with (
        serving(tmp_path, tiny_package, *arguments, environment=slow) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        gate.unlink()
        leave(channel, "LoadModel", "second")
        assert names(channel) == ["tiny"]
        gate.touch()
        wait_until(lambda: names(channel) == ["tiny", "second"], 60)
        story_id = create(channel, story("a dog", steps=60, model="second"))
        until_step(watch(channel, story_id))
        leave(channel, "UnloadModel", "second")
        assert names(channel) == ["tiny"]
        assert ended(channel, story_id).state == pb.STORY_STATE_FINISHED
        wait_until(lambda: "model unloaded" in server.log, 60)
        # It was forgotten: it takes a load to have it again, not only a warm-up.
        gate.unlink()
        leave(channel, "LoadModel", "second")
        assert names(channel) == ["tiny"]
        gate.touch()
        wait_until(lambda: names(channel) == ["tiny", "second"], 60)


def test_the_default_model_stays(channel: grpc.Channel) -> None:
    for name in ("tiny", ""):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "DEFAULT_MODEL"):
            call(channel, "UnloadModel", name)
    assert call(channel, "WarmModel").seconds > 0
    assert ended(channel, create(channel, story("a dog"))).state == pb.STORY_STATE_FINISHED


@pytest.mark.parametrize(
    "name",
    ["nobody", "", "../outside", "..", ".", "/etc", "second/../second", "second/", "second\0", "second\n", "a" * 65],
)
def test_no_name_leads_out_of_the_model_folders(channel: grpc.Channel, model_folder: Path, name: str) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"):
        call(channel, "LoadModel", name)
    with refused(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"):
        call(channel, "LoadModel", str(model_folder / "second"))
    assert names(channel) == ["tiny"]


@pytest.mark.parametrize("name", ["empty", "other-inside", "break-load"])
def test_a_broken_package_is_refused_and_harms_nobody(server: ServerProcess, channel: grpc.Channel, name: str) -> None:
    running = create(channel, story("a dog", steps=20))
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "MODEL_UNUSABLE"):
        call(channel, "LoadModel", name)
    assert names(channel) == ["tiny"]
    assert ended(channel, running).state == pb.STORY_STATE_FINISHED
    assert server.log.count("engine process started") == 1


def test_only_admins_control_models(tiny_package: Path, model_folder: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(
        f"tenants:\n  boss: {{admin: true, tokens: [{digest(ADMIN)}]}}\n  guest: {{tokens: [{digest(USER)}]}}\n"
    )
    arguments = ("--tokens", str(tokens), "--model-folder", str(model_folder))
    with (
        serving(tmp_path, tiny_package, *arguments) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        boss, guest = ([("authorization", f"Bearer {token}")] for token in (ADMIN, USER))
        for method in ("LoadModel", "UnloadModel", "WarmModel"):
            # Also where there is no such model: who may not control them learns nothing.
            for name in ("second", "tiny", "nobody"):
                with refused(grpc.StatusCode.PERMISSION_DENIED, "ADMIN_REQUIRED"):
                    call(channel, method, name, guest)
        assert [model.name for model in call(channel, "ListModels", metadata=guest).models] == ["tiny"]
        assert call(channel, "LoadModel", "second", boss).seconds > 0
        assert call(channel, "GetModel", "second", guest).model.name == "second"
        with refused(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING"):
            call(channel, "ListModels")


def test_without_a_tokens_file_models_are_controlled_only_where_that_was_asked_for(
    tiny_package: Path, model_folder: Path, tmp_path: Path
) -> None:
    with (
        serving(tmp_path, tiny_package, "--model-folder", str(model_folder)) as server,
        grpc.insecure_channel(server.address) as channel,
        refused(grpc.StatusCode.PERMISSION_DENIED, "ADMIN_REQUIRED"),
    ):
        call(channel, "LoadModel", "second")
