"""The three ways in which a command ends early. Each carries one line for the user.

Every other exception is a mistake in muonlab itself, and shows its traceback.
"""


class UserError(ValueError):
    """A mistake in what was asked for: the line names the thing, its value and what is legal."""


class FailedRunError(RuntimeError):
    """Training ended without a result: the line says why."""


class InterruptedRun(Exception):  # noqa: N818 (an outcome, not an error)
    """Training was asked to stop: the line says how to go on."""

    def __init__(self, message: str, *, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code
