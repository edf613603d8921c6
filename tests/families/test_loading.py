"""Bases by name: folders, hub ids, and what is refused."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import save_file

import tiny_bases
from original_layout import original_vae
from tara.cli import main
from tara.errors import TaraError
from tara.families.base import Base
from tara.families.base_names import resolve_base
from tara.families.loading import NEEDED_FILES, OTHER_PRECISIONS, load_base
from tara.inference.pipeline import Pipeline
from training_fixtures import photo_folder


def test_names_of_bases_are_resolved(tmp_path: Path) -> None:
    published = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert resolve_base("sd15") == resolve_base("stabilityai/stable-diffusion-v1-5") == published
    assert resolve_base(tmp_path) == str(tmp_path)


def test_a_pipeline_in_a_folder_of_a_short_name_wins_and_any_other_folder_does_not(here: Path) -> None:
    (here / "sdxl").mkdir()  # such as one for what is trained on it
    assert resolve_base("sdxl") == "stabilityai/stable-diffusion-xl-base-1.0"
    (here / "sdxl" / "model_index.json").write_text("{}")
    assert resolve_base("sdxl") == "sdxl"


def test_a_saved_base_is_loaded_like_any_pipeline_folder(sd_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    sd_pipe.save_pretrained(tmp_path / "base")
    base = load_base(tmp_path / "base", device="cpu")
    assert torch.equal(base.encode(["a cat"]).embeddings, Base(sd_pipe).encode(["a cat"]).embeddings)


def test_a_variant_of_a_folders_files_is_loaded_in_the_precision_asked_for(
    sd_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    sd_pipe.to(torch.bfloat16).save_pretrained(tmp_path, variant="bf16")
    assert load_base(tmp_path, device="cpu", variant="bf16").dtype == torch.float32
    assert Pipeline(tmp_path, device="cpu", variant="bf16", precision="bf16").base.dtype == torch.bfloat16
    with pytest.raises(TaraError, match=f"'{tmp_path}' cannot be loaded"):
        load_base(tmp_path, device="cpu")


def other_vae(folder: Path) -> AutoencoderKL:
    """Another autoencoder of the tiny bases' shape, saved to a folder."""
    vae = tiny_bases.sd_pipeline(seed=5).vae
    vae.save_pretrained(folder)
    return vae


def test_another_autoencoder_takes_the_place_of_the_bases_own(sd_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    sd_pipe.save_pretrained(tmp_path / "base")
    vae = other_vae(tmp_path / "vae")
    loaded = load_base(tmp_path / "base", device="cpu", vae=tmp_path / "vae").vae
    assert torch.equal(loaded.decoder.conv_in.weight, vae.decoder.conv_in.weight)
    tiny_bases.sd_pipeline(seed=5).save_pretrained(tmp_path / "whole")
    save_file(original_vae(vae), tmp_path / "vae.safetensors")
    of_file = load_base(tmp_path / "base", device="cpu", vae=tmp_path / "vae.safetensors").vae
    assert all(torch.equal(value, vae.state_dict()[key]) for key, value in of_file.state_dict().items())
    of_pipeline = load_base(tmp_path / "base", device="cpu", vae=tmp_path / "whole").vae
    assert torch.equal(of_pipeline.decoder.conv_in.weight, vae.decoder.conv_in.weight)


def test_an_autoencoder_of_another_shape_is_refused(sd_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    sd_pipe.save_pretrained(tmp_path / "base")
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "vae")
    with pytest.raises(TaraError, match="4 channels at 1/1 of the image size, but the base needs 4 at 1/2"):
        load_base(tmp_path / "base", device="cpu", vae=tmp_path / "vae")


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "someone/model.CKPT"])
def test_pickle_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(TaraError, match=rf"{re.escape(name)}' is a pickle file, which can run code"):
        load_base(tmp_path / name, device="cpu")
    with pytest.raises(TaraError, match="is a pickle file"):
        load_base(tmp_path, device="cpu", vae=tmp_path / name)


def test_a_folder_of_pickled_weights_is_refused(sd_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    sd_pipe.save_pretrained(tmp_path, safe_serialization=False)
    for weights in tmp_path.rglob("*.safetensors"):  # transformers writes no other kind
        weights.unlink()
    with pytest.raises(TaraError, match=r"holds its weights as \.bin files, which can run code"):
        load_base(tmp_path, device="cpu")


def on_the_hub(pipe: Any, repository: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline as the hub's library keeps what it has fetched; the folder of its files."""
    root, commit = cache / f"models--{repository.replace('/', '--')}", "0123456789abcdef0123456789abcdef01234567"
    pipe.save_pretrained(root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return root / "snapshots" / commit


def test_a_base_of_the_hub_is_loaded_without_the_parts_that_generate_nothing(
    sd_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = on_the_hub(sd_pipe, "stable-diffusion-v1-5/stable-diffusion-v1-5", tmp_path, monkeypatch)
    index = json.loads((files / "model_index.json").read_text(encoding="utf-8"))
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
    }
    (files / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    (files / "safety_checker").mkdir()
    (files / "safety_checker" / "pytorch_model.bin").write_bytes(b"never opened")
    base = load_base("stabilityai/stable-diffusion-v1-5", device="cpu")
    assert torch.equal(base.encode(["a cat"]).embeddings, Base(sd_pipe).encode(["a cat"]).embeddings)
    assert base.pipe.safety_checker is None
    assert load_base(files, device="cpu").pipe.safety_checker is None


def test_sdxl_of_the_hub_is_loaded_in_its_variant(
    sdxl_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = on_the_hub(sdxl_pipe, "stabilityai/stable-diffusion-xl-base-1.0", tmp_path, monkeypatch)
    for weights in files.rglob("*.safetensors"):
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    base = load_base("sdxl", device="cpu", variant="fp16")
    assert torch.equal(base.encode(["a cat"]).embeddings, Base(sdxl_pipe).encode(["a cat"]).embeddings)
    with pytest.raises(TaraError, match=r"`hf download stabilityai/stable-diffusion-xl-base-1\.0 --include"):
        load_base("sdxl", device="cpu")


@pytest.mark.parametrize(
    ("options", "start", "end"),
    [
        ({}, "", r"--include '\*/\*\.safetensors' --exclude '\*\.fp16\.\*' --exclude '\*\.non_ema\.\*'"),
        ({"revision": "main", "variant": "fp16"}, "--revision main ", r"--include '\*/\*\.safetensors'"),
    ],
)
def test_a_hub_that_gives_nothing_is_told_with_the_command_that_fetches(
    options: dict[str, str], start: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    wanted = rf"`hf download stable-diffusion-v1-5/stable-diffusion-v1-5 {start}--include .*{end}`\.$"
    with pytest.raises(TaraError, match=wanted):
        load_base("sd15", device="cpu", **options)


def test_a_repository_of_pickled_weights_is_refused_by_name(
    sd_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = on_the_hub(sd_pipe, "someone/old", tmp_path, monkeypatch)
    names = [str(path.relative_to(files)) for path in files.rglob("*.*") if path.is_file()]
    pickled = [name.replace(".safetensors", ".bin") for name in names]
    listing = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in pickled])
    module = "diffusers.pipelines.pipeline_utils"
    monkeypatch.setattr(f"{module}.model_info", lambda *_, **__: listing)
    monkeypatch.setattr(f"{module}.hf_hub_download", lambda *_, **__: str(files / "model_index.json"))
    with pytest.raises(TaraError, match=r"'someone/old' on the hub holds weights as \.bin files alone, which can run"):
        load_base("someone/old", device="cpu")


def test_the_command_that_fetches_a_base_leaves_its_other_forms_there() -> None:
    from huggingface_hub.utils import filter_repo_objects

    wanted = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    unwanted = [
        "README.md",
        "v1-5-pruned.ckpt",
        "v1-5-pruned.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
    ]
    include, exclude = list(NEEDED_FILES[1::2]), list(OTHER_PRECISIONS[1::2])
    kept = filter_repo_objects(wanted + unwanted, allow_patterns=include, ignore_patterns=exclude)
    assert list(kept) == wanted


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`")  # diffusers' own affair
def test_an_autoencoder_that_is_not_on_the_hub_is_told(sd_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    sd_pipe.save_pretrained(tmp_path / "base")
    with pytest.raises(TaraError, match="`hf download stabilityai/sd-vae-ft-mse`"):
        load_base(tmp_path / "base", device="cpu", vae="stabilityai/sd-vae-ft-mse")


def test_a_base_that_is_not_there_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(TaraError, match=r"is no pipeline folder: it has no model_index\.json"):
        load_base(tmp_path, device="cpu")
    with pytest.raises(TaraError, match=r"There is no folder or file '.*model\.safetensors'"):
        load_base(tmp_path / "model.safetensors", device="cpu")
    for name in ("sd1.5", "SD15"):
        with pytest.raises(TaraError, match=r"Did you mean 'sd15'\? Known names: sd15, sdxl\."):
            load_base(name, device="cpu")
    (tmp_path / "model.png").write_bytes(b"")
    with pytest.raises(TaraError, match=r"model\.png' is not a base"):
        load_base(tmp_path / "model.png", device="cpu")


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "cpu:x", "meta"])
def test_a_device_that_is_not_there_is_one_clear_sentence(tmp_path: Path, device: str) -> None:
    with pytest.raises(TaraError, match=f"There is no device '{device}' here"):
        load_base(tmp_path, device=device)


def test_an_autoencoder_in_half_precision_is_widened_while_it_works(sdxl_pipe: Any) -> None:
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wide = Base(sdxl_pipe).encode_images(pixels)[0]
    sdxl_pipe.vae.to(torch.float16)
    latents = Base(sdxl_pipe).encode_images(pixels)[0]
    torch.testing.assert_close(latents, wide, atol=2e-3, rtol=2e-3)
    assert sdxl_pipe.vae.dtype == torch.float16


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")  # diffusers' own pipeline calls it
def test_an_autoencoder_that_overflows_in_half_precision_neither_trains_nor_generates_in_it(sdxl_pipe: Any) -> None:
    with torch.no_grad():
        for half in (sdxl_pipe.vae.encoder, sdxl_pipe.vae.decoder):
            half.conv_in.weight *= 2e5  # no weight is too large for float16, but what comes of them is
    sdxl_pipe.to(torch.float16)
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert not sdxl_pipe.vae.encode(pixels.half()).latent_dist.mean.isfinite().all()
    assert not sdxl_pipe.vae.decode(torch.ones(1, 4, 16, 16).half()).sample.isfinite().all()
    mean, deviation = Base(sdxl_pipe).encode_images(pixels)
    assert mean.isfinite().all()
    assert deviation.isfinite().all()
    (image,) = Pipeline(sdxl_pipe)("a dog", steps=1)
    (edited,) = Pipeline(sdxl_pipe)("a dog", steps=2, image=image, strength=0.5)
    assert all(np.ptp(np.asarray(one)) > 0 for one in (image, edited))  # what is not finite becomes black


def test_the_commands_pass_on_what_names_a_base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def remembered(name: str, device: str | None, **options: Any) -> Base:
        asked.append({"name": name, **options})
        raise TaraError("Enough.")

    for module in ("inference.pipeline", "training.run.run"):
        monkeypatch.setattr(f"tara.{module}.load_base", remembered)
    base = ["--base", "someone/base", "--revision", "main", "--variant", "fp16", "--vae", "someone/vae"]
    base += ["--prediction-type", "epsilon"]
    photos = str(photo_folder(tmp_path / "photos"))
    out = str(tmp_path / "rex.safetensors")
    train = [
        "train",
        "--images",
        photos,
        "--rare-word",
        "xlo",
        "--class-word",
        "dog",
        "--out",
        out,
        "--precision",
        "bf16",
    ]
    assert main([*train, *base]) == 2
    assert main(["generate", "a dog", "--out", str(tmp_path), "--precision", "bf16", *base]) == 2
    wanted = {"name": "someone/base", "revision": "main", "variant": "fp16", "vae": "someone/vae"}
    wanted |= {"prediction_type": "epsilon", "precision": "bf16"}
    assert asked == [wanted] * 2


def test_a_folder_of_an_unknown_pipeline_is_one_sentence(tmp_path: Path) -> None:
    index = {"_class_name": "NoSuchPipeline", "_diffusers_version": "0.42.1", "unet": ["diffusers", "UNet9"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    (tmp_path / "unet").mkdir()
    with pytest.raises(TaraError, match=r"has no unet: the folder .*unet' is missing or empty"):
        load_base(tmp_path, device="cpu")
    (tmp_path / "unet" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(TaraError, match="cannot be loaded"):
        load_base(tmp_path, device="cpu")


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class NoNetwork:
        def head(self, address: str, timeout: float) -> None:
            asked.append(address)
            raise ConnectionError

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_session", NoNetwork)
    with pytest.raises(TaraError, match="the hub did not return it"):
        load_base("me/model", device="cpu")
    assert len(asked) == 1


def test_a_pipeline_in_two_precisions_is_refused(sd_pipe: StableDiffusionPipeline) -> None:
    sd_pipe.text_encoder.half()
    with pytest.raises(TaraError, match=r"parts are in float16 and float32\. Load it in one precision"):
        Base(sd_pipe)
