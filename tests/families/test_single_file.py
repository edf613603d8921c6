"""Bases in a single file of the original layout: their weights, their family, and what their U-Net predicts."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, CLIPTextModel, CLIPTextModelWithProjection

import tiny_bases
from original_layout import original_weights
from tara.errors import TaraError, TaraWarning
from tara.families.base import Base
from tara.families.loading import load_base
from tara.families.single_file import (
    CONFIGS,
    ORIGINALS,
    Contents,
    clip_tokenizer,
    configure,
    load_single_file,
    observed_prediction,
    read_contents,
)

PUBLISHED_SIZES = {
    ("sd1", "unet"): 859_520_964,
    ("sd1", "vae"): 83_653_863,
    ("sd1", "text_encoder"): 123_060_480,
    ("sd2", "unet"): 865_910_724,
    ("sd2", "vae"): 83_653_863,
    ("sd2", "text_encoder"): 340_387_840,
    ("sdxl", "unet"): 2_567_463_684,
    ("sdxl", "vae"): 83_653_863,
    ("sdxl", "text_encoder"): 123_060_480,
    ("sdxl", "text_encoder_2"): 694_659_840,
}
"""Parameters of the published models."""

KEYS = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
SIZES = "model.diffusion_model.label_emb.0.0.weight"


BESIDES_THE_WEIGHTS = (
    "alphas_cumprod",
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
    "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
    "conditioner.embedders.1.model.logit_scale",
    "model_ema.decay",
)
"""What published checkpoints hold, too."""


def with_whole_vocabulary(pipe: Any) -> Any:
    """A tiny pipeline whose text encoders know all of CLIP's tokens."""
    for name, kind in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        if getattr(pipe, name, None) is not None:
            config = getattr(pipe, name).config
            config.update({"vocab_size": 49408, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1})
            pipe.register_modules(**{name: kind(config).eval()})
    return pipe


def configs_of(pipe: Any, folder: Path) -> Path:
    """A pipeline's configs alone, without its weights."""
    pipe.save_pretrained(folder)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    return folder.parent


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_single_file_of_the_original_layout_holds_the_same_weights(family: str, tmp_path: Path) -> None:
    build = tiny_bases.sdxl_pipeline if family == "sdxl" else tiny_bases.sd_pipeline
    pipe = with_whole_vocabulary(build())
    further = {name: torch.zeros(1, 77) for name in BESIDES_THE_WEIGHTS}
    save_file(original_weights(pipe, family) | further, tmp_path / "model.safetensors")
    configs = configs_of(pipe, tmp_path / family)
    contents = Contents(family=family, prediction_type="v_prediction")
    loaded = load_single_file(tmp_path / "model.safetensors", torch.float32, configs=configs, contents=contents)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if getattr(pipe, name, None) is not None:
            ours, theirs = getattr(loaded, name).state_dict(), getattr(pipe, name).state_dict()
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    base = Base(loaded)
    assert base.noise_schedule.prediction_type == "v_prediction"
    assert base.tokenize("a xlo dog").positions((2, 5))


def test_a_single_file_that_lacks_a_part_is_refused(tmp_path: Path) -> None:
    pipe = with_whole_vocabulary(tiny_bases.sd_pipeline())
    weights = original_weights(pipe, "sd1")
    del weights["cond_stage_model.transformer.text_model.final_layer_norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    configs = configs_of(pipe, tmp_path / "sd1")
    lacking = r"is incomplete: its text_encoder lacks '(text_model\.)?final_layer_norm\.weight'"
    with pytest.raises(TaraError, match=lacking):
        load_single_file(
            tmp_path / "model.safetensors", torch.float32, configs=configs, contents=Contents(family="sd1")
        )


def header(path: Path, shapes: dict[str, tuple[int, ...]], **metadata: str) -> Path:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path, metadata=metadata or None)
    return path


@pytest.mark.parametrize(
    ("shapes", "metadata", "contents"),
    [
        ({KEYS: (8, 768), FIRST: (8, 4, 3, 3)}, {}, Contents(family="sd1")),
        ({KEYS: (8, 1024), FIRST: (8, 4, 3, 3)}, {}, Contents(family="sd2")),
        (
            {KEYS: (8, 1024), FIRST: (8, 4, 3, 3)},
            {"modelspec.prediction_type": "epsilon"},
            Contents(family="sd2", prediction_type="epsilon"),
        ),
        (
            {KEYS: (8, 1024), FIRST: (8, 4, 3, 3)},
            {"modelspec.architecture": "stable-diffusion-v2-768-v"},
            Contents(family="sd2", prediction_type="v_prediction"),
        ),
        ({KEYS: (8, 2048), FIRST: (8, 4, 3, 3), SIZES: (8, 2816)}, {}, Contents(family="sdxl")),
        (
            {KEYS: (8, 2048), FIRST: (8, 4, 3, 3), SIZES: (8, 2816), "v_pred": (1,), "ztsnr": (1,)},
            {},
            Contents(family="sdxl", prediction_type="v_prediction", zero_terminal_snr=True),
        ),
    ],
    ids=["sd1", "sd2", "sd2 epsilon", "sd2 v", "sdxl", "sdxl v"],
)
def test_a_single_files_family_is_read_from_its_header(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str], contents: Contents
) -> None:
    assert read_contents(header(tmp_path / "model.safetensors", shapes, **metadata)) == contents


def answering(pipe: Any, answer: Callable[[Tensor], Tensor]) -> Any:
    """A pipeline whose U-Net answers to its input so."""
    pipe.unet.forward = lambda noisy, *_, **__: SimpleNamespace(sample=answer(noisy))
    return pipe


def noise_itself(noisy: Tensor) -> Tensor:
    return noisy + 0.5 * torch.randn(noisy.shape, generator=torch.Generator().manual_seed(9))


def velocity_to_a_picture(noisy: Tensor) -> Tensor:
    """At the last timestep of Stable Diffusion, abar is 0.0047."""
    picture = torch.linspace(-1, 1, noisy.shape[-1]).expand(noisy.shape)
    return 0.0047**0.5 * noisy - 0.9953**0.5 * picture


def test_what_a_unet_predicts_is_seen_by_its_answer_to_noise(sd_pipe: StableDiffusionPipeline) -> None:
    assert observed_prediction(sd_pipe) == "v_prediction"  # random weights do not give their input back
    assert observed_prediction(answering(sd_pipe, noise_itself)) == "epsilon"
    assert observed_prediction(answering(sd_pipe, velocity_to_a_picture)) == "v_prediction"


@pytest.mark.slow
def test_the_embedded_base_is_seen_to_predict_velocity_as_it_was_trained_to() -> None:
    pipe = load_base("toyland", device="cpu").pipe
    assert observed_prediction(pipe) == "v_prediction"
    velocity, abar = pipe.unet.forward, pipe.scheduler.alphas_cumprod[-1]

    def epsilon(noisy: Tensor, *arguments: Any, **options: Any) -> Any:
        return SimpleNamespace(
            sample=abar.sqrt() * velocity(noisy, *arguments, **options).sample + (1 - abar).sqrt() * noisy
        )

    pipe.unet.forward = epsilon  # the same guess of the noise, told as an epsilon U-Net does
    assert observed_prediction(pipe) == "epsilon"


@pytest.fixture
def sd2_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An SD 2.x checkpoint that does not tell what it predicts, and whose U-Net predicts epsilon."""
    pipe = answering(tiny_bases.sd_pipeline("v_prediction"), noise_itself)

    def loaded(_path: Path, _dtype: torch.dtype, _vae: Any, contents: Contents) -> Any:
        configure(pipe, contents)
        return pipe

    monkeypatch.setattr("tara.families.loading.load_single_file", loaded)
    return header(tmp_path / "model.safetensors", {KEYS: (8, 1024), FIRST: (8, 4, 3, 3)})


def test_an_sd2_file_that_does_not_tell_is_taken_for_what_it_does_with_a_note(sd2_file: Path) -> None:
    with pytest.warns(TaraWarning, match=r"looks like epsilon\. If .*--prediction-type v_prediction"):
        base = load_base(sd2_file, device="cpu")
    assert base.noise_schedule.prediction_type == "epsilon"
    assert base.resolution == 64 * base.vae_scale  # 512 pixels in a real one, as those that predict epsilon


def test_what_a_file_predicts_can_be_said_instead(sd2_file: Path, base: Path) -> None:
    def predicted(path: Path, **options: Any) -> str:
        return load_base(path, device="cpu", **options).noise_schedule.prediction_type

    assert predicted(sd2_file, prediction_type="v_prediction") == "v_prediction"
    assert predicted(base, prediction_type="v_prediction") == "v_prediction"
    assert predicted(base) == "epsilon"


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ({KEYS: (8, 768), FIRST: (8, 9, 3, 3)}, "9 channels: it is for inpainting"),
        ({KEYS: (8, 1280), FIRST: (8, 4, 3, 3), SIZES: (8, 2560)}, "width is 1280.*Refiners do not work"),
        ({"unet.x.lora_A.weight": (2, 2)}, "is an adapter, not a base"),
        ({"weight": (2, 2)}, "holds no Stable Diffusion U-Net in the original layout"),
    ],
)
def test_a_file_that_is_no_base_is_refused(tmp_path: Path, shapes: dict[str, tuple[int, ...]], sentence: str) -> None:
    path = header(tmp_path / "model.safetensors", shapes)
    with pytest.raises(TaraError, match=f"'{path}'.*{sentence}"):
        load_base(path, device="cpu")


@pytest.mark.parametrize(("family", "part"), PUBLISHED_SIZES)
def test_the_packages_configs_are_of_the_published_models_size(family: str, part: str) -> None:
    folder = CONFIGS / family / part
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    with torch.device("meta"):
        if part in kinds:
            model: Any = kinds[part].from_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        else:
            kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
            model = kind(AutoConfig.from_pretrained(folder))
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED_SIZES[family, part]


def test_the_packages_tokenizer_is_clips() -> None:
    for padding, last in (("<|endoftext|>", 49407), ("!", 0)):
        ids = clip_tokenizer(padding)("a photo of a cat", padding="max_length").input_ids
        assert ids[:7] == [49406, 320, 1125, 539, 320, 2368, 49407]
        assert ids[7:] == [last] * 70
    assert set(ORIGINALS) == {path.name for path in CONFIGS.iterdir() if path.is_dir()}
