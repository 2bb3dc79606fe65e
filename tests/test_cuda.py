"""What only a GPU can show: the same bits twice, and the identity start there. `pytest -n0 tests/test_cuda.py`."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import models
from engine.processes import determinism
from engine.processes.device import Transfer, to_device
from tests.commands import arguments
from tests.networks import CLASSES, plain
from tests.processes import REPOSITORY

DEVICE = torch.device("cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.device_count(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("narrow_classifiers"),
]


def trained_bits(name: str, fused: bool) -> list[torch.Tensor]:
    """The weights after two deterministic steps under autocast."""
    determinism.set_determinism(51, deterministic=True)
    net = to_device(models.build(name, num_classes=CLASSES), DEVICE, channels_last=True)
    if fused:
        models.fuse(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    images = torch.randn(8, 3, 64, 64, device=DEVICE).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(8, device=DEVICE) % CLASSES
    for _ in range(2):
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [value.detach().cpu() for value in net.state_dict().values()]


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("name", models.names())
def test_every_network_trains_to_the_same_bits(name: str, fused: bool) -> None:
    assert all(map(torch.equal, trained_bits(f"{name}_cbam", fused), trained_bits(f"{name}_cbam", fused)))


@pytest.mark.parametrize("name", models.names())
def test_the_identity_start_is_exact(name: str, tmp_path: Path) -> None:
    determinism.set_determinism(51, deterministic=True)
    pretrained = plain(name)
    torch.save(pretrained.state_dict(), tmp_path / "weights.pt")
    net = models.build(f"{name}_cbam", weights=str(tmp_path / "weights.pt"), num_classes=CLASSES)
    images = torch.randn(4, 3, 64, 64, device=DEVICE)
    with torch.no_grad():
        assert torch.equal(net.to(DEVICE).eval()(images), pretrained.to(DEVICE)(images))


def test_batches_arrive_whole_during_computation() -> None:
    transfer, busy = Transfer(DEVICE), torch.randn(4096, 4096, device=DEVICE)
    place = torch.empty(64, 3, 224, 224, dtype=torch.uint8).to(memory_format=torch.channels_last)
    arrived = []
    for number in range(20):
        place.fill_(number)
        for _ in range(4):
            busy = (busy @ busy).tanh()
        arrived.append(transfer(place))
    for number, images in enumerate(arrived):
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert bool((images == number).all())


@pytest.mark.skipif(importlib.util.find_spec("hydra") is None, reason="train.py needs Hydra")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("fused", ["false", "true"])
@pytest.mark.parametrize("model", ["resnet18_cbam", "vgg11_bn_cbam", "mobilenet_v3_small_cbam"])
def test_two_runs_of_one_command_give_the_same_bits(
    model: str, fused: str, precision: str, folders: Path, tmp_path: Path
) -> None:
    records = []
    for run in ("a", "b"):
        on = (f"runtime.device={DEVICE.type}", f"runtime.precision={precision}", f"runtime.fused_cbam={fused}")
        given = arguments(folders, f"model={model}", "model.weights=null", f"run.dir={run}", *on)
        command = [sys.executable, str(REPOSITORY / "train.py"), *given]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        records.append(json.loads((tmp_path / run / "record.json").read_text()))
    for key in ("weights_sha256", "history", "predictions_sha256"):
        assert records[0][key] == records[1][key], key
