"""The paper's tables as configurations: each row is the network that the paper counted, parameter for parameter."""

import re
import subprocess
import sys

import pytest
import torch
from hydra import initialize_config_dir
from hydra.errors import HydraException

import models
from engine import cli
from engine.analysis.complexity import gflops, parameters
from engine.config import presets
from engine.config.presets import CONFIGS
from engine.config.schemas import TrainConfig
from tests.conftest import Command, script_module
from tests.processes import REPOSITORY

# Tables 4 and 5: exact counts without attention, with SE and with CBAM, and the millions that the paper prints.
# They come of MLPs with biases, and of a BatchNorm after the 7x7: `cbam_official`.
TABLES_4_AND_5 = {
    "resnet18": ((11_689_512, 11_778_592, 11_779_392), (11.69, 11.78, 11.78)),
    "resnet34": ((21_797_672, 21_958_868, 21_960_468), (21.80, 21.96, 21.96)),
    "resnet50": ((25_557_032, 28_088_024, 28_089_624), (25.56, 28.09, 28.09)),
    "resnet101": ((44_549_160, 49_326_872, 49_330_172), (44.55, 49.33, 49.33)),
    "resnet18_w15": ((25_875_816, 26_074_716, 26_075_516), (25.88, 26.07, 26.08)),
    "resnet18_w20": ((45_618_216, 45_970_456, 45_971_256), (45.62, 45.97, 45.97)),
    "resnext50_32x4d": ((25_028_904, 27_559_896, 27_561_496), (25.03, 27.56, 27.56)),
    "resnext101_32x4d": ((44_177_704, 48_955_416, 48_958_716), (44.18, 48.96, 48.96)),
    "mobilenet_v1": ((4_231_976, 5_072_114, 5_074_714), (4.23, 5.07, 5.07)),
    # The one that does not round to what is printed is SE: 2.70 against 2.71.
    "mobilenet_v1_a07": ((2_298_747, 2_704_594, 2_707_194), (2.30, 2.71, 2.71)),
}

# Tables 1 to 3, all of ResNet-50: the options of each row, and its count.
TABLES_1_TO_3 = {
    "attention=none": 25_557_032,
    "attention=se": 28_088_024,
    "attention=cbam attention.mlp_bias=true attention.order=channel": 28_088_024,
    "attention=cbam attention.mlp_bias=true attention.order=channel attention.pooling=max": 28_088_024,
    "attention=cbam_official attention.spatial_pooling=conv attention.kernel_size=3": 28_103_304,
    "attention=cbam_official attention.spatial_pooling=conv": 28_103_944,
    "attention=cbam_official attention.kernel_size=3": 28_088_344,
    "attention=cbam_official": 28_089_624,
    "attention=cbam_official attention.order=spatial_channel": 28_089_624,
    "attention=cbam_official attention.order=parallel": 28_089_624,
}


def composed(*arguments: str) -> TrainConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        parsed = presets.parse(presets.compose("train", [*arguments, "data.root=data"]))
    assert isinstance(parsed, TrainConfig)
    return parsed


def network(configured: TrainConfig) -> torch.nn.Module:
    with torch.device("meta"):  # shapes without memory
        return models.build(configured.model.name, configured.model.attention, **configured.attention_options)


@pytest.mark.parametrize("column", [0, 1, 2], ids=["none", "se", "cbam_official"])
@pytest.mark.parametrize("name", TABLES_4_AND_5)
def test_tables_4_and_5_parameter_counts(name: str, column: int) -> None:
    exact, printed = TABLES_4_AND_5[name]
    attention = ("none", "se", "cbam_official")[column]
    count = parameters(network(composed(f"model={name}", f"attention={attention}")))
    assert count == exact[column]
    within = 0.01 if (name, attention) == ("mobilenet_v1_a07", "se") else 0.005
    assert abs(count / 1e6 - printed[column]) <= within


@pytest.mark.parametrize("options", TABLES_1_TO_3)
def test_tables_1_to_3_parameter_counts(options: str) -> None:
    assert parameters(network(composed("model=resnet50", *options.split()))) == TABLES_1_TO_3[options]


@pytest.mark.parametrize(
    ("arguments", "label"),
    [
        (["model=resnet50"], "resnet50"),
        (["model=resnet50_se"], "resnet50_se"),
        (["model=resnet50_cbam", "attention.ratio=8"], "resnet50_cbam-ratio.8"),
        (["model=resnet50_cbam", "attention=cbam_official"], "resnet50_cbam-mlp_bias-spatial_norm"),
        (["model=resnet50_cbam", "attention.after=layer4"], "resnet50_cbam-after.layer4"),
        (["model=resnet50_cbam", r"attention.after='layer\d'"], "resnet50_cbam-after.layer_d.989190"),
        (["model=timm", "model.name=convnext_atto", "attention=cbam"], "timm.convnext_atto_cbam"),
        (["model=custom", "model.factory=own.networks:net"], "own.networks.net"),
        (["model=resnet50_eca"], "resnet50_eca"),
        (["model=resnet50_eca", "attention.gamma=1.5", "attention.beta=1"], "resnet50_eca-gamma.1.5"),
        (
            ["model=resnet50", "attention=custom", "attention.factory=own.gates:Gate", "attention.options.width=8"],
            "resnet50_own.gates.Gate-width.8",
        ),
    ],
)
def test_run_name_has_what_differs(arguments: list[str], label: str) -> None:
    assert composed(*arguments).model_label == label


@pytest.mark.parametrize("recipe", ["paper", "scratch"])
def test_scratch_recipe_starts_from_random_weights(recipe: str) -> None:
    assert composed("model=resnet50_cbam").model.weights == "IMAGENET1K_V1"
    assert composed(f"recipe={recipe}", "model=resnet50_cbam").model.weights is None
    assert composed("model=resnet50_cbam", "model.weights=own.pt", f"recipe={recipe}").model.weights == "own.pt"


@pytest.mark.parametrize(("model", "kind"), [("resnet50", "none"), ("resnet50_se", "se")])
def test_an_option_of_cbam_is_refused_elsewhere(model: str, kind: str) -> None:
    with pytest.raises(HydraException) as refused:
        composed(f"model={model}", "attention.kernel_size=3")
    advice = "add attention=cbam, or leave it out" if kind == "none" else "leave it out"
    assert cli._sentence(refused.value).startswith(
        f"attention.kernel_size is not an option of attention={kind}; {advice} (known keys: "
    )


def test_multiply_adds_match_the_paper() -> None:
    """Not of the bottleneck networks: torchvision's stride is elsewhere in the block."""
    for name, attention, printed in (
        ("resnet18", "cbam_official", 1.815),
        ("resnet34", "none", 3.664),
        ("resnet18_w15", "se", 3.867),
        ("resnet18_w20", "cbam_official", 6.697),
        ("mobilenet_v1", "se", 0.570),
    ):
        assert round(gflops(network(composed(f"model={name}", f"attention={attention}")), 224), 3) == printed


def test_the_stored_list_is_what_is_computed() -> None:
    """For every network of the paper and one of several others; the errors are those of the paper."""
    script = script_module("list_models")
    listed = {row[0]: row for row in script.stored()}
    assert list(listed) == models.names()
    sample = [*TABLES_4_AND_5, "vgg11", "regnet_x_400mf", "densenet121", "mnasnet0_5", "inception_v3"]
    assert script.compute(sample) == [listed[name] for name in sample]
    assert {name for name, row in listed.items() if row[-1] != "-"} == TABLES_4_AND_5.keys()


def test_networks_are_listed_without_importing_torch(command: Command) -> None:
    done = command("scripts/list_models.py")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert re.split(r"  +", lines["resnet50"]) == [
        *("resnet50", "ResNet", "25.56M", "4.089", "224", "IMAGENET1K_V1, IMAGENET1K_V2"),
        *("24.56 / 7.50", "23.14 / 6.70", "22.66 / 6.31"),
    ]
    code = "import runpy, sys; runpy.run_path('scripts/list_models.py'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


@pytest.mark.slow
def test_the_whole_stored_list_is_what_is_computed() -> None:
    script = script_module("list_models")
    assert script.compute(models.names()) == script.stored()
