"""The reference of the package cbam."""

from tests.conftest import script_module
from tests.processes import REPOSITORY


def test_the_page_is_generated_from_the_docstrings() -> None:
    page = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    assert page == script_module("write_api").page(), "run python scripts/write_api.py"
