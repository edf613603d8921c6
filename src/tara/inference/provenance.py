"""How a picture was made, kept inside the picture's own PNG file."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field, ValidationError

from tara.adapters.card import tara_version
from tara.errors import TaraError
from tara.families.settings import BASE, PREDICTION, REVISION, VAE, VARIANT, Prediction
from tara.inference.composers import COMPOSERS

if TYPE_CHECKING:
    from PIL import Image

KEY = "tara"
FOLDERS_ABOVE = 3  # of a picture, in which its files are looked for too


class DrawingSettings(BaseModel, frozen=True, extra="forbid"):
    """How pictures are drawn, by the names of `tara.Studio`; the descriptions are the command line's help."""

    base: str = Field("toyland", description=BASE)
    revision: str | None = Field(None, description=REVISION)
    variant: str | None = Field(None, description=VARIANT)
    vae: str | None = Field(None, description=VAE)
    prediction_type: Prediction | None = Field(None, description=PREDICTION)
    precision: Literal["fp32", "fp16", "bf16"] | None = Field(
        None,
        description="Precision of the base; if left out bf16 or fp16 on CUDA, as the GPU can, fp32 elsewhere",
    )
    negative_prompt: str | None = Field(None, description="What the pictures should not show; adapters never act on it")
    guidance_scale: float | None = Field(None, ge=0, le=100, description="Guidance scale; the base's own if left out")
    steps: int = Field(30, ge=1, le=1000, description="Denoising steps")
    scheduler: str | None = Field(
        None,
        description="Sampler: ddim, ddpm, dpm, euler, euler_a, heun, lcm, pndm or unipc; the base's own if left out. "
        "dpm is DPM++, euler_a is Euler ancestral, lcm is for bases made for few steps",
    )
    width: int | None = Field(None, ge=8, le=8192, multiple_of=8, description="Width in pixels; the base's own")
    height: int | None = Field(None, ge=8, le=8192, multiple_of=8, description="Height in pixels; the base's own")
    image: Path | None = Field(None, description="Picture to start from (image-to-image)")
    strength: float | None = Field(None, gt=0, le=1, description="How far to move away from --image: near 0 to 1")
    mask: Path | None = Field(None, description="Redraw only where this picture is white (inpainting of --image)")
    context: Literal["prompt", "bank", "delta"] | None = Field(
        None, description="Where a rare word's embedding is taken from; what the adapter says if left out"
    )


class PictureSettings(DrawingSettings, frozen=True, extra="forbid"):
    """The same with the way in which adapters are put together."""

    composer: str = Field(
        "tara", description="; ".join(f"{name}: {composer.meaning}" for name, composer in COMPOSERS.items())
    )


class UsedFile(BaseModel, frozen=True):
    """A file that a picture depends on: as it was named (with options, for an adapter), and its content."""

    given: str
    path: str
    sha256: str


class Origin(BaseModel, frozen=True):
    """Everything that it takes to draw one picture again; ``folder`` is where relative paths start."""

    prompt: str
    seed: int = Field(ge=0, lt=2**63)
    adapters: tuple[UsedFile, ...] = ()
    inputs: tuple[UsedFile, ...] = ()
    settings: PictureSettings = Field(default_factory=lambda: PictureSettings.model_validate({}))
    tara_version: str = Field(default_factory=tara_version)


def used_file(path: Path, given: str | None = None) -> UsedFile:
    """Name a file and its content."""
    try:
        digest = _digest(path)
    except OSError as failure:
        raise TaraError(f"'{path}' cannot be read ({failure.strerror}). Check its path.") from failure
    return UsedFile(given=given or str(path), path=str(path), sha256=digest)


def relocated(origin: Origin, picture: Path) -> Origin:
    """The same origin with its files where they are now: where it names them, or seen from the picture's folders.

    A picture tells no absolute path of its own accord: it may be shown to everybody.

    A file is known by its content. One that is nowhere keeps its name, and so does a base that is no file or folder.
    """

    def place(name: str, sha256: str | None = None) -> str:
        above = picture.absolute().parents[:FOLDERS_ABOVE]
        for path in (Path(name), *(folder / name for folder in above), picture.parent / Path(name).name):
            if path.exists() if sha256 is None else path.is_file() and _digest(path) == sha256:
                return name if path == Path(name) else str(path)
        return name

    def moved(file: UsedFile) -> UsedFile:
        path = place(file.path, file.sha256)
        # as named, `rex.safetensors:0.8`, it may have options behind its path
        named = Path(file.given) == Path(file.path) or ":" not in file.given
        options = "" if named else ":" + file.given.rpartition(":")[2]
        return file if path == file.path else UsedFile(given=path + options, path=path, sha256=file.sha256)

    inputs, settings = {file.path: moved(file) for file in origin.inputs}, origin.settings
    changes: dict[str, object] = {"base": place(settings.base)}
    if settings.vae is not None:
        changes["vae"] = place(settings.vae)
    for name, path in (("image", settings.image), ("mask", settings.mask)):
        if str(path) in inputs:
            changes[name] = Path(inputs[str(path)].path)
    return origin.model_copy(
        update={
            "adapters": tuple(moved(file) for file in origin.adapters),
            "inputs": tuple(inputs.values()),
            "settings": settings.model_copy(update=changes),
        }
    )


def png_with_origin(image: Image.Image, origin: Origin) -> bytes:
    """The picture as a PNG file that tells how it was made."""
    from PIL import PngImagePlugin

    information = PngImagePlugin.PngInfo()
    information.add_itxt(KEY, origin.model_dump_json())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=information)
    return buffer.getvalue()


def read_origin(path: Path) -> Origin:
    """Read how a picture was made.

    Raises:
        TaraError: when the file is no picture or does not tell.
    """
    from PIL import Image, UnidentifiedImageError

    from tara.storage.images import check_room

    try:
        with Image.open(path) as image:
            check_room(path, image)
            image.load()  # text chunks may stand after the pixels
            text: object = image.info.get(KEY)
    # ValueError: a text that unpacks to far more than its chunk
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as failure:
        reason = getattr(failure, "strerror", None) or "it is no whole picture"
        raise TaraError(f"'{path}' cannot be read ({reason}). Give a PNG that `tara generate` wrote.") from failure
    if not isinstance(text, str):
        raise TaraError(f"'{path}' does not tell how it was made. Give a PNG as `tara generate` wrote it, unedited.")
    try:
        return Origin.model_validate_json(text)
    except ValidationError as failure:
        raise TaraError(
            f"'{path}' tells how it was made in a form unknown to this version of tara: it is newer, or damaged. "
            "Update tara, or give another picture."
        ) from (failure)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
