"""Make the base and the judge from nothing but the renderer: `python -m toyland.train [STAGE ...] --work FOLDER`.

Each stage reads what earlier ones left in the work folder and can be run again; the U-Net resumes from its checkpoint.
`export` writes the shipped folders. The settings are `recipe.toml` beside this file. Some stages run only where they
are named: `adopt` fills the work folder with what is shipped, so that `denoiser` trains the shipped U-Net on; `reader`
trains the network whose error a recipe with a `reading_weight` adds to the loss; `branch` copies the present checkpoint
to a folder of its own, where the learning rate can fall to zero while the first folder's training goes on; `appearance`
measures the checkpoint's moving average.
On two cores: `torchrun --nproc-per-node 2 -m toyland.train denoiser --work FOLDER`, after the stages before it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import toyland
from toyland.appearance import AppearanceCounts, Generator, measure_appearance
from toyland.autoencoder import AutoencoderRecipe, build_autoencoder, psnr, reconstruct, to_pixels, train_autoencoder
from toyland.denoiser import Material, train_unet
from toyland.denoiser_state import DenoiserRecipe, TrainingState, average_in, new_state, steps_done, unet_of
from toyland.judge import Judge
from toyland.judge_net import JudgeNet
from toyland.judge_training import JudgeRecipe, train_judge
from toyland.processes import is_first, join
from toyland.reader_net import ReaderNet
from toyland.reader_training import ReaderRecipe, estimator, reader_shares, train_reader
from toyland.reading import ThingLabels, thing_labels
from toyland.render import render
from toyland.scenes import scene_number
from toyland.sheet import sample_sheet
from toyland.text import TextRecipe, build_text_encoder, train_text_encoder
from toyland.tokenizer import build_tokenizer
from toyland.unet import build_scheduler
from toyland.workshop import Workshop
from toyland.world import UNNAMED_STYLES, Scene, random_scene

RECIPE = Path(__file__).with_name("recipe.toml")
FURTHER = Path(__file__).with_name("recipe-further.toml")
"""The settings with which the shipped U-Net was trained on from an earlier one, see `adopt`."""
READING = Path(__file__).with_name("recipe-reading.toml")
"""The settings of a further training with a reader's error in the loss."""
CHECKPOINT_EVERY = 500
SHEET_EVERY = 2000
HELD_OUT = 500
"""Scenes that the reader is tried on."""
SHARED = (
    "scenes-*.npy",
    "code.safetensors",
    "tokenizer",
    "text_encoder",
    "vae",
    "judge.safetensors",
    "reader.safetensors",
)
"""What a branch links to: all that the training of the U-Net does not change."""


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
    if shop.checkpoint.exists():
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
    state.save(shop.checkpoint, 0)


def make_reader(shop: Workshop) -> None:
    """The reader of the loss, and its shares on held-out scenes: clean, noisy, and as the U-Net estimates them."""
    recipe = ReaderRecipe(**shop.recipe.get("reader", {}))
    estimate = estimator(shop.average_unet(), shop.tokenizer(), shop.text_encoder(), recipe.least_snr)
    torch.manual_seed(recipe.seed)
    model = ReaderNet()
    steps = train_reader(shop.pictures(), shop.scene, shop.code(), estimate, recipe, model, shop.device)
    for _ in shop.follow("reader", steps, recipe.steps):
        pass
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, shop.folder / "reader.safetensors"
    )
    scenes = [scene_number(shop.scene_seed + 1, index, shop.distribution) for index in range(HELD_OUT)]
    latents = shop.code().encode(to_pixels(np.stack([np.asarray(render(scene)) for scene in scenes]))).to(shop.device)
    labels = ThingLabels.of(thing_labels(scenes), shop.device)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(shop.device)
    estimated = estimate(latents, scenes, np.random.default_rng(0))
    for name, given in (("clean", latents), ("noisy", latents + 0.3 * noise), ("estimated", estimated)):
        shares = reader_shares(model, given, labels)
        print(f"reader, {name}: " + ", ".join(f"{question} {share:.3f}" for question, share in shares.items()))


def make_denoiser(shop: Workshop) -> None:
    """The U-Net, from its checkpoint if there is one; sample sheets of its moving average on the way."""
    recipe = DenoiserRecipe(**shop.recipe["denoiser"])
    state, start = new_state(recipe, shop.device), 0
    if shop.checkpoint.exists():
        start = state.load(shop.checkpoint)
        print(f"denoiser resumes at step {start}")
    if shop.compiled:
        state.unet.compile(dynamic=False)
    material = Material(
        pictures=shop.pictures(),
        scene_seed=shop.scene_seed,
        code=shop.code(),
        tokenizer=shop.tokenizer(),
        text_encoder=shop.text_encoder(),
        distribution=shop.distribution,
        reader=shop.reader() if recipe.reading_weight else None,
    )
    counts = AppearanceCounts(**shop.recipe["appearance"]) if "appearance" in shop.recipe else None
    steps = train_unet(material, recipe, state, start, shop.device)
    for step in shop.follow("denoiser", steps, recipe.steps):
        if not is_first():
            continue
        if step % CHECKPOINT_EVERY == 0 or step == recipe.steps:
            state.save(shop.checkpoint, step)
        if step % SHEET_EVERY == 0 or step == recipe.steps:
            _save_sheet(material, state, shop.folder / f"sheet-{step:06d}.png")
        if counts and (step % counts.every == 0 or step == recipe.steps):
            record_appearance(shop, unet_of(state.average, shop.device), step, counts)


def _save_sheet(material: Material, state: TrainingState, path: Path) -> None:
    unet = unet_of(state.average, state.unet.device)
    sample_sheet(unet, material.tokenizer, material.text_encoder, material.code).save(path)


def make_appearance(shop: Workshop) -> None:
    """One more line of the curve of described appearance, of the checkpoint's moving average."""
    counts = AppearanceCounts(**shop.recipe.get("appearance", {}))
    record_appearance(shop, shop.average_unet(), steps_done(shop.checkpoint), counts)


def record_appearance(shop: Workshop, unet: UNet2DConditionModel, step: int, counts: AppearanceCounts) -> None:
    """Measure a U-Net and append the shares to `appearance.jsonl`."""
    began = time.monotonic()
    generate = Generator(
        unet=unet, tokenizer=shop.tokenizer(), text_encoder=shop.text_encoder(), vae=shop.autoencoder()
    )
    shares = measure_appearance(generate, Judge.load(shop.folder / "judge.safetensors"), counts)
    line = json.dumps({"step": step, **shares, "seconds": round(time.monotonic() - began)})
    with (shop.folder / "appearance.jsonl").open("a", encoding="utf-8") as log:
        log.write(line + "\n")
    print(f"appearance {line}", flush=True)


def branch(shop: Workshop) -> None:
    """The present checkpoint in a folder of its own; everything else there is a link."""
    step = steps_done(shop.checkpoint)
    folder = shop.folder / f"branch-{step:06d}"
    folder.mkdir()
    shutil.copyfile(shop.checkpoint, folder / shop.checkpoint.name)
    for name in SHARED:
        for path in shop.folder.glob(name):
            (folder / path.name).symlink_to(path.resolve())
    print(f"next: python -m toyland.train denoiser export --work {folder} --constant-steps {step}, with this recipe")


def export(shop: Workshop) -> None:
    """Write the base as a diffusers pipeline folder in fp16, and the judge, where the package ships them."""
    unet = unet_of(average_in(load_file(shop.checkpoint)), torch.device("cpu"))
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
    suited = toyland.BASE / "defaults.json"  # settings that suit the base; no stage changes them
    kept = suited.read_bytes()
    shutil.rmtree(toyland.BASE)
    pipeline.save_pretrained(toyland.BASE, max_shard_size="14MB", safe_serialization=True)
    suited.write_bytes(kept)
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
OPTIONAL = {"adopt": adopt, "reader": make_reader, "branch": branch, "appearance": make_appearance}
"""They run only where they are named."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; `arguments` are the process's own unless given."""
    names = ", ".join((*STAGES, *OPTIONAL))
    parser = argparse.ArgumentParser(
        prog="python -m toyland.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stages", nargs="*", default=list(STAGES), help=f"any of {names}; if none is named, {', '.join(STAGES)}"
    )
    parser.add_argument("--work", type=Path, default=Path("toyland-work"), help="for scenes, checkpoints and curves")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="settings, TOML")
    parser.add_argument("--constant-steps", type=int, help="of the denoiser, instead of the recipe's")
    parser.add_argument("--decay-steps", type=int, help="of the denoiser, instead of the recipe's")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the U-Net: minutes to start, fewer a step"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args(arguments)
    stages = STAGES | OPTIONAL
    if unknown := [stage for stage in chosen.stages if stage not in stages]:
        parser.error(f"there is no stage '{unknown[0]}'; the stages are {names}")
    recipe = tomllib.loads(chosen.recipe.read_text(encoding="utf-8"))
    for name in ("constant_steps", "decay_steps"):
        if (steps := getattr(chosen, name)) is not None:
            recipe["denoiser"][name] = steps
    shop = Workshop(chosen.work, recipe, torch.device(chosen.device), chosen.compile)
    join()
    for stage in chosen.stages:
        stages[stage](shop)


if __name__ == "__main__":
    main()
