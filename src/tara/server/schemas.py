"""The bodies of requests and responses."""

import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from tara.adapters.card import AdapterCard

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Word = Annotated[str, Field(max_length=64)]
Size = Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{0,3}x[1-9][0-9]{0,3})$")]


class NamedAdapter(BaseModel):
    """An adapter in a request: its name on this server, and values that replace those of its card."""

    model_config = ConfigDict(extra="forbid")
    name: Name
    weight: Annotated[FiniteFloat, Field(ge=-10, le=10)] = 1.0
    rare_word: Word = ""
    class_word: Word = ""


class ImageRequest(BaseModel):
    """OpenAI's image request with adapters and diffusion settings; OpenAI's other fields are accepted and ignored."""

    prompt: Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00]*$")]
    model: Annotated[str, Field(max_length=200)] | None = None
    n: Annotated[int, Field(ge=1, le=10)] = 1
    size: Size | None = None
    response_format: Literal["url", "b64_json"] = "url"
    adapters: Annotated[list[NamedAdapter], Field(max_length=16)] = Field(default_factory=list[NamedAdapter])
    seed: Annotated[int, Field(ge=0, lt=2**53)] = Field(default_factory=lambda: secrets.randbelow(2**31))
    negative_prompt: Annotated[str, Field(max_length=2000, pattern=r"^[^\x00]*$")] | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] = 30
    guidance_scale: Annotated[FiniteFloat, Field(ge=0, le=100)] | None = None
    composer: Literal["tara", "sum", "ties", "dare", "none"] | None = None

    @property
    def sides(self) -> tuple[int | None, int | None]:
        """Width and height in pixels; None means the base's default."""
        if self.size is None or self.size == "auto":
            return None, None
        width, height = self.size.split("x")
        return int(width), int(height)


class ImageData(BaseModel):
    url: str | None = None
    b64_json: str | None = None


class ImagesAnswer(BaseModel):
    """OpenAI's response: the time of creation, and the images."""

    created: int
    data: list[ImageData]


class JobAnswer(BaseModel):
    """A job. ``images`` are the URLs of its finished images."""

    id: str
    status: Literal["queued", "running", "done", "failed", "cancelled"]
    created: float
    step: int = 0
    steps: int = 0
    seconds_left: float | None = None
    images: list[str] = Field(default_factory=list)
    error: str = ""


class AdapterAnswer(BaseModel):
    name: str
    shared: bool
    is_mine: bool
    bytes: int
    card: AdapterCard | None = None


def listed(data: list[Any]) -> dict[str, Any]:
    """A list in OpenAI's format."""
    return {"object": "list", "data": data}
