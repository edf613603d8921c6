"""The folder that is uploaded to the hub: adapters, images and a model card."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCardData

from tara.adapters.adapter import Adapter
from tara.adapters.card import AdapterCard
from tara.families.base_names import resolve_base
from tara.families.registry import family_named
from tara.storage.files import atomic_write
from tara.storage.hub import ADAPTER_FILE, is_hub_id
from tara.training.concept_settings import ConceptSettings
from tara.training.prompts import preview_prompt, together
from tara.training.run.folder import RunFolder
from tara.training.settings import TrainSettings, distinct_names

README, IMAGES = "README.md", "images"
TAGS = ("text-to-image", "diffusers", "lora", "tara", "template:sd-lora")


@dataclass(frozen=True, kw_only=True)
class PublishedConcept:
    """A trained concept in a repository: its adapter's file and card, and images of one prompt by file name."""

    name: str
    concept: ConceptSettings
    card: AdapterCard
    file: str
    prompt: str
    images: Mapping[str, Path]


def write_hub_folder(
    run: RunFolder,
    concepts: Sequence[ConceptSettings],
    settings: TrainSettings,
    adapters: Sequence[Adapter],
    repository: str,
) -> None:
    """Write a repository's files into a run's ``hub`` folder. The files contain no path of this machine.

    The run has written its adapters. ``repository`` is ``owner/name``, or the name alone where the owner is not known.
    Adapters and images of an earlier upload are deleted.

    Raises:
        TaraError: when the folder cannot be written to.
    """
    published = [
        PublishedConcept(
            name=name,
            concept=concept,
            card=adapter.card,
            file=ADAPTER_FILE if len(concepts) == 1 else f"{name}.safetensors",  # diffusers tries this name first
            prompt=preview_prompt(concept, settings),
            images={
                f"{IMAGES}/{name}-{number}.png": path
                for number, path in enumerate(run.previews_of(name).get(settings.steps, []))
            },
        )
        for name, concept, adapter in zip(distinct_names(concepts), concepts, adapters, strict=True)
    ]
    for old in (*run.hub.glob("*.safetensors"), *run.hub.glob(f"{IMAGES}/*.png")):
        old.unlink()
    for item in published:
        for file, source in {item.file: item.concept.file, **item.images}.items():
            atomic_write(run.hub / file, source.read_bytes())
    atomic_write(run.hub / README, model_card(published, repository).encode())


def model_card(published: Sequence[PublishedConcept], repository: str) -> str:
    """The text of ``README.md``."""
    repository = repository if "/" in repository else f"OWNER/{repository}"
    card = published[0].card
    base_model = resolve_base(card.base) if is_hub_id(resolve_base(card.base)) else None
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"quoted": shlex.quote, "literal": _literal}
    source = (resources.files("tara.report") / "templates" / "model_card.md").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        front_matter=_front_matter(published, base_model),
        published=published,
        prompt=together((item.concept.words, item.concept.is_style) for item in published),
        base=card.base,
        base_model=base_model,
        repository=repository,
        adapters=[repository] if len(published) == 1 else [f"{repository}/{item.file}" for item in published],
        masked=card.settings.get("token_mask", False),
        recipe=recipe_text(published),
    )


def recipe_text(published: Sequence[PublishedConcept]) -> str:
    """The run's recipe as TOML without paths: the settings that differ from the defaults, and the concepts."""
    fields, settings = TrainSettings.model_fields, published[0].card.settings
    changed = {name: value for name, value in settings.items() if name in fields and value != fields[name].default}
    tables = [_table("[settings]", changed)]
    for item in published:
        photos = {"images": f"photos/{item.name}"}
        if item.concept.masks is not None:
            photos["masks"] = f"photos/{item.name}-masks"
        values = item.concept.model_dump(mode="json", exclude={"images", "masks", "out"}, exclude_defaults=True)
        tables.append(_table("[[concept]]", photos | values | {"out": f"{item.name}.safetensors"}))
    return "\n\n".join(tables)


def _front_matter(published: Sequence[PublishedConcept], base_model: str | None) -> str:
    family = family_named(published[0].card.family)
    return ModelCardData(
        base_model=base_model,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[*TAGS, *([family.files.hub_tag] if family and family.files.hub_tag else [])],
        instance_prompt=", ".join(item.concept.phrase for item in published),
        widget=[{"text": item.prompt, "output": {"url": file}} for item in published for file in item.images],
    ).to_yaml()


def _table(head: str, values: Mapping[str, Any]) -> str:
    # text, numbers, truth values and lists of them are written alike in JSON and in TOML
    return "\n".join([head, *(f"{name} = {_literal(value)}" for name, value in values.items())])


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
