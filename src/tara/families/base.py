"""A diffusers pipeline as the rest of tara sees it: text in, noise prediction out."""

import hashlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast, get_args

import torch
from torch import Tensor

from tara.core.losses import PredictionType
from tara.core.tokens import Span, Tokenized
from tara.errors import TaraError
from tara.families.family import TEXT_ENCODERS, check_supported, family_of
from tara.families.processors import KEY, KeysValues, TextConditioning, install, no_grad_kv, uninstall
from tara.families.text_encoders import text_layer


@dataclass(frozen=True, eq=False)
class TextEncoding:
    """Encoded texts: ``embeddings`` (rows, tokens, d), ``pooled`` (rows, d) where the family has it, their tokens."""

    embeddings: Tensor
    pooled: Tensor | None
    tokenized: tuple[Tokenized, ...]

    @property
    def rows(self) -> int:
        return self.embeddings.shape[0]

    def take(self, rows: Sequence[int]) -> "TextEncoding":
        """The given rows, in that order, repeated as often as they are named."""
        index = torch.tensor(list(rows), device=self.embeddings.device)
        pooled = None if self.pooled is None else self.pooled[index]
        return TextEncoding(self.embeddings[index], pooled, tuple(self.tokenized[row] for row in rows))

    @staticmethod
    def join(parts: Sequence["TextEncoding"]) -> "TextEncoding":
        """All rows of all parts, one after the other."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return TextEncoding(
            torch.cat([part.embeddings for part in parts]),
            torch.cat(pooled) if pooled else None,
            tuple(tokens for part in parts for tokens in part.tokenized),
        )


class Backbone:
    """One loaded base: the parts of its pipeline, and what training and composition ask of them."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.unet: Any = pipe.unet
        self.vae: Any = pipe.vae
        self.scheduler: Any = pipe.scheduler
        second = getattr(pipe, "tokenizer_2", None), getattr(pipe, "text_encoder_2", None)
        self.tokenizers = [part for part in (pipe.tokenizer, second[0]) if part is not None]
        self.text_encoders = [part for part in (pipe.text_encoder, second[1]) if part is not None]
        self.family = family_of(self.unet.config)
        self._norms: dict[str, float] = {}
        self.guidance_scale: float | None = None
        """What the base draws best with; its pipeline's own default when None."""

    @classmethod
    def from_pipeline(cls, pipe: Any) -> "Backbone":
        """A backbone around a loaded diffusers pipeline, which stays the user's.

        Raises:
            TaraError: when the pipeline has no U-Net with CLIP text, or one that adapters cannot work on.
        """
        missing = [part for part in ("unet", "vae", "tokenizer", "encode_prompt") if not hasattr(pipe, part)]
        if missing:
            raise TaraError(
                f"A {type(pipe).__name__} has no {missing[0]}. Use a Stable Diffusion 1.x, 2.x or SDXL pipeline."
            )
        check_supported(pipe.unet)
        return cls(pipe)

    @property
    def device(self) -> torch.device:
        """Where the U-Net computes; accelerate's hook, which offloading puts on it, lets it wait elsewhere."""
        place = getattr(getattr(self.unet, "_hf_hook", None), "execution_device", None)
        return self.unet.device if place is None else torch.device(place)

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @cached_property
    def attention_layers(self) -> list[str]:
        """Paths of the attentions of all transformer blocks: ``....attn1`` and ``....attn2``."""
        names = [name.removesuffix(".processor") for name in self.unet.attn_processors]
        return [name for name in names if name.endswith((".attn1", ".attn2"))]

    @cached_property
    def cross_layers(self) -> list[str]:
        """Paths of the cross-attentions, ``....attn2``."""
        return [name for name in self.attention_layers if name.endswith(".attn2")]

    @property
    def alphas_cumprod(self) -> Tensor:
        """The noise schedule, float32, one value per training timestep."""
        return self.scheduler.alphas_cumprod

    @property
    def prediction_type(self) -> PredictionType:
        return cast(PredictionType, self.scheduler.config.prediction_type)

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    @property
    def vae_scale(self) -> int:
        """Pixels per latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def side_multiple(self) -> int:
        """Pixels per value of the U-Net's smallest feature map: sides of pictures that it halves without a rest."""
        return self.vae_scale * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def resolution(self) -> int:
        """Side of the base's own square pictures in pixels."""
        size = self.unet.config.sample_size
        return int(size if isinstance(size, int) else size[0]) * self.vae_scale

    @cached_property
    def fingerprint(self) -> str:
        """Tells bases of one shape apart: a hash of the first cross-attention's key weights."""
        weight: Tensor = self.unet.get_submodule(self.cross_layers[0]).to_k.weight
        return hashlib.sha256(weight.detach().cpu().float().numpy().tobytes()).hexdigest()[:16]

    def freeze(self) -> None:
        """Evaluation mode, no gradients: what training assumes."""
        for part in (self.unet, self.vae, *self.text_encoders):
            part.requires_grad_(False).eval()

    def rest(self) -> None:
        """Move what texts and pictures alone need, the text encoders and the autoencoder, to the CPU's memory."""
        for part in (self.vae, *self.text_encoders):
            part.to("cpu")

    def wake(self) -> None:
        """Bring back to the U-Net's device what :meth:`rest` moved; what hooks move by themselves stays theirs."""
        for part in (self.vae, *self.text_encoders):
            if part.device != self.device and not hasattr(part, "_hf_hook"):
                part.to(self.device)

    def check_trainable(self) -> None:
        """Refuse bases that pictures can be drawn with, but whose U-Net is not trained on noisy latents alone.

        Raises:
            TaraError: for a U-Net with further inputs, or a prediction that the losses do not know.
        """
        channels, kind = int(self.unet.config.in_channels), str(self.scheduler.config.get("prediction_type"))
        if channels != self.latent_channels:
            raise TaraError(
                f"This base's U-Net takes {channels} channels where latents have {self.latent_channels}: it is for "
                "inpainting or editing. Train on a text-to-image base; its adapters work here too."
            )
        if kind not in get_args(PredictionType) or not hasattr(self.scheduler, "alphas_cumprod"):
            raise TaraError(
                f"This base's {type(self.scheduler).__name__} has prediction type '{kind}', which tara cannot train. "
                f"Use a base with one of {', '.join(get_args(PredictionType))}."
            )

    def layer(self, path: str) -> Any:
        """The module at an adapter's path: in the U-Net, or in the text encoder that it begins with.

        Raises:
            AttributeError: when there is none.
        """
        if path.startswith(TEXT_ENCODERS):
            return text_layer(self.pipe, path)
        return self.unet.get_submodule(path)

    def projection_sizes(self, path: str) -> tuple[int, int]:
        """(d_in, d_out) of a layer such as ``....attn2.to_k``; a convolution's d_in counts its kernel."""
        weight: Tensor = self.layer(path).weight
        return weight[0].numel(), weight.shape[0]

    def weight_norm(self, path: str) -> float:
        """Frobenius norm of a layer's weight; the base does not change, so each is computed once."""
        if path not in self._norms:
            self._norms[path] = float(self.layer(path).weight.detach().float().norm())
        return self._norms[path]

    def tokenize(self, text: str) -> Tokenized:
        """The text's tokens by characters, as long as the encoder's input (77 for CLIP)."""
        found = [_tokenize(self.pipe, tokenizer, text) for tokenizer in self.tokenizers]
        if any(other != found[0] for other in found):
            raise TaraError(f"The base's tokenizers split '{text}' differently. Use tokenizers that agree.")
        return found[0]

    @torch.no_grad()
    def encode(self, texts: Sequence[str], clip_skip: int | None = None) -> TextEncoding:
        """Encode texts one by one, so that a text's numbers do not depend on its neighbours in the batch."""
        return TextEncoding.join([self._encode(text, clip_skip) for text in texts])

    @torch.no_grad()
    def encode_negative(self, text: str | None) -> TextEncoding:
        """The unconditional or negative text as stock pipelines encode it: zeros for None where the base says so."""
        encoding = self._encode(text or "", None)
        if text is None and getattr(self.pipe.config, "force_zeros_for_empty_prompt", False):
            pooled = None if encoding.pooled is None else torch.zeros_like(encoding.pooled)
            return TextEncoding(torch.zeros_like(encoding.embeddings), pooled, encoding.tokenized)
        return encoding

    def _encode(self, text: str, clip_skip: int | None) -> TextEncoding:
        if clip_skip is not None and len(self.text_encoders) == 1:
            return TextEncoding(self._skipping(text, clip_skip), None, (self.tokenize(text),))
        found: Sequence[Tensor | None] = self.pipe.encode_prompt(
            prompt=text,
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            clip_skip=clip_skip,
        )  # (conditional, unconditional) and, with a second encoder, their pooled vectors
        embeddings, pooled = found[0], found[2] if len(found) > 2 else None
        assert embeddings is not None
        return TextEncoding(embeddings, pooled, (self.tokenize(text),))

    def _skipping(self, text: str, clip_skip: int) -> Tensor:
        """Embeddings without the encoder's last layers, computed here: the stock pipeline of diffusers 0.42 looks for
        ``text_model``, which the encoders of transformers 5 no longer have."""
        (tokenizer,), (encoder,) = self.tokenizers, self.text_encoders
        if not 0 <= clip_skip < encoder.config.num_hidden_layers:
            raise TaraError(f"clip_skip is {clip_skip}. Give 0 to {encoder.config.num_hidden_layers - 1}.")
        text = _converted(self.pipe, tokenizer, text)
        length = int(tokenizer.model_max_length)
        tokens = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
        hidden = encoder(tokens.input_ids.to(encoder.device), attention_mask=mask, output_hidden_states=True)
        norm = getattr(encoder, "text_model", encoder).final_layer_norm
        return norm(hidden.hidden_states[-(clip_skip + 1)]).to(self.device)

    def kv(self, embeddings: Tensor) -> dict[str, KeysValues]:
        """Keys and values of embeddings (rows, tokens, d) through each cross-attention's current to_k and to_v."""
        return {layer: no_grad_kv(self.unet.get_submodule(layer), embeddings) for layer in self.cross_layers}

    def install(self) -> None:
        """Put our attention processors on the U-Net, see :func:`tara.families.processors.install`."""
        install(self.unet)

    def release(self) -> None:
        """Put the stock processors back."""
        uninstall(self.unet)

    def predict(
        self,
        latents: Tensor,
        timesteps: Tensor,
        encoding: TextEncoding,
        conditioning: TextConditioning | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        """One U-Net call.

        Args:
            latents: (rows, channels, height, width), noisy.
            timesteps: (rows,).
            encoding: the rows' texts; keys and values come from ``conditioning`` where it is given.
            conditioning: see :class:`TextConditioning`; needs :meth:`install` first.
            time_ids: (rows, 6) picture sizes of families that take them; the latents' own size if left out.

        Returns:
            The prediction, shaped as ``latents``; what it means says ``prediction_type``.
        """
        added: dict[str, Tensor] = {}
        if self.family.size_conditioning:
            assert encoding.pooled is not None
            sizes = self.size_ids(latents) if time_ids is None else time_ids
            added = {"text_embeds": encoding.pooled, "time_ids": sizes.to(encoding.pooled)}
        return self.unet(
            latents,
            timesteps,
            encoding.embeddings,
            cross_attention_kwargs=None if conditioning is None else {KEY: conditioning},
            added_cond_kwargs=added,
            return_dict=False,
        )[0]

    def size_ids(self, latents: Tensor) -> Tensor:
        """(rows, 6): original size, upper left crop corner, target size of an uncropped picture (SDXL, 2307.01952)."""
        height, width = latents.shape[-2] * self.vae_scale, latents.shape[-1] * self.vae_scale
        return torch.tensor([[height, width, 0, 0, height, width]] * latents.shape[0], device=latents.device)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the U-Net's latents of pictures (rows, 3, height, width) in [-1, 1]."""
        with self._wide_vae():
            posterior = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist
        shift, scale = self.vae.config.shift_factor or 0.0, float(self.vae.config.scaling_factor)
        return (posterior.mean - shift) * scale, posterior.std * scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (rows, 3, height, width) in [0, 1] of the U-Net's clean latents."""
        shift, scale = self.vae.config.shift_factor or 0.0, float(self.vae.config.scaling_factor)
        with self._wide_vae():
            pixels: Tensor = self.vae.decode((latents / scale + shift).to(self.vae.dtype), return_dict=False)[0]
        return (pixels / 2 + 0.5).clamp(0, 1)

    @contextmanager
    def _wide_vae(self) -> Generator[None]:
        """The autoencoder in float32 where it would overflow in float16, as SDXL's does."""
        overflows = self.vae.dtype == torch.float16 and self.vae.config.force_upcast
        if overflows:
            self.vae.to(torch.float32)
        try:
            yield
        finally:
            if overflows:
                self.vae.to(torch.float16)


def _converted(pipe: Any, tokenizer: Any, text: str) -> str:
    # a textual inversion may stand for several tokens
    return pipe.maybe_convert_prompt(text, tokenizer) if hasattr(pipe, "maybe_convert_prompt") else text


def _tokenize(pipe: Any, tokenizer: Any, text: str) -> Tokenized:
    text = _converted(pipe, tokenizer, text)
    length = int(tokenizer.model_max_length)
    found = tokenizer(
        text,
        return_offsets_mapping=True,
        truncation=True,
        max_length=length,
        padding="max_length",
        return_overflowing_tokens=True,
    )
    pieces: Sequence[Sequence[Span]] = found["offset_mapping"]  # more than one when the text is too long
    offsets: tuple[Span, ...] = tuple((int(first), int(end)) for first, end in pieces[0])
    kept = len(text) if len(pieces) == 1 else max(end for _, end in offsets)
    return Tokenized(text, offsets, kept)
