"""What makes composed subjects look like themselves? Variants of training and composition, ideas, and failures.

Every way to train and to generate of `study_variants.py`, each one change away from the default, on the eight subjects
that defaults are chosen on (`quality_toyland.py` has others, for the final table): each alone, twelve pairs (three of
one class), four triples. Trained adapters and images are kept in a work folder, so that a run that was stopped resumes,
and an idea that is added later costs its own time only.

    python benchmarks/study_toyland.py                       all; writes benchmarks/results/study_toyland_cpu.json
    python benchmarks/study_toyland.py --only rank --out r.json  the variants whose part or name has this, or styles
    python benchmarks/study_toyland.py --quick --out q.json  three trainings, one seed, at most 10 minutes on 2 cores

A whole run also writes research/failures.png and research/study.png.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import toyland_cast as study
from PIL import Image
from result_files import RESULTS, check, command_line, run_info, show_checks, whole_or_elsewhere, write
from rich.console import Console
from rich.table import Table
from study_chart import plot_gains
from study_failures import failures
from study_ideas import generate_edited
from study_variants import DEFAULT, QUICK, STYLE_WAYS, VARIANTS, Variant, Way
from toyland_cast import SAMPLING_STEPS, Group, Member, OnProgress, Outcome

from tara.adapters.adapter import Adapter, load_adapter
from tara.analysis.attention import record_attention
from tara.evaluation.statistics import format_ci, interval, paired_difference
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.request import GenerationRequest
from tara.inference.settings import GenerationSettings
from tara.storage.files import atomic_write
from tara.training.settings import ConceptSettings, train_settings

HERE = Path(__file__).parent
RESULT = "study_toyland_cpu.json"
WORK = HERE / "work" / "study_toyland"
RESEARCH = HERE.parent / "research"
SUBJECTS_SEED = 7
"""The subjects that defaults are chosen on, those of `context_toyland.py` too."""
SEEDS, QUICK_SEEDS, QUICK_STEPS = study.SEEDS[:4], study.SEEDS[:1], 200
PAIRS = (*study.SAME_CLASS_PAIRS, *study.OTHER_PAIRS)
SECONDS_PER_STEP, SECONDS_PER_IMAGE, STYLE_SECONDS = 0.55, 0.5, 60  # on two idle cores; steps are of eight adapters


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

    def outcomes(self, variant: Variant, on_progress: OnProgress) -> list[Outcome]:
        """Every group with every seed, generated unless it is kept, and judged."""
        wanted = [(group, seed) for seed in self.seeds for group in self.groups]
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
                values += [(group, score.alignment) for score in attention.scores]
            write(kept, values)
        return [(tuple(group), value) for group, value in json.loads(kept.read_text(encoding="utf-8"))]


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text).strip("-")


def rows_of(
    variant: Variant, members: Sequence[Member], outcomes: Sequence[Outcome], aligned: Any
) -> list[dict[str, Any]]:
    """One row for each number of subjects and kind of pair."""
    settings = train_settings(**variant.way.settings)
    alone: dict[int, list[bool]] = {}
    for one in outcomes:
        if len(one.group) == 1:
            alone.setdefault(one.group[0], []).append(one.score.success)
    rows: list[dict[str, Any]] = []
    for subjects, same in ((1, False), (2, False), (2, True), (3, False)):
        chosen = [
            one for one in outcomes if len(one.group) == subjects and study.same_class(members, one.group) is same
        ]
        groups = {one.group for one in chosen}
        rows.append(
            {
                "part": variant.part,
                "variant": variant.name,
                "training": variant.way.name,
                **study.method_columns(settings),
                "rank": settings.rank,
                "composer": variant.composition,
                "default": variant.name == DEFAULT,
                "subjects": subjects,
                "same_class": same,
                "images": len(chosen),
                "success": interval(study.successes(chosen)),
                "success_if_independent": _independent(groups, alone),
                "identity": interval(study.likeness(chosen)),
                "leakage": interval(study.leakage(chosen)) if subjects > 1 else None,
                "alignment": interval([(g, value) for g, value in aligned if g in groups]) if aligned else None,
            }
        )
    return rows


def _independent(groups: set[Group], alone: dict[int, list[bool]]) -> float:
    """The success of groups if each subject succeeds as often as alone, independently of the others."""
    rates = {subject: sum(of) / len(of) for subject, of in alone.items()}
    products = [float(torch.tensor([rates[i] for i in group]).prod()) for group in groups]
    return round(sum(products) / len(products), 4)


def gains(default: Sequence[Outcome], other: Sequence[Outcome]) -> dict[str, list[float]]:
    """[mean, low, high] of a variant minus the default over pairs and triples, image by image."""
    differences: dict[str, list[float]] = {}
    for figure in ("success", "identity_absent_zero", "leakage"):
        ours, theirs = (
            {
                (one.group, one.seed, number): value
                for one in some
                if len(one.group) > 1
                for number, value in one.score.values()[figure].items()
            }
            for some in (default, other)
        )
        differences[figure] = paired_difference(theirs, ours, lambda key: key[0])
    return differences


def run(
    variants: Sequence[Variant],
    style_ways: Sequence[tuple[Way, bool]],
    subjects_seed: int,
    seeds: Sequence[int],
    steps: int | None,
    work: Path,
    keep: Callable[[dict[str, Any]], object],
) -> dict[str, Any]:
    """Every variant, the default first, then the styles; ``keep`` gets all results so far after each one."""
    result: dict[str, Any] = {"subjects_seed": subjects_seed, **run_info(), "seeds": len(seeds)}
    result |= {"rows": [], "gains": [], "styles": [], "failures": {}, "checks": []}
    with study.progress() as bar:
        whole = Study(subjects_seed, seeds, steps, work)
        default: list[Outcome] = []
        for variant in variants:
            task = bar.add_task(variant.name, total=2.0)
            whole.adapters(variant.way, study.on_task(bar, task))
            outcomes = whole.outcomes(variant, study.on_task(bar, task, 1.0))
            aligned = whole.alignment(variant) if variant.part not in ("composers", "ideas") else None
            bar.update(task, completed=2.0)
            default = default or outcomes
            result["rows"] += rows_of(variant, whole.members, outcomes, aligned)
            result["gains"].append({"part": variant.part, "variant": variant.name, **gains(default, outcomes)})
            keep(result)
        for way, captions in style_ways:
            task = bar.add_task(way.name, total=1.0)
            result["styles"] += whole.styles(way, captions, study.on_task(bar, task))
            keep(result)
        together = [one for one in default if len(one.group) > 1]
        images = [whole.kept(variants[0], one.group, one.seed) for one in together]
    failed = failures(whole.members, together, images)
    result["failures"] = failed.causes
    result["checks"] = checks_of(result, failed.shown)
    return result | {"sheet": failed.sheet}


def checks_of(result: dict[str, Any], shown: int) -> list[dict[str, Any]]:
    """The bounds that this project sets itself."""
    tried = sum(row["part"] == "ideas" for row in result["gains"])
    better = [
        row["variant"]
        for row in result["gains"]
        if row["success"][1] > 0 and row["identity_absent_zero"][0] >= 0 and row["leakage"][0] <= 0
    ]
    return [
        check("ideas tried", tried, ">= 4", tried >= 4),
        check("worst images shown", shown, ">= 24", shown >= 24),
        check("variants that beat the default on success, identity and leakage", len(better), "0", not better),
    ]


def estimate(
    variants: Sequence[Variant], style_ways: Sequence[object], seeds: Sequence[int], steps: int | None
) -> float:
    """Seconds on two idle cores, when nothing is in the work folder."""
    ways = {variant.way.name: variant.way for variant in variants}
    trained = sum(steps or way.settings["steps"] for way in ways.values())
    images = len(variants) * len(seeds) * (len(study.KINDS) + len(PAIRS) + len(study.TRIPLES))
    styled = len(style_ways) * (STYLE_SECONDS + 2 * len(study.KINDS) * len(seeds) * SECONDS_PER_IMAGE)
    return trained * SECONDS_PER_STEP + images * SECONDS_PER_IMAGE + styled


def show(result: dict[str, Any]) -> None:
    """The rows as a table, then the gains, the causes of failure and the checks."""
    console = Console()
    table = Table("variant", "subjects", "success", "if independent", "identity", "leakage", "alignment")
    for row in result["rows"]:
        subjects = f"{row['subjects']}{' of one class' if row['same_class'] else ''}"
        figures = [format_ci(row[name]) if row[name] else "" for name in ("identity", "leakage", "alignment")]
        cells = [row["variant"], subjects, format_ci(row["success"]), f"{row['success_if_independent']:.2f}", *figures]
        table.add_row(*cells, style="bold" if row["default"] else "")
    console.print(table)
    for row in result["gains"]:
        figures = _listed(row, "success", "identity_absent_zero", "leakage")
        console.print(f"{row['variant']}, minus the default: {figures}")
    for row in result["styles"]:
        captions = "what is shown" if row["captions"] else "the phrase alone"
        figures = _listed(row, "style_right", "subject_present", "both")
        console.print(f"{row['style']}, {row['targets']}, captions of {captions}: {figures}")
    console.print(result["failures"])
    show_checks(result["checks"])


def _listed(row: dict[str, Any], *names: str) -> str:
    return ", ".join(f"{name} {format_ci(row[name])}" for name in names)


def chosen_variants(only: str, quick: bool) -> list[Variant]:
    """The default, which all are compared with, and the variants that were asked for."""
    first, *others = VARIANTS
    wanted = [one for one in others if one.name in QUICK] if quick else others
    return [first, *(one for one in wanted if only in one.part or only in one.name)]


def main() -> None:
    """The command line."""
    parser = command_line(__doc__)
    parser.add_argument("--quick", action="store_true", help="six variants, one seed, short trainings; needs --out")
    parser.add_argument("--only", default="", metavar="TEXT", help="variants whose part or name has this; needs --out")
    parser.add_argument("--subjects-seed", type=int, default=SUBJECTS_SEED, help="other random subjects; needs --out")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of trained adapters and generated images")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    whole = not args.quick and not args.only and args.subjects_seed == SUBJECTS_SEED
    out = whole_or_elsewhere(parser, args.out, RESULT, whole)
    torch.set_num_threads(args.threads)
    variants = chosen_variants(args.only, args.quick)
    seeds, steps = (QUICK_SEEDS, QUICK_STEPS) if args.quick else (SEEDS, None)
    style_ways = STYLE_WAYS if args.only in "styles" and not args.quick else ()
    minutes = estimate(variants, style_ways, seeds, steps) / 60
    Console(stderr=True).print(
        f"{len(variants)} variants: about {minutes:.0f} minutes on two idle cores, if the work folder is empty."
    )

    def keep(result: dict[str, Any]) -> None:
        write(out, {name: value for name, value in result.items() if name != "sheet"})

    with tempfile.TemporaryDirectory() as fresh:  # a quick run is timed whole
        work = Path(fresh) if args.quick else args.work
        result = run(variants, style_ways, args.subjects_seed, seeds, steps, work, keep)
    committed = out == RESULTS / RESULT
    result["sheet"].save(RESEARCH / "failures.png" if committed else out.with_name(f"{out.stem}-failures.png"))
    plot_gains(result["gains"], RESEARCH / "study.png" if committed else out.with_name(f"{out.stem}-chart.png"))
    keep(result)
    show(result)


if __name__ == "__main__":
    main()
