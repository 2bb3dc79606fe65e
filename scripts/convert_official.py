"""Convert a checkpoint of the official CBAM implementation, such as its ResNet-50 + CBAM, for use here.

python scripts/convert_official.py model=resnet50 source=official.pth target=resnet50_cbam_official.pt
python train.py model=resnet50 attention=cbam_official model.weights=resnet50_cbam_official.pt
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
from engine.runs import checkpoint
from models import convert, factory, weights
from models.attention import network


def convert_official(model: str, source: str, target: str) -> None:
    backbone, _ = factory.parse(model)
    net = backbone.build(1000)
    state = convert.convert(weights.read_file(Path(source), net.state_dict()).state)
    start = weights.with_own_names(weights.StartWeights(state), net, backbone)
    rest = weights.load(net, backbone, start)
    options: dict[str, object] = {"mlp_bias": True, "spatial_norm": True}
    network.insert(net, "cbam", backbone.places(net), options, backbone.image_size)
    weights.load_attention(net, backbone, start, rest)
    checkpoint.save({"model": state}, Path(target))
    print_line(f"{target}: use it as model={model} attention=cbam_official model.weights={target}")


if __name__ == "__main__":
    cli.run_script(convert_official, models.ModelError)
