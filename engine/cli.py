"""The command line: Hydra composes the configuration, and errors end in one line and an exit code.

Exit code 2 is an error that the user has to fix. Exit code 75 is a stop by a signal; the same command resumes.
"""

import copy
import dataclasses
import difflib
import errno
import functools
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from engine.config import presets
from engine.config.attention import COMMON_KEYS, KINDS_FILE, is_schema, kinds
from engine.config.near_keys import near_keys
from engine.config.presets import CONFIGS, with_usual_presets
from engine.config.schemas import RENAMED_KEYS
from engine.errors import UserError
from engine.logging import open_streams, print_line
from engine.processes.signals import Interrupted, exit_interrupted, ignore_signals

# Hydra's options whose value is the next argument.
_OPTIONS_WITH_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    *("--experimental-rerun",),
)

GROUPS = ("model", "attention", "data", "detector", "recipe", "runtime")


def check_arguments(name: str) -> None:
    """Print the help, or reject arguments that do not compose, before the slow imports.

    Args:
        name: the primary config.
    """
    with _arguments(name):
        if {"--help", "-h"} & set(sys.argv):
            print_line(_help(name))
            sys.exit()
        if _has_hydra_options(sys.argv[1:]):
            return
        try:
            presets.parse(_composed(name, tuple(sys.argv[1:]))[0])
        except ValueError as error:
            raise _does_not_compose(error) from error


def run(name: str, command: Callable[[Any], None], *user_errors: type[Exception]) -> None:
    """Run a command on the configuration composed from `configs/NAME.yaml` and the arguments.

    Args:
        name: the primary config.
        command: function of the config's dataclass.
        user_errors: further exceptions whose message is written for the user.
    """
    composing = True

    def job(composed: DictConfig) -> None:
        nonlocal composing
        composing = False
        # Inside hydra.main, whose own error handling would print more.
        with one_line_errors(*user_errors, OmegaConfBaseException):
            _require_one_attention(composed)
            command(presets.parse(composed))

    with _arguments(name):
        try:
            if _has_hydra_options(sys.argv[1:]):
                hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(job)()
            else:
                config, with_hydras_own = _composed(name, tuple(sys.argv[1:]))
                HydraConfig.instance().set_config(with_hydras_own)
                job(config)
        except ValueError as error:
            if not composing:
                raise
            raise _does_not_compose(error) from error
    ignore_signals()


def _has_hydra_options(arguments: Sequence[str]) -> bool:
    """Return whether the arguments have options of Hydra itself, such as --multirun or hydra/launcher=NAME."""
    return any(argument.startswith(("-", "hydra")) for argument in arguments)


@functools.cache
def _composed(name: str, arguments: tuple[str, ...]) -> tuple[DictConfig, DictConfig]:
    """Return the composed configuration, without and with Hydra's own node; it is checked, and later used."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        presets.register(arguments)
        whole = hydra.compose(name, list(arguments), return_hydra_config=True)
    config = copy.copy(whole)
    with open_dict(config):
        del config["hydra"]
    return config, whole


def _does_not_compose(error: ValueError) -> UserError:
    return UserError(f"The arguments do not form a valid configuration: {error}.")


@contextmanager
def _arguments(name: str) -> Iterator[None]:
    """Make Hydra find the configurations, and report errors in the arguments in one line."""
    open_streams()
    presets.register(sys.argv[1:])
    # Otherwise Hydra prints errors itself, on many lines, and exits with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with one_line_errors(HydraException, OmegaConfBaseException):
        sys.argv[1:] = [expand_home(_as_list(argument)) for argument in _options_last(sys.argv[1:])]
        _refuse_earlier_keys(sys.argv[1:])
        refuse_repeated_keys(sys.argv[1:])
        if name == "train":
            sys.argv[1:] = with_usual_presets(sys.argv[1:])
        yield


def _help(name: str) -> str:
    """Return the program's description, its presets, and its keys with their defaults."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        defaults = OmegaConf.to_yaml(presets.compose(name, [])).strip()
        options = {group: loader.get_group_options(group) for group in GROUPS if f"{group}:" in defaults}
    if "model" in options:
        *names, last = presets.default_weights()
        options["model"] = [*names, f"{last} (each also with attention, as NAME_ATTENTION)", "timm", "custom"]
    lines = "\n".join(f"  {group}: {', '.join(names)}" for group, names in options.items())
    program = (sys.modules["__main__"].__doc__ or "").strip()
    return (
        f"{program}\n\nPresets (GROUP=NAME):\n{lines}\n\nKeys and their defaults (KEY=VALUE):\n"
        f"{textwrap.indent(defaults, '  ')}\n\nHydra's own options, such as --multirun: --hydra-help"
    )


def _options_last(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with Hydra's options last: argparse accepts KEY=VALUE arguments in one place only."""
    values: list[str] = []
    options: list[str] = []
    for previous, argument in zip(["", *arguments], arguments, strict=False):
        is_option_value = previous in _OPTIONS_WITH_VALUE
        (options if argument.startswith("-") or is_option_value else values).append(argument)
    return [*values, *options]


def _as_list(argument: str) -> str:
    """Accept `runs=A,B` for `runs=[A,B]`."""
    key, equals, value = argument.partition("=")
    is_list = key in ("runs", "published") and value and not value.startswith("[") and value != "null"
    return f"{key}{equals}[{value}]" if is_list else argument


def expand_home(argument: str) -> str:
    """Expand `~` in KEY=~/PATH and KEY=[~/PATH,~/PATH], which the shell leaves as it is."""
    key, equals, value = argument.partition("=")
    if not re.match(r"\[?~/", value):
        return argument
    home = str(Path.home())
    return key + equals + re.sub(r"(^|[\[,])~(?=/)", lambda found: found[1] + home, value)


def _require_one_attention(composed: DictConfig) -> None:
    """Reject `model=resnet50_cbam attention=none`, which composes to the baseline."""
    choices = HydraConfig.get().runtime.choices
    backbone, _, kind = choices.get("model", "").rpartition("_")
    if backbone and kind in kinds() and composed.model.attention != kind:  # model=custom is no attention
        raise UserError(
            f"model={backbone}_{kind} already selects an attention module and conflicts with "
            f"attention={choices['attention']}; use model={backbone} attention={choices['attention']}."
        )


def refuse_repeated_keys(arguments: Sequence[str]) -> None:
    """Reject a key that is given twice with different values, of which Hydra would take the last.

    Raises:
        UserError: naming both.
    """
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, _ = argument.lstrip("+").partition("=")
        if equals and given.setdefault(key, argument) != argument:
            raise UserError(f"The key {key} is given twice: {given[key]} and {argument}. Leave one of them out.")


def _refuse_earlier_keys(arguments: Sequence[str]) -> None:
    for argument in arguments:
        key = argument.lstrip("+~").partition("=")[0]
        if key in RENAMED_KEYS:
            raise UserError(f"The key {key} has been renamed to {RENAMED_KEYS[key]}.")
        if key.rpartition(".")[2] in ("num_classes", "n_classes", "nb_classes"):
            raise UserError(
                f"There is no key {key}. data.classes=N selects the first N classes; data=folders counts the folders."
            )


@contextmanager
def one_line_errors(*user_errors: type[Exception]) -> Iterator[None]:
    """End the process with one line on a UserError, one of `user_errors`, a system error or a signal.

    The notes of an error (PEP 678), which say where it was, are before its message.
    """
    expected: tuple[type[Exception], ...] = (UserError, *user_errors)
    try:
        yield
    except expected as error:
        _fail(": ".join([*getattr(error, "__notes__", ()), _sentence(error)]))
    except OSError as error:
        if error.errno == errno.EMFILE:
            _fail("This process has too many open files; lower runtime.workers or raise `ulimit -n`.")
        _fail(f"Cannot read or write {error.filename or 'a file'}: {error.strerror or error}.")
    except RuntimeError as error:
        # From CUDA, the allocator and oneDNN; torch has an exception class for the first only.
        refused = ("out of memory", "can't allocate memory", "could not create a", "std::bad_alloc")
        if any(text in str(error) for text in refused):
            _fail(
                f"Out of memory ({str(error).splitlines()[0]}). Lower runtime.eval_batch_size or "
                "raise recipe.accumulation_steps."
            )
        # torch raises this when it waits for a batch of a worker that has died.
        if "DataLoader worker (pid" not in str(error):
            raise
        _fail(
            f"A data loading worker died ({str(error).splitlines()[0]}), possibly for lack of memory; lower "
            "runtime.workers. Run the same command again to resume from the last checkpoint."
        )
    except Interrupted as stop:
        exit_interrupted(str(stop), resumes=True)
    except KeyboardInterrupt:
        exit_interrupted("Stopped by SIGINT.")


def run_script(command: Callable[..., None], *user_errors: type[Exception]) -> None:
    """Call a script's command with the KEY=VALUE arguments of the command line.

    Args:
        command: function of strings; its parameters are the keys, which are optional if they have a default.
        user_errors: further exceptions whose message is written for the user.
    """
    open_streams()
    if "--help" in sys.argv:
        print_line((sys.modules["__main__"].__doc__ or "").strip())
        return
    keys = inspect.signature(command).parameters
    required = {key for key, parameter in keys.items() if parameter.default is parameter.empty}
    given = dict(expand_home(argument).partition("=")[::2] for argument in sys.argv[1:])
    with one_line_errors(*user_errors):
        refuse_repeated_keys(sys.argv[1:])
        if not required <= given.keys() <= keys.keys():
            usage = " ".join(f"{key}={key.upper()}" if key in required else f"[{key}={key.upper()}]" for key in keys)
            expected = f"the arguments {usage}" if usage else "no arguments"
            raise UserError(f"Expected {expected}; got {' '.join(sys.argv[1:]) or 'none'}.")
        command(**given)


def _sentence(error: Exception) -> str:
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        backbone, _, kind = name.rpartition("_")
        if group == "model" and backbone in presets.default_weights():
            known = ", ".join(one for one in kinds() if one != "none")
            return f"There is no model={name}: {backbone} has no attention '{kind}'; choose one of {known}."
        options = [*error.options, *(presets.models_with_attention() if group == "model" else [])]
        near = difflib.get_close_matches(name, options)
        guess = f"; perhaps {group}={' or '.join(near)}" if near else ""
        known = "Run `python scripts/list_models.py` for a list" if group == "model" else f"See configs/{group}"
        known = f"See configs/{KINDS_FILE.name}" if group == "attention" else known
        return f"There is no {group}={name}{guess}. {known}."
    if isinstance(error, OverrideParseException):
        quoted = "'run.dir=\"a (b)\"'"
        return f"The argument {error.override} cannot be parsed; quote a value with special characters twice: {quoted}."
    if isinstance(error, HydraException) and (foreign := _foreign_option(error.__cause__)) is not None:
        kind, key = foreign
        others = [other for other in kinds() if key in kinds()[other]]
        advice = f"add attention={others[0]}, or " if kind == "none" and others else ""
        keys = ", ".join((*kinds()[kind], *COMMON_KEYS))
        return f"attention.{key} is not an option of attention={kind}; {advice}leave it out (known keys: {keys})."
    if given := _list_for_a_string(error):
        key, value, kind = given
        return (
            f"{key} must be a string, but Hydra reads {value} as a {kind}; quote it twice if it is a string: "
            f"'{key}=\"{value}\"'."
        )
    lines = [line.strip() for line in str(error).splitlines()]
    if isinstance(error, HydraException):
        # Hydra's advice to append the key with `+` does not apply: every key is typed.
        lines = [line for line in lines if not line.startswith("To append to your")]
        cause = str(error.__cause__ or "").splitlines()[:1]
        if cause and not lines[-1].endswith("."):
            lines[-1] += ":"
        lines += cause + _known_keys(error.__cause__)
    return " ".join(line for line in lines if line)


def _foreign_option(error: BaseException | None) -> tuple[str, str] | None:
    """Return the kind and the key if the error is a key that a kind of attention does not have."""
    schema = error.object_type if isinstance(error, ConfigKeyError | ConfigAttributeError) else None
    if isinstance(error, ConfigKeyError | ConfigAttributeError) and is_schema(schema):
        return schema.kind, str(error.key)
    return None


def _list_for_a_string(error: Exception) -> tuple[str, str, str] | None:
    """Return the key, the value and its kind if the error is an override with a list where a string is expected."""
    override = re.match(r"Error merging override (.+?)=(.*)", str(error))
    refused = re.match(r"Cannot convert '(list|dict)' to string", str(error.__cause__))
    return (override[1], override[2], refused[1]) if override and refused else None


def _known_keys(error: BaseException | None) -> list[str]:
    """Return the known keys, and those that may be meant, as a sentence if the error is an unknown key."""
    schema = error.object_type if isinstance(error, ConfigKeyError | ConfigAttributeError) else None
    if not dataclasses.is_dataclass(schema):
        return []
    section = f"{error.full_key or ''}".rpartition(".")[0]  # type: ignore[union-attr]  # it is one of the two
    near = [f"{section}.{key}".lstrip(".") for key in near_keys(str(error.key), schema)]  # type: ignore[union-attr]
    guess = f"perhaps {' or '.join(near)}; " if near else ""
    return [f"({guess}known keys: {', '.join(field.name for field in dataclasses.fields(schema))})."]


def _fail(sentence: str) -> NoReturn:
    with suppress(OSError):  # a full disk
        sys.stderr.write(f"error: {sentence}\n")  # one call, so that messages of several processes do not mix
    sys.exit(2)
