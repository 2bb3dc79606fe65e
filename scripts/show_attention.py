"""Draw Grad-CAM of one class and the spatial gates of finished runs on an image, side by side.

    python scripts/show_attention.py runs=RUN,RUN image=cat.jpeg target=n02123045 file=attention.png

target=predicted selects the class that the first run predicts. size=128 draws at 128 pixels instead of the runs'
image size: at the size of small training images, a map has only a few positions. Needs matplotlib.
"""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports that take seconds

import torch
from torch import nn

import models
from engine import cli
from engine.analysis import grad_cam
from engine.data import transforms
from engine.data.transforms import Preprocessing
from engine.errors import UserError
from engine.logging import print_line
from engine.runs.atomic_io import atomic_write
from engine.runs.directory import RunDirectory


def show(runs: str, image: str, target: str, file: str, size: str = "") -> None:
    """Write the figure.

    Raises:
        UserError: if a run is not finished, the runs differ in classes or preprocessing, or `target`, `image` or `size`
            is unusable.
    """
    chosen = [RunDirectory(Path(directory)) for directory in runs.split(",")]
    for run in chosen:
        if not run.finished:
            raise UserError(f"There is no finished run in {run.directory}.")
    first = chosen[0].record()
    for run in chosen:
        for key in ("class_names", "preprocessing"):
            if run.record().get(key) != first.get(key):
                raise UserError(f"{run.directory} and {chosen[0].directory} differ in {key}; show them separately.")
    classes, way = first["class_names"], Preprocessing.of_record(first["preprocessing"], chosen[0].record_file)
    if target not in ("predicted", *classes):
        more = "" if len(classes) <= 10 else ", ..."
        raise UserError(f"target={target} is not a class; use predicted, {', '.join(classes[:10])}{more}")
    if not Path(image).is_file():
        raise UserError(f"There is no file {image}; set image to an image file.")
    if size:
        if not re.fullmatch("[0-9]{2,4}", size) or not 32 <= int(size) <= 2048:
            raise UserError(f"size={size} is not a number of pixels between 32 and 2048.")
        way = replace(way, resize=round(way.resize * int(size) / way.crop), crop=int(size))
    cut = way.apply(transforms.decode(image))[None]
    networks = {_title(run.record()): _network(run) for run in chosen}
    if len(networks) < len(chosen):
        raise UserError("Two of the runs are the same network with the same seed; show one of them.")
    label = torch.tensor([0 if target == "predicted" else classes.index(target)])
    if target == "predicted":
        network = next(iter(networks.values()))
        label = torch.from_numpy(grad_cam.compute_maps(network, {}, cut, label, way).predicted)
    maps = {name: grad_cam.compute_maps(net, models.gates(net), cut, label, way) for name, net in networks.items()}
    try:
        figure = grad_cam.draw(cut, label.tolist(), classes, maps, labeled=False)
    except ImportError as error:
        raise UserError("Drawing needs matplotlib; pip install matplotlib.") from error
    atomic_write(Path(file), lambda out: figure.savefig(out, format="png", dpi=150))
    print_line(file)


def _title(record: dict[str, Any]) -> str:
    return f"{record['model']} {record['attention']} seed {record['seed']}"


def _network(run: RunDirectory) -> nn.Module:
    run.final_state()  # rejects files that do not belong together
    config = run.config()
    if config.detector.architecture != "none":
        raise UserError(f"The network in {run.directory} detects boxes; see scripts/show_detections.py.")
    return models.build(
        config.model.network,
        config.model.attention,
        weights=str(run.last),
        num_classes=run.record()["classes"],
        image_size=config.data.image_size,
        **config.attention_options,
    )


if __name__ == "__main__":
    cli.run_script(show, models.ModelError)
