"""What a configuration trains on, as digests: equal digests, equal pixels in equal order.

    python scripts/digest_data.py data=tiny_imagenet data.root=PATH seed=51 recipe.batch_size=256

Takes the arguments of train.py. Prints the fingerprint of the files and the digest of the first two epochs.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine import cli
from engine.config import TrainConfig
from engine.datasets import open_dataset
from engine.loader import TrainLoader, TrainSamples, digest


def print_digests(config: TrainConfig) -> None:
    data = open_dataset(config.data)
    samples = TrainSamples(data.train, config.seed, config.data.image_size, config.data.crop_scale)
    loader = TrainLoader(samples, config.recipe.batch_size, config.runtime.workers, torch.device("cpu"))
    print(f"files {data.fingerprint()}")
    for epoch in range(2):
        print(f"epoch {epoch + 1} {digest(loader.epoch(epoch))}")


if __name__ == "__main__":
    cli.run("train", print_digests)
