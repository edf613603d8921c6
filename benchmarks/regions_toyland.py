"""Plain LoRAs together in one image: each in its own region, against merging them, on four casts of eight subjects.

Nothing was chosen on these casts. Adapters of four kinds (plain LoRAs and TARA's, of all attention projections and of
cross-attention keys and values) go through every composer that suits them: each subject alone, twelve pairs (three of
one class), four triples. "True regions" are equal parts of the image from left to right, in the order of the prompt,
as a user gives them with --region. Adapters and images are kept in a work folder, and the result file is written after
each composer and cast, so that a run that was stopped is a result, and resumes.

    python benchmarks/regions_toyland.py                    all; writes benchmarks/results/regions_toyland_cpu.json
    python benchmarks/regions_toyland.py --casts 4101 --kinds "plain attention" --composers regions sum --out r.json
    python benchmarks/regions_toyland.py --quick --out q.json  one cast, one seed, short training, two composers

A whole run also writes research/regions.png.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import toyland_cast as study
from PIL import Image
from result_files import RESULTS, check, command_line, run_info, show_checks, whole_or_elsewhere, write
from rich.console import Console
from rich.table import Table
from study_failures import beside_photos
from study_variants import Variant, Way
from study_work import Study
from toyland_cast import Group, Member, Outcome

from tara.evaluation.statistics import format_ci, interval, paired_difference
from tara.report.grid import Grid, Row
from tara.report.sheet import contact_sheet
from tara.training.settings import train_settings

HERE = Path(__file__).parent
RESULT = "regions_toyland_cpu.json"
WORK = HERE / "work" / "regions_toyland"
SHEET = HERE.parent / "research" / "regions.png"
CASTS = (4101, 4102, 4103, 4104)
SEEDS, QUICK_STEPS = 4, 200
PLAIN, OURS = {"token_mask": False, "alignment_loss": "off"}, dict[str, Any]()
KINDS: Mapping[str, Way] = {
    f"{training} {targets}": Way(name=f"{training} {targets}", changes={"targets": targets, **changes})
    for training, targets, changes in (
        ("plain", "attention", PLAIN),
        ("tara", "attention", OURS),
        ("tara", "cross_kv", OURS),
        ("plain", "cross_kv", PLAIN),
    )
}
ALL = ("regions", "sum", "true regions", "ties", "dare", "tara", "switch", "composite")
COMPOSERS: Mapping[str, Sequence[str]] = {
    "plain attention": ALL,
    "tara attention": ("regions", "tara"),
    "tara cross_kv": ("tara", "regions"),
    "plain cross_kv": ALL,
}
"""Composers by kind of adapter, what matters most first."""
MERGES = ("sum", "ties", "dare")
ALONE = {"plain attention": ("regions", "sum"), "plain cross_kv": ("regions", "sum")}
"""With a single plain LoRA the other composers are the sum, or nearly."""
LEADING = "plain attention"
"""The kind that the checks are about: what people have."""
Series = dict[int, list[Outcome]]
"""The outcomes of one kind with one composer, by cast."""


def variant(kind: str, composer: str) -> Variant:
    """How a kind is generated with a composer."""
    true_regions = composer == "true regions"
    return Variant(
        part="regions",
        name=composer,
        way=KINDS[kind],
        composer="regions" if true_regions else composer,
        side_by_side=true_regions,
    )


def rows_of(kind: str, composer: str, series: Series, members: Sequence[Member]) -> list[dict[str, Any]]:
    """One row for each kind of prompt, over all casts so far; intervals are over groups of subjects."""
    settings = train_settings(**KINDS[kind].settings)
    rows: list[dict[str, Any]] = []
    for prompts, chosen in _by_prompts(series, members).items():
        if not any(chosen.values()):
            continue
        rows.append(
            {
                "kind": kind,
                **study.method_columns(settings),
                "learning_rate": settings.peak_learning_rate,
                "composer": composer,
                "prompts": prompts,
                "images": sum(map(len, chosen.values())),
                "success": _over_casts(chosen, study.successes),
                "identity": _over_casts(chosen, study.likeness),
                "leakage": None if prompts == "alone" else _over_casts(chosen, study.leakage),
                "success_by_cast": {cast: interval(study.successes(own))[0] for cast, own in chosen.items()},
            }
        )
    return rows


def _by_prompts(series: Series, members: Sequence[Member]) -> dict[str, Series]:
    """Outcomes by kind of prompt; the pairs are all twelve, those of one class have a row of their own too."""
    wanted: dict[str, Callable[[Group], bool]] = {
        "alone": lambda group: len(group) == 1,
        "pairs": lambda group: len(group) == 2,
        "pairs of one class": lambda group: len(group) == 2 and study.same_class(members, group),
        "triples": lambda group: len(group) == 3,
    }
    return {
        name: {cast: [one for one in outcomes if holds(one.group)] for cast, outcomes in series.items()}
        for name, holds in wanted.items()
    }


def _over_casts(series: Series, figure: Callable[[Sequence[Outcome]], list[tuple[Group, float]]]) -> list[float]:
    return interval(((cast, group), value) for cast, own in series.items() for group, value in figure(own))


def difference(one: Series, other: Series) -> list[float]:
    """[mean, low, high] of success of pairs in the first minus the second, image by image, over groups of subjects."""
    ours, theirs = (
        {
            (cast, outcome.group, outcome.seed): float(outcome.score.success)
            for cast, outcomes in some.items()
            for outcome in outcomes
            if len(outcome.group) == 2
        }
        for some in (one, other)
    )
    return paired_difference(ours, theirs, lambda key: key[:2])


def differences(done: Mapping[tuple[str, str], Series]) -> list[dict[str, Any]]:
    """Regions minus every other composer of the same kind, over all pairs."""
    return [
        {"kind": kind, "regions_minus": composer, "success": difference(done[kind, "regions"], series)}
        for (kind, composer), series in done.items()
        if composer != "regions" and (kind, "regions") in done
    ]


def checks_of(rows: Sequence[Mapping[str, Any]], against: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The bounds that this project sets itself, of plain LoRAs of all attention projections; those that are known."""
    success = {(row["composer"], row["prompts"]): row["success"][0] for row in rows if row["kind"] == LEADING}
    checks: list[dict[str, Any]] = []
    for prompts, floor in (("pairs", 0.65), ("pairs of one class", 0.5)):
        if (value := success.get(("regions", prompts))) is not None:
            checks.append(check(f"success of regions, {prompts}", value, f">= {floor:.2f}", value >= floor))
    merged = [row for row in against if row["kind"] == LEADING and row["regions_minus"] in MERGES]
    if len(merged) == len(MERGES):
        best = max(merged, key=lambda row: success[row["regions_minus"], "pairs"])
        low, name = (
            best["success"][1],
            f"regions minus the best merge ({best['regions_minus']}), pairs, low end of 95 %",
        )
        checks.append(check(name, low, "> 0.45", low > 0.45))
    return checks


def run(
    casts: Sequence[int],
    composers: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    steps: int | None,
    work: Path,
    keep: Callable[[dict[str, Any]], object],
) -> dict[str, Any]:
    """Every composer of every kind over all casts; ``keep`` gets all results so far after each cast of each."""
    result: dict[str, Any] = {"casts": list(casts), "seeds": len(seeds), **run_info(), "rows": []}
    done: dict[tuple[str, str], Series] = {}
    studies = {cast: Study(cast, seeds, steps, work) for cast in casts}
    members = studies[casts[0]].members
    with study.progress() as bar:
        for kind, composer in ((kind, one) for kind, own in composers.items() for one in own):
            own = done[kind, composer] = dict[int, list[Outcome]]()
            task = bar.add_task(f"{kind}, {composer}", total=2.0 * len(casts))
            earlier = result["rows"]
            for number, (cast, whole) in enumerate(studies.items()):
                chosen = variant(kind, composer)
                whole.adapters(chosen.way, study.on_task(bar, task, 2.0 * number))
                groups = [
                    group for group in whole.groups if len(group) > 1 or composer in ALONE.get(kind, COMPOSERS[kind])
                ]
                own[cast] = whole.outcomes(chosen, study.on_task(bar, task, 2.0 * number + 1), groups)
                result["rows"] = earlier + rows_of(kind, composer, own, members)
                result["differences"] = differences(done)
                result["checks"] = checks_of(result["rows"], result["differences"])
                keep(result)
    return result


def sheet(whole: Study, kind: str, composers: Sequence[str]) -> Image.Image:
    """The pairs' images of the first seed, one row a pair, one column a composer, with the subjects' photos."""
    rows: list[Row] = []
    for group in (group for group in whole.groups if len(group) == 2):
        images = tuple(whole.kept(variant(kind, composer), group, whole.seeds[0]) for composer in composers)
        named = [whole.members[i] for i in group]
        prompt = study.prompt(whole.members, group, study.place_of(group, whole.seeds[0]))
        rows.append(Row(label=prompt, images=tuple(beside_photos(image, named) for image in images)))
    return contact_sheet(Grid(rows=tuple(rows), columns=tuple(composers)))


def show(result: dict[str, Any]) -> None:
    """The rows as a table, then the differences and the checks."""
    console = Console()
    table = Table("kind", "composer", "prompts", "images", "success", "identity", "leakage")
    for row in result["rows"]:
        figures = [format_ci(row[name]) if row[name] else "" for name in ("success", "identity", "leakage")]
        table.add_row(row["kind"], row["composer"], row["prompts"], str(row["images"]), *figures)
    console.print(table)
    for row in result["differences"]:
        console.print(f"{row['kind']}, pairs, regions minus {row['regions_minus']}: {format_ci(row['success'])}")
    show_checks(result["checks"])


def main() -> None:
    """The command line."""
    parser = command_line(__doc__)
    parser.add_argument("--quick", action="store_true", help="one cast, one seed, short training; needs --out")
    parser.add_argument("--casts", type=int, nargs="+", default=CASTS, help="seeds of subjects; others need --out")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=tuple(KINDS), help="fewer need --out")
    parser.add_argument("--composers", nargs="+", choices=ALL, default=ALL, help="fewer need --out")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="images of each prompt; fewer need --out")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of trained adapters and generated images")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args()
    if args.quick:
        args.casts, args.kinds, args.composers, args.seeds = CASTS[:1], (LEADING,), ("regions", "sum"), 1
    everything = tuple(args.kinds) == tuple(KINDS) and tuple(args.composers) == ALL
    whole = everything and tuple(args.casts) == CASTS and args.seeds >= SEEDS
    out = whole_or_elsewhere(parser, args.out, RESULT, whole)
    torch.set_num_threads(args.threads)
    composers = {kind: [one for one in COMPOSERS[kind] if one in args.composers] for kind in args.kinds}
    seeds, steps = range(args.seeds), QUICK_STEPS if args.quick else None
    with tempfile.TemporaryDirectory() if args.quick else nullcontext(args.work) as work:
        result = run(args.casts, composers, seeds, steps, Path(work), lambda so_far: write(out, so_far))
    show(result)
    if out == RESULTS / RESULT:
        sheet(Study(CASTS[0], seeds, steps, args.work), LEADING, ("regions", "sum")).save(SHEET)


if __name__ == "__main__":
    main()
