"""What can go wrong, one class per exit code, so that scripts can tell a typing mistake from a broken machine; and what
errors say in one line."""


class CctrainError(Exception):
    """Base of the errors whose text is meant for the user: what was got, what is allowed, which key to change."""

    exit_code = 1


class RequestError(CctrainError):
    """The request is wrong; nothing was started."""

    exit_code = 2


class PlatformError(CctrainError):
    """The machine is not what was asked for (`cc=on` where CC is off); nothing was started."""

    exit_code = 3


class RunError(CctrainError):
    """The run started and did not finish; its record says `partial`."""

    exit_code = 4


def one_line(error: BaseException) -> str:
    """What `error` says: its first line, and the next one where the first announces it. Empty where it says nothing."""
    first, _, rest = str(error).strip().partition("\n")
    return f"{first} {rest.strip().partition(chr(10))[0]}".rstrip() if first.endswith(":") else first
