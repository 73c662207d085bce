"""What finds characters by their words, taken into a package: folders of Grounding DINO and of Segment Anything."""

from __future__ import annotations

import shutil
from pathlib import Path

from storyloom_model.adding.components import TRANSFORMERS, take_small_files, take_weights
from storyloom_model.adding.record import Record
from storyloom_model.identity.encoders.errors import EncodersError
from storyloom_model.identity.encoders.grounding import DETECTOR_TYPE, MASKS_TYPE, check_type
from storyloom_model.manifest import FinderFolders, Manifest
from storyloom_model.package import PackageError
from storyloom_model.redenoising.word_finder import load_word_finder

_FOLDERS = FinderFolders(detector="character_finder/detector", masks="character_finder/masks")


def take_finder(
    folder: Path, manifest: Manifest, detector: Path, masks: Path, record: Record, *, allow_pickle: bool = False
) -> Manifest:
    """Takes both into a package and loads them once, to see that they can be; nothing of them is left behind where that
    fails.

    Args:
        folder: of the package.
        manifest: of the package; it is not written.
        detector: folder of a GroundingDinoForObjectDetection of transformers, with its processor.
        masks: folder of a SamModel, with its processor.
        record: gets the files.
        allow_pickle: see ``read_weights``.

    Returns:
        The manifest with the finder in it.

    Raises:
        PackageError: the package has a finder, or a folder is not what it should be.
    """
    if manifest.character_finder is not None:
        raise PackageError("the package has a character_finder already; take it out of storyloom.yaml to replace it")
    wanted = (
        (detector, _FOLDERS.detector, DETECTOR_TYPE, "Grounding DINO"),
        (masks, _FOLDERS.masks, MASKS_TYPE, "Segment Anything"),
    )
    try:
        for source, path, kind, name in wanted:
            check_type(source, kind, name)
            take_small_files(source, folder / path)
            take_weights(source, folder / path, TRANSFORMERS, record, allow_pickle=allow_pickle)
        load_word_finder(folder, _FOLDERS, "cpu")
    except (PackageError, EncodersError) as error:
        shutil.rmtree(folder / "character_finder", ignore_errors=True)
        raise PackageError(str(error)) from error
    return manifest.model_copy(update={"character_finder": _FOLDERS})
