"""Exceptions by who must act. The command line prints one line and exits with `exit_code`."""


class ProxError(Exception):
    """Base of every error that proxhpc raises on purpose.

    `message` names the thing and what is wrong with it, `hint` the choices or the next step.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UserError(ProxError):
    """The user must act: a manifest, an option, a path or a permission is wrong."""

    exit_code = 2


class ShardError(ProxError):
    """One shard cannot go on; the others can."""

    exit_code = 3


class StopError(ProxError):
    """The run must stop until a person has looked: an input changed or a count is off."""

    exit_code = 4


class RetryError(ProxError):
    """Nothing is wrong with the run: the same command may succeed later (EX_TEMPFAIL)."""

    exit_code = 75
