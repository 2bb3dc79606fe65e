"""The event files that a run leaves, read back."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from torchvision.io import decode_image

from engine.errors import UserError
from engine.training.tensorboard import TensorBoardLogger
from tests.commands import arguments
from tests.networks import SMALL, SMALL_CBAM
from tests.processes import Process, free_port

# The network of SMALL_CBAM, and its attention with the digest of its places.
NAME, PLACES = "tests.networks.small", "cbam-after.1_4.0a538c"


@pytest.fixture(scope="module")
def run(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs that was stopped in the second and went on."""
    folder = tmp_path_factory.mktemp("tensorboard")
    drawn = ("run.pictures=2", "run.root=runs", "recipe.attention_lr_factor=10")
    given = arguments(folders, *SMALL_CBAM, "model.weights=null", "recipe.epochs=3", *drawn)
    process = Process("train.py", given, folder, {})
    while process.wait(0.02) is None and "epoch 1/3; " not in process.output.read_text():
        pass
    os.kill(process.pid, signal.SIGTERM)
    assert process.result().returncode == os.EX_TEMPFAIL
    time.sleep(1.1)  # event files are told apart by the second
    result = Process("train.py", given, folder, {}).result()
    assert "Resuming after 1 epochs" in result.stdout
    return folder / "runs" / "small" / f"{NAME}_{PLACES}" / "seed51"


@pytest.fixture(scope="module")
def events(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0, "histograms": 0}).Reload()


def steps(events: EventAccumulator, tag: str) -> list[int]:
    return [event.step for event in events.Scalars(tag)]


def test_curves_over_images_seen_do_not_fork(events: EventAccumulator) -> None:
    assert steps(events, "accuracy/top1_val") == [0, 48, 96, 144]
    assert steps(events, "loss/train") == [48, 96, 144]
    epochs = [(event.step, event.value) for event in events.Scalars("progress/epoch")]
    assert epochs == [(0, 0), (48, 1), (96, 2), (144, 3)]
    for tag in ("lr", "lr/attention", "loss/step", "gradient_norm"):
        assert steps(events, tag) == list(range(16, 145, 16)), tag
    assert [e.value for e in events.Scalars("lr/attention")] == pytest.approx(
        [10 * e.value for e in events.Scalars("lr")]
    )
    for tag in events.Tags()["scalars"]:
        assert steps(events, tag) == sorted(set(steps(events, tag))), tag


def test_the_loss_of_a_step_is_its_own(events: EventAccumulator) -> None:
    """The mean over an epoch's steps is the epoch's loss; a running mean would start equal and end at it."""
    values = [event.value for event in events.Scalars("loss/step")]
    means = [sum(values[start : start + 3]) / 3 for start in (0, 3, 6)]
    assert means == pytest.approx([event.value for event in events.Scalars("loss/train")], rel=1e-5)
    assert values[2] != pytest.approx(means[0], rel=1e-5)
    assert all(event.value > 0 for event in events.Scalars("gradient_norm"))


def test_few_charts_and_gate_distributions(events: EventAccumulator) -> None:
    charts = sorted({tag.partition("/")[0] for tag in events.Tags()["scalars"]})
    assert charts == ["accuracy", "gates", "gradient_norm", "loss", "lr", "progress", "speed"]
    assert steps(events, "gates/movement_mean") == steps(events, "gates/movement_largest") == [0, 48, 96, 144]
    gates = events.Tags()["histograms"]
    assert len(gates) == 2 * 2  # layers, gates of each
    found = events.Histograms("gates/4 spatial")
    assert [each.step for each in found] == [0, 48, 96, 144]
    assert found[0].histogram_value.num == 21 * 7 * 7  # the first batch: 21 images, maps of 7 x 7


def test_pictures_decode_in_tensorboard_and_in_the_run(run: Path, events: EventAccumulator) -> None:
    pytest.importorskip("matplotlib")
    images = events.Images("Grad-CAM and spatial gates")
    assert [image.step for image in images] == [0, 48, 96, 144]
    files = sorted((run / "pictures").iterdir())
    assert [file.name for file in files] == [f"epoch{epoch:03d}.png" for epoch in range(4)]
    assert decode_image(str(files[-1])).shape[1:] == (images[-1].height, images[-1].width)


def test_hyperparameters_and_metrics_are_logged(run: Path, events: EventAccumulator) -> None:
    assert [path for path in run.rglob("events.out*") if path.parent != run] == []
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    started = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert started["model"].string_value == NAME
    assert started["attention"].string_value == PLACES
    assert started["seed"].number_value == 51
    content = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    columns = [info.name for info in plugin_data_pb2.HParamsPluginData.FromString(content).experiment.hparam_infos]
    # The network, then the keys that differ from the preset.
    assert columns[:6] == ["model", "attention", "seed", "recipe", "epochs", "batch_size"]
    metrics = [info.name.tag for info in plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos]
    assert "accuracy/top1_val" in metrics
    assert set(metrics) <= set(events.Tags()["scalars"])


def test_layout_pairs_train_and_validation(events: EventAccumulator) -> None:
    layout = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    pairs = [list(chart.multiline.tag) for chart in layout.category[0].chart]
    assert pairs[0] == ["accuracy/top1_train", "accuracy/top1_val"]
    assert pairs[-1] == ["loss/train", "loss/val"]
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "factory: tests.networks:small" in text


@pytest.fixture(scope="module")
def tensorboard(run: Path, folders: Path) -> Iterator[str]:
    """The address of a live TensorBoard over two runs."""
    root = run.parents[2]
    given = arguments(folders, *SMALL, "model.weights=null", "recipe.epochs=1")
    assert Process("train.py", [*given, f"run.root={root}"], root.parent, {}).result().returncode == 0
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(root),
        "--port",
        str(port),
        "--load_fast=false",
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if b"cbam" in urllib.request.urlopen(f"{address}/data/runs").read():
                break
        except OSError:
            time.sleep(0.3)
    yield address
    server.kill()
    server.wait()


@pytest.mark.skipif(
    shutil.which("chromium") is None or shutil.which("chromedriver") is None,
    reason="needs a browser (apt-get install chromium chromium-driver)",
)
def test_browser_shows_curves_and_hyperparameters(tensorboard: str, tmp_path: Path) -> None:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"):
        options.add_argument(f"--{flag}")
    options.add_argument("--disable-background-networking")
    options.add_argument("--disable-component-update")
    options.add_argument("--window-size=1600,1200")
    options.add_argument(f"--user-data-dir={tmp_path}")
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    names = [f"small/{NAME}/seed51", f"small/{NAME}_{PLACES}/seed51"]
    try:
        browser.get(f"{tensorboard}/?tagFilter=accuracy%2Ftop1_val#timeseries")
        wait_for_text(browser, [*names, "top1_val"])
        lines = "return document.querySelectorAll('scalar-card line-chart').length"
        deadline = time.monotonic() + 60
        while browser.execute_script(lines) < 1:
            assert time.monotonic() < deadline
            time.sleep(0.3)
        browser.get(f"{tensorboard}/#hparams")
        wait_for_text(browser, [*names, "cbam"])
    finally:
        browser.quit()


def wait_for_text(browser: object, expected: list[str]) -> None:
    """Until the page shows all of it, in elements below shadow roots and frames too."""
    script = """
        const texts = [];
        const visit = (node) => {
            if (node.nodeType === Node.TEXT_NODE) texts.push(node.textContent);
            if (node.shadowRoot) visit(node.shadowRoot);
            if (node.contentDocument) visit(node.contentDocument.documentElement);
            node.childNodes.forEach(visit);
        };
        visit(document.documentElement);
        return texts.join(" ").replace(/\\u200b/g, "");
    """
    deadline = time.monotonic() + 60
    while not all(part in (text := browser.execute_script(script)) for part in expected):  # type: ignore[attr-defined]
        assert time.monotonic() < deadline, text[-3000:]
        time.sleep(0.3)


def test_a_clock_set_back_hides_no_curve(tmp_path: Path) -> None:
    for start, seconds in ((0, 5_000_000_000), (3, 0)):
        logger = TensorBoardLogger(tmp_path, purge_from=start)
        for step in range(start, start + 3):
            logger.metrics("val", {"top1": float(step)}, step)
        logger.close()
        if seconds:
            (written,) = tmp_path.iterdir()
            written.rename(tmp_path / re.sub(r"tfevents\.\d+", f"tfevents.{seconds}", written.name))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("accuracy/top1_val")] == [0, 1, 2, 3, 4, 5]


def test_a_file_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"TensorBoard's file in .*/file cannot be written \("):
        TensorBoardLogger(tmp_path / "file", purge_from=0)
