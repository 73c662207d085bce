"""Q/DQ nodes: where they go, what they cost, and ModelOpt's ranges where it is installed."""

import importlib.util
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from typer.testing import CliRunner

from storyloom_export.artefact import Artefact, ArtefactError, ComponentRecord, Quantization
from storyloom_export.cli import app
from storyloom_export.memory import DeviceMemory
from storyloom_export.onnx_files import write_graph
from storyloom_export.providers import choose
from storyloom_export.quantization import OPSET, Ranges, calibrate, insert_pairs
from storyloom_export.session import Session
from storyloom_export.tensorrt.operators import supported
from storyloom_export.verify import QUANTIZED_TOLERANCES, tolerance_of
from storyloom_model.components import load_components
from storyloom_model.denoiser import Denoiser
from storyloom_model.package import ModelPackage
from tests.export.running import lone_rows
from tests.model.tiny import tiny_job

LAYERS = ("down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")


def run(file: Path, unet: ComponentRecord, kind: Quantization) -> torch.Tensor:
    outputs = {"prediction": ((2, 4, 8, 8), torch.float32), "maps": ((1, 1, 8, 8), torch.float32)}
    memory = DeviceMemory(torch.device("cpu"))
    session = Session(file, memory, choose("cpu", memory, "float32", quantization=kind))
    return session.run(lone_rows(unet, 2), outputs)[0]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_layers_with_ranges_get_pairs_and_others_none(
    package: ModelPackage, artefact: Artefact, kind: Quantization, tmp_path: Path
) -> None:
    model = ir.load(artefact.component("unet"))
    for one in (model, *model.functions.values()):
        one.opset_imports[""] = OPSET
    weights = load_components(package).unet.state_dict()
    ranges = {name: Ranges(4.0, weights[f"{name}.weight"].flatten(1).abs().amax(1)) for name in LAYERS}
    assert insert_pairs(model, ranges, kind) == len(LAYERS)
    write_graph(model, tmp_path / "unet.onnx")
    graph = onnx.load(tmp_path / "unet.onnx", load_external_data=False).graph
    quantised = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantised) == sum(node.op_type == "DequantizeLinear" for node in graph.node) == 2 * len(LAYERS)
    # Weights keep their names: adapters and refits find them.
    assert {f"{name}.weight" for name in LAYERS} <= {node.input[0] for node in quantised}
    unet = artefact.record.components["unet"]
    exact, rounded = run(artefact.component("unet"), unet, "none"), run(tmp_path / "unet.onnx", unet, kind)
    error = (exact - rounded).abs().max() / exact.abs().max()
    assert 0 < error < 0.1
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(supported())


def test_a_quantised_export_has_a_tolerance_of_its_own(artefact: Artefact) -> None:
    record = artefact.record.model_copy(update={"quantization": "int8"})
    assert tolerance_of(record) == QUANTIZED_TOLERANCES["int8"] != tolerance_of(artefact.record)


def test_without_modelopt_the_error_says_what_to_install(package: ModelPackage, tmp_path: Path) -> None:
    if importlib.util.find_spec("modelopt") is not None:
        pytest.skip("ModelOpt is installed")
    with pytest.raises(ArtefactError, match=r"quantising to fp8 needs NVIDIA's ModelOpt.*pip install 'storyloom\[qu"):
        calibrate(None, "fp8", lambda unet: None)
    refused = CliRunner().invoke(app, ["onnx", str(package.folder), str(tmp_path / "out"), "--quantize", "int8"])
    assert refused.exit_code == 2
    assert "storyloom[quantize]" in refused.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_modelopt_finds_ranges_of_the_layers(package: ModelPackage, kind: Quantization) -> None:
    pytest.importorskip("modelopt.torch.quantization", reason="ModelOpt is not installed: NOT CHECKED")
    loaded = load_components(package)

    def story(unet: Any) -> None:
        loaded.unet = unet
        denoiser = Denoiser(package, loaded)
        denoiser.step([denoiser.encode(tiny_job(2, adapter="none"))])

    found = calibrate(loaded.unet, kind, story)
    assert set(LAYERS) <= set(found)
    assert not [name for name in found if name.startswith(("conv_in", "conv_out", "time_embedding"))]
    outputs = loaded.unet.get_submodule(LAYERS[0]).weight.shape[0]
    assert found[LAYERS[0]].weights.numel() == (outputs if kind == "int8" else 1)
