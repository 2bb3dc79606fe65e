"""Checks of configured values."""

from typing import Any

import pytest

from engine.config.preprocessing import PreprocessingConfig
from engine.config.schemas import TableConfig
from engine.errors import UserError


def test_an_empty_table_folder_is_refused() -> None:
    with pytest.raises(UserError, match=r"table\.dir is empty"):
        TableConfig(dir="").check()


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"mean": [0.5]}, r"preprocessing\.mean=\[0\.5\] must have a value for each of the 3 channels"),
        ({"mean": [127.5] * 3}, r"preprocessing\.mean=127\.5 is out of range; it must be between 0\.0 and 1\.0"),
        ({"std": [0.5, 0.0, 0.5]}, r"preprocessing\.std=0\.0 is out of range; it must be above 0"),
        ({"interpolation": "cubic"}, r"preprocessing\.interpolation=cubic is unknown; choose one of bilinear, bicubic"),
        ({"crop_ratio": 1.5}, r"preprocessing\.crop_ratio=1\.5 is out of range"),
    ],
)
def test_a_preprocessing_out_of_range_is_refused(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        PreprocessingConfig(**values).check()
