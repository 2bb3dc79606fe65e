"""Files and folders beside the images of a class: those of other programs, and images that are not read."""

import os
from collections import Counter
from collections.abc import Sequence

EXTENSIONS = (".jpeg", ".jpg", ".png")

# Of network drives, file managers and archivers; a folder whose name begins with a dot is one too.
_PROGRAM_FOLDERS = {
    *("@eadir", "__macosx", "lost+found", "#recycle", "@recycle", "$recycle.bin", "system volume information"),
}
OTHER_EXTENSIONS = (
    *(".jfif", ".jpe", ".jif", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".apng", ".avif", ".heic", ".heif"),
    *(".jp2", ".j2k", ".jxl", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".psd", ".exr", ".hdr", ".dcm"),
    *(".dng", ".cr2", ".nef", ".arw", ".raw", ".svg"),
)
_NO_IMAGES = (".txt", ".xml", ".json", ".csv", ".md", ".db", ".ini", ".html", ".log", ".pdf")  # not opened

LEFT_OUT = "They are left out."  # ends the line on images of other formats with skip_other_formats

_SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"8BPS"),
    *(b"\0\0\0\x0cjP  ", b"\xff\x0a", b"\0\0\0\x0cJXL ", b"\x76\x2f\x31\x01"),
)
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis")


def is_image_name(name: str) -> bool:
    """Return whether a file is an image that is read, by its name."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def is_program_folder(name: str) -> bool:
    """Return whether a folder belongs to a program (Jupyter, a network drive, ...) and is not part of the data set."""
    return name.startswith(".") or name.lower() in _PROGRAM_FOLDERS


def is_other_image(path: str) -> bool:
    """Return whether a file without one of EXTENSIONS is an image, by its extension, or else by its first bytes."""
    extension = _extension(path)
    if extension in OTHER_EXTENSIONS:
        return True
    if extension in _NO_IMAGES:
        return False
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (paths are strings in the index)
            start = file.read(16)
    except OSError:
        return False
    is_netpbm = start[:1] == b"P" and start[1:2] in b"123456" and start[2:3] in (b"\n", b" ", b"\r", b"\t")
    is_riff = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    is_heif = start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS
    return start.startswith(_SIGNATURES) or is_netpbm or is_riff or is_heif


def other_images_line(paths: Sequence[str]) -> str:
    """Return the message on images that are not read, with their number by extension."""
    counts = Counter(_extension(path) or "without extension" for path in paths)
    kinds = ", ".join(f"{count:,} {extension}" for extension, count in sorted(counts.items()))
    some = "image has an extension that is" if len(paths) == 1 else "images have extensions that are"
    return f"{len(paths):,} {some} not read: {kinds} (first: {paths[0]})."


def program_files_line(paths: Sequence[str]) -> str:
    """Return the message on files and folders of other programs."""
    some = "file or folder" if len(paths) == 1 else "files and folders"
    return f"{len(paths):,} {some} of other programs skipped (first: {paths[0]})."


def _extension(path: str) -> str:
    return os.path.splitext(path)[1].lower()  # noqa: PTH122 (paths are strings in the index)
