"""A loaded base: its pipeline, its family, and the methods that training and inference need."""

import hashlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tara.core.losses import NoiseSchedule
from tara.core.tokens import Tokenized
from tara.errors import TaraError
from tara.families.family import Defaults, Family
from tara.families.processors import INSTALLED, AttentionProcessors, KeysValues, TextConditioning
from tara.families.registry import family_of
from tara.families.text import TEXT_ENCODERS, TextEncoding


class Base:
    """One loaded base.

    Args:
        pipe: a loaded diffusers pipeline.
        family: the family of the base. None: recognised from the pipeline.
        defaults: default settings for this base. None: those of its family.

    Raises:
        TaraError: when no family recognises the pipeline, or adapters cannot work on it.
    """

    def __init__(self, pipe: Any, family: Family | None = None, defaults: Defaults | None = None) -> None:
        self.pipe = pipe
        self.family = family or family_of(pipe)
        self.family.check(pipe)
        if not self.family.text_kv_fixed:
            raise TaraError(
                f"The text's keys and values of '{self.family.name}' bases change at every denoising step, which tara "
                "does not support."
            )
        self.defaults = defaults or self.family.defaults
        self.denoiser: Any = getattr(pipe, self.family.denoiser)
        self._check_precision()
        self.processors: AttentionProcessors
        self.processors = getattr(self.denoiser, INSTALLED, None) or AttentionProcessors(self.denoiser, self.family)
        self._norms: dict[str, float] = {}

    def _check_precision(self) -> None:
        """Refuse (TaraError) text encoders in another precision than the denoiser: diffusers would fail later."""
        precisions = {part.dtype for part in (self.denoiser, *self.text_encoders)}
        if len(precisions) > 1:
            names = " and ".join(sorted(str(precision).removeprefix("torch.") for precision in precisions))
            raise TaraError(
                f"The pipeline's parts are in {names}. Load it in one precision, such as "
                "from_pretrained(..., torch_dtype=torch.float16), or give the folder to tara, which does."
            )

    @property
    def vae(self) -> Any:
        return self.pipe.vae

    @property
    def scheduler(self) -> Any:
        return self.pipe.scheduler

    @property
    def text_encoders(self) -> list[Any]:
        """The pipeline's text encoders, one or two."""
        return [part for name in TEXT_ENCODERS if (part := getattr(self.pipe, name, None)) is not None]

    @property
    def device(self) -> torch.device:
        """The device on which the denoiser computes. With accelerate's offloading its weights may be elsewhere."""
        device = getattr(getattr(self.denoiser, "_hf_hook", None), "execution_device", None)
        return self.denoiser.device if device is None else torch.device(device)

    @property
    def dtype(self) -> torch.dtype:
        return self.denoiser.dtype

    @cached_property
    def attention_layers(self) -> list[str]:
        """Paths of all attentions: self-attentions and cross-attentions."""
        return self.family.attention_layers(self.denoiser)

    @cached_property
    def text_layers(self) -> list[str]:
        """Paths of the attentions whose keys and values are computed from the text."""
        attention = self.family.text_kv_paths[0].rpartition(".")[0]
        return [layer for layer in self.attention_layers if f".{layer}".endswith(f".{attention}")]

    def target_layers(self, targets: str) -> list[str]:
        """Paths of the projections to train: ``cross_kv`` (the text's keys and values) or ``attention`` (all)."""
        if targets == "cross_kv":
            return [f"{layer}.{name}" for layer in self.text_layers for name in self.family.kv_names]
        return [f"{layer}.{name}" for layer in self.attention_layers for name in self.family.attention_projections]

    def layer(self, path: str) -> Any:
        """The module at an adapter's path, in the denoiser or a text encoder; AttributeError if there is none."""
        model, _, inner = path.partition(".")
        if model not in TEXT_ENCODERS:
            return self.denoiser.get_submodule(path)
        encoder: Any = getattr(self.pipe, model)
        # CLIPTextModel of transformers 5 has no module `text_model`
        return encoder.get_submodule(inner if hasattr(encoder, "text_model") else inner.removeprefix("text_model."))

    def parameter(self, path: str) -> torch.nn.Parameter:
        """A layer's weight, or for a path with ``.bias`` or ``.weight`` this parameter; else AttributeError."""
        layer, _, name = path.rpartition(".")
        module = self.layer(layer if name in ("bias", "weight") else path)
        module = getattr(module, "base_layer", module)  # PEFT wraps layers that have a LoRA loaded
        parameter = getattr(module, name if name in ("bias", "weight") else "weight")
        if parameter is None:
            raise AttributeError(path)
        return parameter

    def projection_sizes(self, path: str) -> tuple[int, int]:
        """(d_in, d_out) of a layer such as ``....attn2.to_k``. For a convolution, d_in is channels x height x width."""
        weight = self.parameter(path)
        return weight[0].numel(), weight.shape[0]

    def weight_norm(self, path: str) -> float:
        """Frobenius norm of a layer's weight, computed once."""
        if path not in self._norms:
            self._norms[path] = float(self.parameter(path).detach().float().norm())
        return self._norms[path]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the first text layer's key weights, which differs between bases of one shape."""
        weight: Tensor = self.layer(f"{self.text_layers[0]}.{self.family.kv_names[0]}").weight
        return hashlib.sha256(weight.detach().cpu().float().numpy().tobytes()).hexdigest()[:16]

    def tokenize(self, text: str) -> Tokenized:
        """Tokenize a text, padded or truncated to the text encoder's length (77 tokens for CLIP)."""
        return self.family.tokenize(self.pipe, text)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], clip_skip: int | None = None) -> TextEncoding:
        """Encode texts one by one, so that a text's embeddings do not depend on the batch."""
        return TextEncoding.join([self.family.encode(self.pipe, text, clip_skip, self.device) for text in texts])

    @torch.no_grad()
    def encode_negative(self, text: str | None) -> TextEncoding:
        """Encode a negative text as stock pipelines do. None: the empty text, or zeros if the base's config says so."""
        encoding = self.family.encode(self.pipe, text or "", None, self.device)
        if text is None and getattr(self.pipe.config, "force_zeros_for_empty_prompt", False):
            pooled = None if encoding.pooled is None else torch.zeros_like(encoding.pooled)
            return TextEncoding(torch.zeros_like(encoding.embeddings), pooled, encoding.tokenized)
        return encoding

    @torch.no_grad()
    def project_text(self, embeddings: Tensor) -> dict[str, KeysValues]:
        """Keys and values of embeddings (rows, tokens, d) through each text layer's current projections."""
        return {layer: self.project(layer, embeddings) for layer in self.text_layers}

    def project(self, layer: str, embeddings: Tensor) -> KeysValues:
        """Keys and values of embeddings (..., d) through one text layer, on the embeddings' device."""
        modules = [self.layer(f"{layer}.{name}") for name in self.family.kv_names]
        # with offloading the weights are on the CPU
        keys, values = (module(embeddings.to(module.weight.device)).to(embeddings.device) for module in modules)
        return keys, values

    @property
    def noise_schedule(self) -> NoiseSchedule:
        """The noise schedule of training and the prediction target, in float32."""
        return self.family.noise_schedule(self.pipe)

    @property
    def vae_scale(self) -> int:
        """Pixels per latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def resolution(self) -> int:
        """Side, in pixels, of the square images for which the base was trained."""
        return self.family.latent_side(self.denoiser) * self.vae_scale

    @property
    def side_multiple(self) -> int:
        """Buckets have sides that are multiples of this, in pixels."""
        return self.family.latent_multiple(self.denoiser) * self.vae_scale

    def predict(
        self,
        latents: Tensor,
        timesteps: Tensor,
        encoding: TextEncoding,
        conditioning: TextConditioning | None = None,
        sizes: Tensor | None = None,
    ) -> Tensor:
        """One network call.

        Args:
            latents: (rows, channels, height, width), noisy.
            timesteps: (rows,).
            encoding: the texts of the rows. Keys and values are taken from ``conditioning`` if it is given.
            conditioning: see `TextConditioning`. Call ``processors.install()`` first. None: the base without adapters.
            sizes: (rows, 6) original size, crop corner, target size in pixels, used by SDXL. None: not cropped.

        Returns:
            The prediction, in the shape of ``latents``. Its type is that of `noise_schedule`.
        """
        if sizes is None:
            height, width = latents.shape[-2] * self.vae_scale, latents.shape[-1] * self.vae_scale
            sizes = torch.tensor([[height, width, 0, 0, height, width]] * latents.shape[0], device=latents.device)
        return self.family.predict(self.denoiser, latents, timesteps, encoding, conditioning, sizes)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of images (rows, 3, height, width) with values in [-1, 1]."""
        with self._without_overflow():
            posterior = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist
        shift, scale = self.vae.config.shift_factor or 0.0, float(self.vae.config.scaling_factor)
        return (posterior.mean - shift) * scale, posterior.std * scale

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode latents as the stock pipelines do, to images (rows, 3, height, width) with values in [-1, 1]."""
        config = self.vae.config
        scaled, shift = latents / float(config.scaling_factor), config.shift_factor or 0.0
        if getattr(config, "latents_mean", None) is not None:  # as SDXL's stock pipeline does for such VAEs
            std, shift = (
                torch.tensor(of).view(1, -1, 1, 1).to(latents) for of in (config.latents_std, config.latents_mean)
            )
            scaled = scaled * std
        with self._without_overflow():
            return self.vae.decode((scaled + shift).to(self.vae.dtype), return_dict=False)[0]

    @contextmanager
    def _without_overflow(self) -> Generator[None]:
        """In a ``with`` block, cast the VAE to float32 if it overflows in float16, as SDXL's does."""
        overflows = self.vae.dtype == torch.float16 and self.vae.config.force_upcast
        try:
            if overflows:
                self.vae.to(torch.float32)
            yield
        finally:
            if overflows:
                self.vae.to(torch.float16)

    @property
    def parts(self) -> list[Any]:
        """The modules that hold weights."""
        return [self.denoiser, self.vae, *self.text_encoders]

    def offload(self) -> None:
        """Move the text encoders and the VAE to CPU memory, because denoising steps do not need them."""
        for part in (self.vae, *self.text_encoders):
            part.to("cpu")

    def onload(self) -> None:
        """Move back the modules that `offload` moved, except those that accelerate's hooks move."""
        for part in (self.vae, *self.text_encoders):
            if part.device != self.device and not hasattr(part, "_hf_hook"):
                part.to(self.device)
