"""What the server of `tests.processes` does once, before it forks the entry points."""

import gc

from hydra import initialize_config_dir

import evaluate
import train
from engine.config import presets

presets.register()
with initialize_config_dir(str(presets.CONFIGS), version_base="1.3"):  # fills the caches of Hydra's parser
    presets.compose("train", ["data=imagenet", "data.root=folder/name", "model=resnet18_cbam", "recipe.lr=0.1"])
gc.collect()
gc.freeze()  # the forked processes share its pages as long as no collection writes to them

__all__ = ["evaluate", "train"]
