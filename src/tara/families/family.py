"""The definition of a family of bases: data, and the functions that differ between families."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from torch import Tensor, nn

from tara.core.losses import NoiseSchedule, PredictionType
from tara.core.tokens import Tokenized
from tara.families.processors import TextConditioning
from tara.families.text import TextEncoding, encode_with_pipeline, tokenize

Task = Literal["text-to-image", "image-to-image", "inpainting"]
Predict = Callable[[nn.Module, Tensor, Tensor, TextEncoding, TextConditioning | None, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """Default settings of a family, or of one base."""

    resolution: int | None = None
    """Side of the images in pixels. None: the size for which the network was trained."""
    rank: int = 8
    alpha: float | None = None
    """None: equal to the rank."""
    learning_rate: float = 1e-4
    steps: int = 1000
    batch_size: int = 1
    lr_scheduler: str = "constant"
    flip: bool = True
    guidance_scale: float | None = None
    """None: the pipeline's own default."""


@dataclass(frozen=True, kw_only=True)
class FileNames:
    """The names of a family in adapter files of other tools."""

    architecture: Mapping[str, str] = field(default_factory=dict[str, str])
    """``modelspec.architecture`` by prediction type. The empty key stands for every prediction type."""
    kohya_base: Mapping[str, str] = field(default_factory=dict[str, str])
    """kohya's ``ss_base_model_version`` by prediction type, in the same way."""
    sgm_blocks: bool = False
    """Whether kohya's files name its blocks as the original checkpoint does (input_blocks), not as diffusers."""
    hub_tag: str = ""


def attentions(denoiser: nn.Module) -> list[str]:
    """Paths of the modules whose attention a processor computes, as in diffusers."""
    return [path for path, module in denoiser.named_modules() if hasattr(module, "processor")]


def ddpm_schedule(pipe: Any) -> NoiseSchedule:
    """The noise schedule of a pipeline with one of diffusers' DDPM-like schedulers."""
    return NoiseSchedule(pipe.scheduler.alphas_cumprod, cast(PredictionType, pipe.scheduler.config.prediction_type))


def configured_side(denoiser: Any) -> int:
    """The side of the latents in the diffusers config of a network."""
    size = denoiser.config.sample_size
    return int(size if isinstance(size, int) else size[0])


@dataclass(frozen=True, kw_only=True)
class Family:
    """Bases with the same architecture: their text projections, and functions that encode, predict and check.

    The defaults of the function fields are right for a diffusers pipeline whose ``encode_prompt`` encodes the text and
    whose attentions have processors. To add a family, write a file that builds a `Family`, and register it in
    `tara.families.registry` or pass it to `tara.families.base.Base`.
    """

    name: str
    denoiser: str
    """Name of the pipeline's denoising network, such as ``unet``."""
    text_width: int = 0
    text_kv_paths: tuple[str, str] = ("attn2.to_k", "attn2.to_v")
    """Path endings of the projections that compute the text's keys and values."""
    text_kv_fixed: bool = True
    """Whether the text's keys and values depend on the prompt alone, so that one computation serves all steps."""
    attention_projections: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Names of the projections of every attention. The first is the query's."""
    stock_processors: tuple[type, ...] = (AttnProcessor2_0, AttnProcessor, SlicedAttnProcessor)
    """Attention processors that call all `attention_projections`."""
    defaults: Defaults = Defaults()
    files: FileNames = FileNames()

    predict: Predict
    """One network call: (denoiser, noisy latents, timesteps, encoding, conditioning, sizes (rows, 6)) to its output."""
    check: Callable[[Any], None] = lambda pipe: None
    """Refuse (TaraError) a pipeline on which adapters cannot work."""
    check_trainable: Callable[[Any], None] = lambda pipe: None
    """Refuse (TaraError) a pipeline on which tara can generate but not train, such as one for inpainting."""
    attention_layers: Callable[[nn.Module], list[str]] = attentions
    """Paths of the denoiser's attentions, self- and cross-."""
    tokenize: Callable[[Any, str], Tokenized] = tokenize
    """Tokens of a text by character offsets: (pipe, text)."""
    encode: Callable[[Any, str, int | None, torch.device], TextEncoding] = encode_with_pipeline
    """(pipe, text, clip_skip, device) to one encoded row."""
    noise_schedule: Callable[[Any], NoiseSchedule] = ddpm_schedule
    """The pipeline's noise schedule and prediction target."""
    latent_side: Callable[[Any], int] = configured_side
    """Side of the latents for which a denoiser was trained."""
    latent_multiple: Callable[[Any], int] = lambda denoiser: 1
    """Both sides of a denoiser's latents must be multiples of this."""
    task_pipeline: Callable[[Any, Task], Any] = lambda pipe, task: pipe
    """(pipe, task) to the stock pipeline of the task, which shares all components with ``pipe``."""
    is_guided: Callable[[Any, float], bool] = lambda pipe, guidance_scale: guidance_scale > 1
    """(pipe, guidance_scale) to whether a pipeline call has unconditional rows."""

    @property
    def kv_names(self) -> tuple[str, str]:
        """Names of a text layer's projections to keys and to values."""
        keys, values = (path.rpartition(".")[2] for path in self.text_kv_paths)
        return keys, values
