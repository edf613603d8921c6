"""Which base is loaded, and how."""

from typing import Literal

from pydantic import BaseModel, Field

Prediction = Literal["epsilon", "v_prediction"]

BASE = "Base model: toyland, sd15, sdxl, a pipeline folder, a .safetensors checkpoint or a hub id"
REVISION = "Branch, tag or commit of a base on the hub"
VARIANT = "Variant of the base's files, such as fp16"
VAE = "Autoencoder in place of the base's own: a folder, a .safetensors file or a hub id"
PREDICTION = "What the base's U-Net predicts, where its checkpoint does not tell: epsilon or v_prediction"


class ExecutionSettings(BaseModel, frozen=True, extra="forbid"):
    """How a base runs: time and memory; a picture stays the same but for rounding."""

    compile: bool = Field(
        default=False,
        description="Compile the U-Net: the first step takes minutes, what the others gain depends on the device; "
        "other adapters do not compile anew",
    )
    attention_slicing: bool = Field(
        default=False,
        description="Attention in slices: less memory and more time, of use where a device has no attention that saves "
        "memory by itself, such as mps",
    )
    offload: bool = Field(
        default=False,
        description="Parts of the base wait in the CPU's memory until they are needed: less GPU memory, more time",
    )
