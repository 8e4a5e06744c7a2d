"""The two ways in which a command of ours may end badly; each message names the thing and the remedy."""


class UsageError(Exception):
    """Wrong usage, configuration or input: found before work starts."""

    exit_code = 2


class RunError(Exception):
    """The work itself failed on the way."""

    exit_code = 1
