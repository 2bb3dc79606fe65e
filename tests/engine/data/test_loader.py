"""Batches: equal for any number of workers, from any step."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.data.augmentation import Augmentation
from engine.data.datasets import open_dataset
from engine.data.loader import EvalLoader, TrainLoader
from engine.data.mixing import Mixer
from engine.data.shared_batches import SharedBatchRing, Slot
from engine.data.transforms import Preprocessing
from engine.errors import UserError
from engine.processes.distributed import ProcessGroup
from engine.tasks.classification import EvalSamples, TrainSamples
from tests.engine.data.small import config, equal, loader

CPU = torch.device("cpu")


def test_sample_is_a_function_of_seed_epoch_index(folders: Path) -> None:
    split = open_dataset(config(folders)).train
    (sample,) = TrainSamples(split, 51, 32, 0.25)[(3, 7)][0]
    torch.manual_seed(123)
    np.random.seed(123)
    assert torch.equal(TrainSamples(split, 51, 32, 0.25)[(3, 7)][0][0], sample)
    others = [TrainSamples(split, 52, 32, 0.25)[(3, 7)], TrainSamples(split, 51, 32, 0.25)[(4, 7)]]
    assert not any(torch.equal(images[0], sample) for images, _, _ in others)


def test_samples_are_the_same_together_and_alone(folders: Path) -> None:
    samples = TrainSamples(open_dataset(config(folders)).train, 51, 32, 0.25, Augmentation("trivialaugment", erase=0.5))
    keys = [(3, index) for index in range(len(samples) - 1, -1, -1)]
    together = samples.__getitems__(keys)
    assert [index for *_, index in together] == [index for _, index in keys]
    for (images, targets, _), key in zip(together, keys, strict=True):
        (image,), expected, _ = samples[key]
        assert torch.equal(images[0], image)
        assert targets == expected


def test_batches_do_not_depend_on_workers_or_start(folders: Path) -> None:
    data = open_dataset(config(folders))
    reference = list(loader(data, workers=0).epoch(2))
    for workers in (1, 3):
        for first in (0, 4):
            batches = list(loader(data, workers).epoch(2, first))
            assert len(batches) == len(reference) - first
            for batch, expected in zip(batches, reference[first:], strict=True):
                assert equal(batch, expected)


def test_one_loader_serves_epoch_after_epoch(folders: Path) -> None:
    train = loader(open_dataset(config(folders)), workers=2)
    orders = [torch.cat([batch.indices for batch in train.epoch(epoch)]).tolist() for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(48))


def test_abandoned_epoch_does_not_affect_the_next(folders: Path) -> None:
    train = loader(open_dataset(config(folders)), workers=2)
    whole = list(train.epoch(1))
    for _ in zip(range(3), train.epoch(0), strict=False):
        pass
    for batch, expected in zip(train.epoch(1), whole, strict=True):
        assert equal(batch, expected)


def test_workers_do_not_overwrite_batches(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_dataset(config(folders))
    expected = list(loader(data, workers=0).epoch(0))
    read = SharedBatchRing.read

    def late(self: SharedBatchRing, slot: Slot) -> list[torch.Tensor]:
        time.sleep(0.1)  # in which the workers write all batches ordered from them
        return read(self, slot)

    monkeypatch.setattr(SharedBatchRing, "read", late)
    for (images, *_), (correct, *_) in zip(loader(data, workers=1).epoch(0), expected, strict=True):
        assert torch.equal(images[0], correct[0])


def test_workers_use_no_shared_memory_files(folders: Path) -> None:
    for sent in loader(open_dataset(config(folders)), workers=1).reader.loader:
        assert [type(part) for part in sent] == [Slot, list, np.ndarray]


def test_oversized_batches_are_refused() -> None:
    with pytest.raises(UserError, match=r"memory for 1125000.0 GiB of batches from 8 workers; lower runtime"):
        SharedBatchRing(8, 2**20, [(4000, 4000), (224, 224)])


def test_loading_leaves_the_global_generator_alone(folders: Path) -> None:
    train = loader(open_dataset(config(folders)), workers=2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(train.epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_larger_than_the_data_set_is_refused(folders: Path) -> None:
    with pytest.raises(UserError, match=r"recipe\.batch_size=64 exceeds the 48 training images. Set .*=4, and"):
        loader(open_dataset(config(folders)), workers=0, batch_size=64)


def test_evaluation_decodes_every_image_exactly_once(folders: Path) -> None:
    data = open_dataset(config(folders))
    ways = (Preprocessing(32, 32), Preprocessing(40, 24))
    batches = list(EvalLoader(EvalSamples(data.val, ways), 8, 2, CPU, ProcessGroup()))
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(21))
    assert [tuple(image.shape) for image in batches[-1][0]] == [(5, 3, 32, 32), (5, 3, 24, 24)]


def test_repeated_augmentation_copies_differ(folders: Path) -> None:
    samples = TrainSamples(open_dataset(config(folders)).train, 51, 32, 0.25)
    repeated = TrainLoader(samples, 8, 51, 0, CPU, ProcessGroup(), repetitions=4)
    assert repeated.steps_per_epoch == 6
    batches = list(repeated.epoch(1))
    for batch in batches:
        assert batch.indices.tolist() == batch.indices[:2].tolist() * 4
        assert len({batch.views[0][i].numpy().tobytes() for i in range(0, 8, 2)}) == 4
    assert len(set(torch.cat([batch.indices for batch in batches]).tolist())) == 12
    assert all(map(equal, batches[2:], repeated.epoch(1, first=2)))


def test_a_resumed_epoch_is_mixed_as_a_whole_one(folders: Path) -> None:
    samples = TrainSamples(open_dataset(config(folders)).train, 51, 32, 0.25)
    mixing = TrainLoader(samples, 8, 51, 0, CPU, ProcessGroup(), mixer=Mixer(51, (32, 32), 0.2, 1.0))
    whole = [batch.mixing for batch in mixing.epoch(1)]
    assert [batch.mixing for batch in mixing.epoch(1, first=3)] == whole[3:]
    assert len(set(whole)) == 6
