"""Checkpoints in the original layout: one ``.safetensors`` file with all of Stable Diffusion.

Nothing is downloaded: the configs of diffusers' pipelines and the merges of CLIP's tokenizer are in this package.
"""

import gzip
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tara.errors import TaraError, first_line
from tara.families.settings import Prediction
from tara.families.stable_diffusion import USE_A_BASE, released
from tara.storage.safetensors_file import open_safetensors

CONFIGS = Path(__file__).parent / "original_configs"
END_OF_TEXT, EXCLAMATION = "<|endoftext|>", "!"
UNET = "model.diffusion_model."
LATENT_CHANNELS = 4
SD2_EPSILON_SIDE = 64  # latents per side of the SD 2.x bases that predict epsilon; those that predict v have 96
PREDICTIONS: Mapping[str, Prediction] = {
    "epsilon": "epsilon",
    "v": "v_prediction",
    "stable-diffusion-v2-512": "epsilon",
    "stable-diffusion-v2-768-v": "v_prediction",
}
"""From ``modelspec.prediction_type``, or ``modelspec.architecture`` of SD 2.x."""
LARGEST_TEST_SIDE = 64  # in latents; larger noise gives no more information
SIMILAR = 0.5


@dataclass(frozen=True, kw_only=True)
class Original:
    """How diffusers loads a family: the pipeline class, and the padding of each tokenizer."""

    pipeline: str
    padding: Mapping[str, str]


ORIGINALS = {
    "sd1": Original(pipeline="StableDiffusionPipeline", padding={"tokenizer": END_OF_TEXT}),
    "sd2": Original(pipeline="StableDiffusionPipeline", padding={"tokenizer": EXCLAMATION}),
    "sdxl": Original(
        pipeline="StableDiffusionXLPipeline", padding={"tokenizer": END_OF_TEXT, "tokenizer_2": EXCLAMATION}
    ),
}


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a checkpoint's header says: its family, its prediction type, and whether its schedule ends in pure noise."""

    family: str
    prediction_type: Prediction | None = None
    """None if the file does not say; then the family's own, if it has one."""
    zero_terminal_snr: bool = False

    @property
    def is_ambiguous(self) -> bool:
        """Whether the prediction type must be observed, because SD 2.x was released with both types."""
        return self.family == "sd2" and self.prediction_type is None


def read_contents(path: Path) -> Contents:
    """Read a checkpoint's header, without its weights.

    Raises:
        TaraError: when it is not a complete safetensors file, or not a text-to-image base of a supported family.
    """
    with open_safetensors(path, "Copy it again.") as file:
        names, metadata = set(file.keys()), file.metadata() or {}
        text_layers = [name for name in sorted(names) if re.match(rf"{UNET}.*\.attn2\.to_k\.weight$", name)]
        widths = {  # input channels of both layers; 0 if there is no such layer
            name: (*file.get_slice(name).get_shape(), 0, 0)[1] if name in names else 0
            for name in (f"{UNET}input_blocks.0.0.weight", *text_layers[:1])
        }
    if not text_layers:
        lora = any("lora" in name for name in names)
        what = "is an adapter, not a base" if lora else "holds no Stable Diffusion U-Net in the original layout"
        raise TaraError(f"'{path}' {what}. Give a base: a checkpoint, a pipeline folder or a hub id.")
    channels, width = widths.values()
    if channels != LATENT_CHANNELS:
        raise TaraError(
            f"'{path}' has a U-Net of {channels} channels: it is for inpainting or editing. Give it as a pipeline "
            "folder, or use the text-to-image checkpoint that it was made from."
        )
    family = released(width, f"{UNET}label_emb.0.0.weight" in names)
    if family is None:
        raise TaraError(
            f"'{path}' belongs to no family that tara knows: its text width is {width}. {USE_A_BASE} Refiners do not "
            "work."
        )
    declared = [metadata.get(f"modelspec.{key}", "") for key in ("prediction_type", "architecture")]
    declared.append("v" if "v_pred" in names else "")
    return Contents(
        family=family.name,
        prediction_type=next((PREDICTIONS[name] for name in declared if name in PREDICTIONS), None),
        zero_terminal_snr="ztsnr" in names,
    )


def load_single_file(
    path: Path, dtype: torch.dtype, vae: Any | None = None, configs: Path = CONFIGS, contents: Contents | None = None
) -> Any:
    """Load a checkpoint as a diffusers pipeline.

    Args:
        path: the ``.safetensors`` file.
        dtype: precision of its weights.
        vae: a VAE that replaces the file's own. None: the file's own.
        configs: folder with a folder of diffusers configs for each family.
        contents: result of `read_contents`. None: it is called here.

    Raises:
        TaraError: see `read_contents`; also when parts of the base are missing in the file.
    """
    import diffusers

    contents = contents or read_contents(path)
    original = ORIGINALS[contents.family]
    parts = {name: clip_tokenizer(padding) for name, padding in original.padding.items()}
    if vae is not None:
        parts["vae"] = vae
    try:
        pipe: Any = getattr(diffusers, original.pipeline).from_single_file(
            str(path), config=str(configs / contents.family), torch_dtype=dtype, local_files_only=True, **parts
        )
    except (OSError, ValueError, KeyError, RuntimeError) as failure:  # of diffusers' converter
        raise TaraError(
            f"'{path}' is not a complete base ({first_line(failure)}). Give another checkpoint."
        ) from failure
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if getattr(pipe, name, None) is not None:
            check_whole(path, name, getattr(pipe, name))
    configure(pipe, contents)
    return pipe


def configure(pipe: Any, contents: Contents) -> None:
    """Set what is not in the weights: prediction type, end of the noise schedule, size of the images."""
    changes: dict[str, Any] = {"rescale_betas_zero_snr": True} if contents.zero_terminal_snr else {}
    if contents.prediction_type is not None:
        changes["prediction_type"] = contents.prediction_type
    if changes:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **changes)
    if (contents.family, contents.prediction_type) == ("sd2", "epsilon"):
        pipe.unet.register_to_config(sample_size=SD2_EPSILON_SIDE)


def observed_prediction(pipe: Any) -> Prediction:
    """Determine the prediction type of a pipeline's U-Net from its output for pure noise at the last timestep.

    There the noisy latents are almost pure noise. A U-Net that predicts epsilon returns its input; one that predicts
    ``v = sqrt(abar) noise - sqrt(1 - abar) x`` returns an estimate of the latents ``x``, which is not similar to it.
    """
    unet = pipe.unet
    side = min(LARGEST_TEST_SIDE, unet.config.sample_size)
    noise = torch.randn(1, unet.config.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    last = pipe.scheduler.config.num_train_timesteps - 1
    with torch.no_grad():
        text, _ = pipe.encode_prompt("", unet.device, 1, False)
        output = unet(noise.to(unet.device, unet.dtype), last, encoder_hidden_states=text).sample
    similarity = torch.cosine_similarity(output.cpu().float().flatten(), noise.flatten(), dim=0)
    return "epsilon" if float(similarity) > SIMILAR else "v_prediction"


def clip_tokenizer(padding: str, length: int = 77) -> Any:
    """Build CLIP's tokenizer from its merges. Its vocabulary is all bytes, all bytes that end a word, and the merges.

    ``tools/clip_merges.py`` takes the merges from open_clip (MIT licence, ``original_configs/merges.LICENSE``).
    """
    from transformers import CLIPTokenizer

    merges = gzip.decompress((CONFIGS / "merges.txt.gz").read_bytes()).decode("utf-8").split("\n")
    # a visible letter for each byte, in the order of CLIP's vocabulary: visible bytes stand for themselves
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [*map(chr, visible), *(chr(256 + number) for number in range(256 - len(visible)))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    words += ["<|startoftext|>", END_OF_TEXT]
    vocabulary = {word: number for number, word in enumerate(words)}
    pairs: Any = [tuple(merge.split(" ")) for merge in merges]  # transformers' signature says list[str]
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, pad_token=padding, model_max_length=length)


def check_whole(path: Path, name: str, part: Any) -> None:
    """Refuse (TaraError) a file that lacks weights of a part, which diffusers leaves on the meta device."""
    missing = next((key for key, value in part.named_parameters() if value.is_meta), None)
    if missing is not None:
        raise TaraError(f"'{path}' is incomplete: its {name} lacks '{missing}'. Give another file.")
