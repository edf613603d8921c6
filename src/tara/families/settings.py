"""Settings of the base and its execution, shared by training and generation."""

from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

Prediction = Literal["epsilon", "v_prediction"]
Precision = Literal["auto", "fp32", "fp16", "bf16"]


class BaseSettings(BaseModel, frozen=True, extra="forbid"):
    """Which base is loaded, in which precision."""

    base: str = Field(description="Base model: sd15, sdxl, a pipeline folder, a .safetensors checkpoint or a hub id")
    revision: str | None = Field(default=None, description="Branch, tag or commit of a base on the hub")
    variant: str | None = Field(default=None, description="Variant of the base's files, such as fp16")
    vae: str | None = Field(
        default=None, description="VAE to use instead of the base's own: a folder, a .safetensors file or a hub id"
    )
    prediction_type: Prediction | None = Field(
        default=None, description="Prediction type of the base, if the checkpoint does not store it"
    )
    precision: Precision = Field(
        default="auto", description="Precision of the base. auto: bf16 (or fp16 on older GPUs) on CUDA, fp32 elsewhere"
    )

    @model_validator(mode="before")
    @classmethod
    def _a_base_is_named(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("base"):
            raise ValueError(
                "The base is missing. Give --base sd15, --base sdxl or --base FOLDER (in Python and TOML: base = ...). "
                "To try tara without one, run `tara demo`"
            )
        return values  # pyright: ignore[reportUnknownVariableType]


class ExecutionSettings(BaseModel, frozen=True, extra="forbid"):
    """Speed and memory; the images stay the same but for rounding."""

    compile: bool = Field(default=False, description="Compile the denoising network (slow first step)")
    attention_slicing: bool = Field(default=False, description="Compute attention in slices, to save memory")
    offload: bool = Field(
        default=False, description="Keep idle models of the base in CPU memory, to save GPU memory (slower)"
    )
