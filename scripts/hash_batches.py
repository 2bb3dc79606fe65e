"""Print digests of a configuration's training data: equal digests mean equal pixels in the same order.

    python scripts/hash_batches.py data=tiny_imagenet data.root=PATH seed=51 recipe.batch_size=256
    torchrun --nproc-per-node=4 scripts/hash_batches.py ...    # the same, for batches shared by four processes

Takes the arguments of train.py. Prints the fingerprint of the files and a digest of each of the first two epochs.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()
    from engine import cli

    cli.check_arguments("train")  # before the imports that take seconds

import torch

from engine import cli
from engine.config.schemas import TrainConfig
from engine.data.loader import Batch, TrainLoader, digest
from engine.data.mixing import partners
from engine.logging import print_line
from engine.processes.cluster import world_info_from_env
from engine.processes.distributed import ProcessGroup, init_distributed
from engine.tasks.registry import TASKS


def print_digests(config: TrainConfig) -> None:
    with init_distributed(world_info_from_env(os.environ), "digest") as group:
        config.recipe.check_parts(group.world_size)
        task = TASKS[config.data.task].from_config(config)
        data = task.open()
        data.require_same_images(group)
        if config.runtime.cache_images:
            data = data.cached()
        samples = task.train_samples(data.train, config.seed)
        loader = TrainLoader.from_config(samples, config, torch.device("cpu"), group)
        lines = [f"files {data.fingerprint}"]
        lines += [
            f"epoch {epoch + 1} {digest(whole_batches(map(mixed, loader.epoch(epoch)), group))}" for epoch in range(2)
        ]
        if group.is_main_process:
            print_line("\n".join(lines))


def mixed(batch: Batch) -> Batch:
    """Return the batch with its images mixed, and with the other labels and the shares as further targets."""
    if batch.mixing is None:
        return batch
    labels, *_ = batch.targets
    share = torch.full((len(labels),), batch.mixing.share)
    images = [batch.mixing.images(view.float()) for view in batch.views]
    return Batch(images, (labels, partners(labels), share), batch.indices)


def whole_batches(shards: Iterable[Batch], group: ProcessGroup) -> Iterator[Batch]:
    """Yield the batches of all processes, concatenated in the order of the ranks."""
    for shard in shards:
        shards_of_batch = group.all_gather_object(shard)
        views, targets, indices, _ = zip(*shards_of_batch, strict=True)
        yield Batch(
            [torch.cat(view) for view in zip(*views, strict=True)],
            tuple(torch.cat(target) for target in zip(*targets, strict=True)),
            torch.cat(indices),
        )


if __name__ == "__main__":
    cli.run("train", print_digests)
