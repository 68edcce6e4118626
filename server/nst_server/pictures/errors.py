"""What a picture may be, and the error for one that is not."""

from dataclasses import dataclass


class PictureError(ValueError):
    """A picture, or the form asked for, is not allowed.

    Attributes:
        reason: a constant in capitals, for programs.
        message: what is wrong and what to do about it, for people.
        field: what is wrong by its field in `EncodedImage`, `Tensor` or the format asked for.
    """

    def __init__(self, reason: str, message: str, field: str = "data") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field


@dataclass(frozen=True)
class PictureLimits:
    """The largest and smallest pictures that are taken.

    Attributes:
        max_image_bytes: size of the stored form in bytes.
        max_image_pixels: width times height.
        max_image_side: width or height in pixels.
        min_image_side: width and height in pixels; below it the fifth block of a VGG sees less
            than one position.
    """

    max_image_bytes: int = 64 * 1024 * 1024
    max_image_pixels: int = 50_000_000
    max_image_side: int = 16_384
    min_image_side: int = 16

    def check_bytes(self, size: int) -> None:
        """Raises PictureError when a stored form of `size` bytes is too large or empty."""
        if size == 0:
            raise PictureError("EMPTY", "the picture has no bytes; send a PNG, JPEG or WebP file, or a tensor")
        if size > self.max_image_bytes:
            raise PictureError(
                "TOO_MANY_BYTES",
                f"the picture has {size} bytes, over max_image_bytes = {self.max_image_bytes}; "
                "shrink it or compress it more",
            )

    def check_size(self, width: int, height: int, field: str = "data") -> None:
        """Raises PictureError when a picture of `width` x `height` pixels is too large or too small.

        `field` is where the size was read.
        """
        if width * height > self.max_image_pixels:
            raise PictureError(
                "TOO_MANY_PIXELS",
                f"the picture is {width} x {height} = {width * height} pixels, "
                f"over max_image_pixels = {self.max_image_pixels}; shrink it",
                field,
            )
        if max(width, height) > self.max_image_side:
            raise PictureError(
                "SIDE_TOO_LONG",
                f"the picture is {width} x {height}, over max_image_side = {self.max_image_side}; shrink or crop it",
                field,
            )
        if min(width, height) < self.min_image_side:
            raise PictureError(
                "SIDE_TOO_SHORT",
                f"the picture is {width} x {height}, under min_image_side = {self.min_image_side}; send a larger one",
                field,
            )


# What is stored has passed a gateway's limits, which may be wider than the defaults.
STORED = PictureLimits(2**62, 2**62, 2**31, 1)
