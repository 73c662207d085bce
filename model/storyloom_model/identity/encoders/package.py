"""The encoders of a model package, as its identity adapters need them."""

from __future__ import annotations

from collections.abc import Callable, Collection

from storyloom_model.identity.adapter import IdentityAdapter
from storyloom_model.identity.encoders.references import PartFinder, ReferenceEncoder
from storyloom_model.manifest import Encoders
from storyloom_model.package import ModelPackage


def load_reference_encoder(
    package: ModelPackage,
    encoders: Encoders,
    adapters: Collection[IdentityAdapter],
    device: str,
    part_finder: Callable[[], PartFinder],
) -> ReferenceEncoder:
    """What looks at references.

    Args:
        package: a checked package.
        encoders: those that its manifest names.
        adapters: what is to use what it says.
        device: where it runs.
        part_finder: makes what finds parts in references without a parser.

    Raises:
        EncodersError: they are not usable.
    """
    folder = package.folder
    segmenter, parser = (None if path is None else folder / path for path in (encoders.segmenter, encoders.parser))
    by_parts = any(adapter.maker.by_parts for adapter in adapters)
    return ReferenceEncoder.load(
        folder / encoders.faces,
        folder / encoders.image,
        segmenter,
        device,
        portraits=any(adapter.words is not None for adapter in adapters),
        parser=parser if by_parts else None,
        parts=part_finder() if by_parts else None,
    )
