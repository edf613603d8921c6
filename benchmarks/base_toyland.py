"""How good are the embedded base, its autoencoder and its judge, on scenes and prompts outside their training data?

    python benchmarks/base_toyland.py                       writes benchmarks/results/base_toyland.json
    python benchmarks/base_toyland.py --quick --out b.json  a tenth of the prompts and scenes
    python benchmarks/base_toyland.py --share 0.02 --out b.json  any share of them, at least two of each sort

All figures are shares, except the decibels:

- `judge`: on 500 held-out scenes without a style, and on the same images after a round trip through the shipped
  autoencoder; the smaller of both is reported. A finding belongs to a thing if their centres lie within 0.1 of the
  image's side. `class`: things that are found with the right class. `attributes`: mean over body colour, second colour,
  pattern, accessory and, where there is one, the accessory's colour; a colour is right if the nearest named colour is.
  A thing that is not found has everything wrong.
- `autoencoder_psnr_db`: over 256 held-out scenes, one in eight in a named style.
- The base, on 500 held-out prompts without adapters: 150 name one class, 200 two (one pair in ten of the same class),
  150 describe one subject in full; every prompt names a background. `one_object_class`, over the 300 prompts of one
  object, and `two_objects_both_classes`: every named class is among the findings, as often as it is named.
  `described_appearance`: of the most confident finding of the named class, body colour, second colour, pattern,
  accessory and the accessory's colour are all right. On 200 further prompts each, `two_described` and
  `three_described`: two and three subjects are described in full, each is found, no finding counts twice, and all
  attributes of all are right.
- `same_subject`: how often a likeness reaches the threshold `SAME_SUBJECT` for re-renders of a subject, and for other
  random subjects of its class, each beside a thing of another class.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import toyland_cast as study
from PIL import Image
from result_files import check, command_line, run_info, show_checks, whole_or_elsewhere, write

import toyland
from tara.families.base import Base
from tara.families.loading import load_base
from toyland.appearance import ATTRIBUTES, described_scenes, described_shares, right_attributes
from toyland.autoencoder import psnr, reconstruct, to_pixels
from toyland.captions import bare_caption, full_caption
from toyland.judge import Finding, Judge, Verdict
from toyland.render import render
from toyland.scenes import scene_number
from toyland.subjects import SAME_SUBJECT, likeness
from toyland.world import BACKGROUNDS, CLASSES, Appearance, Scene, Thing, place, random_scene, random_subject

RESULT = "base_toyland.json"
HELD_OUT = 4242
"""Seed of the scenes and prompts here; the base was trained on another series."""
STEPS, BATCH = 25, 16


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How many scenes and prompts of each kind."""

    scenes: int = 500
    coded: int = 256
    subjects: int = 400
    one: int = 150
    two: int = 200
    described: int = 150
    two_described: int = 200
    three_described: int = 200

    def reduced(self, share: float) -> Amounts:
        """That share of everything, at least two."""
        return Amounts(**{name: max(2, int(count * share)) for name, count in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a prompt says and what its image should show; `look` is None where the prompt names classes only."""

    text: str
    kinds: tuple[str, ...]
    background: str
    look: Appearance | None = None


@dataclass
class Shares:
    """Right answers per question."""

    right: Counter[str] = field(default_factory=Counter[str])
    asked: Counter[str] = field(default_factory=Counter[str])

    def add(self, question: str, right: bool) -> None:
        self.asked[question] += 1
        self.right[question] += right

    def share(self, question: str) -> float:
        return self.right[question] / self.asked[question]

    def all(self) -> dict[str, float]:
        return {question: round(self.share(question), 4) for question in self.asked}


def finding_at(verdict: Verdict, thing: Thing) -> Finding | None:
    """The finding nearest to a thing, if their centres lie within a tenth of the image's side."""
    distances = [max(abs(finding.x - thing.x), abs(finding.y - thing.y)) for finding in verdict.things]
    nearest = min(range(len(distances)), key=distances.__getitem__, default=None)
    return None if nearest is None or distances[nearest] >= 0.1 else verdict.things[nearest]


def judge_shares(scenes: Sequence[Scene], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """`class`, each attribute and their mean `attributes`, and how often the judge finds a thing too many."""
    shares = Shares()
    for scene, verdict in zip(scenes, verdicts, strict=True):
        shares.add("background", verdict.background == scene.background)
        shares.add("too_many_things", len(verdict.things) > len(scene.things))
        for thing in scene.things:
            finding = finding_at(verdict, thing)
            shares.add("class", finding is not None and finding.kind == thing.kind)
            for name, right in right_attributes(finding, thing.look).items():
                shares.add(name, right)
    attributes = float(np.mean([shares.share(name) for name in ATTRIBUTES]))
    return shares.all() | {"attributes": round(attributes, 4)}


def to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """Pixels (rows, 3, height, width) in -1..1 as images."""
    arrays = ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array) for array in arrays]


def round_trip(vae: Any, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Images, encoded and decoded by the autoencoder."""
    coded: list[Image.Image] = []
    for start in range(0, len(images), BATCH):
        pixels = to_pixels(np.stack([np.asarray(image) for image in images[start : start + BATCH]]))
        coded += to_images(reconstruct(vae, pixels))
    return coded


def decibels(vae: Any, count: int) -> float:
    """PSNR over held-out scenes, all together."""
    images = [render(scene_number(HELD_OUT, index)) for index in range(count)]
    first, second = (to_pixels(np.stack([np.asarray(one) for one in of])) for of in (images, round_trip(vae, images)))
    return psnr(first, second)


def same_subject(judge: Judge, vae: Any, count: int) -> dict[str, dict[str, float]]:
    """Shares of re-renders, and of other subjects of the class, that pass for a subject."""
    rng = np.random.default_rng(HELD_OUT + 1)
    subjects = [random_subject(rng) for _ in range(count)]
    others = [random_subject(rng, subject.kind) for subject in subjects]
    result: dict[str, dict[str, float]] = {"re_renders": {}, "others": {}}
    for name, shown in (("re_renders", subjects), ("others", others)):
        scenes: list[Scene] = []
        for subject in shown:
            beside = random_subject(rng, str(rng.choice([kind for kind in CLASSES if kind != subject.kind])))
            background, seed = str(rng.choice(BACKGROUNDS)), int(rng.integers(2**31))
            scenes.append(place(rng, [subject, beside], background=background, seed=seed))
        images = [render(scene) for scene in scenes]
        for way, judged in (("rendered", images), ("after_round_trip", round_trip(vae, images))):
            likes = [
                0.0 if (finding := finding_at(verdict, scene.things[0])) is None else likeness(finding, subject)
                for scene, verdict, subject in zip(scenes, judge(judged), subjects, strict=True)
            ]
            result[name][way] = round(float(np.mean([like >= SAME_SUBJECT for like in likes])), 4)
    return result


def prompts_of(amounts: Amounts) -> list[Prompt]:
    """The held-out prompts, the same in every run."""
    rng = np.random.default_rng(HELD_OUT)
    prompts: list[Prompt] = []
    for count, of in ((1, amounts.one), (2, amounts.two)):
        for _ in range(of):
            kinds = tuple(str(kind) for kind in rng.choice(CLASSES, count))
            background = str(rng.choice(BACKGROUNDS))
            prompts.append(Prompt(text=bare_caption(kinds, background), kinds=kinds, background=background))
    for _ in range(amounts.described):
        scene = place(rng, [random_subject(rng)], background=str(rng.choice(BACKGROUNDS)))
        thing = scene.things[0]
        text = full_caption(scene.things, scene.background)
        prompts.append(Prompt(text=text, kinds=(thing.kind,), background=scene.background, look=thing.look))
    return prompts


def generate(base: Base, prompts: Sequence[str]) -> Iterator[Image.Image]:
    """One image per prompt from its own seed, in batches, by the stock pipeline."""
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        yield from base.pipe(
            [*batch],
            num_inference_steps=STEPS,
            guidance_scale=base.defaults.guidance_scale,
            generator=[torch.Generator().manual_seed(start + row) for row in range(len(batch))],
        ).images


def base_shares(prompts: Sequence[Prompt], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Shares of right images, see the top of this file."""
    shares = Shares()
    for prompt, verdict in zip(prompts, verdicts, strict=True):
        detected = Counter(finding.kind for finding in verdict.things)
        number = "one_object" if len(prompt.kinds) == 1 else "two_objects"
        shares.add(f"{number}_found", not Counter(prompt.kinds) - detected)
        shares.add(f"{number}_and_nothing_else", Counter(prompt.kinds) == detected)
        shares.add("background", verdict.background == prompt.background)
        if prompt.look is not None:
            own = [finding for finding in verdict.things if finding.kind == prompt.kinds[0]]
            right = right_attributes(max(own, key=lambda f: f.confidence, default=None), prompt.look)
            shares.add("described", all(right.values()))
            for name, value in right.items():
                shares.add(f"described_{name}", value)
    return shares.all()


def weights_mib() -> tuple[float, float]:
    """Size of the base's weights: all files together, and the largest one."""
    sizes = [path.stat().st_size / 2**20 for path in toyland.BASE.rglob("*.safetensors")]
    return sum(sizes), max(sizes)


def checks_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The bounds of this project, and whether each holds."""
    least = {
        "judge, class": (result["judge"]["class"], 0.98),
        "judge, attributes": (result["judge"]["attributes"], 0.95),
        "autoencoder, dB": (result["autoencoder_psnr_db"], 31),
        "one object, class": (result["one_object_class"], 0.99),
        "two objects, both classes": (result["two_objects_both_classes"], 0.99),
        "background": (result["background"], 0.95),
        "one described in full": (result["described_appearance"], 0.94),
        "two described in full": (result["two_described"], 0.87),
        "three described in full": (result["three_described"], 0.55),
        "re-renders that pass for their subject": (min(result["same_subject"]["re_renders"].values()), 0.95),
    }
    most = {
        "other subjects of the class that pass": (max(result["same_subject"]["others"].values()), 0.05),
        "weights together, MiB": (result["weights_mib"]["together"], 40),
        "largest file, MiB": (result["weights_mib"]["largest_file"], 15),
    }
    return [check(name, value, f">= {bound}", value >= bound) for name, (value, bound) in least.items()] + [
        check(name, value, f"<= {bound}", value <= bound) for name, (value, bound) in most.items()
    ]


def measure_judge(judge: Judge, vae: Any, count: int) -> dict[str, dict[str, float]]:
    """The judge's shares on held-out renders and on the same images after a round trip."""
    rng = np.random.default_rng(HELD_OUT)
    scenes = [random_scene(rng, style="none") for _ in range(count)]
    images = [render(scene) for scene in scenes]
    return {
        "rendered": judge_shares(scenes, judge(images)),
        "after_round_trip": judge_shares(scenes, judge(round_trip(vae, images))),
    }


def measure_base(base: Base, judge: Judge, amounts: Amounts) -> dict[str, Any]:
    """Generate and judge every prompt, with a bar; `two_described` and `three_described` beside `base_shares`."""
    prompts = prompts_of(amounts)
    scenes = {
        name: described_scenes(HELD_OUT, things, vars(amounts)[name])
        for things, name in ((2, "two_described"), (3, "three_described"))
    }
    texts = [[full_caption(scene.things, scene.background) for scene in of] for of in scenes.values()]
    with study.progress() as bar:
        images = [
            list(bar.track(generate(base, of), len(of), description="generate"))
            for of in ([prompt.text for prompt in prompts], *texts)
        ]
    shares = {
        name: described_shares(of, judge(shown)) for (name, of), shown in zip(scenes.items(), images[1:], strict=True)
    }
    return base_shares(prompts, judge(images[0])) | shares


def run(amounts: Amounts) -> dict[str, Any]:
    """Everything that the result file holds."""
    begun = time.perf_counter()
    base, judge = load_base(toyland.BASE, device="cpu"), Judge.load(toyland.JUDGE)
    base.pipe.set_progress_bar_config(disable=True)
    judged = measure_judge(judge, base.vae, amounts.scenes)
    generated = measure_base(base, judge, amounts)
    together, largest = weights_mib()
    result: dict[str, Any] = {
        "judge": {name: min(way[name] for way in judged.values()) for name in ("class", "attributes")},
        "autoencoder_psnr_db": round(decibels(base.vae, amounts.coded), 2),
        "one_object_class": generated["one_object_found"],
        "two_objects_both_classes": generated["two_objects_found"],
        "background": generated["background"],
        "described_appearance": generated["described"],
        "two_described": generated["two_described"]["all"],
        "three_described": generated["three_described"]["all"],
        "prompts": amounts.one + amounts.two + amounts.described + amounts.two_described + amounts.three_described,
        "judge_in_detail": judged,
        "base_in_detail": generated,
        "same_subject": {"threshold": SAME_SUBJECT, **same_subject(judge, base.vae, amounts.subjects)},
        "weights_mib": {"together": round(together, 2), "largest_file": round(largest, 2)},
        "sampling": {
            "scheduler": type(base.scheduler).__name__,
            "steps": STEPS,
            "guidance_scale": base.defaults.guidance_scale,
        },
        **run_info(),
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - begun),
    }
    return result | {"checks": checks_of(result)}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; `arguments` are the process's own unless given."""
    parser = command_line(__doc__)
    parser.add_argument("--quick", action="store_const", const=0.1, dest="share", help="--share 0.1")
    parser.add_argument("--share", type=float, default=1.0, help="of the prompts and scenes; less than 1 needs --out")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args(arguments)
    out = whole_or_elsewhere(parser, args.out, RESULT, whole=args.share == 1)
    torch.set_num_threads(args.threads)
    result = run(Amounts().reduced(args.share) if args.share != 1 else Amounts())
    write(out, result)
    show_checks(result["checks"])


if __name__ == "__main__":
    main()
