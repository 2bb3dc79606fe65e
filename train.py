"""Train or fine-tune one network.

    python train.py model=resnet50_cbam data.root=/path/to/imagenet     # ImageNet, from published weights
    python train.py model=resnet18_cbam data=shapes model.weights=null  # anywhere, from nothing

The same command started again continues the run. The keys are in engine/config.py, the presets in configs/.
"""

import os

import models
from engine import cli, cluster, determinism, distributed
from engine.config import TrainConfig
from engine.data.datasets import open_dataset
from engine.distributed import ProcessGroup
from engine.training import record


def train(config: TrainConfig) -> None:
    determinism.set_determinism(config.seed, config.runtime.deterministic)
    with distributed.init_distributed(cluster.world_info_from_env(os.environ), config.run_directory) as group:
        train_together(config, group)


def train_together(config: TrainConfig, group: ProcessGroup) -> None:
    run = record.prepare_run(config, group)
    if run is None:
        return
    data = group.first_alone(lambda: open_dataset(config.data))
    # A run under way holds its weights itself: those that it started from may be gone.
    weights = None if run.has_checkpoint else config.model.weights
    model = group.first_alone(
        lambda: models.build(
            config.model.name,
            config.model.attention,
            weights,
            num_classes=len(data.classes),
            **config.attention_options,
        )
    )
    if config.runtime.fused_cbam:
        models.fuse(model)
    transforms = models.transforms(config.model.name, config.model.weights)
    record.train(config, run, data, model, models.gates(model), transforms, group)


if __name__ == "__main__":
    cli.run("train", train, models.ModelError)
