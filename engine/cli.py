"""The command line: Hydra composes the configuration; what goes wrong ends in one line and exit code 2."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from engine import config
from engine.errors import UserError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def run(name: str, command: Callable[[Any], None], *user_errors: type[Exception]) -> None:
    """Run a command on the configuration that `configs/NAME.yaml` and the arguments compose to.

    Args:
        name: the primary config.
        command: takes the dataclass of its schema.
        user_errors: further exceptions whose message is a sentence for the user.
    """

    expected: tuple[type[Exception], ...] = (UserError, *user_errors)

    def job(composed: DictConfig) -> None:
        try:
            command(config.parse(composed))
        except expected as error:
            fail(error)
        except KeyboardInterrupt:
            print("interrupted; the same command continues the run.", file=sys.stderr)
            sys.exit(130)

    config.register()
    # Otherwise Hydra prints errors itself, over many lines, and exits with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        fail(error)


def fail(error: Exception) -> NoReturn:
    """End the process with one line on stderr and exit code 2."""
    lines = [line.strip() for line in str(error).splitlines()]
    if isinstance(error, HydraException):
        # Hydra's advice to append the key with `+` does not hold: every key is typed.
        lines = [line for line in lines if not line.startswith("To append to your config")]
        lines += str(error.__cause__ or "").splitlines()[:1]
    print("error:", " ".join(line for line in lines if line), file=sys.stderr)
    sys.exit(2)
