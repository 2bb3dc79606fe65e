"""Weights that torchvision publishes: their names, and their files, of which none is read unverified.

A file in torch's download cache is verified by its full sha256 each time it is used, the one in
`models/pretrained.sha256`. That table was put together from digests that independent public projects state of the
same files, each of which begins with the eight digits that torchvision puts into the file's name. For files that
it does not have, those eight digits are all that is known; once such a file is downloaded here, its full digest is
kept beside it, as FILE.sha256, and holds ever after.
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
    """Names of the weights that torchvision publishes for a backbone, `IMAGENET1K_V1` first; none for many."""
    if backbone not in torchvision.models.list_models(module=torchvision.models):
        return []
    # Weights without categories are features alone, without a classifier: vgg16's IMAGENET1K_FEATURES.
    return [entry.name for entry in torchvision.models.get_model_weights(backbone) if entry.meta["categories"]]


def published_entry(backbone: str, weights: str | None) -> Any | None:
    """torchvision's entry (url, transforms, published accuracy) for weights of this name, None for any other."""
    known = published(backbone)
    if weights is None or weights not in (*known, *(["DEFAULT"] if known else [])):
        return None
    return torchvision.models.get_model_weights(backbone)[weights]


def image_size(backbone: str) -> int:
    """Return the side of the images that a backbone's first published weights were measured with; 224 without any."""
    entry = published_entry(backbone, next(iter(published(backbone)), None))
    return 224 if entry is None else int(entry.transforms().crop_size[0])


def transforms(backbone: str, weights: str | None) -> Any | None:
    """The preprocessing that torchvision published with weights of this name, None for any other weights."""
    entry = published_entry(backbone, weights)
    return None if entry is None else entry.transforms()


def fetch(backbone: str, entry: Any) -> Path:
    """The verified file of published weights in torch's download cache, downloaded if it is not there.

    Raises:
        ModelError: if it cannot be downloaded, or is not the file that was published.
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
            f"Where there is internet, run `python scripts/download_weights.py model={backbone}`, and copy the files "
            "into that folder; or start from a file, or from random weights."
        ) from error


def _verify(backbone: str, file: Path) -> None:
    expected = _known_digest(file) or _digits_in_name(file)
    digest = sha256(file)
    if not digest.startswith(expected):
        raise ModelError(
            f"{file} is not the published file: its sha256 is {digest}, and should be {expected}. Delete it, then "
            f"run `python scripts/download_weights.py model={backbone}`."
        )


def _known_digest(file: Path) -> str | None:
    """The full sha256 of a published file, from the table or from its first download; None for neither."""
    for table in (_DIGESTS, _record(file)):
        lines = table.read_text(errors="replace").splitlines() if table.is_file() else []
        for line in lines:
            if line.split()[1:] == [file.name]:
                return line.split()[0]
    return None


def _digits_in_name(file: Path) -> str:
    """`resnet50-0676ba61.pth` -> `0676ba61`, the first digits of its sha256."""
    return file.stem.rpartition("-")[2]


def _record(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
