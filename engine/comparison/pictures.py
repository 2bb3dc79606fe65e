"""Figures as files whose bytes depend on the table alone."""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_METADATA = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


def rendered(
    size: tuple[float, float], draw: Callable[["Figure"], None], forms: Sequence[str] = ("png", "svg")
) -> dict[str, bytes]:
    """Return a figure in each of the forms; the result is empty if matplotlib is not installed.

    Args:
        size: width and height in inches.
        draw: function that draws into the figure.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        return {}
    contents = {form: io.BytesIO() for form in forms}
    # Without these settings, names inside the SVG are random, both files contain the date or the version, and names
    # with dollar signs are parsed as formulas.
    with mpl.rc_context({"svg.hashsalt": "table", "font.size": 9, "text.parse_math": False}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        for form, content in contents.items():
            figure.savefig(content, format=form, dpi=200, metadata=_METADATA[form])
    return {form: content.getvalue() for form, content in contents.items()}
