"""Checkpoints in the original layout: one ``.safetensors`` file that holds a whole Stable Diffusion.

Nothing is downloaded: the configs of diffusers' pipelines and the merges of CLIP's tokenizer are in this package.
"""

import gzip
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tara.errors import TaraError
from tara.families.settings import Prediction
from tara.families.stable_diffusion import SD1, SD2, SDXL
from tara.storage.safetensors_file import opened

CONFIGS = Path(__file__).parent / "original_configs"
END_OF_TEXT, EXCLAMATION = "<|endoftext|>", "!"
UNET = "model.diffusion_model."
LATENT_CHANNELS = 4
SD2_EPSILON_SIDE = 64  # latents per side of the SD 2.x bases that predict epsilon; those that predict v have 96
SD2_ARCHITECTURES = {"stable-diffusion-v2-512": "epsilon", "stable-diffusion-v2-768-v": "v"}


@dataclass(frozen=True, kw_only=True)
class Original:
    """How diffusers loads a family: its pipeline, and what each of its tokenizers fills up with."""

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
    """What a checkpoint's header tells: the family of its base, and how its noise is to be read."""

    family: str
    prediction_type: Prediction | None = None
    """None where the file does not tell: then the family's own, if it has one."""
    zero_terminal_snr: bool = False

    @property
    def is_open(self) -> bool:
        """Whether what the U-Net predicts has to be found out: SD 2.x was released in both kinds."""
        return self.family == "sd2" and self.prediction_type is None


def read_contents(path: Path) -> Contents:
    """Look into a checkpoint's header, without its weights.

    Raises:
        TaraError: when it is no whole safetensors file, or no text-to-image base of a family that tara knows.
    """
    with opened(path, "Copy it again.") as file:
        names, metadata = set(file.keys()), dict(file.metadata() or {})

        def shape(name: str) -> tuple[int, ...]:
            return (*file.get_slice(name).get_shape(), 0, 0)[:2]

        return _contents(path, names, metadata, shape)


def _contents(
    path: Path, names: set[str], metadata: Mapping[str, str], shape: Callable[[str], tuple[int, ...]]
) -> Contents:
    keys = next((name for name in sorted(names) if re.match(rf"{UNET}.*\.attn2\.to_k\.weight$", name)), None)
    if keys is None:
        lora = any("lora" in name for name in names)
        what = "is an adapter, not a base" if lora else "holds no Stable Diffusion U-Net in the original layout"
        raise TaraError(f"'{path}' {what}. Give a base: a checkpoint, a pipeline folder or a hub id.")
    channels = shape(f"{UNET}input_blocks.0.0.weight")[1]
    if channels != LATENT_CHANNELS:
        raise TaraError(
            f"'{path}' has a U-Net of {channels} channels: it is for inpainting or editing. Give it as a pipeline "
            "folder, or take the text-to-image checkpoint that it was made from."
        )
    width, sized = shape(keys)[1], f"{UNET}label_emb.0.0.weight" in names
    for family in (SD1, SD2, SDXL):
        if (family.text_width, family is SDXL) == (width, sized):
            return Contents(
                family=family.name,
                prediction_type=_prediction_type(names, metadata),
                zero_terminal_snr="ztsnr" in names,
            )
    raise TaraError(
        f"'{path}' is of no family that tara knows (its text is {width} wide). Use a Stable Diffusion 1.x, 2.x or SDXL "
        "base; a refiner is none."
    )


def _prediction_type(names: set[str], metadata: Mapping[str, str]) -> Prediction | None:
    """What other tools leave in a file whose weights cannot tell."""
    architecture = SD2_ARCHITECTURES.get(metadata.get("modelspec.architecture", ""))
    told = metadata.get("modelspec.prediction_type") or architecture or ("v" if "v_pred" in names else "")
    kinds: dict[str, Prediction] = {"v": "v_prediction", "epsilon": "epsilon"}
    return kinds.get(told)


def load_single_file(
    path: Path, dtype: torch.dtype, vae: Any | None = None, configs: Path = CONFIGS, contents: Contents | None = None
) -> Any:
    """Load a checkpoint as a diffusers pipeline.

    Args:
        path: the ``.safetensors`` file.
        dtype: precision of its weights.
        vae: autoencoder in place of the file's own.
        configs: folder with a folder of diffusers configs for each family.
        contents: what `read_contents` told, when it has been called already.

    Raises:
        TaraError: see `read_contents`; also when parts of the base are missing in the file.
    """
    import diffusers

    contents = read_contents(path) if contents is None else contents
    original = ORIGINALS[contents.family]
    parts = {name: clip_tokenizer(padding) for name, padding in original.padding.items()}
    if vae is not None:
        parts["vae"] = vae
    try:
        pipe: Any = getattr(diffusers, original.pipeline).from_single_file(
            str(path), config=str(configs / contents.family), torch_dtype=dtype, local_files_only=True, **parts
        )
    except (OSError, ValueError, KeyError, RuntimeError) as failure:  # diffusers' converter has many ways to say no
        reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
        raise TaraError(f"'{path}' is not a whole base ({reason}). Give another checkpoint.") from failure
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if getattr(pipe, name, None) is not None:
            check_whole(path, name, getattr(pipe, name))
    tell(pipe, contents)
    return pipe


def tell(pipe: Any, contents: Contents) -> None:
    """Tell a pipeline what its weights do not: how the noise is to be read, and how large the base's pictures are."""
    pipe.scheduler = _scheduler(pipe.scheduler, contents)
    if (contents.family, contents.prediction_type) == ("sd2", "epsilon"):
        pipe.unet.register_to_config(sample_size=SD2_EPSILON_SIDE)


def clip_tokenizer(padding: str, length: int = 77) -> Any:
    """CLIP's tokenizer, built from its merges: a vocabulary is the bytes, the bytes that end a word, the merges.

    ``tools/clip_merges.py`` takes the merges from open_clip (MIT licence, ``original_configs/merges.LICENSE``).
    """
    from transformers import CLIPTokenizer

    merges = gzip.decompress((CONFIGS / "merges.txt.gz").read_bytes()).decode("utf-8").split("\n")
    letters = _byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    words += ["<|startoftext|>", END_OF_TEXT]
    vocabulary = {word: number for number, word in enumerate(words)}
    pairs: Any = [tuple(merge.split(" ")) for merge in merges]  # transformers' signature says list[str]
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, pad_token=padding, model_max_length=length)


def _byte_letters() -> list[str]:
    """A visible letter for each byte, in the order of CLIP's vocabulary: visible ones stand for themselves."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = 256 - len(visible)
    return [*map(chr, visible), *(chr(256 + number) for number in range(hidden))]


def check_whole(path: Path, name: str, part: Any) -> None:
    """Refuse a file that has not given every weight of a part: diffusers leaves what is missing without memory.

    Raises:
        TaraError: naming the first weight that is missing.
    """
    lost = next((key for key, value in part.named_parameters() if value.is_meta), None)
    if lost is not None:
        raise TaraError(f"'{path}' is not whole: its {name} lacks '{lost}'. Give another file.")


def _scheduler(scheduler: Any, contents: Contents) -> Any:
    changes: dict[str, Any] = {}
    if contents.prediction_type is not None:
        changes["prediction_type"] = contents.prediction_type
    if contents.zero_terminal_snr:
        changes["rescale_betas_zero_snr"] = True
    return type(scheduler).from_config(scheduler.config, **changes) if changes else scheduler
