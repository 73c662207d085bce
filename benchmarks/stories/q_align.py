"""Q-Align's quality and aesthetics of made pictures: `python -m benchmarks.stories.q_align OUT --weights FOLDER`.

Q-Align (Wu et al. 2023, arXiv 2312.17090; weights q-future/one-align) comes as weights with Python code of their own,
which transformers would run, and which was written for transformers 4.36 to 4.37. So it has an extra, `q-align`, for an
environment of its own, runs only when told to, and hands over a file: OUT/q-align.json, which the next run of
`benchmarks.stories` puts into its table. Nothing of the other packages here is needed for it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

FILE = "q-align.json"
TASKS = ("quality", "aesthetics")
PICTURES = "frame-*.png"


class QAlignError(ValueError):
    """The model cannot be used. The message says what to do."""


def load(folder: Path, device: str, *, remote_code: bool) -> Any:
    """The model, whose own code has `score`.

    Raises:
        QAlignError: nobody allowed that code to run, or it cannot be loaded.
    """
    if not remote_code:
        raise QAlignError(
            f"{folder} brings Python code of its own, which scoring runs; read {folder}/*.py, and if you trust it "
            "repeat this with --allow-remote-code"
        )
    try:
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=True,
            attn_implementation="eager",
            torch_dtype=torch.float16 if device.startswith("cuda") else torch.float32,
        )
    except Exception as error:  # Foreign code may raise anything.
        raise QAlignError(
            f"{folder} can't be loaded: {type(error).__name__}: {error}; One-Align wants transformers 4.36 or 4.37: in "
            "an environment of its own, pip install 'storyloom[q-align]'"
        ) from error
    if not hasattr(model, "score"):
        raise QAlignError(f"{folder} has no score(); give the folder of q-future/one-align")
    return model.to(device).eval()


def score(model: Any, pictures: Sequence[Path]) -> list[dict[str, float]]:
    """Quality and aesthetics of each picture, from 1 to 5."""
    import torch
    from PIL import Image

    images = []
    for picture in pictures:
        with Image.open(picture) as image:
            images.append(image.convert("RGB"))
    with torch.inference_mode():
        columns = [[float(value) for value in model.score(images, task_=task, input_="image")] for task in TASKS]
    return [dict(zip(TASKS, values, strict=True)) for values in zip(*columns, strict=True)]


def missing(out: Path, known: dict[str, Any]) -> Iterator[list[Path]]:
    """The pictures of each story that have no score."""
    for record in sorted(out.glob("*/*/benchmark.json")):
        pictures = sorted(record.parent.glob(PICTURES))
        fresh = [picture for picture in pictures if digest(picture) not in known]
        if fresh:
            yield fresh


def digest(picture: Path) -> str:
    """What stands for a picture, so that another one that takes its place has no score."""
    return hashlib.sha256(picture.read_bytes()).hexdigest()[:32]


def read(out: Path) -> dict[str, Any]:
    """The scores so far, by the pictures' digests; empty where there are none."""
    file = out / FILE
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def main(arguments: Sequence[str] | None = None) -> None:
    """Scores what has no score; one story after the other, so that it may be stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of a run of benchmarks.stories")
    parser.add_argument("--weights", type=Path, required=True, help="folder of q-future/one-align")
    parser.add_argument("--allow-remote-code", action="store_true", help="run the Python code that comes with them")
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda")
    options = parser.parse_args(arguments)
    known = read(options.out)
    try:
        model = load(options.weights, options.device, remote_code=options.allow_remote_code)
    except QAlignError as error:
        sys.exit(str(error))
    for pictures in missing(options.out, known):
        for picture, values in zip(pictures, score(model, pictures), strict=True):
            known[digest(picture)] = values
        partial = options.out / f"{FILE}.partial"
        partial.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, options.out / FILE)
    print(f"{len(known)} pictures scored; run benchmarks.stories once more for the table")


if __name__ == "__main__":
    main()
