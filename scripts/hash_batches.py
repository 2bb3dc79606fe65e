"""What a configuration trains on, as digests: equal digests, equal pixels in equal order.

    python scripts/hash_batches.py data=tiny_imagenet data.root=PATH seed=51 recipe.batch_size=256
    torchrun --nproc-per-node=4 scripts/hash_batches.py ...    # the same, of the batches that four processes share

Takes the arguments of train.py. Prints the fingerprint of the files and the digest of the first two epochs.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine import cli, cluster, distributed
from engine.config import TrainConfig
from engine.data.datasets import open_dataset
from engine.data.loader import TrainLoader, TrainSamples, digest
from engine.distributed import ProcessGroup


def print_digests(config: TrainConfig) -> None:
    data = open_dataset(config.data)
    if config.runtime.cache_images:
        data = data.cached()
    samples = TrainSamples(data.train, config.seed, config.data.image_size, config.data.crop_scale)
    with distributed.init_distributed(cluster.world_info_from_env(os.environ), "digest") as group:
        config.recipe.check_parts(group.world_size)
        loader = TrainLoader(samples, config.recipe.batch_size, config.runtime.workers, torch.device("cpu"), group)
        lines = [f"files {data.fingerprint}"]
        lines += [f"epoch {epoch + 1} {digest(whole(loader.epoch(epoch), group))}" for epoch in range(2)]
        if group.is_main_process:
            print(*lines, sep="\n")


def whole(parts: Iterable[tuple[Tensor, ...]], group: ProcessGroup) -> Iterator[tuple[Tensor, ...]]:
    """The batches that the processes' parts make together."""
    for part in parts:
        yield tuple(torch.cat(columns) for columns in zip(*group.all_gather_object(part), strict=True))


if __name__ == "__main__":
    cli.run("train", print_digests)
