"""All settings of a server, defined once for TOML and the command line."""

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
    host: str = Field(default="127.0.0.1", description="Address to listen on; requires API keys unless local")
    port: int = Field(default=8000, ge=1, le=65535, description="Port to listen on")
    data: Path = Field(default=Path("tara-server"), description="Folder for the database, adapters and images")
    database: str = Field(
        default="", description="Database URL, such as postgresql+psycopg://... [default: SQLite in --data]"
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="Accepted Host headers [default: those of this computer; any if --host is not local]"
    )
    rows: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Maximum rows of a batch, 2 for each image with guidance [default: as memory allows]",
    )
    max_queued_jobs: int = Field(default=256, ge=1, description="Maximum unfinished jobs of all keys")
    max_queued_jobs_per_key: int = Field(default=32, ge=1, description="Maximum unfinished jobs of one key")
    max_requests_per_minute: int = Field(default=600, ge=1, description="Maximum requests of one key per minute")
    max_images_kept_per_key: int = Field(
        default=1000, ge=1, description="Maximum images kept for one key; the oldest are deleted"
    )
    max_upload_mib: int = Field(default=512, ge=1, description="Maximum size of an uploaded adapter in MiB")
    max_adapter_mib_per_key: int = Field(default=4096, ge=1, description="Maximum size of one key's adapters in MiB")
    max_body_kib: int = Field(default=64, ge=1, description="Maximum size of a request without files in KiB")
    max_steps: int = Field(default=100, ge=1, le=1000, description="Maximum denoising steps of a request")
    max_side: int = Field(default=1536, ge=8, le=8192, description="Maximum width and height in pixels")
    drain_seconds: float = Field(
        default=60, ge=0, le=3600, description="Seconds in which running images may finish after SIGTERM"
    )

    @property
    def is_local(self) -> bool:
        """Whether the server can be reached from this computer only."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.data.absolute() / 'tara.db'}"


def read_settings(path: Path | None, **changes: Any) -> ServerSettings:
    """Settings from a TOML file (None: the defaults); ``changes`` take precedence.

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
