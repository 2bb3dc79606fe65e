"""One run, from its configuration to its record."""

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from engine import checkpoint, complexity, device, progress, provenance
from engine.augment import Preprocessing
from engine.config import TrainConfig
from engine.datasets import Dataset
from engine.distributed import Ranks
from engine.errors import UserError
from engine.evaluator import Candidate, Predictions, evaluate
from engine.loader import EvalLoader, EvalSamples, TrainLoader, TrainSamples
from engine.run import Run
from engine.trainer import Trainer, fit


def claim(config: TrainConfig, ranks: Ranks) -> Run | None:
    """The run directory of a configuration, or None, after saying so, where its run is finished.

    Raises:
        UserError: if the directory holds another run, or the batch does not divide among the processes.
    """
    progress.log_to_console(ranks.is_first)
    config.recipe.check_parts(ranks.world_size)
    run = Run(Path(config.run_directory), writes=ranks.is_first)
    run.require_same_config(config)
    if run.finished:
        progress.log.info(f"{run.directory} is finished: top-1 {run.record()['top1']:.2f}%. Nothing to do.")
        return None
    return run


def train(config: TrainConfig, run: Run, data: Dataset, model: nn.Module, transforms: Any | None, ranks: Ranks) -> None:
    """Train a model from where the run stands to its end, and write the record.

    Args:
        config: of the run.
        run: as `claim` returned it.
        data: the images.
        model: at its start.
        transforms: torchvision's preprocessing of the start weights, None for weights that are not published.
        ranks: the processes that train it together.
    """
    started = time.monotonic()
    preprocessing = Preprocessing.choose(config.data, transforms)
    where = device.choose(config.runtime.device, ranks.place.local_rank)
    samples = TrainSamples(data.train, config.seed, config.data.image_size, config.data.crop_scale)
    loader = TrainLoader(samples, config.recipe.batch_size, config.runtime.workers, where, ranks)
    start_sha256 = checkpoint.sha256(model.state_dict())
    if config.runtime.sync_batchnorm:
        model = device.synchronise_norms(model, where)
    trainer = Trainer(model, loader, preprocessing, config, ranks)
    facts = {
        "model": config.model.name,
        "attention": config.attention_label,
        "seed": config.seed,
        "epochs": config.recipe.epochs,
        "data": data.name,
        "classes": len(data.classes),
        "train_images": len(data.train),
        "val_images": len(data.val),
        "data_fingerprint": data.fingerprint,
        "parameters": complexity.parameters(model),
        "gflops": complexity.gflops(model, preprocessing.crop),
        "preprocessing": asdict(preprocessing),
        "start_weights": config.model.weights,
        "start_weights_sha256": start_sha256,
        "processes": ranks.world_size,
        "batch_per_process": config.recipe.batch_size // ranks.world_size,
        **provenance.describe(where),
    }
    run.start(config)
    if run.writes:
        progress.log_to_file(run.log_file)
    _introduce(config, run, facts)
    state = ranks.from_first(run.load_state(config) if run.writes else None)
    if state is not None:
        facts |= _facts_from_the_start(run, facts)
        trainer.load_state_dict(state)
        progress.log.info(f"Continuing after {trainer.position.epoch} epochs and {trainer.position.step} steps.")
    run.write_record({"status": "running", **facts})
    predictions = fit(trainer, partial(_validate, trainer, data, config), run, config)
    if run.writes:
        predictions.save(run.predictions)
    results = _results(trainer, predictions)
    run.write_record({"status": "finished", **results, **facts, "history": trainer.position.history})
    progress.log.info(
        f"Finished in {time.monotonic() - started:.0f} s: top-1 {results['top1_start']:.2f}% at the start, "
        f"{results['top1']:.2f}% after {config.recipe.epochs} epochs. {run.record_file}"
    )


def _facts_from_the_start(run: Run, facts: dict[str, Any]) -> dict[str, Any]:
    """What only the first start of a run knows.

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
    return {"start_weights_sha256": before["start_weights_sha256"]}


def _validate(trainer: Trainer, data: Dataset, config: TrainConfig) -> Predictions:
    ranks = trainer.ranks
    ranks.share_buffers(trainer.model)
    samples = EvalSamples(data.val, (trainer.preprocessing,))
    loader = EvalLoader(samples, config.runtime.eval_batch_size, config.runtime.workers, trainer.device, ranks)
    (predictions,) = evaluate([Candidate(trainer.model, trainer.preprocessing)], loader, trainer.precision, ranks)
    return predictions


def _results(trainer: Trainer, predictions: Predictions) -> dict[str, Any]:
    history = trainer.position.history
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


def _introduce(config: TrainConfig, run: Run, facts: dict[str, Any]) -> None:
    progress.log.info(
        f"{config.model_label}: {facts['parameters'] / 1e6:.2f} M parameters, {facts['gflops']:.3f} GFLOPs, "
        f"from {config.model.weights or 'random weights'}"
    )
    progress.log.info(
        f"{facts['data']}: {facts['train_images']} training and {facts['val_images']} validation images, "
        f"{facts['classes']} classes"
    )
    progress.log.info(
        f"seed {config.seed}, {config.recipe.epochs} epochs, batch {config.recipe.batch_size}, "
        f"{config.runtime.precision} on {_each(facts)}, into {run.directory}"
    )


def _each(facts: dict[str, Any]) -> str:
    count = facts["processes"]
    return str(facts["device"]) if count == 1 else f"{count} times {facts['device']}, {facts['batch_per_process']} each"
