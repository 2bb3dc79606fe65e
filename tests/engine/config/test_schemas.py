"""Checks of configured values."""

import pytest

from engine.config.schemas import TableConfig
from engine.errors import UserError


def test_an_empty_table_folder_is_refused() -> None:
    with pytest.raises(UserError, match=r"table\.dir is empty"):
        TableConfig(dir="").check()
