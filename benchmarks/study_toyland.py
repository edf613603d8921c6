"""What makes composed subjects look like themselves, and what does not: training, composers, ideas, and failures.

Every way to train and to draw of `study_variants.py`, each one change away from the default, on the eight subjects that
defaults are chosen on (`quality_toyland.py` has others, for the final table): each alone, twelve pairs (three of one
class), four triples. Trained adapters and drawn pictures are kept in a work folder, so that a run that was stopped goes
on, and an idea that is added later costs its own time alone.

    python benchmarks/study_toyland.py                       all; writes benchmarks/results/study_toyland_cpu.json
    python benchmarks/study_toyland.py --only rank --out r.json  the variants whose part or name has this, or styles
    python benchmarks/study_toyland.py --quick --out q.json  three trainings, one seed, at most 10 minutes on 2 cores
"""

from __future__ import annotations

import argparse
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
from result_files import check, circumstances
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from study_chart import draw_chart
from study_failures import failures
from study_ideas import draw_edited
from study_variants import DEFAULT, QUICK, STYLE_WAYS, VARIANTS, Variant, Way
from toyland_cast import Group, Member, Outcome

import toyland
from tara.adapters.adapter import Adapter, load_adapter
from tara.analysis.attention import attend
from tara.demo import SAMPLING_STEPS
from tara.evaluation.statistics import format_ci, interval, paired_difference
from tara.families.loading import load_base
from tara.inference.binding import ActiveAdapter
from tara.inference.composers import Composer
from tara.inference.pipeline import Pipeline
from tara.storage.files import atomic_write
from tara.training.settings import ConceptSettings, train_settings
from toyland.judge import Judge

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "study_toyland_cpu.json"
WORK = HERE / "work" / "study_toyland"
FAILURES, CHART = (HERE.parent / "docs" / name for name in ("failures.png", "study.png"))
SUBJECTS_SEED = 7
"""The subjects that defaults are chosen on, those of `context_toyland.py` too."""
SEEDS, QUICK_SEEDS, QUICK_STEPS = study.SEEDS[:4], study.SEEDS[:1], 200
PAIRS = (*study.SAME_CLASS_PAIRS, *study.OTHER_PAIRS)
SECONDS_PER_STEP, SECONDS_PER_PICTURE, STYLE_SECONDS = 0.55, 0.5, 60  # on two idle cores; steps are of eight adapters
Tell = Callable[[float], object]


class Study:
    """The base, the judge and the cast; makes what a variant lacks in the work folder."""

    def __init__(self, subjects_seed: int, seeds: Sequence[int], steps: int | None, work: Path) -> None:
        self.base = load_base("toyland", device="cpu")
        self.pipeline, self.judge = Pipeline(self.base), Judge.load(toyland.JUDGE)
        self.seeds, self.steps = seeds, steps
        self.work = work / f"{subjects_seed}-{self.base.fingerprint[:8]}"
        self.members: list[Member] = study.cast(subjects_seed, self.work / "photos")
        self.groups: tuple[Group, ...] = (*((i,) for i in range(len(self.members))), *PAIRS, *study.TRIPLES)
        self._adapters: tuple[Way, list[Adapter]] | None = None

    def settings(self, way: Way) -> dict[str, Any]:
        """Of a way's training, shortened in a quick run."""
        return way.settings if self.steps is None else {**way.settings, "steps": self.steps}

    def folder(self, way: Way) -> Path:
        """Where a way's adapters and pictures are kept; another one for other settings."""
        material = getattr(way.material, "__name__", repr(way.material))
        told = json.dumps([self.settings(way), way.training.__name__, material], sort_keys=True, default=str)
        return self.work / f"{_slug(way.name)}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"

    def adapters(self, way: Way, tell: Tell) -> list[Adapter]:
        """The members' adapters, trained unless they are kept."""
        if self._adapters is not None and self._adapters[0] == way:
            return self._adapters[1]
        concepts = partial(way.material, self.members, self.base, self.folder(way) / "material")
        self._adapters = way, self._trained(way, [member.word for member in self.members], concepts, tell)
        return self._adapters[1]

    def _trained(
        self, way: Way, words: Sequence[str], concepts: Callable[[], list[ConceptSettings]], tell: Tell
    ) -> list[Adapter]:
        files = [self.folder(way) / f"{word}.safetensors" for word in words]
        if not all(file.exists() for file in files):
            training = way.training(concepts(), train_settings(**self.settings(way)), self.base)
            for record in training.steps():
                tell(record.index / record.steps)
            for file, adapter in zip(files, training.adapters(), strict=True):
                adapter.save(file)
        return [load_adapter(file) for file in files]

    def styles(self, way: Way, captions: bool, tell: Tell) -> list[dict[str, Any]]:
        """The default's subjects, each alone in every style: one row a style."""
        styles = study.style_cast(SUBJECTS_SEED, self.folder(way) / "photos", captions=captions)
        adapters = self._trained(way, [one.word for one in styles], lambda: [one.concept() for one in styles], tell)
        subjects = self.adapters(VARIANTS[0].way, tell)
        singles = tuple((i,) for i in range(len(self.members)))
        rows: list[dict[str, Any]] = []
        for style, adapter in zip(styles, adapters, strict=True):
            drawn = study.draw(
                self.pipeline,
                self.judge,
                self.members,
                singles,
                subjects,
                seeds=self.seeds,
                style=(style, adapter),
                tell=tell,
            )
            settings = train_settings(**way.settings)
            told = {"style": style.style, "targets": settings.targets, "captions": captions}
            rows.append(told | study.style_figures(style, drawn))
        return rows

    def picture(self, variant: Variant, group: Group, seed: int) -> Path:
        """Where a picture is kept."""
        how = variant.composer if variant.is_plain else variant.name
        return self.folder(variant.way) / _slug(str(how)) / f"{'-'.join(map(str, group))}-{seed:04d}.png"

    def kept(self, variant: Variant, group: Group, seed: int) -> Image.Image:
        """A picture that was drawn before."""
        with Image.open(self.picture(variant, group, seed)) as stored:
            return stored.convert("RGB")

    def outcomes(self, variant: Variant, tell: Tell) -> list[Outcome]:
        """Every group with every seed, drawn unless it is kept, and judged."""
        wanted = [(group, seed) for seed in self.seeds for group in self.groups]
        missing = [(group, seed) for group, seed in wanted if not self.picture(variant, group, seed).exists()]
        done = len(wanted) - len(missing)
        for _, batch in groupby(missing, key=lambda one: (one[1], len(one[0]))):
            named = list(batch)
            for (group, seed), image in zip(named, self._drawn(variant, named), strict=True):
                path = self.picture(variant, group, seed)
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(path, lambda to, image=image: image.save(to, "png"))
            done += len(named)
            tell(done / len(wanted))
        images = [self.kept(variant, group, seed) for group, seed in wanted]
        return study.judged(self.judge, self.members, wanted, images)

    def _drawn(self, variant: Variant, named: Sequence[tuple[Group, int]]) -> list[Image.Image]:
        """Pictures of groups of one size with one seed."""
        adapters, seed = self.adapters(variant.way, lambda part: None), named[0][1]
        if variant.described:
            prompts = [study.description(self.members, group, study.place_of(group, seed)) for group, _ in named]
            return self.pipeline(prompts, (), [seed], steps=SAMPLING_STEPS, batch_size=len(named))
        prompts = [study.prompt(self.members, group, study.place_of(group, seed)) for group, _ in named]
        active_adapters = [[ActiveAdapter(adapters[i], weight=variant.weight) for i in group] for group, _ in named]
        if variant.edit is None and variant.places is None:
            return self.pipeline(
                prompts, active_adapters, [seed], steps=SAMPLING_STEPS, batch_size=len(named), composer=variant.composer
            )
        regions = None if variant.places is None else [self._boxes(group, seed) for group, _ in named]
        strength = variant.places or 0.0
        return draw_edited(
            self.base, prompts, active_adapters, seed, edit=variant.edit, regions=regions, strength=strength
        )

    def _boxes(self, group: Group, seed: int) -> list[Any]:
        """Where the judge sees each subject in the default's picture of the same prompt and seed."""
        image = self.kept(VARIANTS[0], group, seed)
        (outcome,) = study.judged(self.judge, self.members, [(group, seed)], [image])
        return [subject.box for subject in outcome.score.subjects]

    def alignment(self, variant: Variant) -> list[tuple[Group, float]]:
        """How well each group's rare words lie on their class words (see `tara attention`), with the first seed."""
        kept, seed = self.folder(variant.way) / "alignment.json", self.seeds[0]
        if not kept.exists():
            adapters = self.adapters(variant.way, lambda part: None)
            found: list[tuple[Group, float]] = []
            for group in self.groups:
                prompt = study.prompt(self.members, group, study.place_of(group, seed))
                active_adapters, how = [adapters[i] for i in group], variant.composer
                (drawn,) = attend(self.pipeline, prompt, active_adapters, [seed], steps=SAMPLING_STEPS, composer=how)
                found += [(group, score.alignment) for score in drawn.scores]
            atomic_write(kept, json.dumps(found).encode())
        return [(tuple(group), value) for group, value in json.loads(kept.read_text(encoding="utf-8"))]


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text).strip("-")


def rows_of(
    variant: Variant, members: Sequence[Member], drawn: Sequence[Outcome], aligned: Any
) -> list[dict[str, Any]]:
    """One row for each number of subjects and kind of pair."""
    settings = train_settings(**variant.way.settings)
    alone = {
        one: [o.score.success for o in drawn if o.group == one] for one in {o.group for o in drawn if len(o.group) == 1}
    }
    rows: list[dict[str, Any]] = []
    for subjects, same in ((1, False), (2, False), (2, True), (3, False)):
        chosen = [one for one in drawn if len(one.group) == subjects and study.same_class(members, one.group) is same]
        groups = {one.group for one in chosen}
        rows.append(
            {
                "part": variant.part,
                "variant": variant.name,
                "training": variant.way.name,
                "targets": settings.targets,
                "token_mask": settings.token_mask,
                "alignment_loss": settings.alignment_loss,
                "alignment_weight": settings.alignment_weight,
                "rank": settings.rank,
                "composer": variant.composer.meaning if isinstance(variant.composer, Composer) else variant.composer,
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


def _independent(groups: set[Group], alone: dict[Group, list[bool]]) -> float:
    """The success of groups whose subjects come out as often as alone, independently of each other."""
    rates = {one[0]: sum(of) / len(of) for one, of in alone.items()}
    products = [float(torch.tensor([rates[i] for i in group]).prod()) for group in groups]
    return round(sum(products) / len(products), 4)


def gains(default: Sequence[Outcome], other: Sequence[Outcome]) -> dict[str, list[float]]:
    """[mean, low, high] of a variant minus the default over pairs and triples, picture by picture."""
    found: dict[str, list[float]] = {}
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
        found[figure] = paired_difference(theirs, ours, lambda key: key[0])
    return found


def run(
    variants: Sequence[Variant],
    style_ways: Sequence[tuple[Way, bool]],
    subjects_seed: int,
    seeds: Sequence[int],
    steps: int | None,
    work: Path,
    keep: Callable[[dict[str, Any]], object],
) -> dict[str, Any]:
    """Every variant, the default first, then the styles; ``keep`` is told after each one of all results so far."""
    result: dict[str, Any] = {"subjects_seed": subjects_seed, **circumstances(), "seeds": len(seeds)}
    result |= {"rows": [], "gains": [], "styles": [], "failures": {}, "checks": []}
    columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        whole = Study(subjects_seed, seeds, steps, work)
        default: list[Outcome] = []
        for variant in variants:
            task = progress.add_task(variant.name, total=2.0)
            whole.adapters(variant.way, lambda part, task=task: progress.update(task, completed=part))
            drawn = whole.outcomes(variant, lambda part, task=task: progress.update(task, completed=1 + part))
            aligned = whole.alignment(variant) if variant.part not in ("composers", "ideas") else None
            progress.update(task, completed=2.0)
            default = default or drawn
            result["rows"] += rows_of(variant, whole.members, drawn, aligned)
            result["gains"].append({"part": variant.part, "variant": variant.name, **gains(default, drawn)})
            keep(result)
        for way, captions in style_ways:
            task = progress.add_task(way.name, total=1.0)
            result["styles"] += whole.styles(
                way, captions, lambda part, task=task: progress.update(task, completed=part)
            )
            keep(result)
        together = [one for one in default if len(one.group) > 1]
        images = [whole.kept(variants[0], one.group, one.seed) for one in together]
    found = failures(whole.members, together, images)
    result["failures"] = found.causes
    result["checks"] = checks_of(result, found.shown)
    return result | {"sheet": found.sheet}


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
        check("worst pictures shown", shown, ">= 24", shown >= 24),
        check("variants that beat the default on success, identity and leakage", len(better), "0", not better),
    ]


def estimate(
    variants: Sequence[Variant], style_ways: Sequence[object], seeds: Sequence[int], steps: int | None
) -> float:
    """Seconds on two idle cores, when nothing is kept from an earlier run."""
    ways = {variant.way.name: variant.way for variant in variants}
    trained = sum(steps or train_settings(**way.settings).steps for way in ways.values())
    pictures = len(variants) * len(seeds) * (len(study.KINDS) + len(PAIRS) + len(study.TRIPLES))
    styled = len(style_ways) * (STYLE_SECONDS + 2 * len(study.KINDS) * len(seeds) * SECONDS_PER_PICTURE)
    return trained * SECONDS_PER_STEP + pictures * SECONDS_PER_PICTURE + styled


def show(result: dict[str, Any]) -> None:
    """The rows as a table, then the gains, the causes of failure and the checks."""
    console = Console()
    table = Table("variant", "subjects", "success", "if independent", "identity", "leakage", "alignment")
    for row in result["rows"]:
        kind = f"{row['subjects']}{' of one class' if row['same_class'] else ''}"
        figures = [format_ci(row[name]) if row[name] else "" for name in ("identity", "leakage", "alignment")]
        cells = [row["variant"], kind, format_ci(row["success"]), f"{row['success_if_independent']:.2f}", *figures]
        table.add_row(*cells, style="bold" if row["default"] else "")
    console.print(table)
    for row in result["gains"]:
        told = ", ".join(f"{name} {format_ci(row[name])}" for name in ("success", "identity_absent_zero", "leakage"))
        console.print(f"{row['variant']}, minus the default: {told}")
    for row in result["styles"]:
        captions = "what is shown" if row["captions"] else "the phrase alone"
        told = ", ".join(f"{name} {format_ci(row[name])}" for name in ("style_right", "subject_present", "both"))
        console.print(f"{row['style']}, {row['targets']}, captions of {captions}: {told}")
    console.print(result["failures"])
    for one in result["checks"]:
        console.print(f"{'holds ' if one['holds'] else 'MISSED'}  {one['name']}: {one['value']} ({one['bound']})")


def chosen_variants(only: str, quick: bool) -> list[Variant]:
    """The default, which all are compared with, and what was asked for."""
    first, *others = VARIANTS
    wanted = [one for one in others if one.name in QUICK] if quick else others
    return [first, *(one for one in wanted if only in one.part or only in one.name)]


def main() -> None:
    """Say how long it may take, run, write, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="six variants, one seed, short trainings; needs --out")
    parser.add_argument("--only", default="", metavar="TEXT", help="variants whose part or name has this; needs --out")
    parser.add_argument("--subjects-seed", type=int, default=SUBJECTS_SEED, help="other random subjects; needs --out")
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--work", type=Path, default=WORK, help="where adapters and pictures are kept")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    given = parser.parse_args()
    if given.out is None and (given.quick or given.only or given.subjects_seed != SUBJECTS_SEED):
        parser.error("--quick, --only and --subjects-seed need --out FILE: the committed result holds all variants")
    torch.set_num_threads(given.threads)
    variants = chosen_variants(given.only, given.quick)
    seeds, steps = (QUICK_SEEDS, QUICK_STEPS) if given.quick else (SEEDS, None)
    style_ways = STYLE_WAYS if given.only in "styles" and not given.quick else ()
    minutes = estimate(variants, style_ways, seeds, steps) / 60
    Console(stderr=True).print(
        f"{len(variants)} variants: about {minutes:.0f} minutes on two idle cores, if none is kept."
    )
    out: Path = given.out or RESULTS

    def keep(result: dict[str, Any]) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({name: value for name, value in result.items() if name != "sheet"}, indent=1) + "\n"
        atomic_write(out, lambda path: path.write_text(text, encoding="utf-8"))

    with tempfile.TemporaryDirectory() as fresh:  # a quick run is timed whole
        work = Path(fresh) if given.quick else given.work
        result = run(variants, style_ways, given.subjects_seed, seeds, steps, work, keep)
    result["sheet"].save(FAILURES if out == RESULTS else out.with_name(f"{out.stem}-failures.png"))
    draw_chart(result["gains"], CHART if out == RESULTS else out.with_name(f"{out.stem}-chart.png"))
    keep(result)
    show(result)


if __name__ == "__main__":
    main()
