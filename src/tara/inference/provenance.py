"""The provenance of an image, stored in its PNG file."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError

from tara.errors import TaraError, tara_version
from tara.families.settings import BaseSettings
from tara.inference.settings import GenerationSettings
from tara.storage.files import digest

if TYPE_CHECKING:
    from PIL import Image

    from tara.inference.confining import ImageRegions
    from tara.inference.request import GenerationRequest

PROVENANCE_KEY = "tara"  # the text chunk of a PNG
FOLDERS_ABOVE = 3  # number of folders above an image in which its files are also searched


class UsedFile(BaseModel, frozen=True):
    """A file that an image depends on: the name as given (an adapter's with its options), path and SHA-256."""

    given: str
    path: str
    sha256: str


class StoredRegions(BaseModel, frozen=True):
    """Where each adapter acted. ``cells`` are rows from the top, with the number of the word from 1; 0: no adapter."""

    words: tuple[str, ...]
    cells: tuple[tuple[int, ...], ...]


class Provenance(BaseModel, frozen=True):
    """Everything that is needed to generate one image again."""

    prompt: str
    seed: int = Field(ge=0, lt=2**63)
    adapters: tuple[UsedFile, ...] = ()
    inputs: tuple[UsedFile, ...] = ()
    """Other files that it depends on: the start image, masks, PEFT's configs."""
    base: BaseSettings
    settings: GenerationSettings = GenerationSettings()
    regions: StoredRegions | None = None
    """The regions that the composer `regions` used; None for other composers."""
    tara_version: str = Field(default_factory=tara_version)


@dataclass(frozen=True, kw_only=True, eq=False)
class RequestProvenance:
    """A request and everything else that its images depend on: the base and the contents of files."""

    request: GenerationRequest
    base: BaseSettings
    adapters: tuple[UsedFile, ...]

    @cached_property
    def inputs(self) -> tuple[UsedFile, ...]:
        """The files other than adapters. Raises TaraError if one cannot be read."""
        from tara.adapters.formats.peft_config import config_beside  # here, because it brings torch

        settings = self.request.settings
        masks = [Path(region.partition("=")[2]) for region in settings.region]
        configs = [config_beside(Path(file.path)) for file in self.adapters]
        paths = (settings.image, settings.mask, *(mask for mask in masks if mask.is_file()), *configs)
        return tuple(used_file(path) for path in paths if isinstance(path, Path))

    def of_image(self, seed: int, regions: ImageRegions | None = None, **changes: Any) -> Provenance:
        """The provenance of the image with this seed. ``changes`` are settings that differ from the request's."""
        found = None
        if regions is not None:
            found = StoredRegions(words=regions.words, cells=tuple(map(tuple, regions.labels.tolist())))
        return Provenance(
            prompt=self.request.prompt,
            seed=seed,
            adapters=self.adapters,
            inputs=self.inputs,
            base=self.base,
            settings=self.request.settings.model_copy(update=changes),
            regions=found,
        )

    def by_name(self) -> dict[str, Any]:
        """Everything that the images depend on, as a dict for `tara.storage.outputs.output_folder`."""
        facts = self.of_image(0).model_dump(mode="json", include={"prompt", "adapters", "inputs"})
        settings = self.base.model_dump(mode="json") | self.request.settings.model_dump(mode="json")
        return {**facts, **settings, "seeds": self.request.seeds}


def used_file(path: Path, given: str | None = None) -> UsedFile:
    """A file with its SHA-256. ``given`` is its name as given by the user; None: the path."""
    try:
        sha256 = digest(path)
    except OSError as failure:
        raise TaraError(f"'{path}' cannot be read ({failure.strerror}). Check its path.") from failure
    return UsedFile(given=given or str(path), path=str(path), sha256=sha256)


def relocated(provenance: Provenance, image: Path) -> Provenance:
    """The provenance with the present paths of its files.

    Files are searched at their stored path, relative to the folders above the image, and beside the image. They are
    identified by SHA-256. A file that is not found keeps its stored path, and so does a base that is a hub id.
    """

    def place(name: str, sha256: str | None = None) -> str:
        above = image.absolute().parents[:FOLDERS_ABOVE]
        for path in (Path(name), *(folder / name for folder in above), image.parent / Path(name).name):
            if path.exists() if sha256 is None else path.is_file() and digest(path) == sha256:
                return name if path == Path(name) else str(path)
        return name

    def moved(file: UsedFile) -> UsedFile:
        path = place(file.path, file.sha256)
        # as named, `rex.safetensors:0.8`, it may have options behind its path
        named = Path(file.given) == Path(file.path) or ":" not in file.given
        options = "" if named else ":" + file.given.rpartition(":")[2]
        return file if path == file.path else UsedFile(given=path + options, path=path, sha256=file.sha256)

    inputs, base = {file.path: moved(file) for file in provenance.inputs}, provenance.base
    places = {"base": place(base.base)} | ({} if base.vae is None else {"vae": place(base.vae)})
    settings = provenance.settings
    starts = {
        name: Path(inputs[str(path)].path)
        for name, path in (("image", settings.image), ("mask", settings.mask))
        if str(path) in inputs
    }
    return provenance.model_copy(
        update={
            "adapters": tuple(moved(file) for file in provenance.adapters),
            "inputs": tuple(inputs.values()),
            "base": base.model_copy(update=places),
            "settings": settings.model_copy(update=starts),
        }
    )


def png_with_provenance(image: Image.Image, provenance: Provenance) -> bytes:
    """Encode the image as a PNG file with its provenance in a text chunk."""
    from PIL import PngImagePlugin

    information = PngImagePlugin.PngInfo()
    information.add_itxt(PROVENANCE_KEY, provenance.model_dump_json())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=information)
    return buffer.getvalue()


def read_provenance(path: Path) -> Provenance:
    """Read how an image was made.

    Raises:
        TaraError: when the file is no image, or holds no provenance.
    """
    from PIL import Image, UnidentifiedImageError

    from tara.storage.images import check_room

    try:
        with Image.open(path) as image:
            check_room(path, image)
            image.load()  # text chunks may follow the pixels
            text: object = image.info.get(PROVENANCE_KEY)
    # ValueError: a text that unpacks to far more than its chunk
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as failure:
        reason = getattr(failure, "strerror", None) or "it is no whole image"
        raise TaraError(f"'{path}' cannot be read ({reason}). Give a PNG that `tara generate` wrote.") from failure
    if not isinstance(text, str):
        raise TaraError(
            f"'{path}' does not store how it was generated. Give an unedited PNG that `tara generate` wrote."
        )
    try:
        return Provenance.model_validate_json(text)
    except ValidationError as failure:
        raise TaraError(
            f"'{path}' stores how it was generated in a form unknown to this version of tara: it is newer, or damaged. "
            "Update tara, or give another image."
        ) from failure


def was_made_as(path: Path, wanted: Provenance) -> bool:
    """Whether a file is a complete image with this provenance. The version of tara may differ."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:  # reads no pixels, because a folder may hold thousands of images of one seed
            made = Provenance.model_validate_json(image.info.get(PROVENANCE_KEY, ""))
        same = made.model_copy(update={"tara_version": wanted.tara_version, "regions": None}) == wanted
        return same and read_provenance(path) == made
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError, TaraError):
        return False  # not there, of another program, or not whole
