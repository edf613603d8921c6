"""What a base family is: data, and the few functions in which families differ."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tara.core.losses import NoiseSchedule
from tara.core.tokens import Tokenized
from tara.families.processors import TextConditioning, TextKVProcessor
from tara.families.text import TextEncoding, encode_with_pipeline, tokenize

Task = Literal["text-to-image", "image-to-image", "inpainting"]


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """Settings that suit a family, or one base of it; ``resolution`` None is the size that the network was made for."""

    resolution: int | None = None
    rank: int = 8
    alpha: float | None = None
    """None: equal to the rank."""
    learning_rate: float = 1e-4
    steps: int = 1000
    batch_size: int = 1
    lr_scheduler: str = "constant"
    guidance_scale: float | None = None
    """None: the pipeline's own default."""


@dataclass(frozen=True, kw_only=True)
class FileNames:
    """What a family is called in everybody's adapter files."""

    architecture: Mapping[str, str] = field(default_factory=dict[str, str])
    """``modelspec.architecture`` by prediction type; the empty key for any."""
    kohya_base: Mapping[str, str] = field(default_factory=dict[str, str])
    """kohya's ``ss_base_model_version``, in the same way."""
    sgm_blocks: bool = False
    """Whether kohya's files name its blocks as the original checkpoint does (input_blocks), not as diffusers."""
    hub_tag: str = ""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of base: where the text's keys and values are, how a prompt becomes tokens, what the network predicts.

    The defaults of the function fields are right for a diffusers pipeline whose ``encode_prompt`` encodes the text.
    A new family is one file that builds one of these, and a line in `tara.families.registry.FAMILIES`.
    """

    name: str
    denoiser: str
    """The pipeline's component that predicts, such as ``unet``."""
    text_width: int = 0
    text_kv: tuple[str, str] = ("attn2.to_k", "attn2.to_v")
    """Endings of the paths of the projections that make the text's keys and values."""
    attention_projections: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    text_kv_fixed: bool = True
    """Whether the text's keys and values depend on the prompt alone, so that one computation serves all steps."""
    defaults: Defaults = Defaults()
    files: FileNames = FileNames()

    attention_layers: Callable[[nn.Module], list[str]]
    """Paths of the denoiser's attentions, self- and cross-."""
    check: Callable[[Any], None] = lambda pipe: None
    """Refuse (TaraError) a pipeline on which adapters cannot work."""
    check_trainable: Callable[[Any], None] = lambda pipe: None
    """Refuse (TaraError) a pipeline that generates but cannot be trained, such as one for inpainting."""
    tokenize: Callable[[Any, str], Tokenized] = tokenize
    """Tokens of a text by character offsets: (pipe, text)."""
    encode: Callable[[Any, str, int | None, torch.device], TextEncoding] = encode_with_pipeline
    """(pipe, text, clip_skip, device) to one encoded row."""
    noise_schedule: Callable[[Any], NoiseSchedule]
    """What the network was trained to undo, with the loss target."""
    predict: Callable[[nn.Module, Tensor, Tensor, TextEncoding, TextConditioning | None, Tensor], Tensor]
    """One network call: (denoiser, noisy latents, timesteps, encoding, conditioning, sizes (rows, 6)) to its output."""
    processor: Callable[[str, Any], TextKVProcessor] = TextKVProcessor
    """The attention processor that takes prepared keys and values: (layer, stock processor)."""
    resolution: Callable[[Any], int]
    """Side of the images that a pipeline was made for, in pixels."""
    side_multiple: Callable[[Any], int]
    """What the sides of training images are multiples of where they keep their shape (buckets)."""
    task_pipeline: Callable[[Any, Task], Any] = lambda pipe, task: pipe
    """The stock pipeline of a task, which shares all parts with the given one."""
    is_guided: Callable[[Any, float], bool] = lambda pipe, guidance_scale: guidance_scale > 1
    """Whether a pipeline call with this scale has unconditional rows."""
