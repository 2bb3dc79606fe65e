"""Functions and classes of the user, named `package.module:name` on the command line."""

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from models.errors import ModelError


def load(key: str, name: str) -> Callable[..., object]:
    """Return the function or class. Modules in the working directory can also be imported.

    Args:
        key: the key that the name is the value of, for messages.
        name: `package.module:function` or `package.module:Class`.

    Raises:
        ModelError: if it does not exist or cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that it hides no other module
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise ModelError(
                f"{key}={name} names the module '{module_name}', which is neither in the working directory nor "
                "installed."
            ) from error
        raise ModelError(f"The module of {key}={name} cannot be imported: {reason(error)}.") from error
    if not hasattr(module, attribute):
        raise ModelError(f"{key}={name} names '{attribute}', which the module '{module_name}' does not have.")
    found: object = getattr(module, attribute)
    if not callable(found):
        raise ModelError(f"{key}={name} is not callable; name a function or class that returns a torch.nn.Module.")
    return found


def reason(error: Exception) -> str:
    """Return the error in one line, with the file and line number where it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} ({frame.filename}, line {frame.lineno})"
