"""Download published weights on a machine with internet, for machines without it.

    python scripts/download_weights.py model=resnet50     # all of its published weights, those of detectors too
    python scripts/download_weights.py model=all          # about 23 GB

The files go into torch's download cache (`$TORCH_HOME/hub/checkpoints`); training on any machine that shares the cache
reads them from there. Each file is verified, even if it already exists: by its full sha256 if
`models/pretrained.sha256` lists it, otherwise by the digits in its name. In that case, the full sha256 of the
downloaded file is stored beside it and checked from then on.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports that take seconds

import models
from engine import cli
from engine.logging import print_line
from models import detector_weights, factory, pretrained


def download_weights(model: str) -> None:
    names = models.names() if model == "all" else [factory.parse(model)[0].name]
    for name in names:
        for weights in models.published(name):
            file = pretrained.fetch(name, models.published_entry(name, weights))
            print_line(f"{name} {weights}: {file}, sha256 {pretrained.sha256(file)}")
        for detector, entry in detector_weights.of_backbone(name):
            file = pretrained.fetch(name, entry)
            print_line(f"{detector} on {name} {entry.name}: {file}, sha256 {pretrained.sha256(file)}")
    if not any(map(models.published, names)):
        raise models.ModelError(f"torchvision publishes no weights for {model}; train it from scratch.")


if __name__ == "__main__":
    cli.run_script(download_weights, models.ModelError)
