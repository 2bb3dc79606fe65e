"""Export a network for other runtimes, and check what the file computes against PyTorch.

    python scripts/export.py model=resnet50_cbam model.weights=runs/imagenet/resnet50_cbam/seed51/checkpoint/last.pt \
        file=resnet50_cbam.onnx                             # or .pt2 for torch.export

The keys are those of train.py for model and attention, and `ExportConfig` in engine/config.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import models
from engine import cli
from engine.config import ExportConfig
from engine.export import export


def run(config: ExportConfig) -> None:
    model = models.build(
        config.model.name,
        config.model.attention,
        config.model.weights,
        num_classes=config.classes,
        **config.attention.options(config.model.attention),
    )
    difference = export(model, config.image_size, Path(config.file))
    print(f"{config.file}: its logits differ from PyTorch's by at most {difference:.1e} of the largest.")


if __name__ == "__main__":
    cli.run("export", run, models.ModelError)
