"""The generation request: the one object that Python and the command line fill."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, InstanceOf

from tara.inference.active_adapter import ActiveAdapter
from tara.inference.binding import find_words
from tara.inference.places import parse_places
from tara.inference.settings import GenerationSettings
from tara.storage.images import read_image

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class GenerationRequest(BaseModel):
    """A prompt, its adapters, one image for each seed, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    adapters: tuple[InstanceOf[ActiveAdapter], ...] = ()
    seeds: tuple[Seed, ...] = (0,)
    settings: GenerationSettings = GenerationSettings()

    def check(self) -> None:
        """Refuse what needs no base to be seen, because that may take minutes to load.

        Raises:
            TaraError: for an unreadable image, or an adapter whose words are unknown, missing or ambiguous.
        """
        for image in (self.settings.image, self.settings.mask):
            if image is not None and not hasattr(image, "convert"):
                read_image(image)  # pyright: ignore[reportArgumentType]
        composer = self.settings.composer_for(self.adapters)
        if composer.masked or composer.regional:
            find_words(self.prompt, self.adapters)
        parse_places(self.settings.region, {active.rare_word for active in self.adapters})
