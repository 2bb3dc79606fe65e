"""Every entry point with names that are not ASCII, where the locale and the streams are."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.commands import arguments, replaced
from tests.networks import SMALL_CBAM
from tests.processes import REPOSITORY

# Forks for each entry point: torch is imported once, and not taken down each time.
DRIVER = """
import gc, json, os, runpy, sys
import evaluate, train
gc.freeze()
for script, arguments, _ in json.loads(sys.argv[1]):
    if os.fork() == 0:
        sys.argv = [script, *arguments]
        code = 0
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        os._exit(code or 0)
    print("exit", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def test_entry_points_accept_names_outside_the_locale(folders: Path, tmp_path: Path) -> None:
    root, run, table = tmp_path / "bildér", "läufe $x", "tabélle"
    shutil.copytree(folders, root)
    for split in ("train", "val"):
        (root / split / "class0").rename(root / split / "café $x^2$")
    given = [f'data.root="{root}"' if argument.startswith("data.root") else argument for argument in arguments(root)]
    small = replaced(given, *SMALL_CBAM, "model.weights=null", "recipe.epochs=1")
    image = root / "val" / "café $x^2$" / "0.JPEG"
    calls = [
        ("train.py", [*small, f'run.dir="{run}"'], 0),
        ("evaluate.py", [*given[:6], "runtime.device=cpu", f'runs="{run}"', f'table.dir="{table}"'], 0),
        ("scripts/render_table.py", [table], 0),
        ("scripts/verify_run.py", [run], 0),
        ("scripts/show_attention.py", [f"runs={run}", f"image={image}", "target=café $x^2$", "file=bild$é$.png"], 0),
        ("scripts/hash_batches.py", small, 0),
        ("scripts/sweep.py", ["sweep=demo", f'data.root="{root}"'], 0),
        ("scripts/export.py", [*SMALL_CBAM, "model.weights=null", 'file="kein/nétz.pt2"'], 2),
        ("scripts/convert_official.py", ["model=resnet18", "source=ö.pth", "target=x.pt"], 2),
        ("scripts/download_weights.py", ["model=ü"], 2),
        ("scripts/prepare_imagenet.py", ["archives=ü", "target=ö"], 2),
        ("scripts/benchmark.py", ["--machine=ü", "--images=ö"], 2),
    ]
    paths = [(str(REPOSITORY / script), list(map(str, words)), code) for script, words, code in calls]
    environment = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(paths)],
        cwd=tmp_path,
        env=os.environ | environment | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
    )
    output, errors = done.stdout.decode(), done.stderr.decode()
    assert [line.split()[1] for line in output.splitlines() if line.startswith("exit ")] == [
        str(code) for _, _, code in calls
    ], errors
    assert errors.count("\n") == errors.count("error: ") == 5, errors
    assert "There is no weights file ö.pth." in errors
    assert (tmp_path / "bild$é$.png").is_file()
