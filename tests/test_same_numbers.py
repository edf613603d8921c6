"""The loss trace of two trainings and the pixels of their images, recorded before the package was reorganised.

Removed at the end of the reorganisation: the numbers are those of one build of torch on one kind of processor.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import tiny_bases
from tara.families.base import Base
from tara.inference.pipeline import Pipeline
from tara.training.loop import train_concepts
from training_fixtures import quick, two_concepts

RECORDED = Path(__file__).with_name("same_numbers.json")
RUNS = {
    "sd cross_kv": (tiny_bases.sd_pipeline, {}),
    "sd attention": (tiny_bases.sd_pipeline, {"targets": "attention", "snr_gamma": 5.0, "captions": "varied"}),
    "sdxl cross_kv": (tiny_bases.sdxl_pipeline, {"alignment_loss": "squared", "alpha": 8.0}),
    "sdxl plain": (tiny_bases.sdxl_pipeline, {"token_mask": False, "alignment_loss": "off", "targets": "attention"}),
}


def measured(run: str, folder: Path) -> dict[str, list[str]]:
    build, changes = RUNS[run]
    backbone = Base(build())
    steps = train_concepts(two_concepts(folder), quick(**changes), backbone)
    losses: list[str] = []
    while True:
        try:
            record = next(steps)
        except StopIteration as end:
            adapters = end.value
            break
        losses += [value.hex() for part in record.concepts for value in (part.loss, part.denoising, part.alignment)]
    pipeline = Pipeline(backbone)
    images = []
    for composer in ("tara", "sum"):
        drawn = pipeline("a xlo dog and a szn cat", adapters, (3, 4), steps=3, composer=composer)
        images += [hashlib.sha256(np.asarray(image).tobytes()).hexdigest() for image in drawn]
    return {"losses": losses, "images": images}


@pytest.mark.parametrize("run", RUNS)
def test_losses_and_pixels_are_those_of_before(run: str, tmp_path: Path):
    assert measured(run, tmp_path) == json.loads(RECORDED.read_text(encoding="utf-8"))[run]


if __name__ == "__main__":
    import tempfile

    import torch

    torch.set_num_threads(1)
    found = {run: measured(run, Path(tempfile.mkdtemp())) for run in RUNS}
    RECORDED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
