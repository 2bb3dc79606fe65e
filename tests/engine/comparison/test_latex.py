"""The committed tables in LaTeX: they compile and fit the full width of a two-column page."""

import shutil
import subprocess
from pathlib import Path

import pytest

RESULTS = Path(__file__).resolve().parents[3] / "results"
TABLES = sorted(RESULTS.rglob("table.tex"))
DOCUMENT = r"""\documentclass[twocolumn]{article}
\usepackage{booktabs,tabularx}
\begin{document}
Text.
%s
\end{document}
"""


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex with booktabs and tabularx")
def test_committed_tables_fit_a_page(tmp_path: Path) -> None:
    inputs = "\n".join(rf"\input{{{table}}}\clearpage" for table in TABLES)
    (tmp_path / "page.tex").write_text(DOCUMENT % inputs)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1500:]
    assert "Overfull" not in done.stdout
    assert "Float too large" not in done.stdout


@pytest.mark.parametrize("table", TABLES, ids=lambda table: str(table.parent.relative_to(RESULTS)))
def test_committed_tables_are_floats_of_numbers(table: Path) -> None:
    text = table.read_text(encoding="utf-8")
    assert text.count(r"\caption{") == text.count(r"\label{tab:") == text.count(r"\toprule") == 1
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    for line in body.splitlines()[1:]:
        cells = line.split(" & ")[2:]
        assert not any(word.isalpha() and len(word) > 1 for cell in cells for word in cell.split())
