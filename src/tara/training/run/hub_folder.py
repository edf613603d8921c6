"""What goes to the hub: a folder of adapters, pictures and a model card."""

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
from tara.families.loading import resolve_base
from tara.storage.files import atomic_write
from tara.storage.hub import ADAPTER_FILE, is_hub_id
from tara.training.data.captions import together
from tara.training.run.folder import RunFolder
from tara.training.settings import ConceptSettings, TrainSettings, distinct_names

README, PICTURES = "README.md", "pictures"
TAGS = ("text-to-image", "diffusers", "lora", "tara", "template:sd-lora")
# as diffusers' training scripts tag what they write
FAMILY_TAGS = {"sd1": "stable-diffusion", "sd2": "stable-diffusion", "sdxl": "stable-diffusion-xl"}


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A concept whose adapter is written: its card, and pictures of it, all of the same prompt."""

    name: str
    """What its files are called."""
    concept: ConceptSettings
    card: AdapterCard
    pictures: Sequence[Path]
    prompt: str

    @property
    def words(self) -> str:
        """What is written into a prompt."""
        return f"{self.concept.rare_word} {self.concept.class_word}"


def write_hub_folder(
    run: RunFolder,
    concepts: Sequence[ConceptSettings],
    settings: TrainSettings,
    adapters: Sequence[Adapter],
    repository: str,
) -> None:
    """Write all that a repository shows into a run's ``hub`` folder; nothing of it tells a folder of this machine.

    Args:
        run: a run that has come to its last step; adapters and pictures that it published before are forgotten.
        concepts: what was trained, each with its adapter written.
        settings: how.
        adapters: in the order of the concepts.
        repository: ``owner/name``, or the name alone where nobody knows the owner.

    Raises:
        TaraError: when the folder cannot be written to.
    """
    folder = run.hub
    finished = [
        Finished(
            name=name,
            concept=concept,
            card=adapter.card,
            pictures=run.previews(name).get(settings.steps, []),
            prompt=concept.fill(settings.preview_prompt or concept.phrase),
        )
        for name, concept, adapter in zip(distinct_names(concepts), concepts, adapters, strict=True)
    ]
    for old in (*folder.glob("*.safetensors"), *folder.glob(f"{PICTURES}/*.png")):
        old.unlink()
    for file, one in zip(_files(finished), finished, strict=True):
        atomic_write(folder / file, one.concept.file.read_bytes())
        for name, picture in zip(_pictures(one), one.pictures, strict=True):
            atomic_write(folder / name, picture.read_bytes())
    atomic_write(folder / README, model_card(finished, repository).encode())


def model_card(finished: Sequence[Finished], repository: str) -> str:
    """The text of ``README.md``."""
    repository = repository if "/" in repository else f"OWNER/{repository}"
    files, base = _files(finished), finished[0].card.base
    base_model = resolve_base(base) if is_hub_id(resolve_base(base)) else None
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"quoted": shlex.quote, "literal": _literal}
    source = (resources.files("tara.report") / "templates" / "model_card.md").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        front_matter=_front_matter(finished, base_model),
        title=" and ".join(one.concept.label for one in finished),
        finished=finished,
        files=files,
        pictures=[(one.prompt, name) for one in finished for name in _pictures(one)],
        prompt=together((one.words, one.concept.is_style) for one in finished),
        base=base,
        base_model=base_model,
        repository=repository,
        adapters=[repository] if len(files) == 1 else [f"{repository}/{file}" for file in files],
        recipe=recipe_text(finished),
    )


def recipe_text(finished: Sequence[Finished]) -> str:
    """The run's recipe as TOML, as far as it is nobody's own: settings that are not the defaults, and the concepts."""
    settings = {name: value for name, value in finished[0].card.settings.items() if name in TrainSettings.model_fields}
    changed = {name: value for name, value in settings.items() if value != TrainSettings.model_fields[name].default}
    tables = [_table("[settings]", {"base": settings["base"]} | changed)]
    for one in finished:
        concept, photos = one.concept, f"photos/{one.name}"
        own = concept.model_dump(mode="json", exclude={"images", "masks", "out"}, exclude_defaults=True)
        masks = {} if concept.masks is None else {"masks": f"{photos}-masks"}
        tables.append(_table("[[concept]]", {"images": photos} | masks | own | {"out": f"{one.name}.safetensors"}))
    return "\n\n".join(tables)


def _front_matter(finished: Sequence[Finished], base_model: str | None) -> str:
    family = finished[0].card.family
    data = ModelCardData(
        base_model=base_model,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[*TAGS, *([FAMILY_TAGS[family]] if family in FAMILY_TAGS else [])],
        instance_prompt=", ".join(one.concept.phrase for one in finished),
        widget=[{"text": one.prompt, "output": {"url": name}} for one in finished for name in _pictures(one)],
    )
    return data.to_yaml()


def _files(finished: Sequence[Finished]) -> list[str]:
    if len(finished) == 1:
        return [ADAPTER_FILE]  # the name that is looked for first
    return [f"{one.name}.safetensors" for one in finished]


def _pictures(one: Finished) -> list[str]:
    return [f"{PICTURES}/{one.name}-{number}.png" for number in range(len(one.pictures))]


def _table(head: str, values: Mapping[str, Any]) -> str:
    # text, numbers, truth values and lists of them are written alike in JSON and in TOML
    return "\n".join([head, *(f"{name} = {_literal(value)}" for name, value in values.items())])


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
