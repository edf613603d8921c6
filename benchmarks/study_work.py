"""A study's work folder: its cast, and what it has trained and generated so far, so that a stopped run resumes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import toyland_cast as study
from PIL import Image
from result_files import write
from study_ideas import generate_edited
from study_variants import VARIANTS, Variant, Way
from toyland_cast import SAMPLING_STEPS, Group, Member, OnProgress, Outcome

from tara.adapters.adapter import Adapter, load_adapter
from tara.analysis.attention import record_attention
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.request import GenerationRequest
from tara.inference.settings import GenerationSettings
from tara.storage.files import atomic_write
from tara.training.concept_settings import ConceptSettings

SUBJECTS_SEED = 7
"""The subjects that defaults are chosen on, those of `context_toyland.py` too."""
PAIRS = (*study.SAME_CLASS_PAIRS, *study.OTHER_PAIRS)


class Study:
    """The base, the judge and the cast; makes what is missing in the work folder."""

    def __init__(self, subjects_seed: int, seeds: Sequence[int], steps: int | None, work: Path) -> None:
        self.world = study.World()
        self.seeds, self.steps = seeds, steps
        self.work = work / f"{subjects_seed}-{self.world.base.fingerprint[:8]}"
        self.members: list[Member] = study.cast(subjects_seed, self.work / "photos")
        self.singles: tuple[Group, ...] = tuple((i,) for i in range(len(self.members)))
        self.groups: tuple[Group, ...] = (*self.singles, *PAIRS, *study.TRIPLES)
        self._adapters: tuple[Way, list[Adapter]] | None = None

    def settings(self, way: Way) -> dict[str, Any]:
        """Training settings of a way, with fewer steps in a quick run."""
        return way.settings if self.steps is None else {**way.settings, "steps": self.steps}

    def folder(self, way: Way) -> Path:
        """The folder of a way's adapters and images; other settings have another one."""
        material = getattr(way.material, "__name__", repr(way.material))
        settings = {name: value for name, value in self.settings(way).items() if name != "base"}
        text = json.dumps([settings, way.training.__name__, material], sort_keys=True, default=str)
        return self.work / f"{_slug(way.name)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def adapters(self, way: Way, on_progress: OnProgress) -> list[Adapter]:
        """The members' adapters, trained unless they are in the work folder."""
        if self._adapters is None or self._adapters[0] != way:
            concepts = partial(way.material, self.members, self.world.base, self.folder(way) / "material")
            words = [member.word for member in self.members]
            self._adapters = way, self._trained(way, words, concepts, on_progress)
        return self._adapters[1]

    def _trained(
        self, way: Way, words: Sequence[str], concepts: Callable[[], list[ConceptSettings]], on_progress: OnProgress
    ) -> list[Adapter]:
        files = [self.folder(way) / f"{word}.safetensors" for word in words]
        if not all(file.exists() for file in files):
            adapters = study.train(concepts(), self.world.base, on_progress, way.training, **self.settings(way))
            for file, adapter in zip(files, adapters, strict=True):
                adapter.save(file)
        return [load_adapter(file) for file in files]

    def styles(self, way: Way, captions: bool, on_progress: OnProgress) -> list[dict[str, Any]]:
        """The default's subjects, each alone in every style: one row a style."""
        styles = study.style_cast(SUBJECTS_SEED, self.folder(way) / "photos", captions=captions)
        words = [one.word for one in styles]
        adapters = self._trained(way, words, lambda: [one.concept() for one in styles], on_progress)
        subjects = self.adapters(VARIANTS[0].way, on_progress)
        rows: list[dict[str, Any]] = []
        for style, adapter in zip(styles, adapters, strict=True):
            outcomes = study.generate(
                self.world,
                self.members,
                self.singles,
                subjects,
                seeds=self.seeds,
                style=(style, adapter),
                on_progress=on_progress,
            )
            columns = {"style": style.style, "targets": way.changes["targets"], "captions": captions}
            rows.append(columns | study.style_figures(style, outcomes))
        return rows

    def image_file(self, variant: Variant, group: Group, seed: int) -> Path:
        """Where an image is kept."""
        series = _slug(variant.composer if variant.is_plain else variant.name)
        return self.folder(variant.way) / series / f"{'-'.join(map(str, group))}-{seed:04d}.png"

    def kept(self, variant: Variant, group: Group, seed: int) -> Image.Image:
        """An image that was generated before."""
        with Image.open(self.image_file(variant, group, seed)) as stored:
            return stored.convert("RGB")

    def outcomes(
        self, variant: Variant, on_progress: OnProgress, groups: Sequence[Group] | None = None
    ) -> list[Outcome]:
        """Every group (all by default) with every seed, generated unless it is kept, and judged."""
        wanted = [(group, seed) for seed in self.seeds for group in groups or self.groups]
        missing = [(group, seed) for group, seed in wanted if not self.image_file(variant, group, seed).exists()]
        done = len(wanted) - len(missing)
        for _, batch in groupby(missing, key=lambda one: (one[1], len(one[0]))):
            named = list(batch)
            for (group, seed), image in zip(named, self._generated(variant, named), strict=True):
                atomic_write(self.image_file(variant, group, seed), lambda path, image=image: image.save(path))
            done += len(named)
            on_progress(done / len(wanted))
        images = [self.kept(variant, group, seed) for group, seed in wanted]
        return study.judged(self.world.judge, self.members, wanted, images)

    def _generated(self, variant: Variant, named: Sequence[tuple[Group, int]]) -> list[Image.Image]:
        """Images of groups of one size with one seed."""
        adapters, seed = self.adapters(variant.way, lambda part: None), named[0][1]
        settings = {"steps": SAMPLING_STEPS, "batch_size": len(named)}
        if variant.described:
            prompts = [study.description(self.members, group, study.place_of(group, seed)) for group, _ in named]
            return self.world.pipeline(prompts, (), [seed], **settings)
        prompts = [study.prompt(self.members, group, study.place_of(group, seed)) for group, _ in named]
        active = [[ActiveAdapter(adapters[i], weight=variant.weight) for i in group] for group, _ in named]
        if variant.side_by_side:  # each image has regions of its own, and a pipeline call has one setting for all
            settings = {"steps": SAMPLING_STEPS, "composer": variant.composer}
            return [
                image
                for prompt, own in zip(prompts, active, strict=True)
                for image in self.world.pipeline(prompt, own, [seed], region=_side_by_side(own), **settings)
            ]
        if not variant.edited:
            return self.world.pipeline(prompts, active, [seed], composer=variant.composer, **settings)
        return generate_edited(
            self.world.base,
            prompts,
            active,
            seed,
            edit=variant.edit,
            delay=variant.delay,
            regions=None if variant.regions is None else [self._boxes(group, seed) for group, _ in named],
            strength=variant.regions or 0.0,
        )

    def _boxes(self, group: Group, seed: int) -> list[Any]:
        """The judge's box of each subject in the default's image of the same prompt and seed."""
        image = self.kept(VARIANTS[0], group, seed)
        (outcome,) = study.judged(self.world.judge, self.members, [(group, seed)], [image])
        return [subject.box for subject in outcome.score.subjects]

    def alignment(self, variant: Variant) -> list[tuple[Group, float]]:
        """Alignment of each group's rare words with their class words (see `tara attention`), with the first seed."""
        kept, seed = self.folder(variant.way) / "alignment.json", self.seeds[0]
        if not kept.exists():
            adapters = self.adapters(variant.way, lambda part: None)
            values: list[tuple[Group, float]] = []
            for group in self.groups:
                request = GenerationRequest(
                    prompt=study.prompt(self.members, group, study.place_of(group, seed)),
                    adapters=tuple(ActiveAdapter(adapters[i]) for i in group),
                    seeds=(seed,),
                    settings=GenerationSettings(steps=SAMPLING_STEPS, composer=variant.composer),
                )
                (attention,) = record_attention(self.world.pipeline, request)
                values += [(group, score.map_correlation) for score in attention.scores]
            write(kept, values)
        return [(tuple(group), value) for group, value in json.loads(kept.read_text(encoding="utf-8"))]


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text).strip("-")


def _side_by_side(adapters: Sequence[ActiveAdapter]) -> tuple[str, ...]:
    """Each adapter's region in the form of ``--region``: equal parts of the image, from left to right."""
    return tuple(
        f"{active.rare_word}={place / len(adapters)},0,{(place + 1) / len(adapters)},1"
        for place, active in enumerate(adapters)
    )
