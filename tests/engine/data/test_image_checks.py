"""Damaged files, and what decoders ignore: each in a file as programs and transfers leave it."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps
import pytest
import torch

from engine.data import transforms
from engine.data.image_checks import PNG, StderrCapture, orientation, png_damage
from engine.data.image_notes import ImageNotes
from engine.data.transforms import Finding, UnreadableImage
from tests.conftest import write_image


def picture(width: int = 40, height: int = 24, mode: str = "RGB") -> PIL.Image.Image:
    random = np.random.default_rng(0)
    small = PIL.Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize((width, height), PIL.Image.Resampling.BILINEAR).convert(mode)


def png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


Chunks = list[tuple[bytes, bytes]]


def chunks_of(content: bytes) -> Chunks:
    chunks, position = [], 8
    while position < len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        chunks.append((kind, content[position + 8 : position + 8 + length]))
        position += 12 + length
    return chunks


def png_of(chunks: Chunks) -> bytes:
    """A PNG of these chunks, with right checksums."""
    return PNG + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def rewritten(content: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A PNG whose pixel data are changed, with right checksums of the chunks."""
    return png_of([(kind, change(data) if kind == b"IDAT" else data) for kind, data in chunks_of(content)])


def interrupted(content: bytes) -> bytes:
    """A PNG whose pixel data are two chunks with a comment between them."""
    header, (_, data), end = chunks_of(content)
    return png_of([header, (b"IDAT", data[:50]), (b"tEXt", b"a\0b"), (b"IDAT", data[50:]), end])


def short_window(content: bytes) -> bytes:
    """A PNG whose compressed data refer back by 1,210 bytes, but promise at most 512, as some encoders do."""
    random = np.random.default_rng(0)
    ten_rows = b"".join(b"\0" + random.bytes(120) for _ in range(10))
    data = zlib.compress((ten_rows * 3)[: 24 * 121])
    return rewritten(content, lambda _: b"\x18\x19" + data[2:])


def two_headers(content: bytes) -> bytes:
    header, *rest = chunks_of(content)
    smaller = struct.pack(">II", 40, 12) + header[1][8:]
    return png_of([(b"IHDR", smaller), header, *rest])


def one_wrong_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x55]) + content[middle + 1 :]


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "one wrong byte": (one_wrong_byte, "the checksum of its IDAT chunk is wrong"),
    "cut off": (lambda content: content[: len(content) // 2], "it is truncated"),
    "a text transfer": (lambda content: content[:50] + content[50:].replace(b"\n", b"\r\n"), "checksum|truncated"),
    "wrong byte, right checksum": (lambda content: rewritten(content, one_wrong_byte), "its pixel data are damaged"),
    "half of the data": (lambda content: rewritten(content, lambda d: d[: len(d) // 2]), "data are incomplete"),
    "no end of the data": (lambda content: rewritten(content, lambda d: d[:-4]), "data are incomplete"),
    "rows are missing": (
        lambda content: rewritten(content, lambda d: zlib.compress(zlib.decompress(d)[:-200])),
        "data are incomplete",
    ),
    "too many rows without an end": (
        lambda content: rewritten(content, lambda d: zlib.compress(zlib.decompress(d) * 2)[:-20]),
        "data are incomplete",
    ),
    "interrupted data": (interrupted, "other chunks interrupt its pixel data"),
    "short window": (short_window, "invalid distance too far back"),
    "two headers": (two_headers, "its header is not its first chunk"),
    "unknown filter": (
        lambda content: rewritten(content, lambda d: zlib.compress(b"\x09" + zlib.decompress(d)[1:])),
        "unknown filter",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_png_is_an_error_that_names_it(damage: str, tmp_path: Path) -> None:
    """torchvision's decoder ends the process on most of these."""
    change, reason = DAMAGES[damage]
    path = tmp_path / "damaged.png"
    path.write_bytes(change(png(picture())))
    with pytest.raises(UnreadableImage, match=rf"damaged\.png cannot be decoded \(.*({reason}).*\)"):
        transforms.decode(str(path))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (17, 9), (64, 40)])
def test_intact_pngs_have_no_damage(mode: str, size: tuple[int, int]) -> None:
    values = np.arange(size[0] * size[1], dtype=np.uint16).reshape(size[::-1])
    image = PIL.Image.fromarray(values) if mode == "I;16" else picture(*size, mode)
    assert png_damage(png(image)) is None
    assert png_damage(png(image) + b"after the end") is None


def test_rows_beyond_the_last_are_skipped(tmp_path: Path) -> None:
    content = png(picture())
    (tmp_path / "a.png").write_bytes(content)
    (tmp_path / "long.png").write_bytes(rewritten(content, lambda d: zlib.compress(zlib.decompress(d) * 200)))
    one, other = (transforms.decode(str(tmp_path / name)) for name in ("a.png", "long.png"))
    assert torch.equal(one, other)


@pytest.mark.parametrize("form", ["png", "gif", "webp"])
def test_an_animation_is_an_error_not_its_first_frame(form: str, tmp_path: Path) -> None:
    path = tmp_path / "two.png"
    picture().save(path, form, save_all=True, append_images=[picture().rotate(180)])
    with pytest.raises(UnreadableImage, match=r"two\.png cannot be decoded \(.*[Aa]nimat"):
        transforms.decode(str(path))


def interlaced(width: int, height: int) -> bytes:
    """A gray PNG in Adam7's seven passes."""
    pixels = np.arange(width * height, dtype=np.uint8).reshape(height, width)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [pixels[y::dy, x::dx] for y, x, dy, dx in passes]
    raw = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
    return png_of([(b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")])


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 5), (13, 7)])
def test_interlaced_pngs_are_checked_pass_by_pass(size: tuple[int, int], tmp_path: Path) -> None:
    content = interlaced(*size)
    assert png_damage(content) is None
    assert png_damage(rewritten(content, lambda d: zlib.compress(zlib.decompress(d)[:-1]))) is not None
    (tmp_path / "a.png").write_bytes(content)
    assert transforms.decode(str(tmp_path / "a.png"))[0].flatten().tolist() == list(range(size[0] * size[1]))


@pytest.mark.parametrize("form", ["jpg", "png"])
@pytest.mark.parametrize("value", range(1, 9))
def test_upright_images_equal_pillows(value: int, form: str, tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x010F] = "a camera"
    exif[0x0112] = value
    path = tmp_path / f"photo.{form}"
    picture().save(path, exif=exif, quality=95)
    assert orientation(path.read_bytes()) == value
    upright = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(path)))
    decoded = transforms.decode(str(path), upright=True).permute(1, 2, 0).numpy()
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).max() <= 2
    assert transforms.decode(str(path)).shape == (3, 24, 40)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe1\0\x10Exif\0\0II*\0\xff\xff\xff\xff", PNG + b"eXIf"]
)
def test_a_broken_tag_is_no_orientation(content: bytes) -> None:
    assert orientation(content) == 1


def test_libjpegs_warning_is_a_finding(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "good.jpg", 120, seed=0, height=300, width=400)
    content = (tmp_path / "good.jpg").read_bytes()
    start = content.index(b"\xff\xda")
    (tmp_path / "bad.jpg").write_bytes(content[:start] + content[start:].replace(b"\n", b"\r\n"))
    capture = StderrCapture()
    assert transforms.inspect(str(tmp_path / "good.jpg"), False, capture)[1] == []
    assert transforms.inspect(str(tmp_path / "bad.jpg"), False, capture)[1] == [Finding.DAMAGED]
    assert "JPEG" in capture.libjpeg[0]
    assert transforms.inspect(str(tmp_path / "good.jpg"), False, capture)[1] == []
    assert capfd.readouterr().err == ""


def test_other_lines_on_stderr_are_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    import os

    capture = StderrCapture()
    with capture:
        os.write(2, b"epoch 1\nCorrupt JPEG data: 4 extraneous bytes before marker 0xdb\nof 5")
    assert capture.libjpeg == ["Corrupt JPEG data: 4 extraneous bytes before marker 0xdb"]
    assert capfd.readouterr().err == "epoch 1\nof 5"


def with_profile(image: PIL.Image.Image) -> bytes:
    """A gray PNG with the color profile of RGB, as image editors write it."""
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    header, *rest = chunks_of(png(image.convert("L")))
    return png_of([header, (b"iCCP", b"sRGB\0\0" + zlib.compress(profile)), *rest])


def test_libpngs_warning_is_a_finding_that_is_not_repeated(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "edited.png"
    path.write_bytes(with_profile(picture()))
    notes = ImageNotes(1)
    for _ in range(3):
        notes.decode(0, str(path), upright=False)
    (line,) = notes.new_lines(lambda _: str(path), upright=False)
    assert line.startswith(f"1 of 1 images read (first: {path}) have metadata, such as a color profile")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1", r"it begins with b'version https://'"),
        (b"<!DOCTYPE html><html>", r"it is not a JPEG, PNG, WebP or GIF file; it begins with b'<!DOCTYPE html>"),
        (png_of([(b"IHDR", b"\0" * 13)]), "it lacks a header or pixel data"),
        (b"", "it is empty"),
    ],
)
def test_a_file_that_is_no_image_is_described(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UnreadableImage, match=rf"a\.jpg cannot be decoded \(.*{reason}"):
        transforms.decode(str(tmp_path / "a.jpg"))


def test_the_decoders_message_is_the_reason(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Xcode packs images of apps with a chunk of its own."""
    header, *rest = chunks_of(png(picture()))
    (tmp_path / "app.png").write_bytes(png_of([header, (b"CgBI", b"\x50\0\x20\2"), *rest]))
    with pytest.raises(UnreadableImage, match=r"\(libpng error: CgBI: unhandled critical chunk\)"):
        transforms.decode(str(tmp_path / "app.png"))
    assert capfd.readouterr().err == ""


def test_12_bits_in_16_are_a_finding(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, 600).astype(np.uint16).reshape(20, 30)
    for name, factor in (("dark", 1), ("full", 16)):
        PIL.Image.fromarray(values * factor).save(tmp_path / f"{name}.png")
    assert transforms.inspect(str(tmp_path / "dark.png"), False, StderrCapture())[1] == [Finding.DARK]
    image, findings = transforms.inspect(str(tmp_path / "full.png"), False, StderrCapture())
    assert findings == []
    assert image.dtype == torch.uint8
    assert image.max() == 255
