"""`python -m storyloom_training.identity`: trains a package's identity encoders, or continues where it stopped."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from storyloom_training.identity.pipeline import IdentityPipeline

STAGES = ("recogniser", "image", "detector", "segmenter", "package", "measure")


def main() -> None:
    parser = argparse.ArgumentParser(prog="storyloom_training.identity", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/identity"), help="renders, checkpoints and losses")
    parser.add_argument("--package", type=Path, default=Path("weights/storyloom-mini"), help="to write into")
    parser.add_argument("--record", type=Path, default=Path("benchmarks/results/identity/encoders.json"),
                        help="where the figures on held-out people go")  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--until", choices=STAGES, default="measure", help="stop after this stage")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipeline = IdentityPipeline(options.folder, workers=options.workers)
    stages = STAGES[: STAGES.index(options.until) + 1]
    for stage in stages:
        match stage:
            case "recogniser":
                _ = pipeline.recogniser
            case "image":
                _ = pipeline.reader
            case "detector":
                _ = pipeline.detector
            case "segmenter":
                _ = pipeline.segmenter
            case "package":
                pipeline.write(options.package)
                print(f"wrote the encoders into {options.package}")
            case _:
                options.record.parent.mkdir(parents=True, exist_ok=True)
                record = pipeline.measure(options.package)
                options.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
                print(f"wrote {options.record}")


if __name__ == "__main__":
    main()
