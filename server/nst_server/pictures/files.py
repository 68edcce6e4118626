"""Picture files: PNG, JPEG and WebP bytes to 8-bit RGB."""

import io
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from nst_server.pictures.errors import PictureError, PictureLimits

# Pillow's own guard warns or raises by a process-wide number; `PictureLimits` decides here, before
# any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None

READERS = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImageFile),
)
PNG_END = b"IEND\xae\x42\x60\x82"
PNG_DEPTH_OFFSET = 24
PALETTE_COLOURS = 256

ORIENTATION_TAG = 0x0112
# EXIF orientation (TIFF 6.0, tag 274) to what turns the picture upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PROFILE_SPACES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}


def load(data: bytes, limits: PictureLimits) -> Image.Image:
    """Decodes a file, upright by its EXIF orientation and otherwise as it is stored.

    The size is checked by the header before anything is decoded. Of an animated picture this is
    the first frame.

    Raises:
        PictureError: the bytes are no picture file, are cut short or damaged, or outside the limits.
    """
    reader = _reader(data)
    if reader is WebPImageFile:
        # Opening a WebP already allocates its canvas.
        limits.check_size(*_webp_size(data))
    # Pillow's readers raise whatever their parsing runs into, from OSError to struct.error.
    try:
        picture = reader(io.BytesIO(data))
    except Exception as error:
        raise _damaged(reader, error) from error
    limits.check_size(*picture.size)
    try:
        picture.load()
    except Exception as error:
        raise _damaged(reader, error) from error
    if reader is PngImageFile:
        if PNG_END not in data:
            raise _damaged(reader, "the end of the file is missing")
        _mend_transparency(picture, depth=data[PNG_DEPTH_OFFSET])
    return _upright(picture)


def read_file(data: bytes, limits: PictureLimits) -> NDArray[np.uint8]:
    """The sRGB values of a file, (height, width, 3 or 4): an ICC profile is applied, alpha is kept.

    16-bit values are brought to 8. CMYK without a profile is (1 - ink)(1 - black).

    Raises:
        PictureError: as `load`.
    """
    picture = load(data, limits)
    colour, alpha = _split_alpha(picture)
    rgb = np.asarray(_to_srgb(colour, picture.info.get("icc_profile")))
    return rgb if alpha is None else np.dstack([rgb, np.asarray(alpha)])


def _reader(data: bytes) -> type[PngImageFile | JpegImageFile | WebPImageFile]:
    for magic, reader in READERS:
        if magic.match(data):
            return reader
    raise PictureError(
        "NOT_AN_IMAGE", "the bytes are not a PNG, JPEG or WebP file; convert the picture to one of these"
    )


def _damaged(reader: type[Image.Image], cause: object) -> PictureError:
    name = getattr(reader, "format", "picture")
    return PictureError("TRUNCATED", f"the {name} file is cut short or damaged ({cause}); send the whole file again")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from a WebP's first chunk (RFC 9649, sections 2.5 to 2.7)."""
    if len(data) < 30:
        raise _damaged(WebPImageFile, "the header is missing")
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    raise _damaged(WebPImageFile, f"it begins with an unknown chunk {kind!r}")


def _mend_transparency(picture: Image.Image, depth: int) -> None:
    """Brings a PNG's transparent grey or colour from the file's bit depth to Pillow's 8 bits.

    Of a palette, drops the opacities of more colours than there can be, at which Pillow fails.
    """
    transparent = picture.info.get("transparency")
    if isinstance(transparent, bytes):
        picture.info["transparency"] = transparent[:PALETTE_COLOURS]
    if picture.mode == "L" and isinstance(transparent, int):
        picture.info["transparency"] = transparent * 255 // (2**depth - 1)
    elif picture.mode == "RGB" and depth == 16 and isinstance(transparent, tuple):
        picture.info["transparency"] = tuple(value >> 8 for value in transparent)


def _upright(picture: Image.Image) -> Image.Image:
    try:
        orientation = picture.getexif().get(ORIENTATION_TAG)
    except Exception:
        # Broken metadata does not make the pixels any worse.
        return picture
    turn = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(turn)


def _split_alpha(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colour in mode L, RGB or CMYK, and the opacity where there is one."""
    if picture.mode == "I;16":
        return _from_16_bit(picture)
    if picture.mode == "LA":
        return picture.getchannel("L"), picture.getchannel("A")
    if picture.mode == "RGBA" or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        return picture.convert("RGB"), picture.getchannel("A")
    if picture.mode == "1":
        return picture.convert("L"), None
    return picture if picture.mode in PROFILE_SPACES.values() else picture.convert("RGB"), None


def _from_16_bit(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    values = np.asarray(picture, dtype=np.uint32)
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    transparent = picture.info.get("transparency")
    if transparent is None:
        return grey, None
    return grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))


def _to_srgb(colour: Image.Image, profile: bytes | None) -> Image.Image:
    """Mode RGB in sRGB. A profile that is broken or for other kinds of pixels is ignored."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if PROFILE_SPACES.get(source.profile.xcolor_space.strip()) == colour.mode:
                target = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(colour, source, target, outputMode="RGB")
                return converted or colour.convert("RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):  # the last of a name that is no text
            pass
    # Pillow copies on a conversion to the same mode.
    return colour if colour.mode == "RGB" else colour.convert("RGB")
