"""The main table as a LaTeX float that fits the full width of a two-column page."""

import re
from typing import Any

from engine.comparison.columns import DAGGER, is_supported
from engine.comparison.markdown import main_cells
from engine.comparison.notes import contrasts
from engine.comparison.view import VIEWS

Table = dict[str, Any]

_WRAPPED = r">{\raggedright\arraybackslash}X"  # a column of text that breaks into lines


def float_table(table: Table) -> str:
    """Return a `table*` with caption and label; it requires the packages booktabs and tabularx."""
    columns = main_cells(table)
    titles = [title.partition(" (")[0] for title in columns]
    units = [title[len(name) :].strip() for title, name in zip(columns, titles, strict=True)]
    cells = [[_cell(text, strong) for text, strong in column] for column in columns.values()]
    rows = [" & ".join(row) + r" \\" for row in zip(*cells, strict=True)]
    first_direct = len(table["rows"])
    if len(rows) > first_direct:
        rows.insert(first_direct, r"\midrule")
    return "\n".join(
        (
            r"% \usepackage{booktabs,tabularx}",
            r"\begin{table*}[t]",
            r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{_caption(table)}}}",
            rf"\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', table['data']['name']).strip('-')}}}",
            rf"\begin{{tabularx}}{{\textwidth}}{{@{{}}*{{2}}{{{_WRAPPED}}}{'r' * (len(columns) - 2)}@{{}}}}",
            r"\toprule",
            " & ".join(map(_escape, titles)) + r" \\",
            " & ".join(map(_escape, units)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabularx}",
            r"\end{table*}",
            "",
        )
    )


def _caption(table: Table) -> str:
    data, rows, shown = table["data"], table["rows"], contrasts(table)
    texts = [f"{data['name']}: {VIEWS[table['task']].metric} on {data['val_images']:,} images."]
    seeds = {tuple(row["seeds"]) for row in rows if row["seeds"]}
    if len(seeds) == 1:
        (own,) = seeds
        texts.append(f"Seed{'s' if len(own) > 1 else ''} {', '.join(map(str, own))}.")
    if shown:
        texts.append("Differences are from the same backbone without attention, with 95% intervals.")
    tested = [row for row in shown if row.get("p_adjusted") is not None]
    if tested:
        texts.append(
            f"p is adjusted for {len(tested)} contrast{'s' if len(tested) > 1 else ''}; detectable differences are for "
            "80% power."
        )
    elif shown:
        texts.append("One seed: no verdict.")
    if any(map(is_supported, shown)):
        texts.append("Bold: supported.")
    if any(row["recipe_deviation"] for row in rows):
        texts.append(f"{DAGGER}: trained with another recipe.")
    return _escape(" ".join(texts))


_SPECIAL = str.maketrans(
    {character: f"\\{character}" for character in "%&#${}"}
    | {"_": r"\_\allowbreak{}", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", DAGGER: r"$^\dagger$", "<": "$<$"}
)


def _cell(text: str, strong: bool) -> str:
    return rf"\textbf{{{_escape(text)}}}" if strong else _escape(text)


def _escape(text: str) -> str:
    signed = re.sub(r"(?<![\w$.])-(?=\d)", lambda _: "$-$", text.translate(_SPECIAL))
    return re.sub(r"(?<=\w)([-.=])(?=[A-Za-z])", r"\1\\allowbreak{}", signed)  # where labels may break
