"""timm's networks (github.com/huggingface/pytorch-image-models), from the optional extra `timm`.

timm builds them and loads their pretrained weights. Its data config defines the preprocessing.
"""

import difflib
import importlib.util
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from models.errors import ModelError
from models.registry import BackboneSpec, no_default_places

PREFIX = "timm/"

# timm's names: places.
_PLACES = {
    r"(se)?resnet(10|18|34)[dt]?": r"layer\d\.\d+\.bn2",
    r"(wide_|se)?res(net|next)\d+([cdst]|_gn)?(_\d+x\d+d|_2)?": r"layer\d\.\d+\.bn3",
    r"(tf_)?efficientnetv2_\w+": r"blocks\.0\.\d+\.bn1|blocks\.[12]\.\d+\.bn2|blocks\.[3-9]\.\d+\.bn3",
    r"(tf_)?(efficientnet_(b\d|lite\d|l2)|mobilenetv2|mobilenetv3_(small|large|rw))\w*": (
        r"blocks\.0\.\d+\.bn2|blocks\.[1-9]\.\d+\.bn3"
    ),
    r"convnext(v2)?_\w+": r"stages\.\d\.blocks\.\d+\.drop_path",
    r"regnet[xy]_\w+": r"s\d\.b\d+\.conv3",
    r"densenet\d+\w*": r"features\.denseblock\d\.denselayer\d+\.conv2",
}


def spec(name: str) -> BackboneSpec:
    """Return the spec for a name such as `timm/convnext_atto` or `timm/convnext_atto.d2_in1k`.

    Names that timm has replaced, such as `tf_efficientnet_b0_ap`, are those of their current networks.

    Raises:
        ModelError: if timm is not installed or does not have the network.
    """
    if importlib.util.find_spec("timm") is None:
        raise ModelError("model=timm needs timm, which is not installed; run `pip install timm`.")
    import timm

    own_name = _current_name(name.removeprefix(PREFIX))
    architecture = own_name.partition(".")[0]
    if not timm.is_model(own_name):
        near = difflib.get_close_matches(architecture, timm.list_models())
        guess = f"; perhaps {' or '.join(near)}" if near else ""
        raise ModelError(f"timm has no network '{own_name}'{guess}. timm.list_models() lists all names.")
    try:
        config = timm.models.get_pretrained_cfg(own_name)
    except RuntimeError as error:
        known = ", ".join(timm.list_pretrained(architecture))
        raise ModelError(f"timm has no weights '{own_name}'; it has {known or 'none'}.") from error
    values = {} if config is None else config.to_dict()
    transforms = _transforms(timm.data.resolve_data_config(pretrained_cfg={"architecture": architecture, **values}))
    classifier = values.get("classifier") or ()
    return BackboneSpec(
        name,
        architecture,
        lambda classes: timm.create_model(own_name, num_classes=classes),
        after=next((after for names, after in _PLACES.items() if re.fullmatch(names, architecture)), no_default_places),
        heads=(classifier,) if isinstance(classifier, str) else tuple(classifier),
        image_size=transforms.crop_size[0],
        transforms=transforms,
        pretrained=partial(_pretrained_state, own_name),
    )


def _current_name(own_name: str) -> str:
    """Return the current name of a network that timm has renamed.

    Raises:
        ModelError: if timm has removed it.
    """
    from timm.models import get_deprecated_models

    renamed = get_deprecated_models()
    current = renamed.get(own_name, own_name)
    if current is None:
        raise ModelError(f"timm has removed the network '{own_name}'. timm.list_models() lists all names.")
    return str(current)


def _transforms(data_config: dict[str, Any]) -> ImageClassification:
    """Return timm's preprocessing in torchvision's form: resize of the shorter side, then center crop."""
    size = data_config["input_size"][-1]
    return ImageClassification(
        crop_size=size,
        resize_size=int(size / data_config["crop_pct"]),
        mean=data_config["mean"],
        std=data_config["std"],
        interpolation=InterpolationMode(data_config["interpolation"]),
    )


def _pretrained_state(own_name: str) -> dict[str, Tensor]:
    """Return the state dict of timm's pretrained network, from its download cache or the Hugging Face Hub."""
    import timm

    config = timm.models.get_pretrained_cfg(own_name)
    hub_id = None if config is None else config.hf_hub_id
    try:
        with _level("timm", logging.WARNING), _level("huggingface_hub", logging.ERROR):
            if hub_id is not None:
                _require_cached_or_reachable(hub_id)
            net: nn.Module = timm.create_model(own_name, pretrained=True)
    except Exception as error:  # errors of the Hub, HTTP and timm have no common base class
        reason = str(error).splitlines()[0].rstrip(".")
        raise ModelError(
            f"timm cannot load the pretrained weights of {own_name} ({reason}). "
            f"{'Start' if hub_id is None else f'{_download_advice(own_name, hub_id)}, or start'} from a file or random "
            "weights (model.weights=PATH or null)."
        ) from error
    return net.state_dict()


def _require_cached_or_reachable(hub_id: str) -> None:
    """Raise the error of a request to the Hub if it cannot be reached and nothing of a repository is in the cache.

    timm's download repeats each request five times, which takes a minute; the Hub's library has no setting for this.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    if not _cache_folder(hub_id).is_dir():
        with suppress(HfHubHTTPError):  # an answer
            huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(hub_id, "model.safetensors"))


def _cache_folder(hub_id: str) -> Path:
    """Return the folder of a repository in the cache of the Hub's library."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"


def _download_advice(own_name: str, hub_id: str) -> str:
    command = f"python -c 'import timm; timm.create_model(\"{own_name}\", pretrained=True)'"
    folder = _cache_folder(hub_id)
    return (
        f"On a machine with internet, run `{command}` and copy the folder {folder.name} from its cache "
        f"(~/.cache/huggingface/hub) to {folder.parent}"
    )


@contextmanager
def _level(logger: str, level: int) -> Iterator[None]:
    """Set the level of a library's logger."""
    of_library = logging.getLogger(logger)
    before = of_library.level
    of_library.setLevel(level)
    try:
        yield
    finally:
        of_library.setLevel(before)
