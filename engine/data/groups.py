"""Groups of images that are not independent, such as the cells of one photograph or the scans of one patient."""

import csv
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.errors import UserError


@dataclass(frozen=True)
class ImageGroups:
    """The group of every validation image, in dataset order.

    Attributes:
        images: paths of the images below the root of the data set.
        groups: name of each image's group.
    """

    images: tuple[str, ...]
    groups: tuple[str, ...]

    @property
    def ids(self) -> np.ndarray:
        """[N] int64, the groups numbered in order of their first image."""
        number: dict[str, int] = {}
        return np.array([number.setdefault(group, len(number)) for group in self.groups], dtype=np.int64)

    def text(self) -> str:
        """Return the groups as CSV lines `image,group`."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            [("image", "group"), *zip(self.images, self.groups, strict=True)]
        )
        return text.getvalue()

    @classmethod
    def read(cls, file: Path) -> "ImageGroups":
        """Read CSV lines `image,group`; a first line `image,group` is skipped.

        Raises:
            UserError: if the file cannot be read, or a line does not have these two values.
        """
        try:
            lines = [line for line in csv.reader(file.read_text(encoding="utf-8-sig").splitlines()) if line]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"The groups {file} cannot be read ({error}); correct data.groups.") from error
        for number, line in enumerate(lines, start=1):
            if len(line) != 2:
                raise UserError(f"Line {number} of {file} has {len(line)} values, not an image and its group.")
        lines = lines[1:] if lines[:1] == [["image", "group"]] else lines
        return cls(tuple(image for image, _ in lines), tuple(group for _, group in lines))

    @classmethod
    def of_split(cls, file: Path, files: Iterable[bytes]) -> "ImageGroups":
        """Read the groups of the images of a split.

        Args:
            files: paths of the images below the root of the data set, in dataset order.

        Raises:
            UserError: as for `read`, or if an image has no group, or there are fewer than two groups.
        """
        given = cls.read(file)
        group_of = dict(zip(given.images, given.groups, strict=True))
        images = [os.fsdecode(image) for image in files]
        missing = [image for image in images if image not in group_of]
        if missing:
            raise UserError(
                f"{file} has no group for {len(missing)} of {len(images)} validation images (first: {missing[0]}); add "
                "a line `image,group` for each."
            )
        groups = tuple(group_of[image] for image in images)
        if len(set(groups)) < 2:
            raise UserError(f"All images in {file} are of one group; an interval over images needs at least two.")
        return cls(tuple(images), groups)
