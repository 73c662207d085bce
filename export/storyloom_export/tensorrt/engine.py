"""``storyloom-export tensorrt``: engines from an export, built on a GPU of the kind that they will run on."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from storyloom_export.artefact import Artefact, ArtefactError, ComponentRecord
from storyloom_export.functions import DOMAIN
from storyloom_export.tensorrt.operators import PLUGINS
from storyloom_export.tensorrt.plugins import NAMESPACE, register

OLDEST = (10, 7)
"""The first TensorRT in which a plugin wins over a function of the same name."""


@dataclass(frozen=True)
class Profile:
    """Sizes that an engine takes: each free size at least, at best and at most."""

    least: Mapping[str, int]
    best: Mapping[str, int]
    most: Mapping[str, int]


@dataclass(frozen=True)
class EngineKey:
    """All that an engine depends on; engines of other keys are other files."""

    component: str
    package_hash: str
    dtype: str
    gpu: str
    tensorrt: str
    profiles: tuple[Profile, ...]

    def file_name(self) -> str:
        """Such as "unet-0f3a91c2.engine"."""
        content = json.dumps(asdict(self), sort_keys=True, default=dict)
        return f"{self.component}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.engine"


def row_profiles(buckets: tuple[int, ...], others: Mapping[str, int]) -> list[Profile]:
    """One profile for each row bucket: from above the bucket before it to itself, best when it is full.

    Args:
        buckets: such as 2, 4, 8, 16, in ascending order.
        others: the other free sizes, which are fixed.
    """
    profiles = []
    for before, rows in zip((0, *buckets), buckets, strict=False):
        full = {**others, "rows": rows, "sources": rows}
        profiles.append(Profile({**full, "rows": before + 1, "sources": 1}, full, full))
    return profiles


def shape_of(record: ComponentRecord, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Shapes of a component's inputs at given free sizes.

    Raises:
        ValueError: a free size of the component is not among them.
    """
    shapes = {}
    for tensor in record.inputs:
        shape = []
        for size in tensor.shape:
            if isinstance(size, str):
                factor, _, name = size.rpartition("*")
                if name not in sizes:
                    raise ValueError(f"input {tensor.name} needs {name}; known are {', '.join(sizes)}")
                shape.append(int(factor or 1) * sizes[name])
            else:
                shape.append(size)
        shapes[tensor.name] = tuple(shape)
    return shapes


def for_tensorrt(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph as TensorRT's parser wants it: nodes that have a plugin name its namespace."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for node in made.graph.node:
        if node.domain == DOMAIN and node.op_type in PLUGINS:
            node.attribute.append(onnx.helper.make_attribute("plugin_namespace", NAMESPACE))
    return made


def check_tensorrt() -> Any:
    """The TensorRT package.

    Raises:
        ArtefactError: it is not installed, or too old.
    """
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise ArtefactError(
            f"TensorRT cannot be imported ({error}); install it from NVIDIA's index, 10.7 or newer, on the machine "
            "with the GPU: pip install tensorrt-cu13 --extra-index-url https://pypi.nvidia.com"
        ) from error
    found = tuple(int(part) for part in trt.__version__.split(".")[:2])
    if found < OLDEST:
        raise ArtefactError(f"TensorRT {trt.__version__} is too old for our plugins; install 10.7 or newer")
    return trt


def build_engine(artefact: Artefact, component: str, profiles: list[Profile], folder: Path, cache: Path) -> Path:
    """Builds an engine of a UNet, or finds the one that was built for the same GPU, TensorRT, package and profiles.

    The network is strongly typed: its types are those of the export. Weights can be refitted from another ONNX file,
    which is how an adapter is put in. Tactic timings go to ``cache`` and make the next build faster.

    Raises:
        ArtefactError: TensorRT is missing, or its parser or builder refuses the graph.
    """
    trt = check_tensorrt()
    import torch

    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    key = EngineKey(
        component, artefact.record.package_hash, artefact.record.dtype, f"{name} sm_{major}{minor}", trt.__version__,
        tuple(profiles),
    )  # fmt: skip
    file = folder / key.file_name()
    if file.exists():
        return file
    height, width = shape_of(artefact.record.components[component], profiles[-1].most)["previous_maps"][-2:]
    register(10 * major + minor, height * width)
    engine = _build(trt, artefact, component, profiles, cache)
    folder.mkdir(parents=True, exist_ok=True)
    file.write_bytes(engine)
    return file


def _build(trt: Any, artefact: Artefact, component: str, profiles: list[Profile], cache: Path) -> bytes:
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # From TensorRT 11 on every network is strongly typed, and the flag is gone.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    path = artefact.component(component)
    model = for_tensorrt(onnx.load(path, load_external_data=False))
    if not parser.parse(model.SerializeToString(), str(path)):
        errors = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
        raise ArtefactError(f"TensorRT's parser refuses {path}: {errors}")
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.REFIT)
    config.set_timing_cache(config.create_timing_cache(cache.read_bytes() if cache.exists() else b""), False)
    for sizes in profiles:
        profile = builder.create_optimization_profile()
        record = artefact.record.components[component]
        shapes = [shape_of(record, part) for part in (sizes.least, sizes.best, sizes.most)]
        for tensor in record.inputs:
            profile.set_shape(tensor.name, *(part[tensor.name] for part in shapes))
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ArtefactError(f"TensorRT cannot build an engine of {path}; its log says why")
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_bytes(config.get_timing_cache().serialize())
    return bytes(engine)


def refit(trt: Any, engine: Any, artefact: Artefact, component: str) -> None:
    """Puts the weights of another component of the same graph, such as "unet.amsa", into an engine.

    Raises:
        ArtefactError: the graph's weights do not fit the engine.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    refitter = trt.Refitter(engine, logger)
    path = artefact.component(component)
    if not trt.OnnxParserRefitter(refitter, logger).refit_from_file(str(path)) or not refitter.refit_cuda_engine():
        raise ArtefactError(f"the weights of {path} do not fit the engine; export and build both anew")
