"""The one way to the packages that the base install lacks."""

import importlib.util

from hwnas.errors import UnavailableError


def require(purpose: str, **packages: str) -> None:
    """Checks that packages can be imported.

    Args:
        purpose: What they are needed for, as a sentence begins ("The glyphs dataset").
        packages: Module name to the name that a user installs (PIL="Pillow").

    Raises:
        UnavailableError: One is missing; the message gives the command that installs it.
    """
    missing = [name for module, name in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UnavailableError(f"{purpose} needs {' and '.join(missing)}: run pip install 'hwnas[train]'.")
