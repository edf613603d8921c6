"""A family that tara has never heard of: a transformer of two blocks in a pipeline of its own."""

from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

import tiny_bases
from tara.families.family import Defaults, Family
from tara.families.processors import CONDITIONING_KEY
from tara.families.text import TextEncoding, tokenize


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.look, self.read = Attention(width, heads=2, dim_head=8), Attention(width, 32, heads=2, dim_head=8)

    def forward(self, x: Tensor, text: Tensor, options: dict[str, Any]) -> Tensor:
        x = x + self.look(x, **options)
        return x + self.read(x, text, **options)


class Mixer(ModelMixin, ConfigMixin):
    """Every latent pixel is a token; two blocks of self-attention and attention to the text."""

    @register_to_config
    def __init__(self, sample_size: int = 16, width: int = 16) -> None:
        super().__init__()
        self.inward, self.outward, self.when = nn.Linear(4, width), nn.Linear(width, 4), nn.Linear(1, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))

    def forward(self, latents: Tensor, times: Tensor, text: Tensor, cross_attention_kwargs: Any = None) -> Tensor:
        x = self.inward(latents.flatten(2).mT) + self.when(times.reshape(-1, 1, 1) / 1000)
        for block in self.blocks:
            x = block(x, text, cross_attention_kwargs or {})
        return self.outward(x).mT.reshape(latents.shape)


class MixerPipeline(DiffusionPipeline):
    """As short as a pipeline can be that takes prompts, seeds and guidance as the stock ones do."""

    def __init__(self, vae: Any, text_encoder: Any, tokenizer: Any, mixer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, mixer=mixer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self, prompt_embeds: Tensor, negative_prompt_embeds: Tensor, guidance_scale: float = 3.0,
        num_inference_steps: int = 2, generator: Any = None, cross_attention_kwargs: Any = None, **_: Any,
    ) -> Any:  # fmt: skip
        text = torch.cat([negative_prompt_embeds, prompt_embeds])
        latents = torch.cat([torch.randn(1, 4, 16, 16, generator=one) for one in generator])
        self.scheduler.set_timesteps(num_inference_steps)
        for time in self.scheduler.timesteps:
            times = time.expand(len(text))
            without, given = self.mixer(
                latents.repeat(2, 1, 1, 1), times, text, cross_attention_kwargs=cross_attention_kwargs
            ).chunk(2)
            latents = self.scheduler.step(without + guidance_scale * (given - without), time, latents).prev_sample
        pixels = self.vae.decode(latents / self.vae.config.scaling_factor).sample / 2 + 0.5
        images = self.numpy_to_pil(pixels.clamp(0, 1).permute(0, 2, 3, 1).numpy())
        return type("Output", (), {"images": images})


def pipeline() -> MixerPipeline:
    """A tiny pipeline of the family, with Stable Diffusion's other parts."""
    stock = tiny_bases.sd_pipeline()
    torch.manual_seed(0)
    return MixerPipeline(stock.vae, stock.text_encoder, stock.tokenizer, Mixer().eval(), stock.scheduler)


# this much is what tara asks of a family
def encode(pipe: Any, text: str, _clip_skip: int | None, device: torch.device) -> TextEncoding:
    ids = pipe.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return TextEncoding(pipe.text_encoder(ids.to(device))[0], None, (tokenize(pipe, text),))


MIXER = Family(
    name="mixer",
    denoiser="mixer",
    text_width=32,
    text_kv_paths=("read.to_k", "read.to_v"),
    defaults=Defaults(rank=2, learning_rate=1e-2),
    encode=encode,
    predict=lambda mixer, latents, times, encoding, conditioning, _sizes: mixer(
        latents, times, encoding.embeddings, cross_attention_kwargs=conditioning and {CONDITIONING_KEY: conditioning}
    ),
)
