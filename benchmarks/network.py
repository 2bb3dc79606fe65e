"""Training throughput of whole networks, with and without attention."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import models
from benchmarks.clock import take_turns
from benchmarks.report import Section
from engine.processes.device import to_device

NETWORKS = {  # networks, the one without attention first: whether to compile them too, which takes minutes
    ("resnet50", "resnet50_se", "resnet50_cbam"): True,
    ("resnet18", "resnet18_cbam"): False,
    ("mobilenet_v2", "mobilenet_v2_cbam"): False,
}
FUSED = "resnet50_cbam, fused"  # on CUDA only


def measure(_: Path, device: torch.device) -> Section:
    """Measure a row for each network of `NETWORKS`, eager and, where it says so, compiled."""
    on_gpu = device.type == "cuda"
    batch, size, dtype = (256, 224, torch.bfloat16) if on_gpu else (8, 128, torch.float32)
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,), device=device)
    rows = []
    for names, compile_too in NETWORKS.items():
        if on_gpu and FUSED.startswith(names[-1]):
            names = (*names, FUSED)
        names = (*names, f"{names[0]}, repeated")
        for compiled in (False, True)[: 1 + compile_too]:
            steps = {name: _step(name, compiled, images, labels, dtype) for name in names}
            seconds = take_turns(steps, 10, device)
            for name in names:
                rows.append(
                    {
                        "network": name,
                        "compiled": "yes" if compiled else "no",
                        "images/s": batch / seconds[name].median,
                        "relative to plain": seconds[names[0]].median / seconds[name].median,
                    }
                )
    return {
        "about": f"Steps of SGD on {batch} random images of {size} px that are on the device, "
        f"{str(dtype).removeprefix('torch.')}, channels_last; medians of 10 rounds in which the networks take turns. "
        "The distance of the repeated network from 1.00 shows the noise of the machine.",
        "rows": rows,
    }


def _step(
    name: str, compiled: bool, images: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype
) -> Callable[[], None]:
    torch.manual_seed(0)
    device = images.device
    net = to_device(models.build(name.partition(",")[0]), device, channels_last=True)
    if name == FUSED:
        models.fuse(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, fused=True)
    forward: nn.Module | Callable = torch.compile(net) if compiled else net

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
