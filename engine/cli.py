"""The command line: Hydra composes the configuration; what goes wrong ends in one line and an exit code.

2: the user has to put something right. 75: stopped by a signal, its state saved; the same command goes on.
"""

import dataclasses
import difflib
import errno
import inspect
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from engine import config
from engine.config import CONFIGS
from engine.errors import UserError
from engine.logging import open_streams, print_line
from engine.signals import Interrupted, exit_interrupted, ignore_signals

GROUPS = ("model", "attention", "data", "recipe", "runtime")


def check_arguments(name: str) -> None:
    """Print the help, or refuse arguments that do not compose, before the imports that take seconds.

    Args:
        name: the primary config.
    """
    with _arguments():
        if {"--help", "-h"} & set(sys.argv):
            print_line(_help(name))
            sys.exit()
        if any(argument.startswith("-") for argument in sys.argv[1:]):
            return  # Hydra's own options; several runs
        try:
            with initialize_config_dir(str(CONFIGS), version_base="1.3"):
                config.parse(compose(name, sys.argv[1:]))
        except ValueError as error:
            raise _does_not_compose(error) from error


def run(name: str, command: Callable[[Any], None], *user_errors: type[Exception]) -> None:
    """Run a command on the configuration that `configs/NAME.yaml` and the arguments compose to.

    Args:
        name: the primary config.
        command: takes the dataclass of its schema.
        user_errors: further exceptions whose message is a sentence for the user.
    """
    composing = True

    def job(composed: DictConfig) -> None:
        nonlocal composing
        composing = False
        # Inside Hydra's own handling of errors, which would print more.
        with one_line_errors(*user_errors, OmegaConfBaseException):
            _require_one_attention(composed)
            command(config.parse(composed))

    with _arguments():
        try:
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(job)()
        except ValueError as error:
            if not composing:
                raise
            raise _does_not_compose(error) from error
    ignore_signals()


def _does_not_compose(error: ValueError) -> UserError:
    return UserError(f"The arguments do not compose to a configuration: {error}.")


@contextmanager
def _arguments() -> Iterator[None]:
    """While entered, Hydra finds the configurations, and errors of the arguments end in one line."""
    open_streams()
    config.register()
    # Otherwise Hydra prints errors itself, over many lines, and exits with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with one_line_errors(HydraException, OmegaConfBaseException):
        sys.argv[1:] = [_as_list(argument) for argument in sys.argv[1:]]
        _refuse_earlier_keys(sys.argv[1:])
        yield


def _help(name: str) -> str:
    """Return what the program does, its presets, and its keys with their defaults."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        defaults = OmegaConf.to_yaml(compose(name)).strip()
        presets = {group: loader.get_group_options(group) for group in GROUPS if f"{group}:" in defaults}
    if "model" in presets:
        presets["model"] = [*config.default_weights(), "each also as NAME_cbam and NAME_se"]
    lines = "\n".join(f"  {group}: {', '.join(names)}" for group, names in presets.items())
    program = (sys.modules["__main__"].__doc__ or "").strip()
    return (
        f"{program}\n\nPresets (GROUP=NAME):\n{lines}\n\nKeys and their defaults (KEY=VALUE):\n"
        f"{textwrap.indent(defaults, '  ')}\n\nHydra's own options, such as --multirun: --hydra-help"
    )


def _as_list(argument: str) -> str:
    """Accept `runs=A,B` for `runs=[A,B]`."""
    key, equals, value = argument.partition("=")
    is_list = key in ("runs", "published") and value and not value.startswith("[") and value != "null"
    return f"{key}{equals}[{value}]" if is_list else argument


def _require_one_attention(composed: DictConfig) -> None:
    """Refuse `model=resnet50_cbam attention=none`, which composes to the baseline."""
    choices = HydraConfig.get().runtime.choices
    backbone, _, kind = choices.get("model", "").rpartition("_")
    if kind in ("cbam", "se") and composed.model.attention != kind:
        raise UserError(
            f"model={backbone}_{kind} already selects an attention, and attention={choices['attention']} is another; "
            f"use model={backbone} attention={choices['attention']}."
        )


def _refuse_earlier_keys(arguments: Sequence[str]) -> None:
    for argument in arguments:
        key = argument.lstrip("+~").partition("=")[0]
        if key in config.RENAMED_KEYS:
            raise UserError(f"The key {key} is now {config.RENAMED_KEYS[key]}.")


@contextmanager
def one_line_errors(*user_errors: type[Exception]) -> Iterator[None]:
    """End the process with one line for a UserError, one of `user_errors`, what the system refuses, or a stop."""
    expected: tuple[type[Exception], ...] = (UserError, *user_errors)
    try:
        yield
    except expected as error:
        _fail(_sentence(error))
    except OSError as error:
        if error.errno == errno.EMFILE:
            _fail("The system allows this process no more open files; set runtime.workers lower, or raise `ulimit -n`.")
        _fail(f"The system refuses {error.filename or 'a file'}: {error.strerror or error}.")
    except RuntimeError as error:
        # CUDA, the allocator, oneDNN; torch has a class for the first alone.
        refused = ("out of memory", "can't allocate memory", "could not create a", "std::bad_alloc")
        if any(text in str(error) for text in refused):
            _fail(
                f"There is too little memory ({str(error).splitlines()[0]}). Set runtime.eval_batch_size or "
                "table.throughput_batch_size lower, or recipe.accumulation_steps higher."
            )
        # torch raises it wherever the main process happens to be when a worker dies.
        if "DataLoader worker (pid" not in str(error):
            raise
        _fail(
            f"A process that reads images died ({str(error).splitlines()[0]}), of too little memory perhaps; "
            "set runtime.workers lower. The same command goes on from the last checkpoint."
        )
    except Interrupted as stop:
        exit_interrupted(str(stop))
    except KeyboardInterrupt:
        exit_interrupted("Stopped by SIGINT.")


def run_script(command: Callable[..., None], *user_errors: type[Exception]) -> None:
    """Call a script's command with the KEY=VALUE arguments of the command line, its parameters being the keys.

    Args:
        command: takes strings.
        user_errors: further exceptions whose message is a sentence for the user.
    """
    open_streams()
    if "--help" in sys.argv:
        print_line((sys.modules["__main__"].__doc__ or "").strip())
        return
    keys = list(inspect.signature(command).parameters)
    given = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    with one_line_errors(*user_errors):
        if given.keys() != set(keys):
            usage = " ".join(f"{key}={key.upper()}" for key in keys)
            raise UserError(f"The arguments are {usage}; got {' '.join(sys.argv[1:]) or 'none'}.")
        command(**given)


def _sentence(error: Exception) -> str:
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        near = difflib.get_close_matches(name, error.options)
        guess = f"; perhaps {group}={' or '.join(near)}" if near else ""
        known = "Run `python scripts/list_models.py` for a list" if group == "model" else f"See configs/{group}"
        return f"There is no {group}={name}{guess}. {known}."
    if isinstance(error, OverrideParseException):
        quoted = "'run.dir=\"a (b)\"'"
        return f"The argument {error.override} cannot be parsed; quote a value with special characters twice: {quoted}."
    lines = [line.strip() for line in str(error).splitlines()]
    if isinstance(error, HydraException):
        # Hydra's advice to append the key with `+` does not hold: every key is typed.
        lines = [line for line in lines if not line.startswith("To append to your")]
        lines += str(error.__cause__ or "").splitlines()[:1]
        lines += _known_keys(error.__cause__)
    return " ".join(line for line in lines if line)


def _known_keys(error: BaseException | None) -> list[str]:
    """What a key could have been that the configuration does not have."""
    schema = error.object_type if isinstance(error, ConfigKeyError | ConfigAttributeError) else None
    if not dataclasses.is_dataclass(schema):
        return []
    return [f"(known are {', '.join(field.name for field in dataclasses.fields(schema))})."]


def _fail(sentence: str) -> NoReturn:
    with suppress(OSError):  # a full disk
        sys.stderr.write(f"error: {sentence}\n")  # at once: of several processes, each says something
    sys.exit(2)
