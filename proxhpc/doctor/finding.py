"""The typed document of `proxhpc doctor --json`: findings and their verdicts."""

from typing import Literal, Self

from proxhpc.outputs import OutputModel

Severity = Literal["ok", "warning", "error"]


class Finding(OutputModel):
    """The result of one check."""

    check: str
    """What was checked."""
    result: str
    """What was found."""
    consequence: str
    """What it means for a run; empty if it means nothing."""
    verdict: Severity
    """`error` if a launch would not work, `warning` if there is something to know."""

    @classmethod
    def ok(cls, check: str, result: str, consequence: str = "") -> Self:
        """A launch works."""
        return cls(check=check, result=result, consequence=consequence, verdict="ok")

    @classmethod
    def warning(cls, check: str, result: str, consequence: str = "") -> Self:
        """A launch works, but a person should know this."""
        return cls(check=check, result=result, consequence=consequence, verdict="warning")

    @classmethod
    def error(cls, check: str, result: str, consequence: str = "") -> Self:
        """A launch would not work."""
        return cls(check=check, result=result, consequence=consequence, verdict="error")


class Diagnosis(OutputModel):
    """What a site allows, and whether a launch there would work."""

    format: Literal["proxhpc.doctor/1"] = "proxhpc.doctor/1"
    """Kind and version of this document."""
    site: str
    """Name of the site."""
    launch_would_work: bool
    """True if no finding is an error."""
    findings: tuple[Finding, ...]
    """The result of each check."""
