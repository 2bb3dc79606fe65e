"""The recipe files: each composes, states where it is from, and trains an epoch; docs/recipes.md has their values."""

import json
import re
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from engine.config import presets
from engine.config.presets import CONFIGS
from engine.config.schemas import TrainConfig
from tests.conftest import Command
from tests.networks import SMALL_CBAM
from tests.processes import REPOSITORY

MODERN = ("torchvision_v2", "finetune_modern", "convnext_finetune", "attention_only")
PAGE = REPOSITORY / "docs" / "recipes.md"


def composed(recipe: str) -> TrainConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        parsed: TrainConfig = presets.parse(presets.compose("train", ["model=resnet50_cbam", f"recipe={recipe}"]))
    return parsed


def test_torchvisions_recipe_is_its_published_one() -> None:
    found = composed("torchvision_v2")
    recipe = found.recipe
    assert found.model.weights is None
    assert (recipe.batch_size, recipe.lr, recipe.schedule, recipe.warmup_epochs) == (8 * 128, 0.5, "cosine", 5)
    assert (recipe.epochs, recipe.augment, recipe.erase) == (600, "trivialaugment", 0.1)
    assert (recipe.weight_decay, recipe.decay_norms_and_biases, recipe.label_smoothing) == (2e-5, False, 0.1)
    assert (recipe.mixup, recipe.cutmix, recipe.repeated_augmentation) == (0.2, 1.0, 4)
    assert (recipe.ema_decay, recipe.ema_every_steps) == (0.99998, 32)
    assert [round(224 * ratio) for ratio in (recipe.train_size_ratio, recipe.resize_ratio)] == [176, 232]


@pytest.mark.parametrize("recipe", MODERN)
def test_recipes_state_source_accuracy_and_cost(recipe: str) -> None:
    comment = re.split(r"^[^#]", (CONFIGS / "recipe" / f"{recipe}.yaml").read_text(), maxsplit=1, flags=re.MULTILINE)[0]
    for part in ("# Source: ", "# Published: ", "# Cost: "):
        assert part in comment


@pytest.mark.parametrize("recipe", MODERN)
def test_the_page_has_the_values_of_a_recipe(recipe: str) -> None:
    values = OmegaConf.load(CONFIGS / "recipe" / f"{recipe}.yaml")
    values = values.get("recipe", values)
    header, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if line.startswith("|")
    ]
    table = {row[0].strip("`"): row[header.index(f"`{recipe}`")] for row in rows}
    assert values.pop("name") == recipe
    for key, value in values.items():
        assert OmegaConf.create(f"value: {table[key]}").value == value, key


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the first test generates the images."""
    return tmp_path_factory.mktemp("data") / "shapes"


@pytest.mark.parametrize("recipe", MODERN)
def test_a_recipe_trains_an_epoch(recipe: str, command: Command, shapes: Path, tmp_path: Path) -> None:
    done = command(
        *("train.py", *SMALL_CBAM, "data=shapes", "data.classes=2", f"recipe={recipe}"),
        *(
            f"data.root={shapes}",
            "model.weights=null",
            "run.dir=run",
            "recipe.epochs=1",
            "recipe.warmup_epochs=0",
            "recipe.batch_size=64",
        ),
        *("data.image_size=40", "data.resize=null", "runtime.workers=0", "run.pictures=0"),
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run/record.json").read_text())
    assert (record["status"], record["epochs"]) == ("finished", 1)
    assert (record["weights"] == "moving average") == (recipe in ("torchvision_v2", "finetune_modern"))
    assert (record["trained_parameters"] < record["parameters"]) == (recipe == "attention_only")
    assert ("attention: " in done.stdout and " parameters (" in done.stdout) == (recipe == "attention_only")
    assert record["preprocessing"]["resize"] == round(40 * (1.0357 if recipe == "torchvision_v2" else 256 / 224))
