"""Names and verified files of torchvision's published weights.

Each use of a file in torch's download cache verifies its full sha256 against `models/pretrained.sha256`. That table was
compiled from digests that independent public projects publish for the same files. Each digest begins with the digits in
torchvision's file name. For files that are not in the table, only those digits (eight or ten) are known. After the
first download of such a file, its full digest is stored beside it as FILE.sha256 and verified from then on.
"""

import hashlib
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision

from models.errors import ModelError

_DIGESTS = Path(__file__).with_name("pretrained.sha256")


def published(backbone: str) -> list[str]:
    """Return the names of torchvision's weights for a backbone, in torchvision's order; empty if it has none."""
    if backbone not in torchvision.models.list_models(module=torchvision.models):
        return []
    # Weights without categories have no classifier, e.g. vgg16's IMAGENET1K_FEATURES.
    return [entry.name for entry in torchvision.models.get_model_weights(backbone) if entry.meta["categories"]]


def published_entry(backbone: str, weights: str | None) -> Any | None:
    """Return torchvision's entry (url, transforms, published accuracy) for weights of this name; otherwise None."""
    known = published(backbone)
    if weights is None or weights not in (*known, *(["DEFAULT"] if known else [])):
        return None
    return torchvision.models.get_model_weights(backbone)[weights]


def image_size(backbone: str) -> int:
    """Return the image size of a backbone's first published weights; 224 without published weights."""
    entry = published_entry(backbone, next(iter(published(backbone)), None))
    return 224 if entry is None else int(entry.transforms().crop_size[0])


def transforms(backbone: str, weights: str | None) -> Any | None:
    """Return torchvision's preprocessing for weights of this name; None for any other weights."""
    entry = published_entry(backbone, weights)
    return None if entry is None else entry.transforms()


def fetch(backbone: str, entry: Any) -> Path:
    """Return the verified file of published weights in torch's download cache, downloading it if it is missing.

    Raises:
        ModelError: if it cannot be downloaded, or differs from the published file.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
    if not file.is_file():
        _download(backbone, entry, file)
    _verify(backbone, file)
    return file


def _download(backbone: str, entry: Any, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(entry.url, str(file), hash_prefix=_digits_in_name(file))
        if _known_digest(file) is None:
            _record(file).write_text(f"{sha256(file)}  {file.name}\n")
    except (URLError, OSError, RuntimeError) as error:
        raise ModelError(
            f"Weights {entry.name} of {backbone} are not in {file.parent} and could not be downloaded ({error}). "
            f"On a machine with internet, run `python scripts/download_weights.py model={backbone}`, and copy the "
            "files into that folder; or start from a file (model.weights=FILE) or from random weights "
            "(model.weights=null)."
        ) from error


def _verify(backbone: str, file: Path) -> None:
    expected = _known_digest(file) or _digits_in_name(file)
    digest = sha256(file)
    if not digest.startswith(expected):
        raise ModelError(
            f"{file} is not the published file: its sha256 is {digest} instead of {expected}. Delete it, then "
            f"run `python scripts/download_weights.py model={backbone}`."
        )


def _known_digest(file: Path) -> str | None:
    """Return the full sha256 of a published file, from the table or its first download; None if unknown."""
    for table in (_DIGESTS, _record(file)):
        lines = table.read_text(errors="replace").splitlines() if table.is_file() else []
        for line in lines:
            if line.split()[1:] == [file.name]:
                return line.split()[0]
    return None


def _digits_in_name(file: Path) -> str:
    """Return the first digits of the sha256 in a file name: `resnet50-0676ba61.pth` -> `0676ba61`."""
    return file.stem.rpartition("-")[2]


def _record(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
