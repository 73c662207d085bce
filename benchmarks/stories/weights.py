"""Which metrics a run has: those whose weights somebody gives, and a line about each that it goes without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.quality.judge import Judge
from benchmarks.quality.network import Reader
from benchmarks.stories.built_in import FOUND, IDENTITY, IDENTITY_R, ReaderMetrics, identity_agreement
from benchmarks.stories.clip import ClipMetrics, load_clip
from benchmarks.stories.dino import DINO_I, DinoMetric
from benchmarks.stories.faces import FACE_SIM, FACE_SIM_R, FACES, FaceMetrics, PackFaces
from benchmarks.stories.metric import Column, LeftOut, Metric, WeightsError
from benchmarks.stories.plain import PlainMetrics
from benchmarks.stories.q_align_scores import QAlignMetric
from storyloom_model.identity.encoders.errors import EncodersError
from storyloom_model.identity.encoders.faces import FaceEncoder


@dataclass(frozen=True)
class Weights:
    """Folders of weights, None for those that nobody gives.

    Attributes:
        clip: a CLIP of transformers or open_clip.
        dino: DINOv2 of transformers.
        faces: an insightface pack, as `FOLDER/models/PACK/*.onnx`.
        built_in: faces of the built-in model; given where its pictures are scored.
    """

    clip: Path | None = None
    dino: Path | None = None
    faces: Path | None = None
    built_in: Path | None = None


def read_weights_file(file: Path) -> dict[str, Path]:
    """The folders that a YAML file names: `clip`, `dino` and `faces`, relative to the file.

    Raises:
        WeightsError: it cannot be read, or names something else.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise WeightsError(f"{file} cannot be read: {error}") from error
    known = ("clip", "dino", "faces")
    if not isinstance(content, dict) or not all(
        name in known and isinstance(value, str) for name, value in content.items()
    ):
        raise WeightsError(f"{file} should have lines like `clip: FOLDER`, of {', '.join(known)}")
    return {name: file.parent / Path(value).expanduser() for name, value in content.items()}


def load_metrics(weights: Weights, out: Path, device: str) -> tuple[list[Metric], list[LeftOut]]:
    """The metrics of a run, in the order of the table's columns.

    Args:
        out: the run's folder, where Q-Align's scores may be.
        device: torch device for CLIP and DINO.

    Raises:
        WeightsError: weights that were given cannot be used.
    """
    metrics: list[Metric] = []
    left_out: list[LeftOut] = []

    def add(folder: Path | None, load: Callable[[Path], Metric], columns: tuple[Column, ...], wanted: str) -> None:
        if folder is None:
            left_out.append(LeftOut(tuple(column.heading for column in columns), wanted))
        else:
            metrics.append(load(folder))

    add(
        weights.clip,
        lambda folder: ClipMetrics(load_clip(folder, device)),
        ClipMetrics.columns,
        "give --clip the folder of openai/clip-vit-large-patch14, or of an open_clip model",
    )
    add(
        weights.dino,
        lambda folder: DinoMetric(folder, device),
        (DINO_I,),
        "give --dino the folder of facebook/dinov2-base",
    )
    add(
        weights.faces,
        lambda folder: FaceMetrics(PackFaces(_faces(folder, device))),
        (FACE_SIM, FACE_SIM_R, FACES),
        "give --faces a folder with an insightface pack as models/buffalo_l/*.onnx",
    )
    quality = QAlignMetric.of(out)
    if quality is None:
        wanted = f"score the pictures with python -m benchmarks.stories.q_align {out}, then repeat this command"
        left_out.append(LeftOut(tuple(column.heading for column in QAlignMetric.columns), wanted))
    else:
        metrics.append(quality)
    if weights.built_in is None:
        columns = (*ReaderMetrics.columns, IDENTITY, IDENTITY_R, FOUND)
        wanted = "they read the illustrations of the built-in model alone (--built-in)"
        left_out.append(LeftOut(tuple(column.heading for column in columns), wanted))
    else:
        metrics += [
            ReaderMetrics(Reader.load()),
            identity_agreement(_faces(weights.built_in, "cpu"), Judge.load()),
        ]
    return [*metrics, PlainMetrics()], left_out


def _faces(folder: Path, device: str) -> FaceEncoder:
    try:
        return FaceEncoder.load(folder, device)
    except EncodersError as error:
        raise WeightsError(str(error)) from error
