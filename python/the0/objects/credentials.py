"""Which store, and who we are there. Built from the environment by `the0.settings`; imports no client."""

from __future__ import annotations

from the0.frozen import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """A folder where `folder` is set, else an S3 store. Neither repr nor any message shows a key."""

    folder: str | None = None
    """Absolute path; buckets are the folders in it."""
    endpoint: str = ""
    """`host:port`, no scheme."""
    access_key: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    """Empty unless the keys are temporary ones."""
    use_ssl: bool = False
    region: str = "us-east-1"

    @property
    def url(self) -> str:
        return f"{'https' if self.use_ssl else 'http'}://{self.endpoint}"
