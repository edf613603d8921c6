"""Make the base and the judge from nothing but the renderer: `python -m toyland.train [STAGE ...] --work FOLDER`.

Each stage reads what earlier ones left in the work folder and can be run again; the U-Net resumes from its checkpoint.
`export` writes the shipped folders. The settings are `recipe.toml` beside this file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

import toyland
from toyland.autoencoder import AutoencoderRecipe, build_autoencoder, psnr, reconstruct, to_pixels, train_autoencoder
from toyland.captions import bare_caption, full_caption
from toyland.code import PatchCode
from toyland.denoiser import (
    DenoiserRecipe,
    TrainingState,
    build_scheduler,
    build_unet,
    draw_latents,
    new_state,
    train_unet,
)
from toyland.judge import JudgeNet, JudgeRecipe, train_judge
from toyland.render import SIZE, render
from toyland.scenes import rendered, scene_number
from toyland.text import TextRecipe, build_text_encoder, build_tokenizer, train_text_encoder
from toyland.world import BACKGROUNDS, UNNAMED_STYLES, Scene, place, random_scene, random_subject

STAGES = ("text", "autoencoder", "judge", "denoiser", "export")
FITTED_ON = 4000
"""Pictures that the patch code is fitted on."""
CHECKPOINT_EVERY = 1000


class Workshop:
    """The work folder of one training: where each stage's results lie and how they are read back."""

    def __init__(self, folder: Path, recipe: dict[str, Any], device: torch.device) -> None:
        self.folder, self.recipe, self.device = folder, recipe, device
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def scene_seed(self) -> int:
        return int(self.recipe["scenes"]["seed"])

    def pictures(self) -> np.ndarray:
        return rendered(self.folder, self.scene_seed, int(self.recipe["scenes"]["count"]))

    def code(self) -> PatchCode:
        path = self.folder / "code.safetensors"
        if not path.exists():
            save_file(PatchCode.fit(self.pictures()[:FITTED_ON]).tensors(), path)
        return PatchCode(**load_file(path))

    def tokenizer(self) -> CLIPTokenizer:
        return CLIPTokenizer.from_pretrained(self.folder / "tokenizer")

    def text_encoder(self) -> CLIPTextModel:
        return CLIPTextModel.from_pretrained(self.folder / "text_encoder").eval().requires_grad_(False).to(self.device)

    def follow(self, stage: str, steps: Iterable[tuple[int, Tensor]], total: int) -> Iterator[int]:
        """Print and keep the mean loss of every 100 steps while they run."""
        losses: list[Tensor] = []
        began = time.monotonic()
        with (self.folder / f"{stage}.jsonl").open("a", encoding="utf-8") as log:
            for step, loss in steps:
                losses.append(loss)
                if step % 100 == 0 or step == total:
                    mean = float(torch.stack(losses).mean())
                    losses.clear()
                    log.write(json.dumps({"step": step, "loss": round(mean, 5)}) + "\n")
                    log.flush()
                    print(f"{stage} {step}/{total} loss {mean:.4f} {time.monotonic() - began:.0f} s", flush=True)
                yield step


def make_text(shop: Workshop) -> None:
    recipe = TextRecipe(**shop.recipe["text"])
    tokenizer = build_tokenizer(shop.folder / "tokenizer")
    torch.manual_seed(recipe.seed)
    encoder = build_text_encoder(tokenizer)
    for _ in shop.follow("text", train_text_encoder(encoder, tokenizer, recipe, shop.device), recipe.steps):
        pass
    encoder.save_pretrained(shop.folder / "text_encoder")


def make_autoencoder(shop: Workshop) -> None:
    recipe = AutoencoderRecipe(**shop.recipe["autoencoder"])
    torch.manual_seed(recipe.seed)
    model = build_autoencoder()
    steps = train_autoencoder(shop.pictures(), shop.code(), recipe, model, shop.device)
    for _ in shop.follow("autoencoder", steps, recipe.steps):
        pass
    held_out = to_pixels(np.stack([np.asarray(render(scene_number(shop.scene_seed + 1, i))) for i in range(64)])).to(
        shop.device
    )
    print(f"autoencoder: {psnr(reconstruct(model, held_out), held_out):.2f} dB on held-out scenes")
    model.save_pretrained(shop.folder / "vae")


def make_judge(shop: Workshop) -> None:
    recipe = JudgeRecipe(**shop.recipe["judge"])
    pictures, scenes = judge_scenes(shop)
    torch.manual_seed(recipe.seed)
    model = JudgeNet()
    for step in shop.follow(
        "judge", train_judge(pictures, scenes, shop.code(), recipe, model, shop.device), recipe.steps
    ):
        if step % CHECKPOINT_EVERY == 0 or step == recipe.steps:
            save_file(
                {name: value.contiguous() for name, value in model.state_dict().items()},
                shop.folder / "judge.safetensors",
            )


def judge_scenes(shop: Workshop, plain: int = 50_000, styled: int = 5_000) -> tuple[np.ndarray, list[Scene]]:
    """The base's scenes and some in the styles that the base never sees, so that the judge can name those as well."""
    scenes = [scene_number(shop.scene_seed, index) for index in range(plain)]
    rng = np.random.default_rng(77)
    extra = [random_scene(rng, style=str(rng.choice(UNNAMED_STYLES))) for _ in range(styled)]
    pictures = np.concatenate(
        [np.asarray(shop.pictures()[:plain]), np.stack([np.asarray(render(scene)) for scene in extra])]
    )
    return pictures, scenes + extra


def make_denoiser(shop: Workshop) -> None:
    recipe = DenoiserRecipe(**shop.recipe["denoiser"])
    state, start = new_state(recipe, shop.device), 0
    checkpoint = shop.folder / "denoiser.safetensors"
    if checkpoint.exists():
        start = state.load(checkpoint)
        print(f"denoiser resumes at step {start}")
    tokenizer, encoder, code = shop.tokenizer(), shop.text_encoder(), shop.code()
    steps = train_unet(shop.pictures(), shop.scene_seed, code, tokenizer, encoder, recipe, state, start, shop.device)
    for step in shop.follow("denoiser", steps, recipe.steps):
        if step % CHECKPOINT_EVERY == 0 or step == recipe.steps:
            state.save(checkpoint, step)
        if step % (2 * CHECKPOINT_EVERY) == 0 or step == recipe.steps:
            _sheet(state, tokenizer, encoder, code).save(shop.folder / f"sheet-{step:06d}.png")


def sheet_prompts(count: int = 24) -> list[str]:
    """Prompts of the sample sheets: one or two things, bare and fully described by turns."""
    rng = np.random.default_rng(99)
    prompts: list[str] = []
    for index in range(count):
        subjects = [random_subject(rng) for _ in range(1 + (index % 3 > 0))]
        scene = place(rng, subjects, background=BACKGROUNDS[index % len(BACKGROUNDS)])
        kinds = [thing.kind for thing in scene.things]
        prompts.append(
            full_caption(scene.things, scene.background) if index % 2 else bare_caption(kinds, scene.background)
        )
    return prompts


def _sheet(
    state: TrainingState, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, code: PatchCode, columns: int = 8
) -> Image.Image:
    prompts = sheet_prompts()
    unet = build_unet()
    unet.load_state_dict(state.average)
    ids = tokenizer([*prompts, ""], padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        hidden = encoder.cpu()(ids).last_hidden_state
    latents = draw_latents(unet.eval(), hidden[:-1], hidden[-1:], list(range(len(prompts))))
    pixels = ((code.decode(latents).clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
    sheet = Image.new("RGB", (columns * SIZE, -(-len(prompts) // columns) * SIZE))
    for index, picture in enumerate(pixels):
        sheet.paste(Image.fromarray(picture), (index % columns * SIZE, index // columns * SIZE))
    return sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST)


def export(shop: Workshop) -> None:
    """Write the base as a diffusers pipeline folder in fp16, and the judge, where the package ships them."""
    unet = build_unet()
    unet.load_state_dict({k.removeprefix("average."): v for k, v in load_file(shop.folder / "denoiser.safetensors").items()
                          if k.startswith("average.")})  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(shop.folder / "vae"), text_encoder=shop.text_encoder().cpu(), tokenizer=shop.tokenizer(),
        unet=unet, scheduler=build_scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    shutil.rmtree(toyland.BASE, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(toyland.BASE, max_shard_size="14MB", safe_serialization=True)
    judge = {
        name: value.half() if value.is_floating_point() else value
        for name, value in load_file(shop.folder / "judge.safetensors").items()
    }
    save_file({name: value.contiguous() for name, value in judge.items()}, toyland.JUDGE)


MAKERS = {
    "text": make_text,
    "autoencoder": make_autoencoder,
    "judge": make_judge,
    "denoiser": make_denoiser,
    "export": export,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m toyland.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stages", nargs="*", default=list(STAGES), help=f"any of {', '.join(STAGES)}; all of them if none is named"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("toyland-work"), help="folder for scenes, checkpoints and curves"
    )
    parser.add_argument("--recipe", type=Path, default=Path(__file__).with_name("recipe.toml"), help="settings, TOML")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args()
    if unknown := [stage for stage in chosen.stages if stage not in STAGES]:
        parser.error(f"there is no stage '{unknown[0]}'; the stages are {', '.join(STAGES)}")
    shop = Workshop(chosen.work, tomllib.loads(chosen.recipe.read_text(encoding="utf-8")), torch.device(chosen.device))
    for stage in chosen.stages:
        MAKERS[stage](shop)


if __name__ == "__main__":
    main()
