"""Errors that people see: one clear line that says what is wrong, and what to do about it."""


class JaxresearchError(Exception):
    """Something failed in a way that we understand. The command line prints `message` and exits with `exit_code`."""

    exit_code = 1

    def __init__(self, message: str, *, fix: str = "") -> None:
        self.message = message
        self.fix = fix
        super().__init__(f"{message} {fix}".strip())


class ConfigurationError(JaxresearchError):
    """Wrong usage or configuration; the message names the offending key or option."""

    exit_code = 2
