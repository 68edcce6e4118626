"""Picture files become the right pixels, or the right refusal."""

import struct
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from nst_server.pictures import PictureError, PictureLimits, check, decode
from pictures_by_hand import gradient, icc_profile, noise, png, png_chunk, saved
from PIL import Image, ImageCms

LIMITS = PictureLimits()
RED = (0.4360747, 0.2225045, 0.0139322)
GREEN = (0.3850649, 0.7168786, 0.0971045)
BLUE = (0.1430804, 0.0606169, 0.7141733)


def refusal(data: bytes, limits: PictureLimits = LIMITS) -> PictureError:
    with pytest.raises(PictureError) as caught:
        check(data, limits)
    with pytest.raises(PictureError) as also:
        decode(data, limits)
    assert also.value.reason == caught.value.reason
    return caught.value


def distance(data: bytes, expected: np.ndarray) -> int:
    pixels = decode(data, LIMITS)
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    assert check(data, LIMITS) == (expected.shape[1], expected.shape[0])
    return int(np.abs(pixels.astype(int) - expected.astype(int)).max())


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha.astype(float)[..., None] / 255
    return np.round(colour.astype(float) * share + 255 * (1 - share))


def grey(plane: np.ndarray) -> np.ndarray:
    return np.repeat(plane[..., None], 3, axis=2)


def test_lossless_files_keep_every_pixel():
    pixels = noise(33, 47)
    assert distance(saved(pixels, "PNG"), pixels) == 0
    assert distance(saved(pixels, "WEBP", lossless=True), pixels) == 0


@pytest.mark.parametrize("parameters", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_is_close(parameters):
    pixels = gradient(40, 64)
    assert distance(saved(pixels, "JPEG", quality=98, **parameters), pixels) <= 4


def test_lossy_webp_is_close():
    pixels = gradient(40, 64)
    assert distance(saved(pixels, "WEBP", quality=98), pixels) <= 8


def test_the_array_is_the_callers_own():
    pixels = decode(saved(noise(20, 20), "PNG"), LIMITS)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


def test_a_memoryview_is_read_like_bytes():
    data = saved(noise(20, 30), "PNG")
    assert np.array_equal(decode(memoryview(data), LIMITS), decode(data, LIMITS))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_grey_of_every_depth(depth):
    levels = 2**depth
    values = np.random.default_rng(1).integers(0, levels, (16, 32))
    bits = ((values[..., None] >> np.arange(depth - 1, -1, -1)) & 1).reshape(16, -1)
    data = png((32, 16), depth, 0, [np.packbits(row).tobytes() for row in bits])
    assert distance(data, grey(values * (255 // (levels - 1)))) == 0


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_transparent_grey_of_every_depth(depth):
    levels = 2**depth
    values = np.random.default_rng(2).integers(0, levels, (16, 32))
    bits = ((values[..., None] >> np.arange(depth - 1, -1, -1)) & 1).reshape(16, -1)
    rows = [np.packbits(row).tobytes() for row in bits]
    transparent = levels // 2 - 1
    data = png((32, 16), depth, 0, rows, (b"tRNS", struct.pack(">H", transparent)))
    expected = np.where(values == transparent, 255, values * (255 // (levels - 1)))
    assert distance(data, grey(expected)) == 0


def test_16_bit_grey_is_rounded():
    values = np.random.default_rng(3).integers(0, 65536, (16, 20)).astype(">u2")
    values[0, :4] = [0, 128, 129, 65535]
    data = png((20, 16), 16, 0, [row.tobytes() for row in values])
    assert distance(data, grey(np.round(values / 257))) == 0


def test_transparent_16_bit_grey():
    values = np.arange(16 * 20, dtype=">u2").reshape(16, 20)
    data = png((20, 16), 16, 0, [row.tobytes() for row in values], (b"tRNS", struct.pack(">H", 300)))
    assert distance(data, grey(np.where(values == 300, 255, np.round(values / 257)))) == 0


def test_16_bit_rgb_is_within_one_level():
    values = np.random.default_rng(4).integers(0, 65536, (16, 20, 3)).astype(">u2")
    data = png((20, 16), 16, 2, [row.tobytes() for row in values])
    assert distance(data, np.round(values / 257)) <= 1


def test_transparent_colours():
    pixels = noise(16, 20)
    pixels[3, 4] = pixels[9, 9] = (1, 2, 3)
    expected = pixels.copy()
    expected[3, 4] = expected[9, 9] = 255
    rows = [row.tobytes() for row in pixels]
    assert distance(png((20, 16), 8, 2, rows, (b"tRNS", struct.pack(">HHH", 1, 2, 3))), expected) == 0
    wide = [(row.astype(">u2") * 257).tobytes() for row in pixels]
    key = struct.pack(">HHH", 257, 514, 771)
    assert distance(png((20, 16), 16, 2, wide, (b"tRNS", key)), expected) == 0


def test_alpha_is_composited_over_white():
    pixels = noise(17, 21, 4)
    expected = over_white(pixels[..., :3], pixels[..., 3])
    assert distance(saved(pixels, "PNG"), expected) == 0
    assert distance(saved(pixels, "WEBP", lossless=True, exact=True), expected) == 0


def test_grey_with_alpha():
    pixels = noise(17, 21, 2)
    expected = over_white(grey(pixels[..., 0]), pixels[..., 1])
    assert distance(png((21, 17), 8, 4, [row.tobytes() for row in pixels]), expected) == 0
    wide = [(row.astype(">u2") * 257).tobytes() for row in pixels]
    assert distance(png((21, 17), 16, 4, wide), expected) == 0


def test_palette_with_and_without_transparency():
    palette = noise(1, 256, 3, seed=5)[0]
    alphas = noise(1, 256, 1, seed=6)[0, :, 0]
    indices = noise(16, 20, 1, seed=7)[..., 0]
    rows = [row.tobytes() for row in indices]
    plte = (b"PLTE", palette.tobytes())
    assert distance(png((20, 16), 8, 3, rows, plte), palette[indices]) == 0
    transparent = png((20, 16), 8, 3, rows, plte, (b"tRNS", alphas.tobytes()))
    assert distance(transparent, over_white(palette[indices], alphas[indices])) == 0


def test_cmyk_jpeg_with_the_adobe_marker():
    inks = np.zeros((16, 64, 4), np.uint8)
    inks[:, 16:32] = (255, 0, 0, 0)
    inks[:, 32:48] = (40, 80, 120, 60)
    inks[:, 48:] = (0, 0, 0, 255)
    data = saved(Image.fromarray(inks, "CMYK"), "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in data
    ink, black = inks[..., :3].astype(float), inks[..., 3:].astype(float)
    assert distance(data, (255 - ink) * (255 - black) / 255) <= 3


def _index_maps(height: int, width: int) -> dict[int, Callable[[np.ndarray, np.ndarray], tuple]]:
    """Where pixel (row, column) of the file belongs upright, by orientation (EXIF 2.32, 4.6.4 A)."""
    bottom, right = height - 1, width - 1
    return {
        1: lambda row, column: (row, column),
        2: lambda row, column: (row, right - column),
        3: lambda row, column: (bottom - row, right - column),
        4: lambda row, column: (bottom - row, column),
        5: lambda row, column: (column, row),
        6: lambda row, column: (column, right - row),
        7: lambda row, column: (bottom - column, right - row),
        8: lambda row, column: (bottom - column, row),
    }


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("codec", "parameters", "tolerance"),
    [("PNG", {}, 0), ("WEBP", {"lossless": True}, 0), ("JPEG", {"quality": 100, "subsampling": 0}, 3)],
)
def test_exif_orientation(orientation, codec, parameters, tolerance):
    upright = gradient(24, 40)
    height, width = (24, 40) if orientation <= 4 else (40, 24)
    as_stored = upright[_index_maps(24, 40)[orientation](*np.indices((height, width)))]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert distance(saved(as_stored, codec, exif=exif, **parameters), upright) <= tolerance


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage"])
def test_broken_exif_is_ignored(exif):
    pixels = noise(16, 20)
    assert distance(saved(pixels, "PNG", exif=exif), pixels) == 0


def test_a_profile_changes_the_colours():
    pixels = noise(24, 30)
    profile = icc_profile(BLUE, GREEN, RED)
    for codec, parameters in (("PNG", {}), ("WEBP", {"lossless": True})):
        assert distance(saved(pixels, codec, icc_profile=profile, **parameters), pixels[..., ::-1]) <= 1
    jpeg = saved(gradient(24, 30), "JPEG", quality=100, subsampling=0, icc_profile=profile)
    assert distance(jpeg, gradient(24, 30)[..., ::-1]) <= 4


def test_a_profile_leaves_alpha_alone():
    pixels = noise(24, 30, 4)
    data = saved(pixels, "PNG", icc_profile=icc_profile(BLUE, GREEN, RED))
    assert distance(data, over_white(pixels[..., 2::-1], pixels[..., 3])) <= 1


def test_an_srgb_profile_changes_nothing():
    pixels = noise(24, 30)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert distance(saved(pixels, "PNG", icc_profile=profile), pixels) == 0


@pytest.mark.parametrize("profile", [b"nonsense", icc_profile(BLUE, GREEN, RED)[:200], icc_profile(RED, GREEN, RED)])
def test_a_broken_profile_is_ignored_or_harmless(profile):
    data = saved(noise(24, 30), "PNG", icc_profile=profile)
    assert check(data, LIMITS) == (30, 24)
    assert decode(data, LIMITS).shape == (24, 30, 3)


def test_a_truncated_profile_leaves_the_pixels():
    pixels = noise(24, 30)
    assert distance(saved(pixels, "PNG", icc_profile=icc_profile(BLUE, GREEN, RED)[:200]), pixels) == 0


def test_a_profile_for_other_pixels_is_ignored():
    plane = noise(24, 30, 1)[..., 0]
    assert distance(saved(plane, "PNG", icc_profile=icc_profile(BLUE, GREEN, RED)), grey(plane)) == 0


@pytest.mark.parametrize(("codec", "parameters"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_an_animation_is_its_first_frame(codec, parameters):
    frames = [noise(20, 24, seed=seed) for seed in range(3)]
    data = saved(
        Image.fromarray(frames[0]),
        codec,
        save_all=True,
        append_images=[Image.fromarray(frame) for frame in frames[1:]],
        **parameters,
    )
    assert distance(data, frames[0]) == 0


def test_a_multi_picture_jpeg_is_its_first_picture():
    pixels = gradient(24, 32)
    second = Image.fromarray(noise(24, 32))
    data = saved(Image.fromarray(pixels), "MPO", save_all=True, append_images=[second], quality=100, subsampling=0)
    assert distance(data, pixels) <= 3


@pytest.mark.parametrize("codec", ["GIF", "BMP", "TIFF", "ICO", "PPM", "TGA"])
def test_other_formats_are_refused(codec):
    error = refusal(saved(noise(20, 20), codec))
    assert error.reason == "NOT_AN_IMAGE"
    assert "PNG, JPEG or WebP" in error.message


def test_no_bytes_and_other_bytes_are_refused():
    assert refusal(b"").reason == "EMPTY"
    assert refusal(b"hello, world").reason == "NOT_AN_IMAGE"


@pytest.mark.parametrize(
    ("codec", "parameters"), [("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})]
)
def test_every_cut_is_noticed(codec, parameters):
    data = saved(noise(16, 16), codec, **parameters)
    for length in range(12, len(data)):
        assert refusal(data[:length]).reason == "TRUNCATED"


def test_damaged_pixels_are_refused():
    data = bytearray(saved(noise(40, 40), "PNG"))
    data[len(data) // 2] ^= 0xFF
    assert refusal(bytes(data)).reason == "TRUNCATED"


def header_only_png(width: int, height: int) -> bytes:
    body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", body) + png_chunk(b"IDAT", b"\x78\x9c")


def jpeg_that_claims(width: int, height: int) -> bytes:
    data = bytearray(saved(noise(16, 16), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data[:-40])


def webp_that_claims(width: int, height: int) -> bytes:
    data = bytearray(saved(noise(16, 16, 4), "WEBP", exif=b"Exif\0\0II*\0"))
    assert data[12:16] == b"VP8X"
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


@pytest.mark.parametrize("claim", [header_only_png, jpeg_that_claims, webp_that_claims])
def test_the_size_is_refused_before_anything_is_decoded(claim):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        error = refusal(claim(50_000, 50_000))
    assert error.reason == "TOO_MANY_PIXELS"
    assert "max_image_pixels = 50000000" in error.message
    assert "50000 x 50000" in error.message
    # The same body under a size that is allowed: what is wrong with it was not reached above.
    assert refusal(claim(100, 200)).reason == "TRUNCATED"


@pytest.mark.parametrize(("codec", "lossless"), [("VP8L", True), ("VP8 ", False)])
def test_plain_webp_headers_are_read(codec, lossless):
    data = saved(noise(30, 20), "WEBP", lossless=lossless)
    assert data[12:16] == codec.encode()
    assert check(data, LIMITS) == (20, 30)
    assert "20 x 30" in refusal(data, PictureLimits(max_image_pixels=599)).message
    assert check(data, PictureLimits(max_image_pixels=600)) == (20, 30)


def test_the_limits_decide_and_not_pillows_own():
    roomy = PictureLimits(max_image_pixels=10**9, max_image_side=2**24)
    error = refusal(webp_that_claims(14_000, 14_000), roomy)
    assert "bomb" not in error.message


def test_every_limit_is_named():
    data = saved(noise(20, 40), "PNG")
    cases = {
        "max_image_bytes = 100": (PictureLimits(max_image_bytes=100), "TOO_MANY_BYTES"),
        "max_image_pixels = 799": (PictureLimits(max_image_pixels=799), "TOO_MANY_PIXELS"),
        "max_image_side = 39": (PictureLimits(max_image_side=39), "SIDE_TOO_LONG"),
        "min_image_side = 21": (PictureLimits(min_image_side=21), "SIDE_TOO_SHORT"),
    }
    for text, (limits, reason) in cases.items():
        error = refusal(data, limits)
        assert error.reason == reason
        assert text in error.message
    exact = PictureLimits(max_image_bytes=len(data), max_image_pixels=800, max_image_side=40, min_image_side=20)
    assert check(data, exact) == (40, 20)


def test_threads_do_not_disturb_one_another():
    profile = icc_profile(BLUE, GREEN, RED)
    files = [saved(noise(40, 60, seed=seed), "PNG", icc_profile=profile) for seed in range(6)]
    files += [saved(noise(40, 60, seed=seed), "JPEG") for seed in range(6)]
    files += [saved(noise(40, 60, seed=seed)[:, :, :1].repeat(4, 2), "WEBP") for seed in range(6)]
    alone = [decode(data, LIMITS) for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: decode(data, LIMITS), files * 5))
    for index, pixels in enumerate(together):
        assert np.array_equal(pixels, alone[index % len(files)])
