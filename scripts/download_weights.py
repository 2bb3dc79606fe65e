"""Download published weights on a machine with internet, for machines without it.

    python scripts/download_weights.py model=resnet50     # every set of weights published for it, detectors too
    python scripts/download_weights.py model=all          # 6 GB

They go into torch's download cache (`$TORCH_HOME/hub/checkpoints`), from which training on any machine that shares
it takes them. Each file is verified, those there already too: by its full sha256 where `models/pretrained.sha256`
has it, else by the eight digits in its name; the full sha256 of a file downloaded so is then kept beside it and holds
ever after.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import models
from engine import cli
from models import detector_weights, factory, pretrained


def download_weights(model: str) -> None:
    names = models.names() if model == "all" else [factory.parse(model)[0].name]
    for name in names:
        for weights in models.published(name):
            file = pretrained.fetch(name, models.published_entry(name, weights))
            print(f"{name} {weights}: {file}, sha256 {pretrained.sha256(file)}")
        for detector, entry in detector_weights.of_backbone(name):
            file = pretrained.fetch(name, entry)
            print(f"{detector} on {name} {entry.name}: {file}, sha256 {pretrained.sha256(file)}")
    if not any(map(models.published, names)):
        raise models.ModelError(f"torchvision publishes no weights for {model}; train it from nothing.")


if __name__ == "__main__":
    cli.run_script(download_weights, models.ModelError)
