"""Export a network for other runtimes, and check the file's outputs against PyTorch.

    python scripts/export.py model=resnet50_cbam model.weights=runs/imagenet/resnet50_cbam/seed51/checkpoint/last.pt \
        file=resnet50_cbam.onnx                             # or .pt2 for torch.export

For a network with another number of classes or image size, set classes= and image_size= too. The keys are those of
train.py for model and attention, and those of `ExportConfig` in engine/config/schemas.py.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()
    from engine import cli

    cli.check_arguments("export")  # before the imports that take seconds

import models
from engine import cli
from engine.analysis.export import export
from engine.config.attention import schema
from engine.config.model import ModelConfig
from engine.config.schemas import ExportConfig
from engine.errors import UserError
from engine.logging import print_line
from engine.runs.directory import RunDirectory


def run(config: ExportConfig) -> None:
    _require_as_trained(config)
    model = models.build(
        config.model.network,
        config.model.attention,
        config.model.weights,
        num_classes=config.classes,
        image_size=config.image_size,
        new_head=False,
        head=config.model.head,
        weights_key=config.model.weights_key,
        **config.attention.arguments(),
    )
    difference = export(model, config.image_size, Path(config.file))
    print_line(f"{config.file}: its logits differ from PyTorch's by at most {difference:.1e} of the largest logit.")


def _require_as_trained(config: ExportConfig) -> None:
    """Reject options other than those that a run was trained with; its weights would load but compute something else.

    Raises:
        UserError: if keys differ (the error names them), or the run trained a detector.
    """
    file = Path(config.model.weights or "").resolve()
    run = RunDirectory(file.parent.parent)
    if not file.is_file() or file.parent != run.last.parent or not run.config_file.is_file():
        return
    trained = run.config()
    if trained.detector.architecture != "none":
        raise UserError(f"{config.model.weights} is a detector, which cannot be exported; export a classifier.")
    kind = trained.attention.kind
    attention = config.attention if config.attention.kind == kind else schema(kind)()
    there = _arguments(trained.model) | {"attention": kind, **trained.attention.overrides()}
    here = _arguments(config.model) | {"attention": config.attention.kind, **attention.overrides()}
    there["classes"], here["classes"] = run.record()["classes"], config.classes
    differing = [f"{key}={value}" for key, value in there.items() if here.get(key) != value]
    if differing:
        raise UserError(f"{config.model.weights} was trained as another network; set {' '.join(differing)}.")


def _arguments(model: ModelConfig) -> dict[str, Any]:
    """Return the keys and values that select a network without attention."""
    if model.library == "torchvision":
        return {"model": model.name}
    key = "name" if model.library == "timm" else "factory"
    return {"model": model.library, f"model.{key}": getattr(model, key)}


if __name__ == "__main__":
    cli.run("export", run, models.ModelError)
