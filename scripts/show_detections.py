"""Draw the detections (score at least 0.5) of finished runs on an image, side by side.

python scripts/show_detections.py runs=RUN,RUN image=street.jpeg file=detections.png
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports that take seconds

import torch
from torchvision.io import encode_png

import models
from engine import cli
from engine.analysis import box_pictures
from engine.data import transforms
from engine.errors import UserError
from engine.logging import print_line
from engine.runs.atomic_io import atomic_write
from engine.runs.directory import RunDirectory
from train import build_model


def show(runs: str, image: str, file: str) -> None:
    """Write the picture.

    Raises:
        UserError: if a run is not finished or has no detector, or the image cannot be read.
    """
    pixels = transforms.decode(image)
    drawn = [detect(RunDirectory(Path(directory)), pixels) for directory in runs.split(",")]
    png = encode_png(torch.cat(drawn, dim=2)).numpy().tobytes()
    atomic_write(Path(file), lambda opened: opened.write(png))
    print_line(f"Written to {file}, with the detections whose score is at least {box_pictures.SCORE}.")


def detect(run: RunDirectory, image: torch.Tensor) -> torch.Tensor:
    """Return the image, uint8 [3, H, W], with the detections of a run."""
    if not run.finished:
        raise UserError(f"There is no finished run in {run.directory}.")
    config, record = run.config(), run.record()
    if config.detector.architecture == "none":
        raise UserError(f"The network in {run.directory} detects no boxes; see scripts/show_attention.py.")
    model = build_model(config, record["class_names"], read_weights=False)
    model.load_state_dict(run.final_state()["model"])
    return box_pictures.draw_detections(model.eval(), image, record["class_names"], torch.device("cpu"))


if __name__ == "__main__":
    cli.run_script(show, models.ModelError)
