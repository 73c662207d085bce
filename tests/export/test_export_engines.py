"""Engines on disk and in sessions, with a TensorRT that runs ONNX files on the CPU: all but the GPU is real."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storyloom_export.artefact import Artefact, ArtefactError, default_folder
from storyloom_export.compare import psnr
from storyloom_export.denoiser import components_of
from storyloom_export.gpu import Gpu
from storyloom_export.session import ComponentSession
from storyloom_export.tensorrt import store
from storyloom_export.tensorrt.builder import TIMING_CACHE, build_engine, components_to_build, key_of
from storyloom_export.tensorrt.denoiser import TensorRtDenoiser, engine_sessions
from storyloom_export.tensorrt.operators import PLUGINS
from storyloom_export.tensorrt.platform import Platform
from storyloom_export.tensorrt.session import EngineSession
from storyloom_model.denoiser import Denoiser
from storyloom_model.execution import ExecutionOptions
from storyloom_model.package import ModelPackage
from tests.export.fake_tensorrt import H200, FakeTensorRt, pretended
from tests.export.identities import identity
from tests.export.running import lone_rows
from tests.model.tiny import finish, tiny_job

BUCKETS = (2, 4, 8)


@dataclasses.dataclass
class Built:
    """A package with engines, and what built them."""

    package: ModelPackage
    artefact: Artefact
    platform: Platform
    trt: FakeTensorRt
    engines: dict[str, Path]


@pytest.fixture(scope="module")
def engines(exported_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = shutil.copytree(exported_package, tmp_path_factory.mktemp("engines") / "package")
    package = ModelPackage.load(folder)
    artefact = Artefact.load(default_folder(folder), package)
    platform, trt = pretended()
    files = {
        name: build_engine(package, artefact, name, BUCKETS, platform)[0] for name in components_to_build(artefact)
    }
    return Built(package, artefact, platform, trt, files)


@pytest.fixture
def own(engines: Built, tmp_path: Path) -> Built:
    """A copy of the engines that a test may spoil."""
    folder = shutil.copytree(engines.package.folder, tmp_path / "package")
    package = ModelPackage.load(folder)
    moved = {name: store.default_folder(folder) / file.name for name, file in engines.engines.items()}
    return dataclasses.replace(
        engines, package=package, artefact=Artefact(default_folder(folder), engines.artefact.record), engines=moved
    )


def opened(built: Built, component: str, platform: Platform | None = None) -> EngineSession:
    session: ComponentSession = engine_sessions(built.package, built.artefact, platform or built.platform)(component)
    assert isinstance(session, EngineSession)
    return session


@pytest.mark.parametrize(
    "settings",
    [
        {"adapter": "none"},
        {"adapter": "amsa"},
        {"adapter": "amsa", "loras": (("style", 0.7),), "identity_adapter": "storynizor"},
    ],
)
def test_a_story_on_engines_is_the_one_that_torch_makes(engines: Built, settings: dict[str, Any]) -> None:
    components = components_of(
        engines.package, engines.artefact, engine_sessions(engines.package, engines.artefact, engines.platform)
    )
    denoiser = TensorRtDenoiser(
        engines.package, components, ExecutionOptions(buckets=BUCKETS), one_call=True
    )  # fmt: skip
    who = (identity("mia", 1),) if "identity_adapter" in settings else ()
    job = tiny_job(3, steps=3, identities=who, **settings)  # Six rows: the last bucket, padded to eight.
    ours = finish(denoiser, job)
    reference = finish(Denoiser.load(engines.package.folder), job)
    assert (ours.latents - reference.latents).abs().max() < 1e-2
    pairs = zip(denoiser.decode(ours, range(3)), denoiser.decode(reference, range(3)), strict=True)
    assert min(psnr(mine, other) for mine, other in pairs) > 40
    assert np.asarray(ours.latents).dtype == np.float32
    if settings != {"adapter": "none"}:  # What was put into the engine is really in: without it the story is another.
        plain = finish(denoiser, dataclasses.replace(job, adapter="none", loras=(), identities=()))
        assert not torch.equal(plain.latents, ours.latents)


def test_the_profile_is_the_first_whose_ranges_hold_the_shapes(engines: Built) -> None:
    session, before = opened(engines, "unet"), len(engines.trt.contexts)
    for rows in (1, 3, 8, 3):
        run_unet(engines, session, rows)
    made = engines.trt.contexts[before:]
    assert [context.profile for context in made] == [0, 1, 2]
    assert [context.runs for context in made] == [1, 2, 1]  # One context for each shape, used again.
    assert session.contexts == 3
    assert len({context.memory for context in made}) == 1


def test_more_rows_than_any_profile_takes_are_refused(engines: Built) -> None:
    with pytest.raises(ValueError, match=r"no profile for .*sample \[9, 4, 8, 8\].*build engines with other --buckets"):
        run_unet(engines, opened(engines, "unet"), 9)


def run_unet(built: Built, session: EngineSession, rows: int) -> list[torch.Tensor]:
    inputs = lone_rows(built.artefact.record.components["unet"], rows)
    outputs = {"prediction": ((rows, 4, 8, 8), torch.float32), "maps": ((1, 1, 8, 8), torch.float32)}
    return session.run(inputs, outputs)


def test_a_build_registers_plugins_and_uses_the_timings_of_the_one_before(engines: Built) -> None:
    assert engines.trt.registered == [(90, 8 * 12)]  # Once, for the UNet, whose largest maps have 8 x 12 positions.
    assert [len(timing.split()) for timing in engines.trt.timings] == list(range(1, len(engines.engines) + 1))
    assert (store.default_folder(engines.package.folder) / TIMING_CACHE).read_bytes() == engines.trt.timings[-1]
    named = [
        node.op_type
        for node in engines.trt.parsed[-1].graph.node
        if any(attribute.name == "plugin_namespace" for attribute in node.attribute)
    ]
    assert set(named) == PLUGINS


def test_an_engine_is_built_once_for_each_key_and_anew_when_it_is_damaged(own: Built) -> None:
    def build(buckets: tuple[int, ...] = BUCKETS, platform: Platform = own.platform) -> tuple[Path, bool]:
        return build_engine(own.package, own.artefact, "unet", buckets, platform)

    assert build() == (own.engines["unet"], False)
    others = {build((2, 8))[0], build(platform=pretended(gpu=Gpu("NVIDIA L4", 89))[0])[0]}
    others.add(build(platform=pretended(version="11.5.0")[0])[0])
    assert len(others | {own.engines["unet"]}) == 4
    own.engines["unet"].write_bytes(b"short")
    assert build() == (own.engines["unet"], True)
    assert opened(own, "unet").contexts == 0


@pytest.mark.parametrize(
    ("platform", "complaint"),
    [
        (pretended(gpu=Gpu("NVIDIA L4", 89))[0], "was built for NVIDIA H200 sm_90, and this is NVIDIA L4 sm_89"),
        (pretended(version="11.5.0.1")[0], "was built by TensorRT 11.4.0.106, and 11.5.0.1 is installed"),
    ],
)
def test_an_engine_of_another_machine_is_refused_before_it_is_read(
    engines: Built, platform: Platform, complaint: str
) -> None:
    with pytest.raises(ArtefactError, match=complaint) as raised:
        opened(engines, "unet", platform)
    assert f"storyloom-export tensorrt {engines.package.folder}" in str(raised.value)


def test_engines_of_other_weights_or_types_are_refused(own: Built) -> None:
    for change, complaint in (
        ({"package_hash": "f" * 64}, "is of tiny with hash .*, not ffffffffffff"),
        ({"dtype": "float16"}, "is of a float32 export, and the export is float16"),
    ):
        changed = Artefact(own.artefact.folder, own.artefact.record.model_copy(update=change))
        with pytest.raises(ArtefactError, match=complaint) as raised:
            opened(dataclasses.replace(own, artefact=changed), "unet")
        assert "storyloom-export tensorrt" in str(raised.value)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "is truncated: "),
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"!"), "is corrupt: its SHA-256"),
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.with_suffix(".json").unlink(), "has no engine of unet"),
        (lambda file: file.with_suffix(".json").write_text("{"), "cannot be read as JSON"),
        (lambda file: change(file, format=7), "is of format 7, and this version of Storyloom reads 1"),
        (lambda file: change(file, key={}), r"is damaged at key\.component"),
    ],
)
def test_damaged_engines_are_refused_with_how_to_rebuild(own: Built, spoil: object, complaint: str) -> None:
    assert callable(spoil)
    spoil(own.engines["unet"])
    with pytest.raises(ArtefactError, match=complaint) as raised:
        opened(own, "unet")
    assert f"build engines on this machine with: storyloom-export tensorrt {own.package.folder}" in str(raised.value)


def change(file: Path, **values: object) -> None:
    record = file.with_suffix(".json")
    record.write_text(json.dumps(json.loads(record.read_text()) | values))


def test_an_engine_that_tensorrt_cannot_read_is_told(own: Built) -> None:
    key = key_of(own.artefact, "unet", own.platform)
    store.write_engine(store.default_folder(own.package.folder), key, b"no engine")
    with pytest.raises(ArtefactError, match=r"cannot read .* though it is as it was built.*storyloom-export tensorrt"):
        opened(own, "unet")


def test_a_graph_that_the_parser_refuses_is_told(own: Built) -> None:
    platform, _ = pretended(version="12.0", refuses="node 3: no such op")
    with pytest.raises(ArtefactError, match=r"parser refuses .*unet\.onnx: node 3: no such op"):
        build_engine(own.package, own.artefact, "unet", BUCKETS, platform)


def test_weights_of_another_graph_do_not_go_into_an_engine(own: Built) -> None:
    components = own.artefact.record.components
    swapped = own.artefact.record.model_copy(
        update={"components": components | {"unet.amsa": components["vae_encoder"]}}
    )
    other = dataclasses.replace(own, artefact=Artefact(own.artefact.folder, swapped))
    with pytest.raises(ArtefactError, match="do not fit the engine: other inputs; build engines"):
        opened(other, "unet.amsa")


def test_the_newest_of_several_engines_that_fit_is_taken(own: Built) -> None:
    build_engine(own.package, own.artefact, "unet", (8,), own.platform)
    session = opened(own, "unet")
    before = len(own.trt.contexts)
    run_unet(own, session, 1)
    assert own.trt.contexts[before].profile == 0
    assert H200.key == "NVIDIA H200 sm_90"
