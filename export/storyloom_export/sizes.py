"""The free sizes of a package's components: their names, their numbers for a picture, and the shapes that follow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from storyloom_export.artefact import ComponentRecord, ExportRecord, base_of
from storyloom_model.package import ModelPackage

Sizes = Mapping[str, int]
"""Free sizes by the names that they have in the graphs, such as rows=12."""

_FIT_LATENTS = 8
"""Height and width of what ``storyloom_model.decoder`` decodes at its start, to fit the projection for previews."""
_USUAL_STATES = 257
"""Of CLIP's large vision towers at 224 pixels."""


@dataclass(frozen=True)
class Profile:
    """Sizes that an engine takes: each free size at least, at best and at most."""

    least: Sizes
    best: Sizes
    most: Sizes


def package_sizes(
    package: ModelPackage,
    record: ExportRecord,
    rows: int,
    characters: int,
    pixels: tuple[int, int] | None = None,
) -> dict[str, int]:
    """The free sizes of every component for one story.

    Args:
        package: the package.
        record: of its export.
        rows: of a UNet call.
        characters: of a story.
        pixels: width and height; the package's default if not given.
    """
    defaults = package.manifest.defaults
    width, height = pixels or (defaults.width, defaults.height)
    config = json.loads((package.folder / "vae" / "config.json").read_text(encoding="utf-8"))
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    multiple = record.latent_multiple
    sizes = {"rows": rows, "sources": rows, "characters": characters, "texts": rows, "pictures": 1}
    # Most stories have no references; each of these sizes is then 1.
    sizes |= {"identity_tokens": 1, "streams": 1, "references": 1, "states": _states(record)}
    sizes["tokens"] = int(record.components["text_encoder"].inputs[0].shape[1])
    for name, length in (("height", height), ("width", width)):
        sizes |= {name: length, f"{name}_by_{factor}": length // factor, f"latent_{name}": length // factor}
        sizes[f"latent_{name}_by_{multiple}" if multiple > 1 else f"latent_{name}"] = length // factor // multiple
    return sizes


def _states(record: ExportRecord) -> int:
    """Hidden states that the image encoder gives of a picture; as many as a common one where there is none."""
    encoder = record.components.get("image_encoder")
    return _USUAL_STATES if encoder is None else int(encoder.outputs[1].shape[1])


def profiles_of(
    package: ModelPackage, record: ExportRecord, component: str, buckets: Sequence[int]
) -> tuple[Profile, ...]:
    """The profiles that serve a component: every picture size of the package, and for rows one for each bucket.

    Args:
        package: the package.
        record: of its export.
        component: its name.
        buckets: such as 2, 4, 8, 16, in ascending order.
    """
    cast = package.manifest.limits.max_characters
    sizes = [package_sizes(package, record, buckets[-1], cast, pixels) for pixels in package.manifest.sizes]
    small = {name: min(one[name] for one in sizes) for name in sizes[0]} | {"characters": 1}
    large = {name: max(one[name] for one in sizes) for name in sizes[0]}
    best = package_sizes(package, record, buckets[-1], cast)
    if component == "vae_decoder":
        fit = {name: min(small[name], _FIT_LATENTS) for name in ("latent_height", "latent_width")}
        return (Profile(small | fit, best, large),)
    if base_of(component) == "unet":
        tokens = {"identity_tokens": package.manifest.limits.max_identity_tokens, "streams": cast}
        return row_profiles(buckets, Profile(small, best, large | tokens))
    # Two at most of what is taken one by one: what `storyloom-export verify` gives.
    return (Profile(small | {"texts": 1, "states": 1}, best, large | {"pictures": 2, "references": 2}),)


def row_profiles(buckets: Sequence[int], others: Profile) -> tuple[Profile, ...]:
    """One profile for each row bucket: from above the bucket before it to itself, best when it is full.

    Args:
        buckets: such as 2, 4, 8, 16, in ascending order.
        others: the other free sizes.
    """
    profiles = []
    for before, rows in zip((0, *buckets), buckets, strict=False):
        full = {"rows": rows, "sources": rows}
        fewest = {"rows": before + 1, "sources": 1}
        profiles.append(Profile({**others.least, **fewest}, {**others.best, **full}, {**others.most, **full}))
    return tuple(profiles)


def shapes_of(record: ComponentRecord, sizes: Sizes) -> dict[str, tuple[int, ...]]:
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
