"""Insertion of CBAM into any CNN: attention that cannot run is refused, attention that no longer runs is detected."""

import copy
import io
import multiprocessing
import operator
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import Permute

import cbam
from cbam import CBAMLayer, Insertion, InsertionError
from tests.networks import randomize_norms


class Block(nn.Module):
    """A residual block with every kind of module that attention can or must not follow."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes))
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.bn2(self.conv2(self.relu(self.conv1(x)))))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 2, padding=1)
        self.layer1 = nn.Sequential(Block(16), Block(16))
        self.last = Permute([0, 2, 3, 1])
        self.unused = nn.ReLU()
        self.owner = nn.ReLU()
        self.owner.attention = nn.Identity()
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.owner(self.layer1(self.stem(x))))
        return self.fc(x.mean((1, 2)))


AFTER = r"layer1\.\d\.bn2"


def network() -> nn.Module:
    torch.manual_seed(3)
    net = Network()
    randomize_norms(net)
    return net.eval()


def trained() -> nn.Module:
    """Return the network with attention that is not the identity."""
    net = network()
    cbam.insert(net, AFTER, start="random")
    return net


IMAGES = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(5))


def test_insert_layer_passes_the_channels() -> None:
    net = network()
    insertions = cbam.insert_layer(net, ["layer1.0", "stem"], lambda planes: nn.GroupNorm(2, planes), image_size=32)
    assert insertions == [Insertion("stem", 16, (16, 16)), Insertion("layer1.0", 16, (16, 16))]
    assert isinstance(net.layer1[0].attention, nn.GroupNorm)


def test_fixed_size_and_value_dependent_networks() -> None:
    fixed = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 32 * 32, 5))
    assert cbam.insert(fixed, "1", image_size=32) == [Insertion("1", 32, (32, 32))]

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 1 else x + 1

    branching = nn.Sequential(Branching(), nn.Conv2d(3, 8, 3))
    assert cbam.insert(branching, "1") == [Insertion("1", 8, (222, 222))]


def test_module_iterating_over_children_is_refused() -> None:
    """Attention would be one of the children and run twice."""

    class Iterating(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    with pytest.raises(InsertionError, match="after '0' would run more than once"):
        cbam.insert(nn.Sequential(Iterating(nn.Conv2d(3, 8, 3))), "0")


def test_layers_get_device_dtype_and_mode() -> None:
    net = network().to(torch.bfloat16)
    expected = net(IMAGES.bfloat16())
    net.layer1[1].train()
    cbam.insert(net, AFTER)
    assert [layer.training for layer in (net.layer1[0].bn2.attention, net.layer1[1].bn2.attention)] == [False, True]
    assert torch.equal(net.eval()(IMAGES.bfloat16()), expected)
    with torch.device("meta"):
        on_meta = Network()
    cbam.insert(on_meta, AFTER)
    assert {tensor.device.type for tensor in on_meta.state_dict().values()} == {"meta"}


def test_random_gates_follow_module_order() -> None:
    torch.manual_seed(0)
    one_by_one = [CBAMLayer(16, ratio=4), CBAMLayer(16, ratio=4)]
    for after in (AFTER, ["layer1.1.bn2", "layer1.0.bn2"]):
        net = network()
        torch.manual_seed(0)
        cbam.insert(net, after, start="random", ratio=4)
        for i, layer in enumerate(one_by_one):
            torch.testing.assert_close(net.layer1[i].bn2.attention.state_dict(), layer.state_dict(), rtol=0, atol=0)


def test_places_changes_nothing() -> None:
    net = network().train()
    net.layer1[0].bn2.eval()
    net.stem.register_forward_hook(lambda *_: pytest.fail("the network was run"))
    before = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    generator = torch.get_rng_state()
    listed = cbam.places(net, AFTER)
    assert listed == [Insertion("layer1.0.bn2", 16, (112, 112)), Insertion("layer1.1.bn2", 16, (112, 112))]
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(hasattr(module, "attention") for module in net.layer1.modules())


@pytest.mark.parametrize(
    ("after", "complaint"),
    [
        (r"bn2", "does not match any module's full name; the nearest names are 'layer1.0.bn2', 'layer1.1.bn2'."),
        (r"layer\d\.\d+\.bn3", "the nearest names are 'layer1.0.bn2', 'layer1.1.bn2'"),
        (
            ["stem", "layer1.0.bn9"],
            "'layer1.0.bn9' does not match any module's full name; the nearest names are 'layer1",
        ),
        ([], "The list of modules is empty"),
        (r"layer1\.(", "is not a regular expression"),
        (r"layer1\.0\.relu", "Attention after 'layer1.0.relu' would run more than once"),
        ("unused", "'unused' never runs"),
        ("fc", r"The output of 'fc' is torch.float32 (1, 5), not a floating-point map [N, C, H, W]"),
        ("last", r"The output of 'last' has its channels last (shape (1, 112, 112, 16))"),
        ("owner", "'owner' has its own attribute 'attention'"),
    ],
)
def test_refused_places_are_named(after: str, complaint: str) -> None:
    net = network()
    keys = net.state_dict().keys()
    for refuse in (cbam.places, cbam.insert):
        with pytest.raises(InsertionError, match=re.escape(complaint)):
            refuse(net, after)
    assert net.state_dict().keys() == keys


def test_channels_last_is_found_with_equal_sizes() -> None:
    net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), Permute([0, 2, 3, 1]))
    assert cbam.places(net, "0", image_size=32) == [Insertion("0", 32, (32, 32))]
    with pytest.raises(InsertionError, match="channels last"):
        cbam.places(net, "1", image_size=32)


def test_attention_that_is_there_is_not_matched_again() -> None:
    net = trained()
    with pytest.raises(InsertionError, match=r"Attention already follows 'layer1\.0\.bn2'; call cbam.remove before"):
        cbam.insert(net, AFTER)
    with pytest.raises(InsertionError, match="does not match any module's full name"):
        cbam.insert(net, r".*\.sa\.conv")


def test_layout_is_found_from_a_square_image() -> None:
    class ToWidth(nn.Module):
        """Scale the image to a width of 20 pixels."""

        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(x, (x.shape[2] * 20 // x.shape[3], 20))

    net = nn.Sequential(ToWidth(), nn.Conv2d(3, 8, 1), Permute([0, 2, 3, 1]))
    assert cbam.places(net, "1", image_size=32) == [Insertion("1", 8, (20, 20))]
    with pytest.raises(InsertionError, match="channels last"):
        cbam.places(net, "2", image_size=32)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_network_is_refused(in_place: bool) -> None:
    """The compiled network would keep running without attention."""
    net = network()
    compiled = torch.compile(net, backend="eager")
    if in_place:
        net.compile(backend="eager")
    with pytest.raises(InsertionError, match="insert first, then compile it"):
        cbam.insert(net if in_place else compiled, r".*\.bn2")


def test_a_network_that_cannot_be_run_is_refused() -> None:
    with pytest.raises(InsertionError, match=r"cannot be run on one image of 8x8 pixels.*set image_size"):
        cbam.insert(nn.Sequential(nn.Conv2d(3, 8, 9)), "0", image_size=8)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_a_scripted_network_is_refused() -> None:
    traced = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 8, 1)), torch.rand(1, 3, 8, 8))
    with pytest.raises(InsertionError, match="'0' is compiled by TorchScript"):
        cbam.insert(traced, "0")


@pytest.mark.parametrize("options", [{"ratio": 0}, {"start": "warm"}, {"output": "both"}])
def test_wrong_options_leave_the_network_unchanged(options: dict[str, object]) -> None:
    net = network()
    with pytest.raises(ValueError, match="must be"):
        cbam.insert(net, AFTER, **options)
    assert net.state_dict().keys() == network().state_dict().keys()


@pytest.mark.parametrize("after", [AFTER, r"layer1\.\d\.conv1", r"layer1|layer1\.\d"])
def test_remove_gives_back_the_network_as_it_was(after: str) -> None:
    net, untouched = network(), network()
    net.layer1[0].bn2.register_forward_hook(lambda *_: None)
    cbam.insert(net, after, start="random")
    assert not torch.equal(net(IMAGES), untouched(IMAGES))
    cbam.remove(net)
    assert net.state_dict().keys() == untouched.state_dict().keys()
    assert vars(net).keys() == vars(untouched).keys()
    assert sum(len(module._forward_hooks) for module in net.modules()) == 1
    assert torch.equal(net(IMAGES), untouched(IMAGES))
    assert cbam.insert(net, after)


def test_an_unknown_option_is_named_with_the_known_ones() -> None:
    net = network()
    with pytest.raises(ValueError, match=r"CBAM has no option 'reduction'; it has output, ratio, kernel_size, pooling"):
        cbam.insert(net, AFTER, reduction=8)
    assert not cbam.gates(net)


@pytest.mark.parametrize(("given", "got"), [(nn.ReLU, "ReLU, which"), (network, "network, which"), (None, "NoneType")])
def test_what_is_no_network_is_refused(given: Any, got: str) -> None:
    with pytest.raises(InsertionError, match=f"net must be a network, an instance of torch.nn.Module; got {got}"):
        cbam.insert(given, after="1")


def test_a_copy_is_independent() -> None:
    net = trained()
    expected = net(IMAGES)
    twin = copy.deepcopy(net)
    assert torch.equal(twin(IMAGES), expected)
    twin.layer1[0].bn2.attention.gain.fill_(3)
    assert torch.equal(net(IMAGES), expected)
    assert not torch.equal(twin(IMAGES), expected)
    assert cbam.check(twin) == ["layer1.0.bn2", "layer1.1.bn2"]


def test_the_whole_network_is_pickled() -> None:
    net, file = trained(), io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(IMAGES), net(IMAGES))
    assert cbam.check(again) == cbam.check(net)


def test_torch_compile_has_no_graph_break() -> None:
    net = trained().train()
    twin = copy.deepcopy(net)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for model in (net, compiled):
        F.cross_entropy(model(IMAGES), torch.tensor([0, 1])).backward()
    expected = {name: parameter.grad for name, parameter in net.named_parameters()}
    got = {name: parameter.grad for name, parameter in twin.named_parameters()}
    torch.testing.assert_close(got, expected)
    assert cbam.check(compiled) == ["_orig_mod.layer1.0.bn2", "_orig_mod.layer1.1.bn2"]


def test_torch_export() -> None:
    net = trained()
    torch.testing.assert_close(torch.export.export(net, (IMAGES,)).module()(IMAGES), net(IMAGES))


def test_onnx(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    net = trained()
    torch.onnx.export(net, (IMAGES,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: IMAGES.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), net(IMAGES), rtol=1e-4, atol=1e-4)


def test_two_processes_train_it(tmp_path: Path) -> None:
    """DistributedDataParallel averages the gradients of attention too."""
    net = trained()
    F.cross_entropy(net(IMAGES), torch.tensor([0, 1])).backward()
    with ProcessPoolExecutor(2, multiprocessing.get_context("forkserver")) as executor:
        list(executor.map(_train_half, range(2), [tmp_path] * 2))
    for rank in range(2):
        gradients = torch.load(tmp_path / f"{rank}.pt")
        assert sum(".attention." in name for name in gradients) == 6
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(gradients[f"module.{name}"], parameter.grad)


def _train_half(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    net = DistributedDataParallel(trained())
    with pytest.raises(InsertionError, match="insert first, then wrap it"):
        cbam.insert(net, r".*\.conv2")
    assert cbam.check(net) == ["module.layer1.0.bn2", "module.layer1.1.bn2"]
    F.cross_entropy(net(IMAGES[rank : rank + 1]), torch.tensor([rank])).backward()
    torch.save({name: parameter.grad for name, parameter in net.named_parameters()}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_conversion_to_syncbatchnorm_comes_first() -> None:
    """The conversion replaces modules and silently drops their hooks."""
    net = trained()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))
    assert torch.equal(converted(IMAGES), network()(IMAGES))  # attention does not run, but its parameters exist
    with pytest.raises(InsertionError, match=r"no longer runs after 'layer1\.0\.bn2', 'layer1\.1\.bn2': .*first"):
        cbam.check(converted)
    with pytest.raises(InsertionError, match="no longer runs"):
        cbam.check(converted.layer1)

    converted = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    cbam.insert(converted, AFTER)
    converted.load_state_dict(net.state_dict())
    assert torch.equal(converted(IMAGES), net(IMAGES))
    assert len(cbam.check(converted)) == 2


def fold(net: nn.Module) -> None:
    block = net.layer1[0]
    block.conv2, block.bn2 = fuse_conv_bn_eval(block.conv2, block.bn2), nn.Identity()


@pytest.mark.parametrize(
    "replace",
    [
        fold,
        lambda net: setattr(net.layer1[0].bn2, "attention", nn.Identity()),
        lambda net: operator.setitem(net.layer1, 0, nn.Identity()),
        lambda net: net.layer1[0].bn2._forward_hooks.clear(),
    ],
    ids=["folded", "attention replaced", "block replaced", "hooks cleared"],
)
def test_check_finds_replaced_modules(replace: Callable[[nn.Module], None]) -> None:
    net = trained()
    assert cbam.check(net) == ["layer1.0.bn2", "layer1.1.bn2"]
    replace(net)
    with pytest.raises(InsertionError, match=r"Attention no longer runs after 'layer1\.0\.bn2': "):
        cbam.check(net)
    cbam.remove(net)
    with pytest.raises(InsertionError, match="The network has no attention"):
        cbam.check(net)


def test_intermediate_layers() -> None:
    net = trained()
    layers = IntermediateLayerGetter(net, {"layer1": "map"})
    assert torch.equal(layers(IMAGES)["map"], net.layer1(net.stem(IMAGES)))
    assert cbam.check(layers) == ["layer1.0.bn2", "layer1.1.bn2"]


@pytest.mark.parametrize("after", [AFTER, r"layer1\.\d\.conv1"])
def test_features_by_fx(after: str) -> None:
    """Attention inside a Sequential is traced as one layer if CBAMLayer is a leaf."""
    net = network()
    cbam.insert(net, after, start="random")
    extractor = create_feature_extractor(net, {"layer1": "map"}, tracer_kwargs={"leaf_modules": [CBAMLayer]})
    assert torch.equal(extractor(IMAGES)["map"], net.layer1(net.stem(IMAGES)))
    assert len(cbam.check(extractor)) == 2
