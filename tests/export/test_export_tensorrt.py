"""What of TensorRT can be checked without a GPU: the ops it would see, the kernels' PTX, profiles and keys.

Registration runs where TensorRT's Python bindings can be imported; its parser and its builder where TensorRT-RTX's can,
which come from PyPI and need no GPU (``pip install 'storyloom[tensorrt-rtx]'``). Both are skipped visibly elsewhere.
"""

import importlib
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import shape_inference
from typer.testing import CliRunner

from storyloom_export.artefact import Artefact, ArtefactError
from storyloom_export.cli import app, read_buckets
from storyloom_export.functions import DOMAIN
from storyloom_export.sizes import Profile, package_sizes, profiles_of, row_profiles, shapes_of
from storyloom_export.tensorrt import ptx
from storyloom_export.tensorrt.builder import for_tensorrt
from storyloom_export.tensorrt.operators import PLUGINS, supported, unsupported
from storyloom_export.tensorrt.platform import Platform, load_library
from storyloom_kernels.aot import ARCHITECTURES
from storyloom_model.package import ModelPackage
from tests.export import fake_tensorrt

ROOT = Path(__file__).parents[2]
COMPONENTS = ["resampler.storynizor", "text_encoder", "vae_encoder", "vae_decoder", "unet", "unet.amsa"]


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_op_that_tensorrt_would_see_is_supported_or_ours(artefact: Artefact, name: str) -> None:
    assert unsupported(onnx.load(artefact.component(name), load_external_data=False)) == set()


def test_an_op_that_tensorrt_has_not_is_found_also_inside_a_function() -> None:
    inner = onnx.helper.make_node("SequenceAt", ["x", "i"], ["y"])
    function = onnx.helper.make_function("f", "F", ["x", "i"], ["y"], [inner], [onnx.helper.make_opsetid("", 18)])
    node = onnx.helper.make_node("F", ["x", "i"], ["y"], domain="f")
    plain = onnx.helper.make_node("Unique", ["y"], ["z"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node, plain], "g", [], []), functions=[function])
    assert unsupported(model) == {"SequenceAt", "Unique"}


def test_the_list_is_the_parsers_own() -> None:
    assert {"Conv", "Scan", "Resize", "LayerNormalization"} <= set(supported())
    assert not {"SequenceAt", "Unique", "SplitToSequence"} & set(supported())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_plugins_compile_for_every_architecture(architecture: int) -> None:
    # In a process of its own, as Triton has been imported here to interpret kernels.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "storyloom_export.tensorrt.ptx", str(architecture)]
    paths = os.pathsep.join(str(ROOT / name) for name in ("kernels", "model", "export"))
    found = subprocess.run(
        command, env={**environment, "PYTHONPATH": paths}, capture_output=True, text=True, check=False, timeout=900
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count(f"sm_{architecture}") == len(list(ptx.all_kernels()))


def test_parameters_that_triton_adds_are_taken_out_and_used_ones_refused() -> None:
    parameters = ",\n".join(f".param .u64 f_param_{number}" for number in range(3))
    text = f".visible .entry f(\n{parameters}\n)\n{{ ld f_param_0; }}"
    assert "f_param_2" not in ptx.without_scratch(text, 2)
    with pytest.raises(ValueError, match="scratch memory"):
        ptx.without_scratch(text.replace("ld f_param_0", "ld f_param_2"), 2)


def test_profiles_cover_every_row_count_once(artefact: Artefact) -> None:
    others = {"characters": 3, "tokens": 77, "latent_height_by_2": 4, "latent_width_by_2": 4}
    others |= {"identity_tokens": 9, "streams": 3}
    profiles = row_profiles((2, 4, 8), Profile(others, others, others))
    covered = [rows for p in profiles for rows in range(p.least["rows"], p.most["rows"] + 1)]
    assert covered == list(range(1, 9))
    shapes = shapes_of(artefact.record.components["unet"], profiles[-1].most)
    assert shapes["sample"] == (8, 4, 8, 8)
    assert shapes["token_mask"] == (8, 3, 77)
    assert (shapes["identity_key_1"], shapes["identity_owner"]) == ((8, 9, 64), (8, 3))
    with pytest.raises(ValueError, match="needs characters"):
        shapes_of(artefact.record.components["unet"], {"rows": 2, "tokens": 77, "latent_height_by_2": 1,
                                                       "latent_width_by_2": 1})  # fmt: skip


def test_profiles_hold_every_size_of_the_package_and_what_is_decoded_at_the_start(
    package: ModelPackage, artefact: Artefact
) -> None:
    unet = profiles_of(package, artefact.record, "unet", (4, 8))[-1]
    for pixels in package.manifest.sizes:
        sizes = package_sizes(package, artefact.record, 8, 3, pixels)
        assert all(unet.least[name] <= sizes[name] <= unet.most[name] for name in sizes)
    limits = package.manifest.limits
    assert (unet.least["identity_tokens"], unet.most["identity_tokens"]) == (1, limits.max_identity_tokens)
    (decoder,) = profiles_of(package, artefact.record, "vae_decoder", (4, 8))
    assert decoder.least["latent_height"] == decoder.least["latent_width"] == 8
    assert (decoder.least["pictures"], decoder.most["pictures"]) == (1, 1)


def test_buckets_that_no_export_takes_are_refused() -> None:
    assert read_buckets("8, 2,2") == (2, 8)
    for text in ("", "0,2", "64", "two"):
        with pytest.raises(ValueError, match="numbers of rows from 1 to 63"):
            read_buckets(text)


def test_nodes_with_plugins_name_their_namespace(artefact: Artefact) -> None:
    made = for_tensorrt(onnx.load(artefact.component("unet"), load_external_data=False))
    for node in made.graph.node:
        named = any(attribute.name == "plugin_namespace" for attribute in node.attribute)
        assert named == (node.op_type in PLUGINS)


def test_without_tensorrt_the_command_says_what_to_install(artefact: Artefact) -> None:
    try:
        importlib.import_module("tensorrt")
    except ImportError:
        with pytest.raises(ArtefactError, match=r"TensorRT cannot be imported .* install it"):
            load_library()
        refused = CliRunner().invoke(app, ["tensorrt", str(artefact.folder.parent)])
        assert refused.exit_code == 2
        assert "TensorRT cannot be imported" in refused.output
    else:
        pytest.skip("TensorRT is installed")


def test_an_old_tensorrt_and_a_device_without_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = types.ModuleType("tensorrt")
    old.__version__ = "10.6.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with pytest.raises(ArtefactError, match=r"TensorRT 10\.6\.0 is too old for our plugins; install 10\.7"):
        load_library()
    old.__version__ = "11.4.0"  # type: ignore[attr-defined]
    with pytest.raises(ArtefactError, match=r"on an NVIDIA GPU, and cpu is none .* use --device cuda:0"):
        Platform.here(torch.device("cpu"))


def test_plugins_register_with_tensorrts_bindings() -> None:
    pytest.importorskip("tensorrt.plugin", reason="TensorRT's bindings cannot be imported here: NOT CHECKED")
    from storyloom_export.tensorrt.plugins import register

    assert set(register(90, 4096)) == {f"storyloom::{name}" for name in PLUGINS}
    creators = importlib.import_module("tensorrt").get_plugin_registry().all_creators
    assert {(name, "storyloom") for name in PLUGINS} <= {(one.name, one.plugin_namespace) for one in creators}


@pytest.fixture(scope="module")
def rtx() -> Any:
    """TensorRT-RTX: the same parser and builder, without the plugins that ours are."""
    reason = "TensorRT-RTX cannot be imported here: the real parser was NOT RUN"
    pytest.importorskip("onnxruntime_ep_nv_tensorrt_rtx", reason=reason)
    return pytest.importorskip("tensorrt_rtx_bindings", reason=reason)


def without_plugins(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with what plugins make as inputs: TensorRT-RTX takes none of our kind."""
    model = shape_inference.infer_shapes(model)
    types = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    ours = [node for node in model.graph.node if node.domain == DOMAIN and node.op_type in PLUGINS]
    for node in ours:
        model.graph.node.remove(node)
        model.graph.input.extend(types[name] for name in node.output if name in types)
    return model


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_real_parser_takes_every_node_that_is_not_a_plugins(rtx: Any, artefact: Artefact, name: str) -> None:
    file = artefact.component(name)
    logger = rtx.Logger(rtx.Logger.ERROR)
    network = rtx.Builder(logger).create_network()
    parser = rtx.OnnxParser(network, logger)
    content = without_plugins(onnx.load(file, load_external_data=False)).SerializeToString()
    assert parser.parse(content, str(file)), [str(parser.get_error(number)) for number in range(parser.num_errors)]
    assert network.num_layers > 100


def test_the_real_builder_makes_an_engine_with_our_profile(rtx: Any, package: ModelPackage, artefact: Artefact) -> None:
    logger = rtx.Logger(rtx.Logger.ERROR)
    builder = rtx.Builder(logger)
    network = builder.create_network()
    assert rtx.OnnxParser(network, logger).parse_from_file(str(artefact.component("vae_decoder")))
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    (wanted,) = profiles_of(package, artefact.record, "vae_decoder", (2,))
    record = artefact.record.components["vae_decoder"]
    shapes = [shapes_of(record, sizes) for sizes in (wanted.least, wanted.best, wanted.most)]
    for name in shapes[0]:
        profile.set_shape(name, *(one[name] for one in shapes))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(rtx.ComputeCapability.SM89, 0)
    # Not refittable, as ours are: for that the builder compiles on the GPU itself.
    assert builder.build_serialized_network(network, config).nbytes > 10_000


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx_bindings"])
def test_the_fake_has_no_names_that_the_bindings_lack(module: str) -> None:
    if module.startswith("tensorrt_rtx"):
        pytest.importorskip("onnxruntime_ep_nv_tensorrt_rtx", reason="no TensorRT-RTX here: NOT CHECKED")
    real = pytest.importorskip(module, reason=f"{module} cannot be imported here: NOT CHECKED")
    pairs = {
        "IExecutionContext": fake_tensorrt.Context,
        "ICudaEngine": fake_tensorrt.Engine,
        "IBuilderConfig": fake_tensorrt.Config,
        "Builder": fake_tensorrt.Builder,
        "OnnxParser": fake_tensorrt.Parser,
        "Refitter": fake_tensorrt.Refitter,
        "OnnxParserRefitter": fake_tensorrt.ParserRefitter,
        "Runtime": fake_tensorrt.Runtime,
    }
    own = {"open", "runs", "profile"}  # What only the tests ask for.
    for name, fake in pairs.items():
        names = {one for one in vars(fake) if not one.startswith("_")} - own
        assert names <= set(dir(getattr(real, name))), name
    assert hasattr(real.TensorIOMode, "INPUT")
    assert hasattr(real.ExecutionContextAllocationStrategy, "USER_MANAGED")
    assert hasattr(real.BuilderFlag, "REFIT")
    assert {"FLOAT", "HALF", "BF16"} <= set(dir(real.DataType))
    assert hasattr(real, "Weights")
