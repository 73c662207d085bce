"""What of TensorRT can be checked without it: the ops it would see, the kernels' PTX, profiles and keys.

Registration runs where TensorRT's Python bindings can be imported, and is skipped visibly elsewhere.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from storyloom_export.artefact import Artefact, ArtefactError
from storyloom_export.cli import app
from storyloom_export.tensorrt import engine, ptx
from storyloom_export.tensorrt.operators import PLUGINS, supported, unsupported
from storyloom_kernels.aot import ARCHITECTURES

ROOT = Path(__file__).parents[2]
COMPONENTS = ["text_encoder", "vae_encoder", "vae_decoder", "unet", "unet.amsa"]


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
    profiles = engine.row_profiles((2, 4, 8), others)
    covered = [rows for p in profiles for rows in range(p.least["rows"], p.most["rows"] + 1)]
    assert covered == list(range(1, 9))
    shapes = engine.shape_of(artefact.record.components["unet"], profiles[-1].most)
    assert shapes["sample"] == (8, 4, 8, 8)
    assert shapes["token_mask"] == (8, 3, 77)
    with pytest.raises(ValueError, match="needs characters"):
        engine.shape_of(artefact.record.components["unet"], {"rows": 2, "tokens": 77, "latent_height_by_2": 1,
                                                             "latent_width_by_2": 1})  # fmt: skip


def test_an_engine_of_another_gpu_or_package_is_another_file() -> None:
    names = {
        engine.EngineKey("unet", package, "float16", gpu, "11.4", tuple(engine.row_profiles(buckets, {}))).file_name()
        for package in ("a", "b")
        for gpu in ("H200 sm_90", "L4 sm_89")
        for buckets in ((2, 8), (2, 4, 8))
    }
    assert len(names) == 8


def test_nodes_with_plugins_name_their_namespace(artefact: Artefact) -> None:
    made = engine.for_tensorrt(onnx.load(artefact.component("unet"), load_external_data=False))
    for node in made.graph.node:
        named = any(attribute.name == "plugin_namespace" for attribute in node.attribute)
        assert named == (node.op_type in PLUGINS)


def test_without_tensorrt_the_command_says_what_to_install(artefact: Artefact) -> None:
    try:
        importlib.import_module("tensorrt")
    except ImportError:
        with pytest.raises(ArtefactError, match=r"TensorRT cannot be imported .* install it"):
            engine.check_tensorrt()
        refused = CliRunner().invoke(app, ["tensorrt", str(artefact.folder.parent)])
        assert refused.exit_code == 2
        assert "TensorRT cannot be imported" in refused.output
    else:
        pytest.skip("TensorRT is installed")


def test_plugins_register_with_tensorrts_bindings() -> None:
    pytest.importorskip("tensorrt.plugin", reason="TensorRT's bindings cannot be imported here: NOT CHECKED")
    from storyloom_export.tensorrt.plugins import register

    assert set(register(90, 4096)) == {f"storyloom::{name}" for name in PLUGINS}
