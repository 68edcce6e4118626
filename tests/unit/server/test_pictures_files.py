"""Picture files become the right pixels."""

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pictures_by_hand import gradient, icc_profile, noise, png, saved
from PIL import Image, ImageCms

from nst_server.pictures import PictureLimits, check, decode

LIMITS = PictureLimits()
RED = (0.4360747, 0.2225045, 0.0139322)
GREEN = (0.3850649, 0.7168786, 0.0971045)
BLUE = (0.1430804, 0.0606169, 0.7141733)


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
    longer = png((20, 16), 8, 3, rows, plte, (b"tRNS", alphas.tobytes() + b"\1" * 44))
    assert distance(longer, over_white(palette[indices], alphas[indices])) == 0


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


@pytest.mark.parametrize(
    "profile",
    [
        b"nonsense",
        icc_profile(BLUE, GREEN, RED)[:200],
        icc_profile(RED, GREEN, RED),
        icc_profile(RED, GREEN, BLUE, b"RG\xffB"),
    ],
)
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
