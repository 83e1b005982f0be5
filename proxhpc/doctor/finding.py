"""What a probe found, and what a run makes of it."""

from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["fine", "note", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one probe found. `bad` means that a launch would not work."""

    what: str
    found: str
    so: str
    verdict: Severity = "fine"

    def to_dict(self) -> dict[str, str]:
        """JSON form."""
        return asdict(self)
