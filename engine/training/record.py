"""One run, from its configuration to its record."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from engine import checkpoint, environment
from engine.analysis import complexity
from engine.config import TrainConfig
from engine.data.datasets import Dataset
from engine.data.loader import EvalLoader, EvalSamples, TrainLoader, TrainSamples
from engine.data.transforms import Preprocessing
from engine.device import convert_sync_batchnorm, resolve_device
from engine.distributed import ProcessGroup
from engine.errors import UserError
from engine.logging import log, log_to_file, setup_logging
from engine.run_dir import RunDirectory
from engine.tasks.classification import Predictions
from engine.training.tensorboard import TensorBoardLogger
from engine.training.trainer import Trainer, first_unlogged, fit
from engine.training.validator import Validator


def prepare_run(config: TrainConfig, group: ProcessGroup) -> RunDirectory | None:
    """The run directory of a configuration, or None, after saying so, where its run is finished.

    Raises:
        UserError: if the directory holds another run, or the batch does not divide among the processes.
    """
    setup_logging(group.is_main_process)
    config.recipe.check_parts(group.world_size)
    run = RunDirectory(Path(config.run_directory), writes=group.is_main_process)
    run.require_same_config(config)
    if run.finished:
        log.info(f"{run.directory} is finished: top-1 {run.record()['top1']:.2f}%. Nothing to do.")
        return None
    return run


def train(
    config: TrainConfig,
    run: RunDirectory,
    data: Dataset,
    model: nn.Module,
    gates: Mapping[str, nn.Module],
    transforms: Any | None,
    group: ProcessGroup,
) -> None:
    """Train a model from where the run stands to its end, and write the record.

    Args:
        config: of the run.
        run: as `claim` returned it.
        data: the images.
        model: at its start.
        gates: its attention's, by name.
        transforms: torchvision's preprocessing of the start weights, None for weights that are not published.
        group: the processes that train it together.
    """
    started = time.monotonic()
    device = resolve_device(config.runtime.device, group)
    preprocessing = Preprocessing.choose(config.data, transforms)
    origin = environment.collect_env(device)
    facts = _facts(config, data, model, preprocessing, group) | origin
    if config.runtime.fused_cbam and device.type != "cuda":
        raise UserError("runtime.fused_cbam=true needs CUDA; its kernels run nowhere else.")
    if config.runtime.sync_batchnorm:
        model = convert_sync_batchnorm(model, device)
    if config.runtime.cache_images:
        data = data.cached()
    samples = TrainSamples(data.train, config.seed, config.data.image_size, config.data.crop_scale)
    loader = TrainLoader(samples, config.recipe.batch_size, config.runtime.workers, device, group)
    trainer = Trainer(model, loader, preprocessing, config, group)
    run.start(config)
    if run.writes:
        log_to_file(run.log_file)
    log_setup(config, run, facts)
    state = group.broadcast_object(run.load_state(config) if run.writes else None)
    if state is not None:
        facts |= _facts_from_the_start(run, facts, origin)
        trainer.load_state_dict(state)
        log.info(f"Continuing after {trainer.state.epoch} epochs and {trainer.state.step} steps.")
    run.write_record({"status": "running", **facts})
    tensorboard = TensorBoardLogger(run.directory if run.writes else None, first_unlogged(trainer))
    tensorboard.describe(_hyperparameters(config, facts), {"config": OmegaConf.to_yaml(OmegaConf.structured(config))})
    unseen = EvalSamples(data.val, (preprocessing,))
    eval_loader = EvalLoader(unseen, config.runtime.eval_batch_size, config.runtime.workers, device, group)
    validate = Validator(trainer.model, gates, data, eval_loader, trainer.precision, group, config.run.pictures)
    predictions = fit(trainer, validate, tensorboard, run, config).predictions
    if run.writes:
        predictions.save(run.predictions)
    results = _results(trainer, predictions)
    run.write_record({"status": "finished", **results, **facts, "history": trainer.state.history})
    log_result(config, run, results, time.monotonic() - started)


def _facts(
    config: TrainConfig, data: Dataset, model: nn.Module, preprocessing: Preprocessing, group: ProcessGroup
) -> dict[str, Any]:
    """What a record says before the first step."""
    return {
        "model": config.model.name,
        "attention": config.attention_label,
        "seed": config.seed,
        "epochs": config.recipe.epochs,
        "data": data.name,
        "classes": len(data.classes),
        "class_names": data.classes,
        "train_images": len(data.train),
        "val_images": len(data.val),
        "data_fingerprint": data.fingerprint,
        "parameters": complexity.parameters(model),
        "gflops": complexity.gflops(model, preprocessing.crop),
        "preprocessing": asdict(preprocessing),
        "start_weights": config.model.weights,
        "start_weights_sha256": checkpoint.sha256(model.state_dict()),
        "processes": group.world_size,
        "batch_per_process": config.recipe.batch_size // group.world_size,
    }


def _facts_from_the_start(run: RunDirectory, facts: dict[str, Any], origin: dict[str, Any]) -> dict[str, Any]:
    """What only the earlier starts of a run know; `origin` is what this one computes with.

    Raises:
        UserError: if the images are not those that the run was started on.
    """
    before = run.record()
    if before.get("data_fingerprint") != facts["data_fingerprint"]:
        raise UserError(
            f"{run.directory} was started on other images than those under data.root; "
            "restore them, or set run.dir to another folder."
        )
    if before.get("processes", 1) != facts["processes"]:
        raise UserError(
            f"{run.directory} was started with {before.get('processes', 1)} processes, not {facts['processes']}; go on "
            "with as many, or set run.dir to another folder."
        )
    earlier = before.get("earlier_origins", [])
    last = {key: before.get(key) for key in origin}
    if last not in (origin, *earlier):
        earlier = [*earlier, last]
    differing = [key for key in origin if any(past.get(key) != origin[key] for past in earlier)]
    if differing:
        log.warning(f"Earlier steps of this run were made with another {', '.join(differing)}; the record says so.")
    return {"start_weights_sha256": before["start_weights_sha256"], "earlier_origins": earlier}


def _results(trainer: Trainer, predictions: Predictions) -> dict[str, Any]:
    history = trainer.state.history
    best = max(history[1:], key=lambda row: row["val_top1"])
    return {
        "top1_start": history[0]["val_top1"],
        "top5_start": history[0]["val_top5"],
        "top1": predictions.top1,
        "top5": predictions.top5,
        "val_loss": predictions.mean_loss,
        "best_top1": best["val_top1"],
        "best_epoch": best["epoch"],
        "predictions_sha256": predictions.sha256(),
        "weights_sha256": checkpoint.sha256(trainer.model.state_dict()),
    }


def _hyperparameters(config: TrainConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What TensorBoard's table of runs shows."""
    recipe = config.recipe
    return {
        **{key: facts[key] for key in ("model", "attention", "data", "seed", "parameters", "gflops", "start_weights")},
        "start": config.attention.start,
        "precision": config.runtime.precision,
        **{key: getattr(recipe, key) for key in ("epochs", "batch_size", "lr", "weight_decay", "label_smoothing")},
    }


def log_setup(config: TrainConfig, run: RunDirectory, facts: dict[str, Any]) -> None:
    recipe, runtime = config.recipe, config.runtime
    processes = facts["processes"]
    share = recipe.batch_size // (processes * recipe.accumulation_steps)
    split = (
        "" if share == recipe.batch_size else f" ({processes} processes x {recipe.accumulation_steps} parts x {share})"
    )
    log.info(
        f"model  {config.model_label}: {facts['parameters'] / 1e6:.2f} M parameters, {facts['gflops']:.3f} GFLOPs, "
        f"from {config.model.weights or 'random weights'}"
    )
    log.info(
        f"data   {facts['data']}: {facts['train_images']:,} training and {facts['val_images']:,} validation images, "
        f"{facts['classes']} classes, {config.data.image_size} px"
    )
    log.info(
        f"recipe epochs {recipe.epochs}, batch {recipe.batch_size}{split}, peak lr {recipe.lr}, seed {config.seed}; "
        f"{runtime.precision} on {facts['device']}"
    )
    log.info(f"into   {run.directory}")
    if runtime.compile:
        log.info("The first step waits for torch.compile, on a CPU for minutes.")


def log_result(config: TrainConfig, run: RunDirectory, results: dict[str, Any], seconds: float) -> None:
    log.info(
        f"Finished in {seconds:.0f} s: top-1 {results['top1_start']:.2f}% at the start, {results['top1']:.2f}% after "
        f"epoch {config.recipe.epochs}. {run.record_file}"
    )
    if config.run.dir is None:
        log.info("Compare it: python evaluate.py, with this command's arguments of data and run.root.")
