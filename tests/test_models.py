"""Every network of the zoo: published state dicts load, and CBAM put in at the identity start changes nothing."""

import logging
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import models
from cbam import CBAM

CLASSES = 5


def plain(name: str) -> nn.Module:
    """torchvision's own network with norms as after training: neither unit weights nor zero biases."""
    torch.manual_seed(3)
    net: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=CLASSES)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize("name", models.names())
def test_pretrained_networks_stay_as_they_are_when_cbam_goes_in(name: str, tmp_path: Path) -> None:
    reference = plain(name)
    file = tmp_path / "weights.pt"
    torch.save(reference.state_dict(), file)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = reference(images)
        assert torch.equal(models.build(name, weights=str(file), num_classes=CLASSES).eval()(images), expected)
        net = models.build(name, "cbam", weights=str(file), num_classes=CLASSES)
        assert torch.equal(net.eval()(images), expected)
    added = net.state_dict().keys() - reference.state_dict().keys()
    assert added
    assert all(".cbam." in key for key in added)
    assert reference.state_dict().keys() <= net.state_dict().keys()


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg11", "vgg11_bn", "mobilenet_v2", "mobilenet_v3_small"])
def test_the_residual_output_starts_at_identity_up_to_rounding(name: str, tmp_path: Path) -> None:
    reference = plain(name)
    torch.save(reference.state_dict(), tmp_path / "weights.pt")
    images = torch.randn(2, 3, 64, 64)
    weights = str(tmp_path / "weights.pt")
    with torch.inference_mode():
        net = models.build(name, "cbam", weights=weights, num_classes=CLASSES, output="residual").eval()
        torch.testing.assert_close(net(images), reference(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("resnet18", 8),
        ("resnet50", 16),
        ("resnet152", 50),
        ("vgg16", 5),
        ("mobilenet_v2", 17),
        ("mobilenet_v3_small", 11),
    ],
)
def test_attention_goes_into_every_block_or_stage(name: str, modules: int) -> None:
    net = models.build(f"{name}_cbam", num_classes=CLASSES)
    assert sum(isinstance(module, CBAM) for module in net.modules()) == modules


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg11_bn", "mobilenet_v2", "mobilenet_v3_small"])
def test_attention_comes_before_the_shortcut_or_the_pooling(name: str) -> None:
    """Scaling one attention layer's output must scale exactly the branch that the paper puts it on."""
    net = models.build(f"{name}_cbam", num_classes=CLASSES).eval()
    seen: list[tuple[int, ...]] = []
    for module in net.modules():
        if isinstance(module, CBAM):
            module.ca.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[1:])))
    net(torch.randn(1, 3, 64, 64))
    expected = {
        "resnet18": [(64, 16, 16)] * 2 + [(128, 8, 8)] * 2 + [(256, 4, 4)] * 2 + [(512, 2, 2)] * 2,
        "resnet50": [(256, 16, 16)] * 3 + [(512, 8, 8)] * 4 + [(1024, 4, 4)] * 6 + [(2048, 2, 2)] * 3,
        "vgg11_bn": [(64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 8, 8), (512, 4, 4)],
        "mobilenet_v2": [(16, 32, 32)] + [(24, 16, 16)] * 2 + [(32, 8, 8)] * 3 + [(64, 4, 4)] * 4 + [(96, 4, 4)] * 3
        + [(160, 2, 2)] * 3 + [(320, 2, 2)],
        "mobilenet_v3_small": [(16, 16, 16)] + [(24, 8, 8)] * 2 + [(40, 4, 4)] * 3 + [(48, 4, 4)] * 2
        + [(96, 2, 2)] * 3,
    }  # fmt: skip
    assert seen == expected[name]


def test_a_closed_gate_leaves_the_shortcut() -> None:
    """Attention stands on the branch, before the addition: with its output at zero a block is its shortcut alone."""
    net = models.build("resnet18_cbam", num_classes=CLASSES).eval()
    block = net.layer1[1]
    block.attention = nn.Threshold(float("inf"), 0.0)
    x = torch.rand(1, 64, 8, 8)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "mobilenet_v2", "mobilenet_v3_small"])
def test_under_one_seed_the_backbone_starts_alike_with_and_without_attention(name: str) -> None:
    torch.manual_seed(51)
    without = models.build(name, num_classes=CLASSES).state_dict()
    torch.manual_seed(51)
    with_cbam = models.build(name, "cbam", num_classes=CLASSES).state_dict()
    assert all(torch.equal(with_cbam[key], value) for key, value in without.items())


def test_the_random_start_leaves_pretrained_weights_unscaled_and_gates_random(tmp_path: Path) -> None:
    reference = plain("resnet18")
    torch.save(reference.state_dict(), tmp_path / "weights.pt")
    net = models.build("resnet18_cbam", weights=str(tmp_path / "weights.pt"), num_classes=CLASSES, start="random")
    assert torch.equal(net.layer1[0].bn2.weight, reference.layer1[0].bn2.weight)
    assert net.layer1[0].attention.cbam.sa.conv.weight.abs().min() > 0


def test_weights_with_learned_attention_load_without_a_new_start(tmp_path: Path) -> None:
    trained = models.build("resnet18_cbam", num_classes=CLASSES, start="random")
    torch.save({"model": {f"module.{key}": value for key, value in trained.state_dict().items()}}, tmp_path / "ours.pt")
    net = models.build("resnet18_cbam", weights=str(tmp_path / "ours.pt"), num_classes=CLASSES)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in trained.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "mobilenet_v2", "mobilenet_v3_small"])
def test_a_head_for_another_number_of_classes_starts_anew_and_says_so(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reference = plain(name)
    torch.save(reference.state_dict(), tmp_path / "weights.pt")
    with caplog.at_level(logging.INFO):
        net = models.build(f"{name}_cbam", weights=str(tmp_path / "weights.pt"), num_classes=7)
    assert "starts anew" in caplog.text
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def refusal(name: str, state: dict[str, torch.Tensor], file: Path) -> str:
    torch.save(state, file)
    with pytest.raises(models.ModelError) as caught:
        models.build(name, weights=str(file), num_classes=CLASSES)
    return str(caught.value)


def test_what_does_not_fit_is_listed_by_name(tmp_path: Path) -> None:
    state = plain("resnet18").state_dict()
    file = tmp_path / "weights.pt"
    without = {key: value for key, value in state.items() if key != "layer1.0.conv1.weight"}
    assert "missing: layer1.0.conv1.weight" in refusal("resnet18", without, file)
    assert "unexpected: extra" in refusal("resnet18", state | {"extra": torch.zeros(1)}, file)
    assert "reshaped: conv1.weight" in refusal("resnet18", state | {"conv1.weight": torch.zeros(1)}, file)
    with_cbam = models.build("resnet18_cbam", num_classes=CLASSES).state_dict()
    assert "unexpected: layer1.0.attention.cbam.ca" in refusal("resnet18", with_cbam, file)
    del with_cbam["layer1.0.attention.cbam.sa.conv.weight"]
    assert "missing: layer1.0.attention.cbam.sa.conv.weight." in refusal("resnet18_cbam", with_cbam, file)


def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    with pytest.raises(models.ModelError, match="cannot be read"):
        models.build("resnet18", weights=str(tmp_path / "broken.pt"))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(models.ModelError, match="holds no state dict"):
        models.build("resnet18", weights=str(tmp_path / "list.pt"))


def test_published_weights_come_from_the_download_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real loading path of torchvision, with a file of ours under the published file's name."""
    import hashlib

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(1)
    published = torchvision.models.resnet18()
    entry = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    cached = tmp_path / "hub" / "checkpoints" / Path(entry.url).name
    cached.parent.mkdir(parents=True)
    torch.save(published.state_dict(), cached)
    assert hashlib.sha256(cached.read_bytes()).hexdigest()
    net = models.build("resnet18_cbam", weights="IMAGENET1K_V1")
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(net.eval()(images), published.eval()(images))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"name": "resnet51"}, "Unknown model 'resnet51'; known are resnet18"),
        ({"name": "resnet50", "attention": "cbma"}, "Unknown attention 'cbma'; known are none, cbam"),
        ({"name": "resnet50_cbam", "attention": "none"}, "contradict each other"),
        ({"name": "resnet18", "weights": "IMAGENET1K_V9"}, "neither a file nor published for resnet18; published are"),
        ({"name": "resnet18_cbam", "ratio": 0}, "ratio must be a positive integer"),
        ({"name": "resnet18_cbam", "kernel_size": 4}, "kernel_size must be odd"),
        ({"name": "resnet18_cbam", "output": "both"}, "output must be one of refined, residual"),
        ({"name": "resnet18_cbam", "flavour": 1}, "flavour"),
        ({"name": "resnet18", "num_classes": 0}, "num_classes must be at least 1"),
        ({"name": "resnet18_cbam", "start": "warm"}, "Unknown start 'warm'"),
    ],
)
def test_what_cannot_be_built_is_an_error_in_a_sentence(arguments: dict[str, object], complaint: str) -> None:
    with pytest.raises(models.ModelError, match=complaint):
        models.build(**arguments)


def test_there_is_a_config_for_every_model_and_no_other() -> None:
    folder = Path(__file__).resolve().parent.parent / "configs" / "model"
    there = {file.stem for file in folder.glob("*.yaml")}
    assert there == {name + suffix for name in models.names() for suffix in ("", "_cbam")}
