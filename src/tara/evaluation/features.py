"""What models made of pictures, kept on disk: a second look computes nothing anew."""

import hashlib
import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tara.errors import TaraWarning
from tara.evaluation.encoders import ImageEncoder
from tara.storage.files import atomic_write

DIGEST = hashlib.sha256().digest_size
Compute = Callable[[list[Image.Image]], Iterable[NDArray[np.float32]]]


class FeatureCache:
    """Arrays by what they were made from: a model and its question, and a picture's pixels.

    Args:
        folder: where they are kept.
        batch_size: pictures that a model is given together.
    """

    def __init__(self, folder: Path, batch_size: int) -> None:
        self._folder, self._batch_size = folder, batch_size

    def vectors(self, encoder: ImageEncoder, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """The encoder's vectors (images, width) of one picture or several."""
        return np.stack(self(encoder.key, images, encoder.images))

    def __call__(self, maker: str, images: Sequence[Image.Image], compute: Compute) -> list[NDArray[np.float32]]:
        """One array for each picture, from disk or computed.

        Args:
            maker: everything but the picture that the array depends on.
            images: RGB pictures.
            compute: arrays for pictures that have none yet, so many together as the cache was told.
        """
        paths = [self._path(maker, image) for image in images]
        known = {path: array for path in paths if (array := _read(path)) is not None}
        missing = {path: image for path, image in zip(paths, images, strict=True) if path not in known}
        waiting = list(missing.items())
        for start in range(0, len(waiting), self._batch_size):
            some = waiting[start : start + self._batch_size]
            for (path, _), array in zip(some, compute([image for _, image in some]), strict=True):
                atomic_write(path, _npy(array))
                known[path] = array
        return [known[path] for path in paths]

    def _path(self, maker: str, image: Image.Image) -> Path:
        digest = hashlib.sha256(f"{maker} {image.mode} {image.size}".encode())
        digest.update(image.tobytes())
        name = digest.hexdigest()
        return self._folder / name[:2] / f"{name[2:]}.npy"


def _read(path: Path) -> NDArray[np.float32] | None:
    """An array, None where there is none yet; one that has been damaged since is told of, and made anew."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    array, digest = content[:-DIGEST], content[-DIGEST:]
    if hashlib.sha256(array).digest() == digest:
        return np.load(io.BytesIO(array), allow_pickle=False)
    warnings.warn(f"'{path}' in the cache was damaged and is computed anew.", TaraWarning, stacklevel=2)
    return None


def _npy(array: NDArray[np.float32]) -> bytes:
    """An array as an ``.npy`` file with the digest of its content behind it, which readers of such files pass over."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest()
