"""The judge's network, what is read off its grid, and how it is taught."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from looks import reading_of
from toyland.code import PatchCode
from toyland.judge import Judge, Verdict
from toyland.judge_net import FIELDS, GRID, JudgeNet, fields_of, scene_logits
from toyland.judge_training import JudgeRecipe, train_judge
from toyland.render import SIZE, render
from toyland.scenes import scene_number
from toyland.world import (
    ACCESSORIES,
    BACKGROUNDS,
    CLASSES,
    PATTERNS,
    STYLES,
    Scene,
    place,
    random_scene,
    random_subject,
)

CERTAIN = 40.0
"""A logit beside which all others are nothing."""


class Unerring(nn.Module):
    """A network that writes the truth of given scenes on its grid, whatever it is shown."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        super().__init__()
        self.scenes = scenes

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        assert len(pixels) == len(self.scenes)
        grid = torch.zeros(len(self.scenes), sum(FIELDS.values()), GRID, GRID)
        fields = fields_of(grid)
        fields["center"].fill_(-CERTAIN)
        whole = torch.zeros(len(self.scenes), len(BACKGROUNDS) + len(STYLES))
        backgrounds, styles = scene_logits(whole)
        for row, scene in enumerate(self.scenes):
            backgrounds[row, BACKGROUNDS.index(scene.background)] = CERTAIN
            styles[row, STYLES.index(scene.style)] = CERTAIN
            for thing in scene.things:
                cx, cy = thing.x * GRID - 0.5, thing.y * GRID - 0.5
                cell = (row, slice(None), round(cy), round(cx))
                look = thing.look
                fields["center"][cell] = CERTAIN
                fields["shift"][cell] = torch.tensor([cx - round(cx), cy - round(cy)])
                fields["size"][cell] = thing.size * 4
                fields["class"][cell] = CERTAIN * nn.functional.one_hot(torch.tensor(CLASSES.index(thing.kind)), 10)
                fields["colors"][cell] = torch.tensor([*look.body, *look.second, *look.third]) / 127.5 - 1
                fields["pattern"][cell][PATTERNS.index(look.pattern)] = CERTAIN
                fields["accessory"][cell][ACCESSORIES.index(look.accessory)] = CERTAIN
        return grid, whole


def _judge(model: nn.Module) -> Judge:
    return Judge(model)  # type: ignore[arg-type]


def _same(verdict: Verdict, truth: Verdict) -> bool:
    assert len(verdict.things) == len(truth.things)
    for found, real in zip(verdict.things, truth.things, strict=True):
        assert (found.x, found.y, found.size) == pytest.approx((real.x, real.y, real.size), abs=1e-5)
        assert (found.kind, found.look) == (real.kind, real.look)
    return (verdict.background, verdict.style) == (truth.background, truth.style)


def _pictures(scenes: Sequence[Scene]) -> np.ndarray:
    return np.stack([np.asarray(render(scene)) for scene in scenes])


def test_the_network_gives_a_grid_and_scene_logits() -> None:
    grid, scene = JudgeNet().eval()(torch.zeros(2, 3, SIZE, SIZE))
    assert grid.shape == (2, sum(FIELDS.values()), GRID, GRID)
    backgrounds, styles = scene_logits(scene)
    assert backgrounds.shape == (2, len(BACKGROUNDS))
    assert styles.shape == (2, len(STYLES))
    assert {name: field.shape[1] for name, field in fields_of(grid).items()} == FIELDS


def test_an_untaught_network_finds_next_to_nothing() -> None:
    torch.manual_seed(0)
    verdicts = Judge(JudgeNet())([render(scene_number(5, index)) for index in range(4)])
    assert not any(verdict.things for verdict in verdicts)


def test_what_the_grid_says_is_read_exactly() -> None:
    scenes = [random_scene(np.random.default_rng([9, index])) for index in range(40)]
    verdicts = _judge(Unerring(scenes))([render(scene) for scene in scenes])
    for verdict, scene in zip(verdicts, scenes, strict=True):
        assert _same(verdict, reading_of(scene))


def test_findings_come_from_left_to_right() -> None:
    scenes = [scene_number(6, index) for index in range(30)]
    for verdict in _judge(Unerring(scenes))([render(scene) for scene in scenes]):
        assert [finding.x for finding in verdict.things] == sorted(finding.x for finding in verdict.things)


def test_one_object_is_found_once() -> None:
    rng = np.random.default_rng(4)
    scene = place(rng, [random_subject(rng)], background="room")

    class Twice(Unerring):
        """Sees the centre a second time, less surely, two cells further up."""

        def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
            grid, whole = super().forward(pixels)
            x, y = round(scene.things[0].x * GRID - 0.5), round(scene.things[0].y * GRID - 0.5)
            grid[0, :, y - 2, x] = grid[0, :, y, x]
            fields_of(grid)["center"][0, 0, y - 2, x] = 1.0
            return grid, whole

    (verdict,) = _judge(Twice([scene]))([render(scene)])
    assert _same(verdict, reading_of(scene))


def test_a_verdict_does_not_depend_on_the_other_images() -> None:
    torch.manual_seed(1)
    judge = Judge(JudgeNet())
    pictures = [render(scene_number(7, index)) for index in range(5)]
    together = judge(pictures, threshold=0.03)
    for picture, verdict in zip(pictures, together, strict=True):
        (alone,) = judge([picture], threshold=0.03)
        assert len(alone.things) == len(verdict.things)
        for a, b in zip(alone.things, verdict.things, strict=True):
            assert a.kinds == pytest.approx(b.kinds, abs=1e-4)


def test_larger_images_are_judged_at_their_own_size() -> None:
    torch.manual_seed(1)
    judge = Judge(JudgeNet())
    small = render(scene_number(7, 1))
    large = small.resize((4 * SIZE, 4 * SIZE), Image.Resampling.NEAREST)
    assert judge([large], threshold=0.03) == judge([small], threshold=0.03)


def test_weights_in_half_precision_can_be_loaded(tmp_path: Path) -> None:
    torch.manual_seed(2)
    weights = JudgeNet().state_dict()
    halves = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    save_file(halves, tmp_path / "judge.safetensors")
    loaded = Judge.load(tmp_path / "judge.safetensors").model.state_dict()
    for name, value in weights.items():
        torch.testing.assert_close(loaded[name], value, rtol=1e-3, atol=1e-5)


def test_training_lowers_the_loss_and_repeats_exactly() -> None:
    scenes = [scene_number(8, index) for index in range(16)]
    pictures = _pictures(scenes)
    recipe = JudgeRecipe(steps=40, batch_size=6)
    runs: list[list[float]] = []
    for _ in range(2):
        torch.manual_seed(recipe.seed)
        model = JudgeNet()
        steps = train_judge(pictures, scenes, PatchCode.fit(pictures), recipe, model, torch.device("cpu"))
        runs.append([float(loss) for _, loss in islice(steps, 8)])
    assert runs[0] == runs[1]
    assert np.mean(runs[0][-3:]) < np.mean(runs[0][:3])
