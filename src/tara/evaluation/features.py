"""A cache on disk for model outputs, so that an interrupted or repeated evaluation computes nothing twice."""

import hashlib
import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tara.errors import TaraWarning
from tara.evaluation.models import ImageEncoder
from tara.storage.files import atomic_write

DIGEST = hashlib.sha256().digest_size
Compute = Callable[[list[Image.Image]], Iterable[NDArray[np.float32]]]


class FeatureCache:
    """A folder of arrays, keyed by model, query and pixels. The model is called with at most ``batch_size`` images."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        self._folder, self._batch_size = folder, batch_size

    def vectors(self, encoder: ImageEncoder, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """The encoder's vectors (images, width) of one image or several."""
        return np.stack(self(encoder.key, images, encoder.images))

    def __call__(self, key: str, images: Sequence[Image.Image], compute: Compute) -> list[NDArray[np.float32]]:
        """One array per RGB image, cached or computed.

        ``key`` names everything else that the array depends on: model and query.
        """
        paths = [self._path(key, image) for image in images]
        arrays = {path: array for path in paths if (array := _read(path)) is not None}
        missing = [(path, image) for path, image in dict(zip(paths, images, strict=True)).items() if path not in arrays]
        for start in range(0, len(missing), self._batch_size):
            batch = missing[start : start + self._batch_size]
            for (path, _), array in zip(batch, compute([image for _, image in batch]), strict=True):
                atomic_write(path, _npy(array))
                arrays[path] = array
        return [arrays[path] for path in paths]

    def _path(self, key: str, image: Image.Image) -> Path:
        digest = hashlib.sha256(f"{key} {image.mode} {image.size}".encode())
        digest.update(image.tobytes())
        name = digest.hexdigest()
        return self._folder / name[:2] / f"{name[2:]}.npy"


def _read(path: Path) -> NDArray[np.float32] | None:
    """A cached array. None if there is no file, or if it is damaged, which gives a warning."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    array, digest = content[:-DIGEST], content[-DIGEST:]
    if hashlib.sha256(array).digest() == digest:
        return np.load(io.BytesIO(array), allow_pickle=False)
    warnings.warn(f"'{path}' in the cache was damaged and is computed again.", TaraWarning, stacklevel=2)
    return None


def _npy(array: NDArray[np.float32]) -> bytes:
    """An array as an ``.npy`` file with a digest of its content appended. Other readers ignore the digest."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest()
