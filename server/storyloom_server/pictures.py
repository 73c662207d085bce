from dataclasses import dataclass


@dataclass
class ImageLimits:
    megapixels: float = 16


def read_image(found, path, data, limits):
    pass
