"""LoRA files as other tools write them: key names spelled out here, nothing of tara's own writer."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

ATTENTIONS = r"attn[12]\.to_(q|k|v|out\.0)$"
TRANSFORMERS = rf"{ATTENTIONS}|ff\.net\.(0\.proj|2)$|proj_(in|out)$"
CONVOLUTIONS = r"resnets\.\d\.(conv1|conv2|conv_shortcut|time_emb_proj)$|samplers\.0\.conv$"

# the blocks of tiny_bases.UNET in the sgm U-Net: one resnet per down block, two blocks
TINY_SGM = {
    "down_blocks.0.attentions.0": "input_blocks_1_1",
    "down_blocks.1.attentions.0": "input_blocks_3_1",
    "mid_block.attentions.0": "middle_block_1",
    "up_blocks.0.attentions.0": "output_blocks_0_1",
    "up_blocks.0.attentions.1": "output_blocks_1_1",
    "up_blocks.1.attentions.0": "output_blocks_2_1",
    "up_blocks.1.attentions.1": "output_blocks_3_1",
}


@dataclass(frozen=True, eq=False)
class Delta:
    """A layer's matrices in the shapes that trainers store: a convolution's are (rank, in, h, w), (out, rank, 1, 1)."""

    down: Tensor
    up: Tensor
    alpha: float

    def dense(self) -> Tensor:
        """The weight that the layer gains, in float64."""
        product = self.up.double().flatten(1) @ self.down.double().flatten(1)
        return self.alpha / len(self.down) * product.unflatten(1, self.down.shape[1:])


def random_deltas(
    unet: nn.Module, layers: str = TRANSFORMERS, *, ranks: Sequence[int] = (4,), alphas: Sequence[float] = (4.0,)
) -> dict[str, Delta]:
    """Deltas that matter for the layers that a pattern finds, with ranks and alphas in turn."""
    generator = torch.Generator().manual_seed(7)
    found: dict[str, Delta] = {}
    for path, module in unet.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d) or not re.search(layers, path):
            continue
        rank, alpha = ranks[len(found) % len(ranks)], alphas[len(found) % len(alphas)]
        d_out, *inner = module.weight.shape
        size = module.weight[0].numel()
        down = torch.randn(rank, *inner, generator=generator) / size**0.5
        up = 0.3 * torch.randn(d_out, rank, *[1] * (len(inner) - 1), generator=generator) / rank**0.5
        found[path] = Delta(down, up, alpha)
    return found


def diffusers(deltas: Mapping[str, Delta], prefix: str = "unet.") -> dict[str, Tensor]:
    return _pairs(deltas, prefix, "lora_A", "lora_B")


def old_diffusers(deltas: Mapping[str, Delta], prefix: str = "unet.") -> dict[str, Tensor]:
    return _pairs(deltas, prefix, "lora.down", "lora.up")


def attention_processors(deltas: Mapping[str, Delta], prefix: str = "unet.") -> dict[str, Tensor]:
    """``{attn}.processor.to_out_lora.down.weight``."""
    renamed = {re.sub(r"\.to_(q|k|v|out)(\.0)?$", r".processor.to_\1_lora", path): d for path, d in deltas.items()}
    return _pairs(renamed, prefix, "down", "up")


def saved_unet(deltas: Mapping[str, Delta], unet: nn.Module) -> dict[str, Tensor]:
    """A whole U-Net's weights with the published SD 1.5 script's LoRA layers between them."""
    return {name: tensor.clone() for name, tensor in unet.state_dict().items()} | _pairs(
        deltas, "", "lora_layer.down", "lora_layer.up"
    )


def peft(deltas: Mapping[str, Delta]) -> dict[str, Tensor]:
    return _pairs(deltas, "base_model.model.", "lora_A", "lora_B")


def kohya(deltas: Mapping[str, Delta], blocks: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """``lora_unet_...`` with alphas; ``blocks`` puts sgm names in place of diffusers' block names."""
    tensors: dict[str, Tensor] = {}
    for path, delta in deltas.items():
        for block, sgm in (blocks or {}).items():
            path = path.replace(block + ".", sgm + ".")
        name = "lora_unet_" + path.replace(".", "_")
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = delta.down, delta.up
        tensors[f"{name}.alpha"] = torch.tensor(delta.alpha)
    return tensors


def comfy(
    deltas: Mapping[str, Delta], blocks: Mapping[str, str], down: str = "lora_down", up: str = "lora_up"
) -> dict[str, Tensor]:
    """``diffusion_model.`` and the dotted path of the original U-Net, whose ``blocks`` the caller knows."""
    dotted = {block: re.sub(r"_(?=\d)", ".", sgm) for block, sgm in blocks.items()}
    renamed: dict[str, Delta] = {}
    for path, delta in deltas.items():
        for block, sgm in dotted.items():
            path = path.replace(block + ".", sgm + ".")
        renamed[path] = delta
    alphas = {f"diffusion_model.{path}.alpha": torch.tensor(delta.alpha) for path, delta in renamed.items()}
    return _pairs(renamed, "diffusion_model.", down, up) | alphas


def kohya_text(pipe: Any, attribute: str = "text_encoder", prefix: str = "lora_te_") -> dict[str, Tensor]:
    """The text encoder's part of a kohya file, with the module names that CLIP had until transformers 4."""
    deltas = random_deltas(getattr(pipe, attribute), r"self_attn\.\w_proj$|self_attn\.out_proj$|mlp\.fc[12]$")
    tensors: dict[str, Tensor] = {}
    for path, delta in deltas.items():
        name = prefix + "text_model_" + path.removeprefix("text_model.").replace(".", "_")
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = delta.down, delta.up
        tensors[f"{name}.alpha"] = torch.tensor(delta.alpha)
    return tensors


def saved(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(whole, path, dict(header) if header else None)
    return path


Style = Callable[[Mapping[str, Delta]], dict[str, Tensor]]


def _pairs(deltas: Mapping[str, Delta], prefix: str, down: str, up: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path, delta in deltas.items():
        tensors[f"{prefix}{path}.{down}.weight"], tensors[f"{prefix}{path}.{up}.weight"] = delta.down, delta.up
    return tensors
