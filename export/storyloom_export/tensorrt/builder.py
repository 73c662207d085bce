"""``storyloom-export tensorrt``: engines from an export, built on a GPU of the kind that they will run on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from storyloom_export.artefact import Artefact, ArtefactError, base_of
from storyloom_export.functions import DOMAIN
from storyloom_export.sizes import Profile, profiles_of, shapes_of
from storyloom_export.tensorrt.operators import PLUGINS
from storyloom_export.tensorrt.platform import Platform
from storyloom_export.tensorrt.plugins import NAMESPACE
from storyloom_export.tensorrt.store import EngineKey, ProfileRecord, default_folder, is_built, write_engine
from storyloom_model.package import ModelPackage

TIMING_CACHE = "timing.cache"


def components_to_build(artefact: Artefact) -> list[str]:
    """What gets an engine: every component but the UNet's adapters, which are put into its engine."""
    return [name for name in artefact.record.components if base_of(name) == name]


def key_of(artefact: Artefact, component: str, platform: Platform, profiles: Sequence[Profile] = ()) -> EngineKey:
    """What an engine of a component depends on."""
    record = artefact.record
    return EngineKey(
        component=component,
        package=record.package,
        package_hash=record.package_hash,
        dtype=record.dtype,
        gpu=platform.gpu.key,
        tensorrt=platform.version,
        profiles=tuple(ProfileRecord.of(profile) for profile in profiles),
    )


def build_engine(
    package: ModelPackage, artefact: Artefact, component: str, buckets: Sequence[int], platform: Platform
) -> tuple[Path, bool]:
    """Builds an engine of a component, or finds the one that was built of and for the same.

    The network is strongly typed: its types are those of the export. Weights can be refitted from another ONNX file,
    which is how an adapter is put in. Tactic timings are kept beside the engines and make the next build faster.

    Args:
        package: the package.
        artefact: its export.
        component: one of ``components_to_build``.
        buckets: row buckets, ascending.
        platform: where to build.

    Returns:
        The engine's file, and whether it was built now.

    Raises:
        ArtefactError: TensorRT's parser or builder refuses the graph.
    """
    folder = default_folder(package.folder)
    profiles = profiles_of(package, artefact.record, component, buckets)
    key = key_of(artefact, component, platform, profiles)
    file = folder / key.file_name()
    if is_built(folder, key):
        return file, False
    if component == "unet":
        shape = shapes_of(artefact.record.components[component], profiles[-1].most)["previous_maps"]
        platform.register(platform.gpu.architecture, math.prod(shape[-2:]))
    content = _build(platform.library, artefact, component, profiles, folder / TIMING_CACHE)
    return write_engine(folder, key, content), True


def for_tensorrt(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph as TensorRT's parser wants it: nodes that have a plugin name its namespace."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for node in made.graph.node:
        if node.domain == DOMAIN and node.op_type in PLUGINS:
            node.attribute.append(onnx.helper.make_attribute("plugin_namespace", NAMESPACE))
    return made


def _build(trt: Any, artefact: Artefact, component: str, profiles: Sequence[Profile], cache_file: Path) -> bytes:
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # From TensorRT 11 on every network is strongly typed, and the flag does nothing.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    path = artefact.component(component)
    model = for_tensorrt(onnx.load(path, load_external_data=False))
    if not parser.parse(model.SerializeToString(), str(path)):
        errors = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
        raise ArtefactError(
            f"TensorRT {trt.__version__}'s parser refuses {path}: {errors}; make the export anew with: "
            "storyloom-export onnx PACKAGE, or use --backend onnxruntime"
        )
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.REFIT)
    config.set_timing_cache(config.create_timing_cache(_read(cache_file)), False)
    record = artefact.record.components[component]
    for sizes in profiles:
        profile = builder.create_optimization_profile()
        shapes = [shapes_of(record, part) for part in (sizes.least, sizes.best, sizes.most)]
        for tensor in record.inputs:
            profile.set_shape(tensor.name, *(part[tensor.name] for part in shapes))
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ArtefactError(
            f"TensorRT cannot build an engine of {path}; its log says why; fewer --buckets take less memory"
        )
    cache_file.parent.mkdir(parents=True, exist_ok=True)
    cache_file.write_bytes(config.get_timing_cache().serialize())
    return bytes(engine)


def _read(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""
