"""From a photo to the latents that it is trained with: crops, aspect-ratio buckets, masks, SDXL's sizes."""

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageOps
from torch import Tensor

from tara.core.losses import subject_weights
from tara.families.base import Base
from tara.storage.photos import Photo
from tara.training.settings import TrainSettings

SMALLEST_CROP = 0.8  # fraction of the largest crop's side; the subject stays recognisable
LONGEST_SHAPE = 2.0  # longer side over shorter side; bases have seen few images beyond it
AREA_TOLERANCE = 1 / 8  # fraction of the square's area, so that there is a bucket near every shape

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, eq=False)
class Latents:
    """One photo in every variant (crop, flipped or not): mean and deviation of its scaled latents."""

    mean: Float[Tensor, "variants channels height width"]
    deviation: Float[Tensor, "variants channels height width"]
    sizes: Int[Tensor, "variants 6"]
    """See `size_conditioning`."""
    pixel_weights: Float[Tensor, "variants 1 height width"] | None
    """Weight of each place in the loss, see `tara.core.losses.subject_weights`; None where all weigh 1."""

    @property
    def variants(self) -> int:
        return self.mean.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image's latents."""
        return tuple(self.mean.shape[1:])


def cache_latents(base: Base, photo: Photo, settings: TrainSettings) -> Latents:
    """Encode every variant of a photo. Mean and deviation are kept, because each step samples the posterior again."""
    image, resolution = photo.image, settings.resolution or base.resolution
    target = bucket_for(image.size, resolution, base.side_multiple) if settings.buckets else (resolution, resolution)
    cuts = choose_crops(image.size, settings.crops, photo.name, target)
    variants = [(cut, mirrored) for cut in cuts for mirrored in ((False, True) if settings.flip else (False,))]
    # one image at a time: this needs little memory, and the values do not depend on the number of variants
    encoded = [base.encode_images(crop_pixels(image, cut, target, mirrored)[None]) for cut, mirrored in variants]
    dtype = torch.promote_types(base.dtype, torch.float32)
    mean, deviation = (torch.cat(parts).to(base.device, dtype) for parts in zip(*encoded, strict=True))
    sizes = [size_conditioning(image, cut, target, mirrored) for cut, mirrored in variants]
    if settings.size_conditioning == "resolution":  # every image counts as an uncropped photo, as in the published code
        sizes = [(resolution, resolution, 0, 0, resolution, resolution)] * len(variants)
    pixel_weights = None
    if photo.mask is not None:
        latent = (target[0] // base.vae_scale, target[1] // base.vae_scale)
        masks = torch.stack([crop_mask(photo.mask, cut, latent, mirrored)[None] for cut, mirrored in variants])
        pixel_weights = subject_weights(masks.to(base.device, dtype), settings.background_weight)
    return Latents(mean, deviation, torch.tensor(sizes, device=base.device), pixel_weights)


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A part of an image, in the image's own pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom, as Pillow counts."""
        return (self.left, self.top, self.left + self.width, self.top + self.height)


def bucket_for(size: Size, resolution: int, multiple: int) -> Size:
    """The training size (bucket) of a photo of ``size``, if it keeps its aspect ratio.

    Both sides are multiples of ``multiple``, their product is ``resolution``² within an eighth, and neither is more
    than twice the other. Among these sizes it has the nearest aspect ratio and, if several have, the nearest area.
    """
    assert resolution % multiple == 0, "otherwise there is no square bucket"
    sides, area = range(multiple, 2 * resolution + 1, multiple), resolution**2
    buckets = [
        (width, height)
        for width in sides
        for height in sides
        if max(width, height) <= LONGEST_SHAPE * min(width, height)
        and abs(width * height - area) <= AREA_TOLERANCE * area
    ]

    def distance(bucket: Size) -> tuple[float, int]:
        # by the logarithm, because 3:2 is as far from square as 2:3
        shape = math.log(bucket[0] / bucket[1]) - math.log(size[0] / size[1])
        return round(abs(shape), 9), abs(bucket[0] * bucket[1] - area)

    return min(buckets, key=distance)


def choose_crops(size: Size, count: int, key: str, target: Size = (1, 1)) -> list[Crop]:
    """The largest central crop with the target's aspect ratio, then smaller crops at places that ``key`` determines."""
    zoom = min(size[0] / target[0], size[1] / target[1])
    widest, highest = (max(1, min(side, round(zoom * aim))) for side, aim in zip(size, target, strict=True))
    crops = [Crop(left=(size[0] - widest) // 2, top=(size[1] - highest) // 2, width=widest, height=highest)]
    chance = random.Random(key)
    for _ in range(count - 1):
        part = chance.uniform(SMALLEST_CROP, 1.0)
        width, height = max(1, round(widest * part)), max(1, round(highest * part))
        left, top = chance.randint(0, size[0] - width), chance.randint(0, size[1] - height)
        crops.append(Crop(left=left, top=top, width=width, height=height))
    return crops


def crop_pixels(image: Image.Image, crop: Crop, size: Size, flip: bool) -> Float[Tensor, "3 height width"]:
    """Cut out a crop, resize it to ``size`` (Lanczos) and scale the values to -1..1."""
    values = _cut(image, crop, size, flip, Image.Resampling.LANCZOS)
    return torch.from_numpy(values / 127.5 - 1.0).permute(2, 0, 1).contiguous()


def crop_mask(mask: Image.Image, crop: Crop, size: Size, flip: bool) -> Float[Tensor, "height width"]:
    """Cut a crop out of a mask (0 to 255) and resize it to ``size``: each value is the mean of its area, 0..1."""
    # as floating point numbers, so that the mean is not rounded to whole steps of grey
    return torch.from_numpy(_cut(mask.convert("F"), crop, size, flip, Image.Resampling.BOX) / 255.0)


def _cut(image: Image.Image, crop: Crop, size: Size, flip: bool, resampling: Image.Resampling) -> np.ndarray:
    cut = image.resize(size, resampling, box=crop.box)
    return np.asarray(ImageOps.mirror(cut) if flip else cut, dtype=np.float32)


def size_conditioning(
    image: Image.Image, crop: Crop, size: Size, flip: bool = False
) -> tuple[int, int, int, int, int, int]:
    """Original height, width; top, left in the resized image; target height, width (arXiv 2307.01952, section 2.2).

    A flipped crop is one of the mirrored image.
    """
    width, height = size
    left = image.width - crop.left - crop.width if flip else crop.left
    top, left = round(crop.top * (height / crop.height)), round(left * (width / crop.width))
    return (image.height, image.width, top, left, height, width)
