"""What one adapter learns: a concept's photos, words and captions."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, Field, field_validator, model_validator

from tara.storage.dreambooth import subject_of
from tara.storage.file_names import file_name
from tara.storage.photo_folders import kohya_names
from tara.training.prompts import STYLE_PHRASE, SUBJECT_PHRASE, VARIED_STYLE_CAPTIONS, VARIED_SUBJECT_CAPTIONS

CaptionSource = Literal["fixed", "varied"]


def folder_words(images: Path, missing: Collection[str] = ("rare_word", "class_word")) -> dict[str, Any]:
    """Missing words, by setting name, from a photo folder: its DreamBooth table, or its kohya name ``10_xlo dog``."""
    if "class_word" in missing and (subject := subject_of(images)):
        return {"class_word": subject.class_word} | ({"example_prompts": subject.prompts} if subject.prompts else {})
    if not (names := kohya_names(images)):
        return {}
    words = {"rare_word": names[0].rare_word, "class_word": names[0].class_word}
    return {setting: word for setting, word in words.items() if word and setting in missing}


class ConceptSettings(BaseModel, frozen=True, extra="forbid"):
    """What one adapter learns: a folder of photos, the rare word that will stand for it, and its class word."""

    images: Path = Field(description="Folder with 3 to 5 photos of the concept")
    rare_word: str = Field(description="Rare word (trigger word) that will stand for the concept, such as xlo")
    class_word: str = Field(description="Class word: what the concept is, such as dog (for a style: style)")
    name: str | None = Field(default=None, description="Name in tables and file names [default: both words]")
    prompt: str | None = Field(default=None, description=f"Instance prompt [default: '{SUBJECT_PHRASE}']")
    caption_templates: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Caption template with {rare_word} and {class_word}, instead of the instance prompt",
    )
    masks: Path | None = Field(default=None, description="Folder of masks, white on the subject, named like the photos")
    example_prompts: tuple[str, ...] | None = Field(default=None, description="Example prompt for the adapter's card")
    out: Path | None = Field(default=None, description="Adapter file [default: RAREWORD-CLASSWORD.safetensors]")
    is_style: bool = Field(default=False, description="The concept is the style of whole images, not a subject")

    @model_validator(mode="before")
    @classmethod
    def _complete_with_what_the_folder_says(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = {name: value for name, value in cast(dict[str, Any], values).items() if value is not None}
        images, missing = given.get("images"), {"rare_word", "class_word"} - given.keys()
        return (folder_words(Path(images), missing) if missing and isinstance(images, str | Path) else {}) | given

    @field_validator("rare_word", "class_word")
    @classmethod
    def _a_word_is_visible(cls, value: str) -> str:
        if not (value := " ".join(value.split())):
            raise ValueError("is empty; give the rare word (such as xlo) and the class word (such as dog)")
        return value

    @field_validator("out")
    @classmethod
    def _an_adapter_is_a_safetensors_file(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix != ".safetensors":
            raise ValueError(f"is '{value}', but an adapter is a .safetensors file; call it {value.stem}.safetensors")
        return value

    @property
    def words(self) -> str:
        """The rare word and the class word, as a prompt names the concept."""
        return f"{self.rare_word} {self.class_word}"

    @property
    def label(self) -> str:
        """The name that a person reads."""
        return self.name or self.words

    @property
    def phrase(self) -> str:
        """The instance prompt in full, for instance ``a photo of a xlo dog``."""
        return self.fill(self.prompt or (STYLE_PHRASE if self.is_style else SUBJECT_PHRASE))

    @property
    def file(self) -> Path:
        """Where the adapter is written."""
        return self.out or Path(f"{file_name(self.label)}.safetensors")

    def file_at(self, step: int) -> Path:
        """The file for the adapter of an earlier step: ``rex-step-000500.safetensors`` beside ``rex.safetensors``."""
        return self.file.with_name(f"{self.file.stem}-step-{step:06d}.safetensors")

    @property
    def card_examples(self) -> tuple[str, ...]:
        """Example prompts for the adapter's card."""
        if self.example_prompts is not None:
            return tuple(self.fill(template) for template in self.example_prompts)
        return self.captions("varied")[:4]

    def fill(self, template: str) -> str:
        """The template with ``{rare_word}`` and ``{class_word}`` filled in; other braces stay as they are."""
        return template.replace("{rare_word}", self.rare_word).replace("{class_word}", self.class_word)

    def captions(self, source: CaptionSource) -> tuple[str, ...]:
        """The captions, with words filled in, of a photo without captions of its own."""
        if self.caption_templates is not None:
            return tuple(self.fill(template) for template in self.caption_templates)
        if source == "fixed":
            return (self.phrase,)
        varied = VARIED_STYLE_CAPTIONS if self.is_style else VARIED_SUBJECT_CAPTIONS
        return tuple(dict.fromkeys((self.phrase, *(self.fill(template) for template in varied))))
