"""Exceptions, one class for each who must act. The CLI prints them and exits with `exit_code`."""


class ProxError(Exception):
    """Base class of all errors that proxhpc raises on purpose.

    `message` says what is wrong with what; `hint` gives the choices or the next step.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UserError(ProxError):
    """The user must fix a manifest, an option, a path or a permission."""

    exit_code = 2


class ShardError(ProxError):
    """One shard cannot be processed; the others can."""

    exit_code = 3


class StopError(ProxError):
    """The run must stop until a person has checked it: an input changed or a count is wrong."""

    exit_code = 4


class RetryError(ProxError):
    """A temporary failure: the same command may succeed later (EX_TEMPFAIL)."""

    exit_code = 75
