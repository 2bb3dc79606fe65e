"""The messages of docs/troubleshooting.md are those of the code."""

import re

import pytest

from tests.processes import REPOSITORY

PAGE = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^\| `(.+?)` \|", PAGE.partition("## Symptoms")[0], re.MULTILINE)


def code() -> str:
    """Return the source with the strings of adjacent lines joined and without the braces of formatted values."""
    files = [file for name in ("cbam", "models", "engine") for file in (REPOSITORY / name).rglob("*.py")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return re.sub(r"\{[^{}]*\}", "...", re.sub(r'"\s*\n\s*f?"', "", text))


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_the_page_is_in_the_code(message: str) -> None:
    assert message in code()


def test_the_page_has_the_usual_messages() -> None:
    assert len(MESSAGES) >= 15
