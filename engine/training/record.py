"""Record of a run: configuration, environment, start weights and results."""

import resource
import shlex
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from torch import nn

from engine.analysis import complexity
from engine.config.presets import changed_recipe_keys
from engine.config.schemas import TrainConfig
from engine.data.boxes import BoxDataset
from engine.data.transforms import Preprocessing
from engine.errors import UserError
from engine.logging import log, log_to_file, setup_logging
from engine.processes.distributed import ProcessGroup
from engine.runs import checkpoint, environment
from engine.runs.directory import CALIBRATION_FACTS, RunDirectory
from engine.tasks.base import AnyDataset
from engine.training import advice
from engine.training.descriptions import describe
from engine.training.trainer import Trainer
from engine.training.validation import Validation

# Measurements of a finished run. They are kept if one of its files is computed again.
_MEASURED = ("train_seconds", "data_wait_seconds", "step_seconds", "peak_device_memory", "peak_process_memory")


def prepare_run(config: TrainConfig, group: ProcessGroup) -> RunDirectory:
    """Return the run directory of a configuration.

    Raises:
        UserError: if the directory contains another run, or the batch size is not divisible by the number of processes.
    """
    setup_logging(group.is_main_process)
    config.recipe.check_parts(group.world_size)
    run = RunDirectory(Path(config.run_directory), writes=group.is_main_process)
    run.require_same_config(config)
    if not run.finished:
        return run
    missing = run.missing_results
    if not missing:
        log.info(f"{run.directory} is finished: {run.record_file}. Nothing to do.")
    elif run.has_checkpoint:
        are = "is missing and is" if len(missing) == 1 else "are missing and are"
        log.info(f"{' and '.join(map(str, missing))} of a finished run {are} computed again.")
    else:
        raise UserError(f"{run.directory} is finished, but its weights are missing. Restore {run.last} or set run.dir.")
    return run


def initial_record(
    config: TrainConfig,
    data: AnyDataset,
    model: nn.Module,
    backbone_sha256: str,
    loading: Any | None,
    preprocessing: Preprocessing,
    device: torch.device,
    group: ProcessGroup,
) -> dict[str, Any]:
    """Return the record of a run before its first step.

    Args:
        model: model with its start weights.
        backbone_sha256: digest of the model's start weights without attention.
        loading: dataclass of what the model took from its start weights; None if it did not read any.
        preprocessing: preprocessing of the images in evaluation.
    """
    labeled: dict[str, Any]
    if isinstance(data, BoxDataset):
        labeled = {"annotation_problems": {s: [*map(str, found)] for s, found in data.problems.items()}}
    else:
        labeled = {"class_images": np.bincount(data.train.labels, minlength=len(data.classes)).tolist()}
    detector = {} if config.detector.architecture == "none" else {"detector": config.detector.name}
    return {
        "model": config.model.label,
        "factory": config.model.factory,
        **detector,
        "attention": config.attention_label,
        "attention_after": config.attention.after,
        "seed": config.seed,
        "epochs": config.recipe.epochs,
        "data": data.name,
        "classes": len(data.classes),
        "class_names": data.classes,
        "train_images": len(data.train),
        "val_images": len(data.val),
        "data_fingerprint": data.fingerprint,
        **labeled,
        "parameters": complexity.parameters(model),
        "gflops": complexity.gflops(model, preprocessing.crop),
        "preprocessing": asdict(preprocessing),
        "start_weights": config.start_weights,
        "start_weights_loading": None if loading is None else asdict(loading),
        "start_weights_sha256": checkpoint.sha256(model.state_dict()),
        "backbone_start_sha256": backbone_sha256,
        "processes": group.world_size,
        "batch_per_process": config.recipe.batch_size // group.world_size,
        **environment.collect_env(device),
    }


def start_or_resume(run: RunDirectory, trainer: Trainer, record: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Open the run directory for writing, and restore the trainer's state if it has a checkpoint.

    Args:
        record: result of `initial_record`.

    Returns:
        The record, completed with values from earlier starts of the run.

    Raises:
        UserError: if the directory cannot be written, or its state does not match the configuration.
    """
    record = record | {"trained_parameters": trainer.trained_parameters}
    run.start(config)
    if run.writes:
        log_to_file(run.log_file)
    _log_setup(config, run, record)
    state = trainer.group.broadcast_object(run.load_state(config) if run.writes else None)
    if state is not None:
        record = record | _earlier_starts(run, record, state)
        try:
            trainer.load_state_dict(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = " ".join(str(error).split())
            raise UserError(
                f"The checkpoint in {run.last.parent} does not fit this network ({reason:.200}); restore it, or set "
                "run.dir to start another run."
            ) from error
        log.info(f"Resuming after {trainer.state.epoch} epochs and {trainer.state.step} steps.")
    if not run.finished:  # it is if one of its other files is computed again
        run.write_record({"status": "running", **record})
    return record


def final_record(trainer: Trainer, validation: Validation, record: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a finished run.

    Args:
        validation: validation of the trained model.
        record: result of `start_or_resume`.
    """
    task, history = trainer.task, trainer.state.history
    primary = task.metrics[0]
    best = max(history[1:], key=lambda row: row[f"val_{primary}"])
    predictions, metrics = validation.predictions, validation.predictions.metrics()
    return {
        "status": "finished",
        **{f"{name}_start": history[0][f"val_{name}"] for name in task.metrics},
        **{name: value for name, value in metrics.items() if name != "loss"},
        **({"val_loss": metrics["loss"]} if "loss" in metrics else {}),
        f"best_{primary}": best[f"val_{primary}"],
        "best_epoch": best["epoch"],
        "predictions_sha256": predictions.sha256(),
        "weights_sha256": checkpoint.sha256(trainer.evaluated.state_dict()),
        "weights": "moving average" if trainer.average else "last step",
        **validation.movement.summary(),
        **_resources(trainer),
        **record,
        "history": history,
    }


def _resources(trainer: Trainer) -> dict[str, float | int | None]:
    """Return the time and memory of a finished training.

    `train_seconds`, and the part of it in which the main process waited for batches, are over all starts of the run.
    They are missing if no start measured them, as those of earlier versions.
    `step_seconds`, the median of the steps, and the peaks of memory in bytes are of the last start and of this process.
    They are None where nothing was measured.
    """
    peak = torch.cuda.max_memory_allocated(trainer.device) if trainer.device.type == "cuda" else None
    return {
        **({"train_seconds": trainer.seconds} if trainer.seconds else {}),
        **({"data_wait_seconds": trainer.state.waiting} if trainer.state.waiting else {}),
        "step_seconds": statistics.median(trainer.step_seconds) if trainer.step_seconds else None,
        "peak_device_memory": peak,
        "peak_process_memory": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def warn_if_changed(run: RunDirectory, record: Mapping[str, Any]) -> None:
    """Warn if results of a finished run that were computed again differ from its record, which is then replaced."""
    before = run.record() if run.finished else record
    differing = [key for key in ("weights_sha256", "predictions_sha256") if before[key] != record[key]]
    if differing:
        log.warning(
            f"{' and '.join(differing)} differ from {run.record_file}, possibly because of other hardware or packages; "
            "the record is replaced."
        )


def hyperparameters(config: TrainConfig, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values for TensorBoard's table of runs, those in which runs usually differ first."""
    recipe = config.recipe
    usual = (
        "epochs",
        "batch_size",
        "lr",
        "weight_decay",
        "label_smoothing",
        "optimizer",
        "train",
        "augment",
        "ema_decay",
    )
    values = {
        **{key: record[key] for key in ("model", "attention", "seed")},
        "recipe": recipe.name or None,
        **changed_recipe_keys(recipe),
        **{key: record[key] for key in ("data", "parameters", "gflops", "start_weights")},
        "init": config.attention.init,
        "precision": config.runtime.precision,
        **{key: getattr(recipe, key) for key in (*usual, "ema_decay")},
        "attention_lr_factor": config.attention_lr_factor,
    }
    return {key: value if isinstance(value, str | int | float | None) else str(value) for key, value in values.items()}


def log_result(trainer: Trainer, run: RunDirectory, config: TrainConfig, record: Mapping[str, Any]) -> None:
    """Log the result of a finished run."""
    task = trainer.task
    start = {name: record[f"{name}_start"] for name in task.metrics}
    end = {name: record[name] for name in task.metrics}
    log.info(
        f"Finished: {describe(task, start)} before the first step, {describe(task, end)} after epoch "
        f"{config.recipe.epochs}. {run.record_file}"
    )
    if config.run.dir is None and HydraConfig.initialized():
        given = [word for word in HydraConfig.get().overrides.task if word.startswith(("data", "run.root="))]
        log.info(f"Compare it: {shlex.join(['python', 'evaluate.py', *given])}")


def _earlier_starts(run: RunDirectory, record: dict[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that only earlier starts of a run recorded.

    Args:
        record: result of `initial_record`.
        state: checkpoint that the run resumes from.

    Raises:
        UserError: if the images or the number of processes differ from those of the first start.
    """
    if not run.record_file.is_file():
        log.warning(
            f"{run.record_file} is missing and is written again from the checkpoint. The images and the environment of "
            "earlier steps are not known."
        )
        return {key: state[key] for key in CALIBRATION_FACTS if key in state}
    before = run.record()
    if before.get("data_fingerprint") != record["data_fingerprint"]:
        raise UserError(
            f"{run.directory} was started with images that differ from those under data.root. Restore the original "
            f"images, or delete {run.directory} to start again with the current ones."
        )
    if before.get("processes", 1) != record["processes"]:
        raise UserError(
            f"{run.directory} was started with another number of processes ({before.get('processes', 1)}, not "
            f"{record['processes']}); resume with the same number, or set run.dir to another folder."
        )
    origin = {key: record[key] for key in environment.KEYS}
    earlier = before.get("earlier_origins", [])
    last = {key: before.get(key) for key in origin}
    if last not in (origin, *earlier):
        earlier = [*earlier, last]
    differing = [key for key in origin if any(past.get(key) != origin[key] for past in earlier)]
    if differing:
        log.warning(
            f"Earlier steps of this run had other values of {', '.join(differing)}; the record contains them too."
        )
    return {
        "start_weights_sha256": before["start_weights_sha256"],
        "backbone_start_sha256": before.get("backbone_start_sha256"),  # None in a run of an earlier version
        "start_weights_loading": before.get("start_weights_loading"),  # the same
        **{key: before[key] for key in (*CALIBRATION_FACTS, *_MEASURED) if key in before},
        "earlier_origins": earlier,
    }


def _log_setup(config: TrainConfig, run: RunDirectory, record: dict[str, Any]) -> None:
    recipe, runtime = config.recipe, config.runtime
    processes = record["processes"]
    micro_batch = recipe.batch_size // (processes * recipe.accumulation_steps)
    split = f" ({processes} processes x {recipe.accumulation_steps} micro-batches x {micro_batch})"
    log.info(
        f"model  {config.model_label}: {record['parameters'] / 1e6:.2f} M parameters, {record['gflops']:.3f} GFLOPs, "
        f"from {config.start_weights or 'random weights'}"
    )
    fraction = config.data.val_fraction
    held_out = f"; {fraction:.0%} of each class held out for validation" if fraction else ""
    log.info(
        f"data   {record['data']}: {record['train_images']:,} training and {record['val_images']:,} validation images, "
        f"{record['classes']} classes, {record['preprocessing']['crop']} px"
        f"{held_out}"
    )
    log.info(f"input  {_input(record['preprocessing'])}{_unpublished(config)}")
    name = f"{recipe.name}: " if recipe.name else ""
    factor = config.attention_lr_factor
    log.info(
        f"recipe {name}epochs {recipe.epochs}, batch {recipe.batch_size}"
        f"{'' if micro_batch == recipe.batch_size else split}, peak lr {recipe.lr:g}"
        f"{'' if factor == 1 else f' ({factor:g} times that for attention)'}, seed {config.seed}; "
        f"{runtime.precision} on {record['device']}"
    )
    if recipe.train != "all":
        share = record["trained_parameters"] / record["parameters"]
        log.info(
            f"train  {recipe.train}: {record['trained_parameters']:,} of {record['parameters']:,} parameters "
            f"({share:.2%}); the rest is frozen, running statistics included"
        )
    if record.get("calibration_images"):
        log.info(f"gates  calibrated on {record['calibration_images']} training images")
    log.info(f"into   {run.directory}")
    advice.warn_at_start(config, record)
    if runtime.compile:
        log.info("The first step waits for torch.compile, which takes minutes on a CPU.")


def _input(values: Mapping[str, Any]) -> str:
    mean, std = (" ".join(f"{value:.4g}" for value in values[key]) for key in ("mean", "std"))
    return f"{values['crop']} px of {values['resize']} px, {values['interpolation']}, mean {mean}, std {std}"


def _unpublished(config: TrainConfig) -> str:
    """Return the advice for a weights file, which does not contain its preprocessing."""
    named, keys = config.model.library == "timm", config.preprocessing
    if config.model.weights is None or named or not Path(config.model.weights).is_file() or keys.mean or keys.std:
        return ""
    return "; if the weights need other values, set preprocessing.mean and preprocessing.std"
