"""What a server is told: one settings model for TOML and the command line."""

import tomllib
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from tara.errors import TaraError
from tara.storage.files import small_text
from tara.storage.validation import build


class ServerSettings(BaseModel, frozen=True, extra="forbid"):
    """Where a server listens, what it keeps, and its limits; the descriptions are the command line's help."""

    base: str = Field(description="Base model: sd15, sdxl, a pipeline folder, a .safetensors checkpoint or a hub id")
    host: str = Field(default="127.0.0.1", description="Address to listen on; others than this need API keys")
    port: int = Field(default=8000, ge=1, le=65535, description="Port to listen on")
    data: Path = Field(default=Path("tara-server"), description="Folder for the database, adapters and images")
    database: str = Field(default="", description="URL, such as postgresql+psycopg://... [default: SQLite in data]")
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="Host names that requests may name [default: this computer's, or any with API keys]"
    )
    rows: int | None = Field(default=None, ge=1, le=1024, description="Rows in flight [default: as memory allows]")
    max_queued_jobs: int = Field(default=256, ge=1, description="Unfinished jobs of all keys together")
    max_queued_jobs_per_key: int = Field(default=32, ge=1, description="Unfinished jobs of one key")
    max_requests_per_minute: int = Field(default=600, ge=1, description="Requests of one key")
    max_images_kept_per_key: int = Field(default=1000, ge=1, description="Images kept for a key; the oldest go")
    max_upload_mib: int = Field(default=512, ge=1, description="Size of one uploaded adapter")
    max_adapter_mib_per_key: int = Field(default=4096, ge=1, description="Size of all adapters of one key")
    max_body_kib: int = Field(default=64, ge=1, description="Size of a request without files")
    max_steps: int = Field(default=100, ge=1, le=1000, description="Denoising steps of a request")
    max_side: int = Field(default=1536, ge=8, le=8192, description="Width and height of a request in pixels")
    drain_seconds: float = Field(default=60, ge=0, le=3600, description="Time for images in flight after SIGTERM")

    @property
    def is_local(self) -> bool:
        """Whether only this computer reaches the server."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.data.absolute() / 'tara.db'}"


def read_settings(path: Path | None, **changes: Any) -> ServerSettings:
    """Settings from a TOML file, if there is one, with changes from elsewhere.

    Raises:
        TaraError: for a file that cannot be read, an unknown name or a value out of range.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(small_text(path))
        except (OSError, ValueError) as failure:
            raise TaraError(f"'{path}' cannot be read ({failure}). Give a TOML file of server settings.") from failure
    return build(ServerSettings, values | changes, "" if path is None else f"{path}: ")
