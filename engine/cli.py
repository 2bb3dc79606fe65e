"""The command line: Hydra composes the configuration; what goes wrong ends in one line and an exit code.

2: the user has to put something right. 75: stopped by a signal, its state saved; the same command goes on.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from engine import config
from engine.errors import UserError
from engine.interruption import Interrupted

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def run(name: str, command: Callable[[Any], None], *user_errors: type[Exception]) -> None:
    """Run a command on the configuration that `configs/NAME.yaml` and the arguments compose to.

    Args:
        name: the primary config.
        command: takes the dataclass of its schema.
        user_errors: further exceptions whose message is a sentence for the user.
    """

    def job(composed: DictConfig) -> None:
        # Inside Hydra's own handling of errors, which would print more.
        with one_line_errors(*user_errors):
            command(config.parse(composed))

    config.register()
    # Otherwise Hydra prints errors itself, over many lines, and exits with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with one_line_errors(HydraException, OmegaConfBaseException):
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(job)()


@contextmanager
def one_line_errors(*user_errors: type[Exception]) -> Iterator[None]:
    """End the process with one line on stderr for a UserError, one of `user_errors`, a full disk, or a stop."""
    expected: tuple[type[Exception], ...] = (UserError, *user_errors)
    try:
        yield
    except expected as error:
        _fail(_sentence(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        _fail(f"{error.filename or 'A file'} cannot be written ({error.strerror}). Make room, then repeat the command.")
    except Interrupted as stop:
        print(f"{stop} The same command goes on from there.", file=sys.stderr)
        sys.exit(os.EX_TEMPFAIL)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    if isinstance(error, HydraException):
        # Hydra's advice to append the key with `+` does not hold: every key is typed.
        lines = [line for line in lines if not line.startswith("To append to your config")]
        lines += str(error.__cause__ or "").splitlines()[:1]
    return " ".join(line for line in lines if line)


def _fail(sentence: str) -> NoReturn:
    print("error:", sentence, file=sys.stderr)
    sys.exit(2)
