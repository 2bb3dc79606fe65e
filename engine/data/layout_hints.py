"""Advice for folders in another layout than that of train/CLASS and val/CLASS."""

import os
from pathlib import Path

_PREPARE = "python scripts/prepare_imagenet.py archives={root} target=FOLDER"
_OF_VALIDATION = ("validation", "valid", "test")


def layout_hint(root: Path) -> str:
    """Return a clause on what to do with a folder in a known layout of ImageNet or a similar one; empty otherwise."""
    names = sorted(entry.name for entry in os.scandir(root)) if root.is_dir() else []
    if (root / "ILSVRC").is_dir() or root.name == "CLS-LOC" or (root / "LOC_val_solution.csv").is_file():
        return f". This is ImageNet as Kaggle distributes it: {_PREPARE.format(root=root)} makes the folders of links"
    shards = [folder for folder in (root, root / "data") if folder.is_dir() and any(folder.glob("*.parquet"))]
    if shards:
        return f". These are parquet shards: {_PREPARE.format(root=shards[0])} unpacks them"
    if any(name.startswith("ILSVRC2012_") and ".tar" in name for name in names):
        return f". These are ImageNet's archives: {_PREPARE.format(root=root)} unpacks them"
    parts = [name for name in names if name.startswith("train.")]
    if parts:
        return (
            f". The training images are in {', '.join(parts[:4])}: collect links to all class folders in one folder "
            "(docs/data.md)"
        )
    val = next((name for name in _OF_VALIDATION if name in names), None)
    if "train" in names and "val" not in names and val is not None:
        return f"; if {root / val} contains the validation images, run ln -s {val} {root / 'val'}"
    capital = next((name for name in names if name != name.lower() and name.lower() in ("train", "val")), None)
    if capital is not None:
        return f"; rename {root / capital} to {capital.lower()}"
    if any(name.endswith(".tar") for name in names):
        return "; unpack the archives into class folders (docs/data.md)"
    return ""
