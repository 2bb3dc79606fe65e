"""Real annotated images, where they are at hand."""

import zipfile
from pathlib import Path

import pytest

from tests.processes import REPOSITORY

SAMPLES = REPOSITORY.parent / "shared" / "data"


def extracted(archive: str, into: Path) -> Path:
    file = SAMPLES / archive
    if not file.is_file():
        pytest.skip(f"the sample {archive} is not at hand")
    with zipfile.ZipFile(file) as content:
        content.extractall(into)
    return into


@pytest.fixture(scope="session")
def bccd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BCCD: 364 photographs of blood cells in VOC's layout."""
    return extracted("bccd.zip", tmp_path_factory.mktemp("bccd")) / "BCCD"


@pytest.fixture(scope="session")
def coco_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 + 30 images of COCO 2017."""
    return extracted("coco-sample-60.zip", tmp_path_factory.mktemp("coco"))
