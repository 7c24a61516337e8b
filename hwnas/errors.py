"""Every error a user may meet, each with the exit code that the command line returns for it.

A message is one sentence that states the rule, the value that broke it, and the remedy. Anything else that escapes
from hwnas is a defect of hwnas and exits with 1.
"""


class HwnasError(Exception):
    """Base of all errors that hwnas raises on purpose; exits with 1."""

    exit_code = 1


class InputError(HwnasError):
    """The user's input (an argument, a file, a space, a dataset) is not usable as it is; exits with 2."""

    exit_code = 2


class InfeasibleError(HwnasError):
    """No network of the space meets the constraints; the message names the achievable range; exits with 3."""

    exit_code = 3


class VerificationError(HwnasError):
    """Numbers differ, a promise is not kept, or a hash does not match; exits with 4."""

    exit_code = 4


class UnavailableError(HwnasError):
    """A device, a runtime or an optional package is not usable here; exits with 5."""

    exit_code = 5
