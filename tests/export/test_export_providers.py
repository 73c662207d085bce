"""ONNX Runtime on GPUs, as far as that goes without one: what sessions are opened with, and what is said of absence.

The fake runs the graphs on the CPU at the addresses that it is given. What needs a GPU is skipped visibly.
"""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
import torch

from storyloom_export.artefact import Artefact, ArtefactError
from storyloom_export.backends import BACKENDS
from storyloom_export.denoiser import CACHE_FOLDER, OnnxDenoiser, components_of, onnx_sessions
from storyloom_export.memory import DeviceMemory
from storyloom_export.providers import CPU, PROVIDERS, Choice, choose, shapes_text
from storyloom_export.session import Session
from storyloom_export.verify import verify
from storyloom_model.denoiser import Denoiser
from storyloom_model.package import ModelPackage
from tests.export.fake_onnxruntime import CUDA, RTX, TENSORRT, FakeOnnxRuntime, PretendedGpu
from tests.model.tiny import finish, tiny_job

HOST = DeviceMemory(torch.device("cpu"))


def test_latents_stay_on_the_device_and_outputs_are_where_the_session_wrote_them(
    package: ModelPackage, artefact: Artefact
) -> None:
    runtime, gpu = FakeOnnxRuntime(), PretendedGpu(index=1)
    denoiser = OnnxDenoiser(package, components_of(package, artefact, onnx_sessions(
        package, artefact, gpu, "cuda", runtime)))  # fmt: skip
    state = finish(denoiser, tiny_job(2, steps=2))
    reference = finish(Denoiser.load(package.folder), tiny_job(2, steps=2))
    assert (state.latents - reference.latents).abs().max() < 1e-2
    assert {(bound.kind, bound.index) for run in runtime.runs for bound in run} == {("cuda", 1)}
    # Every output that was bound is a tensor of the device that was handed on as it is: nothing was copied.
    ours = {tensor.data_ptr() for tensor in gpu.made}
    names = ("prediction", "maps", "hidden", "picture")
    assert {bound.pointer for run in runtime.runs for bound in run if bound.name in names} <= ours
    assert gpu.waits == len(runtime.runs)


def test_each_provider_is_asked_for_with_its_options(package: ModelPackage, artefact: Artefact, tmp_path: Path) -> None:
    runtime = FakeOnnxRuntime()
    own = ModelPackage(tmp_path, package.manifest)
    (tmp_path / "vae").symlink_to(package.folder / "vae")
    onnx_sessions(own, artefact, PretendedGpu(), "cuda", runtime)("vae_decoder")
    _, (first, *behind) = runtime.opened[-1]
    assert first == (CUDA, {"device_id": "0", "cudnn_conv_algo_search": "HEURISTIC"})
    assert behind == ["CPUExecutionProvider"]

    onnx_sessions(own, artefact, PretendedGpu(1), "tensorrt", runtime)("unet")
    _, (first, *behind) = runtime.opened[-1]
    name, options = first
    assert (name, behind) == (TENSORRT, [CUDA, "CPUExecutionProvider"])
    assert options["device_id"] == "1"
    assert options["trt_engine_cache_enable"] == "1"
    cache = Path(options["trt_engine_cache_path"])
    assert cache.is_dir()
    assert cache.parent == tmp_path / CACHE_FOLDER
    assert cache.name.startswith("tensorrt-unet-")
    assert "trt_profile_min_shapes" not in options  # A UNet is taken in parts.
    assert "trt_fp16_enable" not in options
    onnx_sessions(own, artefact, PretendedGpu(1), "tensorrt", runtime)("vae_decoder")
    options = runtime.opened[-1][1][0][1]
    assert options["trt_profile_min_shapes"] == "latents:1x4x8x8"
    assert options["trt_profile_max_shapes"] == "latents:1x4x8x12"


def test_a_plugin_provider_is_registered_once_and_gets_its_device(
    package: ModelPackage, artefact: Artefact, tmp_path: Path
) -> None:
    runtime = FakeOnnxRuntime(devices=[SimpleNamespace(ep_name=RTX), SimpleNamespace(ep_name=RTX)])
    own = ModelPackage(tmp_path, package.manifest)
    (tmp_path / "vae").symlink_to(package.folder / "vae")
    onnx_sessions(own, artefact, PretendedGpu(1), "tensorrt-rtx", runtime)("vae_decoder")
    devices, options = runtime.opened[-1][1]
    assert devices == [runtime.devices[1]]
    assert Path(options["nv_runtime_cache_path"]).is_dir()
    assert runtime.registered == []


def test_half_precision_exports_allow_it_in_engines() -> None:
    gpu = PretendedGpu()
    assert choose("tensorrt", gpu, "float16").options["trt_fp16_enable"] == "1"
    assert choose("tensorrt", gpu, "bfloat16").options["trt_bf16_enable"] == "1"
    assert not {"trt_fp16_enable", "trt_bf16_enable"} & set(choose("tensorrt", gpu, "float32").options)


def test_caches_of_other_exports_gpus_and_versions_are_apart(
    package: ModelPackage, artefact: Artefact, tmp_path: Path
) -> None:
    def cache(runtime: FakeOnnxRuntime, of: Artefact, memory: PretendedGpu) -> str:
        own = ModelPackage(tmp_path, package.manifest)
        onnx_sessions(own, of, memory, "tensorrt", runtime)("vae_decoder")
        return str(dict(runtime.opened[-1][1][0][1])["trt_engine_cache_path"])

    (tmp_path / "vae").symlink_to(package.folder / "vae")
    newer = FakeOnnxRuntime()
    newer.__version__ = "1.32.0"
    other = Artefact(artefact.folder, artefact.record.model_copy(update={"package_hash": "0" * 64}))
    names = [
        cache(FakeOnnxRuntime(), artefact, PretendedGpu()),
        cache(newer, artefact, PretendedGpu()),
        cache(FakeOnnxRuntime(), other, PretendedGpu()),
    ]
    assert len(set(names)) == 3
    assert cache(FakeOnnxRuntime(), artefact, PretendedGpu()) == names[0]


def test_a_provider_that_is_not_there_is_told_with_what_to_install(artefact: Artefact) -> None:
    runtime = FakeOnnxRuntime(available=("CPUExecutionProvider",))
    file = artefact.component("vae_decoder")
    with pytest.raises(ArtefactError, match=r"no CUDAExecutionProvider, only CPUExecutionProvider; install onnxrunt"):
        Session(file, PretendedGpu(), choose("cuda", PretendedGpu(), "float32"), runtime)
    with pytest.raises(ArtefactError, match=r"no TensorrtExecutionProvider.*tensorrt-cu12-libs"):
        Session(file, PretendedGpu(), choose("tensorrt", PretendedGpu(), "float32"), runtime)


def test_a_provider_whose_libraries_do_not_load_is_no_silent_fallback(artefact: Artefact) -> None:
    runtime = FakeOnnxRuntime(starts=("CPUExecutionProvider",))
    with pytest.raises(ArtefactError, match="could not start CUDAExecutionProvider and would run on CPUExecution"):
        Session(artefact.component("vae_decoder"), PretendedGpu(), choose("cuda", PretendedGpu(), "float32"), runtime)


def test_a_plugin_provider_that_is_not_installed_or_finds_no_gpu_is_told(artefact: Artefact) -> None:
    file, choice = artefact.component("vae_decoder"), choose("tensorrt-rtx", PretendedGpu(3), "float32")
    devices = [SimpleNamespace(ep_name=RTX)]
    with pytest.raises(ArtefactError, match="finds 1 devices on this machine and number 3 was asked for"):
        Session(file, PretendedGpu(3), choice, FakeOnnxRuntime(devices=devices))
    if importlib.util.find_spec(PROVIDERS["tensorrt-rtx"].module) is None:
        with pytest.raises(ArtefactError, match=r"cannot be loaded \(No module named.*install onnxruntime-ep-nv"):
            Session(file, PretendedGpu(), choice, FakeOnnxRuntime())
    else:  # Then it is the real library, which wants the driver.
        with pytest.raises(ArtefactError, match=f"{RTX} (cannot be loaded|finds 0 devices)"):
            Session(file, PretendedGpu(), choice, onnxruntime)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "tensorrt-rtx"])
def test_a_gpu_provider_does_not_run_on_the_cpu(provider: str) -> None:
    with pytest.raises(ArtefactError, match="does not run here on cpu; use --device cuda:0"):
        choose(provider, HOST, "float32")
    with pytest.raises(ArtefactError, match="ONNX Runtime's mps does not run here on cpu; use --device cpu or cuda:0"):
        choose("mps", HOST, "float32")


def test_the_cpu_needs_no_options(artefact: Artefact) -> None:
    assert choose("cpu", HOST, "float32") is CPU
    assert CPU.providers == ["CPUExecutionProvider"]
    assert Choice(PROVIDERS["cuda"], {"a": "1"}).providers == [(CUDA, {"a": "1"}), "CPUExecutionProvider"]


def test_shapes_are_written_as_the_providers_read_them() -> None:
    assert shapes_text({"sample": (2, 4, 8, 8), "timestep": (2,)}) == "sample:2x4x8x8,timestep:2"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: NOT CHECKED")
@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"])
def test_the_provider_on_a_gpu_makes_what_torch_makes(package: ModelPackage, artefact: Artefact, name: str) -> None:
    try:
        report = verify(package, artefact, backend=BACKENDS[name], device="cuda:0", steps=2)
    except ArtefactError as error:
        pytest.skip(str(error))
    assert min(report.psnr) > 30
