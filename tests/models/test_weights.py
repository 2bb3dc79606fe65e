"""Start weights: published ones that are verified, files that fit, and what does not fit listed by name."""

import hashlib
import logging
import os
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision

import models
from models import pretrained, weights
from tests.networks import CLASSES, plain

pytestmark = pytest.mark.usefixtures("narrow_classifiers", "fast_initialization")


def test_learned_attention_is_not_restarted(tmp_path: Path) -> None:
    trained = models.build("resnet18_cbam", num_classes=CLASSES, start="random")
    torch.save({"model": {f"module.{key}": value for key, value in trained.state_dict().items()}}, tmp_path / "ours.pt")
    net = models.build("resnet18_cbam", weights=str(tmp_path / "ours.pt"), num_classes=CLASSES)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in trained.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "mobilenet_v2", "mobilenet_v3_small"])
def test_head_for_other_classes_is_reinitialized(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reference = plain(name)
    torch.save(reference.state_dict(), tmp_path / "weights.pt")
    with caplog.at_level(logging.INFO):
        net = models.build(f"{name}_cbam", weights=str(tmp_path / "weights.pt"), num_classes=7)
    head = {"resnet18": "fc", "vgg11": "classifier.6", "mobilenet_v2": "classifier.1"}.get(name, "classifier.3")
    assert f"head ({head}) new" in caplog.text
    assert 0.009 < net.get_submodule(head).weight.std() < 0.011
    assert not net.get_submodule(head).bias.any()
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
    assert "unexpected: layer1.0.bn2.attention.cbam.ca" in refusal("resnet18", with_cbam, file)
    del with_cbam["layer1.0.bn2.attention.cbam.sa.conv.weight"]
    assert "missing: layer1.0.bn2.attention.cbam.sa.conv.weight." in refusal("resnet18_cbam", with_cbam, file)


def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    with pytest.raises(models.ModelError, match="cannot be read"):
        models.build("resnet18", weights=str(tmp_path / "broken.pt"))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(models.ModelError, match="does not contain a state dict"):
        models.build("resnet18", weights=str(tmp_path / "list.pt"))


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of ours in the download cache, under the name of resnet18's published weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / Path(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url).name
    file.parent.mkdir(parents=True)
    torch.manual_seed(1)
    torch.save(torchvision.models.resnet18().state_dict(), file)
    return file


@pytest.fixture
def listed(cached: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, its digest being the published one as far as the code knows."""
    table = cached.with_name("digests")
    table.write_text(f"{pretrained.sha256(cached)}  {cached.name}\n")
    monkeypatch.setattr(pretrained, "_DIGESTS", table)
    return cached


@pytest.mark.usefixtures("listed")
def test_published_weights_use_the_cache() -> None:
    torch.manual_seed(1)
    published = torchvision.models.resnet18()
    net = models.build("resnet18_cbam", weights="IMAGENET1K_V1")
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(net.eval()(images), published.eval()(images))


def test_cached_file_with_other_content_is_refused(cached: Path) -> None:
    with pytest.raises(models.ModelError, match="is not the published file: its sha256 is") as caught:
        models.build("resnet18", weights="IMAGENET1K_V1")
    assert pretrained.sha256(cached) in str(caught.value)
    assert "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec" in str(caught.value)
    assert "python scripts/download_weights.py model=resnet18" in str(caught.value)


def test_one_changed_byte_is_enough(listed: Path) -> None:
    content = bytearray(listed.read_bytes())
    content[len(content) // 2] ^= 1
    listed.write_bytes(content)
    with pytest.raises(models.ModelError, match="is not the published file"):
        models.build("resnet18", weights="IMAGENET1K_V1")


def test_digest_of_a_download_is_kept_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is a file here; everything from torch's downloader on is real."""
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    served = tmp_path / f"new-{digest[:8]}.pth"
    served.write_bytes(content)
    entry = type("Entry", (), {"url": served.as_uri(), "name": "IMAGENET1K_V1"})
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))

    file = pretrained.fetch("new", entry)
    assert file.read_bytes() == content
    assert file.with_name(f"{file.name}.sha256").read_text() == f"{digest}  {file.name}\n"
    assert pretrained.fetch("new", entry) == file

    # As if somebody had found other content with the same first eight digits.
    monkeypatch.setattr(pretrained, "sha256", lambda _: digest[:8] + "0" * 56)
    with pytest.raises(models.ModelError, match=f"instead of {digest}"):
        pretrained.fetch("new", entry)


def test_download_with_wrong_digest_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new-01234567.pth").write_bytes(b"truncated")
    entry = type("Entry", (), {"url": (tmp_path / "new-01234567.pth").as_uri(), "name": "IMAGENET1K_V1"})
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    with pytest.raises(models.ModelError, match=r"could not be downloaded \(invalid hash value"):
        pretrained.fetch("new", entry)
    assert not list((tmp_path / "home").rglob("*.*"))


def test_offline_and_uncached_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no internet")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    remedies = r"run `python scripts/download_weights\.py model=vgg16`.*random weights \(model\.weights=null\)"
    with pytest.raises(models.ModelError, match=remedies):
        models.build("vgg16", weights="IMAGENET1K_V1")


def test_digest_table_matches_published_file_names() -> None:
    urls = [
        models.published_entry(name, weights).url
        for name in models.names()
        for weights in models.published(name)
    ]  # fmt: skip
    names = {Path(url).name for url in urls}
    for line in Path(pretrained.__file__).with_name("pretrained.sha256").read_text().splitlines():
        digest, name = line.split("  ")
        assert len(digest) == 64
        assert f"-{digest[:8]}.pth" in name
        assert name in names


def test_weights_without_classifier_are_not_published() -> None:
    assert models.published("vgg16") == ["IMAGENET1K_V1"]


def test_own_networks_have_no_published_weights() -> None:
    assert models.published("mobilenet_v1") == models.published("resnext101_32x4d") == []
    assert models.published_entry("mobilenet_v1", "DEFAULT") is None


def checkpoint_of(path: Path, attention: str, **options: object) -> str:
    """A checkpoint as a run writes it."""
    net = models.build("resnet18", attention, num_classes=CLASSES, **options)
    recorded = {"ratio": 16, "order": "channel_spatial", "output": "refined", "init": None, **options}
    identity = {"model.attention": attention, **{f"attention.{key}": value for key, value in recorded.items()}}
    torch.save({"model": net.state_dict(), "identity": identity}, path)
    return str(path)


@pytest.mark.parametrize(("key", "value"), [("order", "parallel"), ("output", "residual"), ("pooling", "max")])
def test_weights_of_another_attention_are_refused(key: str, value: str, tmp_path: Path) -> None:
    weights = checkpoint_of(tmp_path / "best.pt", "cbam", **{key: value})
    with pytest.raises(models.ModelError, match=f"were trained with attention {key}={value}; build the network with"):
        models.build("resnet18_cbam", weights=weights, num_classes=CLASSES)
    assert models.build("resnet18_cbam", weights=weights, num_classes=CLASSES, **{key: value})


def test_weights_without_attention_start_any_attention(tmp_path: Path) -> None:
    weights = checkpoint_of(tmp_path / "last.pt", "none")
    assert models.build("resnet18_cbam", weights=weights, num_classes=CLASSES, order="parallel")


@pytest.mark.parametrize("kind", ["complex", "sparse", "meta"])
def test_tensors_that_are_no_weights_are_named(kind: str, tmp_path: Path) -> None:
    state = models.build("resnet18", num_classes=CLASSES).state_dict()
    bias = state["fc.bias"]
    values = {"complex": bias.to(torch.complex64), "sparse": bias.to_sparse(), "meta": bias.to("meta")}
    torch.save({**state, "fc.bias": values[kind]}, tmp_path / "odd.pt")
    with pytest.raises(models.ModelError, match=r"fc\.bias in the weights file .* is not an ordinary tensor"):
        models.build("resnet18", weights=str(tmp_path / "odd.pt"), num_classes=CLASSES)


def test_wrapper_prefixes_are_dropped(tmp_path: Path) -> None:
    state = models.build("resnet18", num_classes=CLASSES).state_dict()
    torch.save({f"module._orig_mod.{key}": value for key, value in state.items()}, tmp_path / "compiled.pt")
    net = models.build("resnet18", weights=str(tmp_path / "compiled.pt"), num_classes=CLASSES)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_the_plain_state_leaves_attention_out() -> None:
    plain, cbam = models.build("resnet18", num_classes=CLASSES), models.build("resnet18_cbam", num_classes=CLASSES)
    assert models.plain_state(cbam).keys() == plain.state_dict().keys()


def test_safetensors_load(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state = models.build("resnet18", num_classes=CLASSES).state_dict()
    safetensors.save_file(state, tmp_path / "weights.safetensors")
    net = models.build("resnet18", weights=str(tmp_path / "weights.safetensors"), num_classes=CLASSES)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_safetensors_without_the_package_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(models.ModelError, match="needs the package safetensors: pip install safetensors"):
        models.build("resnet18", weights=str(tmp_path / "weights.safetensors"))


def test_an_absent_file_is_not_called_damaged(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")  # reading it would wait for ever
    for name in ("absent.pt", "pipe.pt"):
        with pytest.raises(models.ModelError, match=rf"There is no weights file .*{name}\."):
            weights.read_file(tmp_path / name, [])
