"""Make the base and the judge from nothing but the renderer: `python -m toyland.train [STAGE ...] --work FOLDER`.

Each stage reads what earlier ones left in the work folder and can be run again; the U-Net resumes from its checkpoint.
`export` writes the shipped folders. The settings are `recipe.toml` beside this file. `adopt`, which runs only where it
is named, fills the work folder with what is shipped, so that `denoiser` trains the shipped U-Net on.
On two cores: `torchrun --nproc-per-node 2 -m toyland.train denoiser --work FOLDER`, after the stages before it.
"""

from __future__ import annotations

import argparse
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import toyland
from toyland.autoencoder import AutoencoderRecipe, build_autoencoder, psnr, reconstruct, to_pixels, train_autoencoder
from toyland.denoiser import DenoiserRecipe, Material, TrainingState, new_state, train_unet
from toyland.judge_net import JudgeNet
from toyland.judge_training import JudgeRecipe, train_judge
from toyland.processes import is_first, join
from toyland.render import render
from toyland.scenes import scene_number
from toyland.sheet import sample_sheet
from toyland.text import TextRecipe, build_text_encoder, train_text_encoder
from toyland.tokenizer import build_tokenizer
from toyland.unet import build_scheduler, build_unet
from toyland.workshop import Workshop
from toyland.world import UNNAMED_STYLES, Scene, random_scene

RECIPE = Path(__file__).with_name("recipe.toml")
FURTHER = Path(__file__).with_name("recipe-further.toml")
"""The settings with which the shipped U-Net was trained on from an earlier one, see `adopt`."""
CHECKPOINT_EVERY = 1000
SHEET_EVERY = 2000


def make_text(shop: Workshop) -> None:
    """Tokenizer and text encoder."""
    recipe = TextRecipe(**shop.recipe["text"])
    tokenizer = build_tokenizer(shop.folder / "tokenizer")
    torch.manual_seed(recipe.seed)
    encoder = build_text_encoder(tokenizer)
    for _ in shop.follow("text", train_text_encoder(encoder, tokenizer, recipe, shop.device), recipe.steps):
        pass
    encoder.save_pretrained(shop.folder / "text_encoder")


def make_autoencoder(shop: Workshop) -> None:
    """The autoencoder, and its sharpness on held-out scenes."""
    recipe = AutoencoderRecipe(**shop.recipe["autoencoder"])
    torch.manual_seed(recipe.seed)
    model = build_autoencoder()
    steps = train_autoencoder(shop.pictures(), shop.code(), recipe, model, shop.device)
    for _ in shop.follow("autoencoder", steps, recipe.steps):
        pass
    pictures = np.stack([np.asarray(render(scene_number(shop.scene_seed + 1, index))) for index in range(64)])
    held_out = to_pixels(pictures).to(shop.device)
    print(f"autoencoder: {psnr(reconstruct(model, held_out), held_out):.2f} dB on held-out scenes")
    model.save_pretrained(shop.folder / "vae")


def make_judge(shop: Workshop) -> None:
    """The judge, from the base's scenes and some in styles that the base never sees."""
    recipe = JudgeRecipe(**shop.recipe["judge"])
    pictures, scenes = judge_scenes(shop)
    torch.manual_seed(recipe.seed)
    model = JudgeNet()
    steps = train_judge(pictures, scenes, shop.code(), recipe, model, shop.device)
    for step in shop.follow("judge", steps, recipe.steps):
        if step % CHECKPOINT_EVERY == 0 or step == recipe.steps:
            weights = {name: value.contiguous() for name, value in model.state_dict().items()}
            save_file(weights, shop.folder / "judge.safetensors")


def judge_scenes(shop: Workshop, plain: int = 50_000, styled: int = 5_000) -> tuple[np.ndarray, list[Scene]]:
    """The base's scenes and some in the styles that the base never sees, so that the judge can name those as well."""
    pictures = shop.pictures()[:plain]
    scenes = [scene_number(shop.scene_seed, index) for index in range(len(pictures))]
    rng = np.random.default_rng(77)
    extra = [random_scene(rng, style=str(rng.choice(UNNAMED_STYLES))) for _ in range(styled)]
    drawn = np.stack([np.asarray(render(scene)) for scene in extra])
    return np.concatenate([pictures, drawn]), scenes + extra


def adopt(shop: Workshop) -> None:
    """The shipped base and judge as the work folder of a further training of the U-Net, which starts at step 0."""
    if (shop.folder / "denoiser.safetensors").exists():
        raise SystemExit(f"{shop.folder} already holds a denoiser; adopt the shipped one into a new folder.")
    loaded: Any = StableDiffusionPipeline.from_pretrained(toyland.BASE, safety_checker=None, dtype=torch.float32)
    for part in ("tokenizer", "text_encoder", "vae"):
        getattr(loaded, part).save_pretrained(shop.folder / part)
    save_file(_in(torch.float32, load_file(toyland.JUDGE)), shop.folder / "judge.safetensors")
    state = new_state(DenoiserRecipe(**shop.recipe["denoiser"]), torch.device("cpu"))
    weights: dict[str, Tensor] = loaded.unet.state_dict()
    state.unet.load_state_dict(weights)
    for name, value in state.average.items():
        value.copy_(weights[name])
    state.save(shop.folder / "denoiser.safetensors", 0)


def make_denoiser(shop: Workshop) -> None:
    """The U-Net, from its checkpoint if there is one; sample sheets of its moving average on the way."""
    recipe = DenoiserRecipe(**shop.recipe["denoiser"])
    state, start = new_state(recipe, shop.device), 0
    checkpoint = shop.folder / "denoiser.safetensors"
    if checkpoint.exists():
        start = state.load(checkpoint)
        print(f"denoiser resumes at step {start}")
    material = Material(
        pictures=shop.pictures(),
        scene_seed=shop.scene_seed,
        code=shop.code(),
        tokenizer=shop.tokenizer(),
        text_encoder=shop.text_encoder(),
    )
    steps = train_unet(material, recipe, state, start, shop.device)
    for step in shop.follow("denoiser", steps, recipe.steps):
        if not is_first():
            continue
        if step % CHECKPOINT_EVERY == 0 or step == recipe.steps:
            state.save(checkpoint, step)
        if step % SHEET_EVERY == 0 or step == recipe.steps:
            _draw_sheet(material, state, shop.folder / f"sheet-{step:06d}.png")


def _draw_sheet(material: Material, state: TrainingState, path: Path) -> None:
    unet = build_unet()
    unet.load_state_dict(state.average)
    nn.Module.to(unet, state.unet.device)
    sample_sheet(unet, material.tokenizer, material.text_encoder, material.code).save(path)


def export(shop: Workshop) -> None:
    """Write the base as a diffusers pipeline folder in fp16, and the judge, where the package ships them."""
    prefix = "average."
    checkpoint = load_file(shop.folder / "denoiser.safetensors")
    unet = build_unet()
    unet.load_state_dict({k.removeprefix(prefix): v for k, v in checkpoint.items() if k.startswith(prefix)})
    vae = build_autoencoder()  # built, not loaded by folder: its config would remember that folder
    vae.load_state_dict(load_file(shop.folder / "vae" / "diffusion_pytorch_model.safetensors"))
    encoder = shop.text_encoder()
    nn.Module.to(encoder, "cpu")
    parts: dict[str, Any] = {
        "vae": vae,
        "text_encoder": encoder,
        "tokenizer": shop.tokenizer(),
        "unet": unet,
        "scheduler": build_scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    pipeline = StableDiffusionPipeline(**parts).to(torch.float16)
    shutil.rmtree(toyland.BASE, ignore_errors=True)
    pipeline.save_pretrained(toyland.BASE, max_shard_size="14MB", safe_serialization=True)
    save_file(_in(torch.float16, load_file(shop.folder / "judge.safetensors")), toyland.JUDGE)


def _in(dtype: torch.dtype, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous() for name, value in weights.items()
    }


STAGES = {
    "text": make_text,
    "autoencoder": make_autoencoder,
    "judge": make_judge,
    "denoiser": make_denoiser,
    "export": export,
}
"""In the order in which they need each other."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; `arguments` are the process's own unless given."""
    names = ", ".join(STAGES)
    parser = argparse.ArgumentParser(
        prog="python -m toyland.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", default=list(STAGES), help=f"any of {names}; all of them if none is named")
    parser.add_argument("--work", type=Path, default=Path("toyland-work"), help="for scenes, checkpoints and curves")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="settings, TOML")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args(arguments)
    if unknown := [stage for stage in chosen.stages if stage not in (*STAGES, "adopt")]:
        parser.error(f"there is no stage '{unknown[0]}'; the stages are {names}")
    shop = Workshop(chosen.work, tomllib.loads(chosen.recipe.read_text(encoding="utf-8")), torch.device(chosen.device))
    join()
    for stage in chosen.stages:
        (STAGES | {"adopt": adopt})[stage](shop)


if __name__ == "__main__":
    main()
