"""Train or fine-tune one network.

    python train.py model=resnet50_cbam data.root=/path/to/imagenet     # ImageNet, from published weights
    python train.py model=resnet18_cbam data=shapes recipe=scratch      # anywhere, on generated images

Running the same command again resumes the run. engine/config documents the keys; configs/ has the
presets.
"""

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()
    from engine import cli

    cli.check_arguments("train")  # before the imports that take seconds

import os
from collections.abc import Sequence

from omegaconf import OmegaConf
from torch import nn

import models
from engine import cli
from engine.config.schemas import TrainConfig
from engine.data.datasets import Dataset
from engine.data.loader import EvalLoader, TrainLoader
from engine.errors import UserError
from engine.processes.cluster import world_info_from_env
from engine.processes.determinism import set_determinism
from engine.processes.device import resolve_device
from engine.processes.distributed import ProcessGroup, init_distributed
from engine.runs import checkpoint
from engine.runs.directory import RunDirectory
from engine.tasks.classification import Classification
from engine.tasks.registry import TASKS
from engine.tasks.training_images import TrainingImages
from engine.training import advice, calibration, record
from engine.training.calibration import Scales
from engine.training.descriptions import shown
from engine.training.fit import first_unlogged, fit
from engine.training.param_groups import NetworkParts
from engine.training.tensorboard import TensorBoardLogger
from engine.training.trainer import Trainer
from engine.training.validation import Validator


def main(config: TrainConfig) -> None:
    set_determinism(config.seed, config.runtime.deterministic)
    with init_distributed(world_info_from_env(os.environ), config.run_directory) as group:
        run = record.prepare_run(config, group)
        if not run.finished or run.missing_results:
            with run.noting_its_end():
                train(config, run, group)


def train(config: TrainConfig, run: RunDirectory, group: ProcessGroup) -> None:
    runtime = config.runtime
    device = resolve_device(runtime.device, group)
    task = TASKS[config.data.task].from_config(config)
    with group.main_process_first():
        data = task.open()
    data.require_same_images(group)
    if isinstance(task, Classification) and isinstance(data, Dataset):
        task = task.for_training(data)
    with group.main_process_first():
        # A started run has its own weights; the file with the start weights may no longer exist. Without a record, it
        # is read again for its digest.
        is_started = run.has_checkpoint and run.record_file.is_file()
        model = build_model(config, data.classes, read_weights=not is_started)
    for key in ("fused_cbam", "sync_batchnorm"):
        if getattr(runtime, key) and device.type != "cuda":
            raise UserError(f"runtime.{key}=true needs CUDA; it has no implementation for the CPU.")

    published = models.transforms(config.model.network, config.model.weights)
    preprocessing = task.preprocessing(published).adjusted(config.preprocessing)
    backbone_sha256 = checkpoint.sha256(models.plain_state(model))
    loading = models.start_report(model)
    facts = record.initial_record(config, data, model, backbone_sha256, loading, preprocessing, device, group)
    if not run.has_checkpoint:
        images = TrainingImages(task, data, preprocessing, config.seed, config.calibration_images, device)
        facts |= calibration.facts(calibrate(model, images, config, group), images)
    if runtime.cache_images:
        data = data.cached()

    train_samples = task.train_samples(data.train, config.seed)
    train_loader = TrainLoader.from_config(train_samples, config, device, group)
    parts = network_parts(config, model)
    trainer = Trainer(model, task, preprocessing, train_loader, config, group, parts)
    facts = record.start_or_resume(run, trainer, facts, config)
    tensorboard = TensorBoardLogger(run.directory if run.writes else None, first_unlogged(trainer))
    texts = {"config": OmegaConf.to_yaml(OmegaConf.structured(config))}
    tensorboard.describe(record.hyperparameters(config, facts), texts, shown(task, task.metrics))

    val_samples = task.eval_samples(data.val, [preprocessing])
    eval_batch_size = task.eval_batch_size or runtime.eval_batch_size
    val_loader = EvalLoader(val_samples, eval_batch_size, runtime.workers, device, group)
    net, pictures = trainer.evaluated, config.run.pictures
    gates = models.gates(net)
    validate = Validator(
        *(task, net, preprocessing, gates, data, val_loader, trainer.precision, group, pictures),
        run=f"{data.name} {config.model_label} seed {config.seed}",
    )
    validation = fit(trainer, validate, tensorboard, run, config)

    if run.writes:
        validation.predictions.save(run.predictions)
    facts = record.final_record(trainer, validation, facts)
    record.warn_if_changed(run, facts)
    run.write_record(facts)
    record.log_result(trainer, run, config, facts)
    advice.warn_at_end(validation, config.recipe, facts)


def build_model(config: TrainConfig, classes: Sequence[str], read_weights: bool) -> nn.Module:
    """Return the network with its start weights, or with random weights if the start weights are not read."""
    options = {"sync_batchnorm": config.runtime.sync_batchnorm, **config.attention_options}
    if config.detector.architecture == "none":
        model = models.build(
            config.model.network,
            config.model.attention,
            config.model.weights if read_weights else None,
            num_classes=len(classes),
            image_size=config.data.image_size,
            head=config.model.head,
            weights_key=config.model.weights_key if read_weights else None,
            classes=classes,
            **options,
        )
    else:
        model = models.build_detector(
            models.DetectorSpec(**config.detector.options),
            config.model.network,
            config.model.attention,
            config.model.weights,
            classes,
            at=config.attention.at,
            read_weights=read_weights,
            **options,
        )
    if config.runtime.fused_cbam:
        models.fuse(model)
    return model


def calibrate(model: nn.Module, images: TrainingImages, config: TrainConfig, group: ProcessGroup) -> Scales:
    """Calibrate the attention that is at the identity start, and return its scales; empty if there is none."""
    if images.count == 0:
        return {}
    if not models.gates_at_start(model):
        if config.attention.calibrate:
            raise UserError(
                f"attention.calibrate={images.count} has no effect: the attention in {config.start_weights} has "
                "learned, or has no scale. Leave it out."
            )
        return {}
    return calibration.calibrate(model, images, models.calibrating, models.set_scales, group)


def network_parts(config: TrainConfig, model: nn.Module) -> NetworkParts:
    """Return the network parts to which the recipe applies different settings."""
    name, recipe = config.model.network, config.recipe
    return NetworkParts(
        **models.parts(model, name, config.data.image_size or None, config.model.head),
        last_norms=models.last_norms(model, name) if recipe.last_norms_lr_factor != 1 else (),
        stages=models.stages(name) if recipe.layer_decay < 1 else {},
    )


if __name__ == "__main__":
    cli.run("train", main, models.ModelError)
