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

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import toyland_cast as study
from result_files import RESULTS, check, command_line, run_info, show_checks, whole_or_elsewhere, write
from rich.console import Console
from rich.table import Table
from study_chart import plot_gains
from study_failures import failures
from study_variants import DEFAULT, QUICK, STYLE_WAYS, VARIANTS, Variant, Way
from study_work import PAIRS, SUBJECTS_SEED, Study
from toyland_cast import Group, Member, Outcome

from tara.evaluation.statistics import format_ci, interval, paired_difference
from tara.training.settings import train_settings

HERE = Path(__file__).parent
RESULT = "study_toyland_cpu.json"
WORK = HERE / "work" / "study_toyland"
RESEARCH = HERE.parent / "research"
SEEDS, QUICK_SEEDS, QUICK_STEPS = study.SEEDS[:4], study.SEEDS[:1], 200
SECONDS_PER_STEP, SECONDS_PER_IMAGE, STYLE_SECONDS = 0.55, 0.5, 60  # on two idle cores; steps are of eight adapters


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
