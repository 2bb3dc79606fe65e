"""The package as other projects use it: pip, torch.hub, weights."""

import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import hubconf
import models
from tests.commands import assert_one_line
from tests.conftest import Command
from tests.networks import CLASSES
from tests.processes import REPOSITORY

pytestmark = pytest.mark.usefixtures("narrow_classifiers")


PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]


def test_torch_hub_loads_every_name(tmp_path: Path) -> None:
    entries = set(dir(hubconf)) - {"dependencies"}
    suffixes = ("", *(f"_{kind}" for kind in models.ATTENTION_KINDS))
    assert entries == {name + suffix for name in models.names() for suffix in suffixes}
    net = models.build("resnet18_cbam", num_classes=CLASSES)
    torch.save(net.state_dict(), tmp_path / "ours.pt")
    loaded = torch.hub.load(
        str(REPOSITORY), "resnet18_cbam", source="local", weights=str(tmp_path / "ours.pt"), num_classes=CLASSES
    )
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.eval()(images), net.eval()(images))


def test_torch_hub_refuses_another_models_package(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text("")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import models, torch\n"
        f"torch.hub.load({str(REPOSITORY)!r}, 'resnet18', source='local')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: Another package named `models` is already imported" in done.stderr


def test_unpublished_weights_are_refused(command: Command) -> None:
    assert_one_line(
        command("scripts/download_weights.py", "model=mobilenet_v1"), "publishes no weights for mobilenet_v1"
    )


def test_pip_installs_the_module_alone(tmp_path: Path) -> None:
    clone, site = tmp_path / "clone", tmp_path / "site"
    shutil.copytree(REPOSITORY / "cbam", clone / "cbam")
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / file, clone)
    subprocess.run([*PIP, "--target", site, clone], check=True)
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {"cbam"}
    (installed,) = metadata.distributions(path=[str(site)])
    assert [need for need in installed.requires or [] if "extra ==" not in need] == ["torch>=2.11"]
    use = "import cbam, torch; print(cbam.__file__, cbam.CBAM(8)(torch.rand(1, 8, 5, 5))[0].shape)"
    used = subprocess.run([sys.executable, "-c", use], cwd=site, capture_output=True, text=True, check=True)
    assert used.stdout == f"{site / 'cbam' / '__init__.py'} torch.Size([1, 8, 5, 5])\n"
