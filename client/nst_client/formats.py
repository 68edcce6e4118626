"""The forms in which pictures can be asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, TypeVar

from nst.v1 import image_pb2

K = TypeVar("K", bound=str)
T = TypeVar("T")

Dtype = Literal["uint8", "float16", "bfloat16", "float32"]
Layout = Literal["HWC", "CHW"]
Codec = Literal["png", "jpeg", "webp"]

DTYPES: Mapping[Dtype, image_pb2.DataType.ValueType] = {
    "uint8": image_pb2.DATA_TYPE_UINT8,
    "float16": image_pb2.DATA_TYPE_FLOAT16,
    "bfloat16": image_pb2.DATA_TYPE_BFLOAT16,
    "float32": image_pb2.DATA_TYPE_FLOAT32,
}
LAYOUTS: Mapping[Layout, image_pb2.Layout.ValueType] = {"HWC": image_pb2.LAYOUT_HWC, "CHW": image_pb2.LAYOUT_CHW}
CODECS: Mapping[Codec, image_pb2.Codec.ValueType] = {
    "png": image_pb2.CODEC_PNG,
    "jpeg": image_pb2.CODEC_JPEG,
    "webp": image_pb2.CODEC_WEBP,
}
DTYPE_NAMES: Mapping[int, Dtype] = {number: name for name, number in DTYPES.items()}
LAYOUT_NAMES: Mapping[int, Layout] = {number: name for name, number in LAYOUTS.items()}
CODEC_NAMES: Mapping[int, Codec] = {number: name for name, number in CODECS.items()}


@dataclass(frozen=True)
class EncodedFormat:
    """A picture file.

    Attributes:
        codec: PNG is lossless; JPEG and WebP are not.
        quality: 1 to 100, for JPEG and WebP; None is the server's default.
    """

    codec: Codec = "png"
    quality: int | None = None

    def to_proto(self) -> image_pb2.ImageFormat:
        """As a message. Raises TypeError or ValueError for an unknown codec or a quality that is not 1 to 100."""
        if self.quality is not None:
            if isinstance(self.quality, bool) or not isinstance(self.quality, Integral):
                raise TypeError(f"quality: must be a whole number, not {self.quality!r}")
            if not 1 <= self.quality <= 100:
                raise ValueError(f"quality: must be from 1 to 100, not {self.quality}")
        codec = choose("codec", self.codec, CODECS)
        return image_pb2.ImageFormat(encoded=image_pb2.EncodedFormat(codec=codec, quality=self.quality))


@dataclass(frozen=True)
class TensorFormat:
    """An RGB array.

    Attributes:
        dtype: uint8 holds 0 to 255; the floats hold 0 to 1. bfloat16 travels as such and arrives as
            float32, because numpy has no bfloat16.
        layout: the order of height, width and channels.
    """

    dtype: Dtype = "uint8"
    layout: Layout = "HWC"

    def to_proto(self) -> image_pb2.ImageFormat:
        """As a message. Raises ValueError for an unknown dtype or layout."""
        dtype, layout = choose("dtype", self.dtype, DTYPES), choose("layout", self.layout, LAYOUTS)
        return image_pb2.ImageFormat(tensor=image_pb2.TensorFormat(dtype=dtype, layout=layout))


Format = EncodedFormat | TensorFormat | Codec


def format_message(form: Format | None, field: str) -> image_pb2.ImageFormat | None:
    """The message for a format or a codec's name; None stays None, which is the server's default.

    Raises:
        TypeError, ValueError: it is no format; the text names `field`.
    """
    if form is None:
        return None
    if isinstance(form, str):
        form = EncodedFormat(form)
    if not isinstance(form, EncodedFormat | TensorFormat):
        raise TypeError(f"{field}: must be a codec's name, EncodedFormat or TensorFormat, not {type(form).__name__}")
    try:
        return form.to_proto()
    except (TypeError, ValueError) as error:
        raise alike(error, f"{field}.{error}") from None


def decode_format(message: image_pb2.ImageFormat) -> EncodedFormat | TensorFormat | None:
    """The format in a message; None for one that this version of the library does not know."""
    if message.HasField("tensor"):
        dtype, layout = DTYPE_NAMES.get(message.tensor.dtype), LAYOUT_NAMES.get(message.tensor.layout)
        return TensorFormat(dtype, layout) if dtype and layout else None
    codec = CODEC_NAMES.get(message.encoded.codec)
    quality = message.encoded.quality if message.encoded.HasField("quality") else None
    return EncodedFormat(codec, quality) if codec else None


def alike(error: TypeError | ValueError, text: str) -> TypeError | ValueError:
    """An error of the kind of this one, with another text; some kinds of ValueError take more than a text."""
    return TypeError(text) if isinstance(error, TypeError) else ValueError(text)


def choose(name: str, value: K, choices: Mapping[K, T]) -> T:
    """The choice called `value`. Raises ValueError listing the choices."""
    if value not in choices:
        raise ValueError(f"{name}: must be one of {', '.join(choices)}, not {value!r}")
    return choices[value]
