"""docs/any_cnn.ipynb: executed, small, and its code still runs."""

import json
from typing import Any

import pytest

from tests.processes import REPOSITORY

NOTEBOOK = REPOSITORY / "docs" / "any_cnn.ipynb"


def code_cells() -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_it_is_small_and_executed() -> None:
    cells = code_cells()
    assert NOTEBOOK.stat().st_size < 200_000
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert "equal logits: True" in json.dumps(outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_its_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    matplotlib.use("agg")
    names: dict[str, Any] = {}
    for cell in code_cells():
        exec("".join(cell["source"]), names)
    printed = capsys.readouterr().out
    assert "equal logits: True" in printed
    assert "all names kept: True" in printed
    assert max(names["losses"][-3:]) < names["losses"][0]
    assert names["spatial"]["layer1.0.bn2"].shape == (2, 1, 12, 12)
