"""Train or fine-tune one network.

    python train.py model=resnet50_cbam data.root=/path/to/imagenet     # ImageNet, from published weights
    python train.py model=resnet18_cbam data=shapes model.weights=null  # anywhere, from nothing

The same command started again continues the run. The keys are in engine/config.py, the presets in configs/.
"""

import os

import models
from engine import cli, distributed, experiment, launcher, reproducibility
from engine.config import TrainConfig
from engine.datasets import open_dataset
from engine.distributed import Ranks


def train(config: TrainConfig) -> None:
    reproducibility.set_up(config.seed, config.runtime.deterministic)
    with distributed.join(launcher.place(os.environ), config.run_directory) as ranks:
        train_together(config, ranks)


def train_together(config: TrainConfig, ranks: Ranks) -> None:
    run = experiment.claim(config, ranks)
    if run is None:
        return
    data = ranks.first_alone(lambda: open_dataset(config.data))
    # A run under way holds its weights itself: those that it started from may be gone.
    weights = None if run.under_way else config.model.weights
    model = ranks.first_alone(
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
    experiment.train(config, run, data, model, models.gates(model), transforms, ranks)


if __name__ == "__main__":
    cli.run("train", train, models.ModelError)
