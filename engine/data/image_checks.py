"""Checks of an image file's bytes: what torchvision's decoders crash on, ignore or only print."""

import os
import struct
import zlib

import numpy as np

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG, by its color type
# First row and column, and the steps between rows and columns, of an interlaced PNG's seven passes.
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
_LARGEST_HEADER = 1 << 20  # bytes; an EXIF block is smaller
_LONGEST_WINDOW = 1 << 15  # bytes, of zlib


def png_damage(content: bytes) -> str | None:
    """Return a description of a PNG file's damage; None if its chunks and pixel data are intact.

    torchvision's decoder crashes the process on damaged pixel data (a longjmp over its frames), so this checks each
    chunk's checksum, and decompresses the pixel data to check their length, checksum and row filters.
    """
    header, previous = b"", b""
    pixels: list[bytes] = []
    position = len(PNG)
    while position < len(content):
        if position + 12 > len(content):
            return "it is truncated"
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 8 + length
        if end + 4 > len(content):
            return "it is truncated"
        if zlib.crc32(memoryview(content)[position + 4 : end]) != struct.unpack_from(">I", content, end)[0]:
            return f"the checksum of its {kind.decode('latin1')} chunk is wrong"
        if (kind == b"IHDR") != (position == len(PNG)):
            return "its header is not its first chunk"
        if kind == b"IHDR":
            header = content[position + 8 : end]
        elif kind == b"IDAT":
            if pixels and previous != b"IDAT":  # ends the process too
                return "other chunks interrupt its pixel data"
            pixels.append(content[position + 8 : end])
        elif kind == b"acTL" and content[position + 8 : position + 12] > b"\0\0\0\1":  # the number of frames
            return "it is an animation"
        elif kind == b"IEND":
            break
        position, previous = end + 4, kind
    if len(header) != 13 or not pixels:
        return "it lacks a header or pixel data"
    return _pixel_damage(header, b"".join(pixels))


def _pixel_damage(header: bytes, compressed: bytes) -> str | None:
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * _CHANNELS.get(color, 0)
    if not (bits and width and height) or interlaced > 1:
        return "its header is invalid"
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    rows = [(-(-(height - y) // dy), -(-(width - x) // dx)) for y, x, dy, dx in passes if height > y and width > x]
    lengths = [(count, 1 + -(-columns * bits // 8)) for count, columns in rows]
    size = sum(count * length for count, length in lengths)
    try:
        raw, is_whole = _decompressed(compressed, size, row=lengths[-1][1])
    except (zlib.error, MemoryError, OverflowError) as error:
        return f"its pixel data are damaged: {error}"
    if len(raw) < size or not is_whole:
        return "its pixel data are incomplete"
    filters = np.frombuffer(raw, dtype=np.uint8)
    start = 0
    for count, length in lengths:
        if filters[start : start + count * length : length].max() > 4:
            return "its pixel data are damaged: unknown filter"
        start += count * length
    return None


def _decompressed(compressed: bytes, size: int, row: int) -> tuple[bytearray, bool]:
    """Return the first `size` bytes of pixel data, or a few more, and whether the compressed stream has its end.

    A stream whose header gives a shorter window than its references need is an error in the decoder, which decompresses
    row by row. At once, references within the output would not be noticed.
    """
    window = 1 << ((compressed[0] >> 4) + 8) if compressed else 0
    step = size + 1 if window >= min(size, _LONGEST_WINDOW) else row
    stream = zlib.decompressobj(wbits=0)  # the window of the stream's own header
    raw, rest = bytearray(), compressed
    while not stream.eof:
        part = stream.decompress(rest, step)
        if not part:
            break
        rest = stream.unconsumed_tail
        if len(raw) <= size:  # the decoder skips further rows
            raw += part
    return raw, stream.eof


def orientation(content: bytes) -> int:
    """Return the EXIF orientation of a JPEG or PNG file, 1 to 8; 1 if it has none."""
    if content.startswith(JPEG):
        return _tiff_orientation(_jpeg_exif(content))
    if content.startswith(PNG):
        at = content.find(b"eXIf", len(PNG))
        return _tiff_orientation(content[at + 4 : at + 4 + _LARGEST_HEADER]) if at > 0 else 1
    return 1


def _jpeg_exif(content: bytes) -> bytes:
    """Return the EXIF block of a JPEG file; empty if it has none."""
    position = 2
    while position + 10 <= len(content) and content[position] == 0xFF:
        marker, length = content[position + 1], int.from_bytes(content[position + 2 : position + 4], "big")
        if marker == 0xDA:  # the compressed pixels
            break
        if marker == 0xE1 and content[position + 4 : position + 10] == b"Exif\0\0":
            return content[position + 10 : position + 2 + length]
        position += 2 + length
    return b""


def _tiff_orientation(block: bytes) -> int:
    """Return the value of tag 274 in the first directory of a TIFF structure; 1 if it has none."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 10:
        return 1
    (start,) = struct.unpack_from(f"{order}I", block, 4)
    if start + 2 > len(block):
        return 1
    (entries,) = struct.unpack_from(f"{order}H", block, start)
    for position in range(start + 2, min(start + 2 + 12 * entries, len(block) - 11), 12):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", block, position)
        if tag == 274:
            return value if kind == 3 and 1 <= value <= 8 else 1
    return 1


class StderrCapture:
    """A context in which what C libraries write to standard error is kept: image decoders only print their warnings.

    Lines of other origin, for example of another thread, are passed on to standard error. Reusable, also in processes
    forked later.

    Attributes:
        libjpeg, libpng: the libraries' lines of the last block.
    """

    def __init__(self) -> None:
        self.libjpeg: list[str] = []
        self.libpng: list[str] = []
        self._process = 0  # that opened the files below

    def __enter__(self) -> "StderrCapture":
        if self._process != os.getpid():
            self._process = os.getpid()
            self._kept = os.memfd_create("stderr")
            try:
                self._stderr = os.dup(2)
            except OSError:  # it is closed
                self._stderr = os.open(os.devnull, os.O_WRONLY)
        self.libjpeg, self.libpng = [], []
        os.dup2(self._kept, 2)
        return self

    def __exit__(self, *_: object) -> None:
        os.dup2(self._stderr, 2)
        size = os.lseek(self._kept, 0, os.SEEK_CUR)
        if size:
            text = os.pread(self._kept, size, 0).decode(errors="replace").splitlines(keepends=True)
            os.lseek(self._kept, 0, os.SEEK_SET)
            self.libpng = [line.strip() for line in text if line.startswith("libpng ")]
            self.libjpeg = [line.strip() for line in text if _is_of_libjpeg(line)]
            others = "".join(line for line in text if not (line.startswith("libpng ") or _is_of_libjpeg(line)))
            if others:
                os.write(2, others.encode())


def _is_of_libjpeg(line: str) -> bool:
    words = ("JPEG", "Huffman", "Adobe marker", "JFIF", "progression", "arithmetic", "quantization", "SOS parameters")
    return any(word in line for word in words) and not line.startswith("libpng ")
