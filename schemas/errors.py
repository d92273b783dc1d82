"""The one exception a person is meant to read."""


class BpfleetError(Exception):
    """Something outside bpfleet is wrong; the message is one line and says what to do about it.

    The command line prints it as ``bpfleet: <message>`` and exits with :attr:`exit_code`.
    """

    exit_code = 1


class UsageError(BpfleetError):
    """The caller's words (configuration, schema, arguments) are wrong."""

    exit_code = 2


class Unreachable(BpfleetError):
    """A server does not answer: it may be up again soon, so a daemon waits and a command ends."""
