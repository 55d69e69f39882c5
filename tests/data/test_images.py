"""Opening every kind of image, refusing every kind of damage, and the two transforms."""

import io
import os
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refused
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from captioner.data import images
from captioner.data.images import ImageError, eval_transform, find_images, open_image, train_transform
from captioner.errors import UserError

# a warning of Pillow or an unclosed file (which surfaces as "unraisable") fails the test
pytestmark = pytest.mark.filterwarnings("error")
COCO = Path(__file__).parents[3] / "shared" / "coco_sample"


def photograph(width: int = 60, height: int = 40) -> Image.Image:
    """An image without symmetry: red grows rightwards, green downwards, and a blue corner at the top left."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([x, y, 64 * np.ones_like(x)], axis=-1).astype(np.uint8)
    pixels[: height // 4, : width // 4] = 0, 0, 255
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def difference(a: Image.Image, b: Image.Image) -> float:
    """The largest difference of two images, in grey levels."""
    assert a.size == b.size
    return float(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())


def is_one_line(error: Exception, *parts: str) -> bool:
    text = str(error)
    return "\n" not in text and all(part in text for part in parts)


# ---- what opens


HOLDS = {
    "PNG": "RGB L 1 P RGBA LA",
    "GIF": "RGB L 1 P RGBA",
    "BMP": "RGB L 1 P RGBA",
    "WEBP": "RGB L P RGBA LA",
    "TIFF": "RGB L 1 P RGBA LA CMYK",
    "PPM": "RGB L 1",
    "JPEG2000": "RGB L RGBA LA",
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in HOLDS.items() for mode in modes.split()])
def test_every_mode_a_format_can_hold_is_opened_as_rgb(kind, mode):
    image = photograph().convert(mode)
    opened = open_image(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert opened.mode == "RGB"
    assert type(opened) is Image.Image
    assert difference(opened, image.convert("RGB")) <= (60 if kind == "GIF" else 2)  # GIF: a palette of its own


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_an_image_in_memory_may_have_any_mode(mode):
    image = photograph().convert(mode)
    assert difference(open_image(image), image.convert("RGB")) == 0


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_of_every_mode(mode, progressive):
    image = photograph().convert(mode)
    opened = open_image(encoded(image, "JPEG", quality=100, subsampling=0, progressive=progressive))
    assert opened.mode == "RGB"
    assert difference(opened, image.convert("RGB")) < 40
    assert np.abs(np.asarray(opened, float) - np.asarray(image.convert("RGB"), float)).mean() < 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_what_is_transparent_is_white(mode):
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    if mode in ("RGBA", "RGBa"):
        image = clear.convert(mode)
    elif mode == "PA":
        image = Image.new("PA", (4, 4))
    else:
        image = clear.convert("LA").convert(mode)
    assert open_image(image).getpixel((1, 1)) == (255, 255, 255)


def test_half_transparent_red_on_white_is_pink():
    data = encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "PNG")
    assert np.allclose(open_image(data).getpixel((0, 0)), (255, 127, 127), atol=1)


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_of_png_or_gif_is_white(mode):
    image = Image.new(mode, (4, 4), 0)
    key = (0, 0, 0) if mode == "RGB" else 0
    assert open_image(encoded(image, "PNG", transparency=key)).getpixel((0, 0)) == (255, 255, 255)
    if mode == "P":
        assert open_image(encoded(image, "GIF", transparency=0)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_to_8(kind):
    grey = np.arange(0, 256, dtype=np.uint16).reshape(16, 16) * 257
    opened = np.asarray(open_image(encoded(Image.fromarray(grey), kind)))  # (16, 16, 3)
    assert (opened == (grey // 257)[..., None]).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_a_dark_16_bit_image_stays_dark(kind):
    dark = Image.fromarray(np.full((4, 4), 200, dtype=np.uint16))
    assert open_image(encoded(dark, kind)).getpixel((0, 0)) == (1, 1, 1)


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
def test_float_grey_is_scaled_by_the_range_it_stands_for(top):
    ramp = (np.linspace(0, 1, 256, dtype=np.float32) * top).reshape(16, 16)
    opened = np.asarray(open_image(encoded(Image.fromarray(ramp), "TIFF")))[..., 0]
    assert (opened.reshape(-1) == np.arange(256)).all()


@given(st.lists(st.floats(width=32), min_size=1, max_size=12), st.sampled_from([np.float32, np.int32]))
def test_any_deep_grey_gives_an_image_that_keeps_the_order(values, kind):
    values = np.array(values, dtype=np.float32)
    if kind is np.int32:
        values = np.clip(np.nan_to_num(values), -(2.0**30), 2.0**30).astype(np.int32)
    opened = np.asarray(open_image(Image.fromarray(values.reshape(1, -1))))[0, :, 0]
    plain = np.where(np.isfinite(values), values, 0)
    assert (np.diff(opened[np.argsort(plain)].astype(int)) >= 0).all()


def test_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "TIFF", "WEBP", "PNG", "MPO"):
        path = tmp_path / f"moving.{kind.lower()}"
        frames[0].save(path, kind, save_all=True, append_images=frames[1:])
        assert difference(open_image(path), frames[0]) < 5, kind


def test_a_path_a_string_bytes_a_stream_and_an_image_are_the_same(tmp_path):
    path = tmp_path / "a.png"
    photograph().save(path)
    with open(path, "rb") as stream, Image.open(path) as lazy:
        opened = [open_image(source) for source in (path, str(path), path.read_bytes(), stream, lazy, photograph())]
        assert not stream.closed
    assert all(difference(one, photograph()) == 0 for one in opened)


def test_a_stream_that_cannot_seek(tmp_path):
    read, write = os.pipe()
    with open(write, "wb") as sink:
        sink.write(encoded(photograph(), "PNG"))  # shorter than a pipe's buffer
    with open(read, "rb") as stream:
        assert difference(open_image(stream), photograph()) == 0


def test_the_image_passed_in_is_left_as_it_was():
    image = photograph()
    opened = open_image(image)
    opened.paste("white", (0, 0, 60, 40))
    assert difference(image, photograph()) == 0


# ---- EXIF

# what a camera must have stored for the image to be seen upright: the inverse of each EXIF orientation
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_exif_orientation_is_turned_upright(orientation, kind):
    upright = photograph()
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](np.asarray(upright))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    opened = open_image(encoded(stored, kind, exif=exif, **options))
    assert opened.size == upright.size
    assert np.abs(np.asarray(opened, float) - np.asarray(upright, float)).mean() < 4


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert difference(open_image(encoded(photograph(), "PNG", exif=exif)), photograph()) == 0


def real_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A], exif[0x0128] = 1, "Maker", 72.0, 2
    return exif.tobytes()


@given(st.data())
def test_a_corrupt_exif_block_does_not_spoil_the_image(data):
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP"]))
    block = bytearray(real_exif())
    for _ in range(data.draw(st.integers(0, 6))):
        block[data.draw(st.integers(6, len(block) - 1))] = data.draw(st.integers(0, 255))
    block = block[: data.draw(st.integers(6, len(block)))] + data.draw(st.binary(max_size=12))
    opened = open_image(encoded(Image.new("RGB", (8, 8), "teal"), kind, exif=bytes(block)))
    assert difference(opened, Image.new("RGB", (8, 8), "teal")) < 5


# ---- draft


@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 400), st.sampled_from([1, 6]))
def test_a_size_hint_never_goes_below_the_hint(width, height, hint, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.new("RGB", (width, height), "olive"), "JPEG", exif=exif)
    whole, drafted = open_image(data), open_image(data, size_hint=hint)
    assert min(drafted.size) >= min(hint, *whole.size)
    assert min(drafted.size) * 8 >= min(whole.size)
    assert (drafted.width > drafted.height) <= (whole.width >= whole.height)


def test_a_size_hint_makes_a_large_photograph_small_and_keeps_what_it_shows():
    data = encoded(photograph(1600, 1200), "JPEG", quality=95)
    drafted = open_image(data, size_hint=224)
    assert drafted.size == (400, 300)
    shrunk = photograph(1600, 1200).resize((400, 300))
    assert np.abs(np.asarray(drafted, float) - np.asarray(shrunk, float)).mean() < 3


# ---- what is refused


def test_each_refusal_is_one_line_with_the_name_and_the_remedy(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    for name, says in {
        "gone.jpg": "no such file",
        "empty.jpg": "empty",
        "empty.jpg/x.jpg": "no such file",
        "drawing.svg": "convert it to JPEG or PNG",
        "page.jpg": "convert it to JPEG or PNG",
        ".": "folder",
    }.items():
        with pytest.raises(ImageError) as caught:
            open_image(tmp_path / name)
        assert is_one_line(caught.value, str(tmp_path / name), says), str(caught.value)
    for source in (b"", b"no image", io.BytesIO(), io.BytesIO(b"\xff\xd8\xff"), Image.new("RGB", (0, 4))):
        with pytest.raises(ImageError) as caught:
            open_image(source)
        assert is_one_line(caught.value, "image")


def test_a_wild_file_name_still_gives_one_printable_line():
    with pytest.raises(ImageError) as caught:
        open_image("a\nb\x1b[31m\udcff.jpg")
    assert str(caught.value).isprintable()


def open_or_refuse(source) -> Image.Image | None:
    """The image, or None where it was refused as it should be; any other exception fails the test."""
    try:
        return open_image(source, size_hint=1_000)
    except ImageError as error:
        return None if is_one_line(error) else pytest.fail(repr(str(error)))


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG", "GIF", "BMP", "WEBP", "TIFF", "LZW", "PPM", "JPEG2000"])
def test_an_image_cut_short_is_refused_unless_nothing_visible_was_lost(kind, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    options = {"progressive": {"progressive": True}, "LZW": {"compression": "tiff_lzw"}}.get(kind, {})
    data = encoded(Image.fromarray(noise), {"progressive": "JPEG", "LZW": "TIFF"}.get(kind, kind), **options)
    whole = open_image(data)
    path = tmp_path / "cut"
    cuts = {len(data) * percent // 100 for percent in range(0, 100, 5)} | {len(data) - n for n in (1, 2, 3, 12, 16)}
    for cut in sorted(cuts):
        path.write_bytes(data[:cut])
        for source in (data[:cut], path):
            opened = open_or_refuse(source)
            assert opened is None or difference(opened, whole) == 0, f"{kind} cut at {cut} of {len(data)} bytes"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@given(st.data())
def test_random_damage_never_raises_anything_but_image_error(data):
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "WEBP", "PPM", "JPEG2000"]))
    damaged = bytearray(encoded(photograph(12, 8), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    opened = open_or_refuse(bytes(damaged))
    assert opened is None or opened.mode == "RGB"


def huge_png(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_header_that_claims_too_much_is_refused_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_478_485)
    path = tmp_path / "bomb.png"
    path.write_bytes(huge_png(60_000, 60_000))
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert is_one_line(caught.value, str(path), "178,956,970 pixels")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # our own limit does not lean on Pillow's
    with pytest.raises(ImageError, match="178,956,970 pixels"):
        open_image(path.read_bytes())


def test_the_limit_is_a_number_of_pixels_and_the_warning_below_it_is_silent(monkeypatch):
    data = encoded(Image.new("RGB", (10, 10)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # Pillow would warn from 60 and refuse from 120
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    assert open_image(data).size == (10, 10)
    monkeypatch.setattr(images, "MAX_PIXELS", 99)
    with pytest.raises(ImageError, match="more than 99 pixels"):
        open_image(data)


@pytest.mark.parametrize("error", [struct.error("x"), zlib.error("x"), EOFError(), MemoryError(), KeyError("k")])
def test_whatever_a_decoder_raises_becomes_image_error(error, monkeypatch):
    def load(self):
        raise error

    data = encoded(photograph(), "PNG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(ImageError, match="cannot be decoded"):
        open_image(data)


def test_opening_leaves_no_file_open_and_the_warning_filters_as_they_were(tmp_path):
    good, bad = tmp_path / "good.gif", tmp_path / "bad.tif"
    photograph().save(good, save_all=True, append_images=[photograph()])
    bad.write_bytes(encoded(photograph(), "TIFF")[:-100])
    filters = list(warnings.filters)
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    for _ in range(3):
        open_image(good)
        with pytest.raises(ImageError):
            open_image(bad)
    assert before == (os.listdir("/proc/self/fd") if before else [])
    assert warnings.filters == filters


# ---- transforms


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_both_transforms_give_uint8_of_the_size_asked_for(width, height, size):
    image = photograph(width, height)
    for tensor in (eval_transform(image, size), train_transform(image, size, None)):
        assert tensor.shape == (3, size, size)
        assert tensor.dtype == torch.uint8
        assert tensor.is_contiguous()


def test_eval_of_an_image_of_that_size_is_its_pixels():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    assert (eval_transform(image, 16).permute(1, 2, 0).numpy() == np.asarray(image)).all()


def test_eval_shows_the_whole_image_and_averages_when_it_shrinks():
    image = Image.new("RGB", (300, 100))
    image.paste("white", (0, 0, 30, 100))  # a tenth at the left edge
    tensor = eval_transform(image, 30).float()  # (3, 30, 30)
    assert (tensor[:, :, :2] > 240).all()
    assert (tensor[:, :, 5:] < 15).all()
    stripes = Image.fromarray(np.tile(np.array([[[0] * 3], [[255] * 3]], dtype=np.uint8), (50, 100, 1)))
    assert (eval_transform(stripes, 10).float() - 127.5).abs().max() < 8  # aliasing would give 0 or 255


def test_train_is_decided_by_the_generator_and_by_nothing_else():
    def views(seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.stack([train_transform(photograph(), 24, generator) for _ in range(5)])

    first = views(7)
    torch.manual_seed(1)
    assert torch.equal(first, views(7))
    assert not torch.equal(first, views(8))
    assert len({view.numpy().tobytes() for view in first}) == 5
    torch.manual_seed(3)
    a = train_transform(photograph(), 24, None)
    torch.manual_seed(3)
    assert torch.equal(a, train_transform(photograph(), 24, None))


def test_train_crops_between_80_and_100_percent_near_the_same_shape(monkeypatch):
    boxes = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, *a, box, **k: boxes.append(box) or resize(self, *a, box=box)
    )
    generator = torch.Generator().manual_seed(0)
    image = Image.new("RGB", (200, 100))
    for _ in range(400):
        train_transform(image, 2, generator)
    left, top, right, bottom = np.array(boxes).T
    area, ratio = (right - left) * (bottom - top) / 20_000, (right - left) / (bottom - top) / 2
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= 200).all()
    assert (bottom <= 100).all()
    assert 0.8 <= area.min() < 0.82 < 0.98 < area.max() <= 1
    assert 3 / 4 <= ratio.min() < 0.87 < 1.15 < ratio.max() <= 4 / 3
    assert abs(np.log(ratio).mean()) < 0.02  # neither wider nor taller on the whole


def test_train_keeps_left_and_right():
    image = Image.new("RGB", (40, 40))
    image.paste("white", (0, 0, 20, 40))
    generator = torch.Generator().manual_seed(0)

    assert all(train_transform(image, 8, generator).float()[..., 0].mean() > 128 for _ in range(50))


@given(st.tuples(*[st.integers(40, 190)] * 3), st.integers(0, 1000))
def test_train_never_changes_the_hue(colour, seed):
    image = Image.new("RGB", (20, 20), colour)
    view = train_transform(image, 4, torch.Generator().manual_seed(seed))[:, 0, 0].tolist()
    original = np.array(colour)
    moved = np.array(view) - original
    # brightness and contrast scale all differences between the channels alike, within 0.9² and 1.1²
    for i in range(3):
        for j in range(3):
            gap, after = original[i] - original[j], view[i] - view[j]
            assert 0.81 * abs(gap) - 1 <= abs(after) <= 1.21 * abs(gap) + 1
            assert gap * after >= 0
    assert np.abs(moved).max() <= 45


# ---- find_images


@pytest.fixture
def folder(tmp_path):
    for name in (
        "b.jpg",
        "a.PNG",
        "notes.txt",
        ".hidden.jpg",
        "sub/c.webp",
        "sub/deep/d.jpeg",
        ".git/e.jpg",
        "x/y.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def names(found, folder):
    return [path.relative_to(folder).as_posix() for path in found]


def test_a_folder_gives_its_images_sorted_at_any_depth_without_hidden_ones(folder):
    assert names(find_images([str(folder)]), folder) == ["a.PNG", "b.jpg", "sub/c.webp", "sub/deep/d.jpeg"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["b.jpg"]),
        ("*", ["a.PNG", "b.jpg", "sub/c.webp", "sub/deep/d.jpeg"]),  # as when the shell expands it: folders count
        ("**", ["a.PNG", "b.jpg", "sub/c.webp", "sub/deep/d.jpeg"]),
        ("**/*.jp*g", ["b.jpg", "sub/deep/d.jpeg"]),
        ("**.jpg", ["b.jpg"]),
        ("sub/*/[a-d].jpe?", ["sub/deep/d.jpeg"]),
        (".hid*", [".hidden.jpg"]),
    ],
)
def test_glob_patterns(folder, monkeypatch, pattern, expected):
    assert names(find_images([f"{folder}/{pattern}"]), folder) == expected
    monkeypatch.chdir(folder)
    assert [path.as_posix() for path in find_images([pattern])] == expected


def test_a_named_file_is_kept_whatever_it_is_and_only_once(folder):
    (folder / "odd[1].jpg").touch()
    arguments = [str(folder / name) for name in ("notes.txt", "gone.jpg", "odd[1].jpg", "notes.txt")]
    assert names(find_images(arguments), folder) == ["notes.txt", "gone.jpg", "odd[1].jpg"]
    assert find_images([]) == []


@pytest.mark.parametrize("argument", ["x", "*.bmp", "x/*", "none/**/*.jpg"])
def test_nothing_found_is_one_clear_line(folder, argument):
    with pytest.raises(UserError) as caught:
        find_images([str(folder / argument)])
    assert is_one_line(caught.value, str(folder / argument), "no image")


@pytest.mark.parametrize("argument", ["", "/**/*.jpg", "/**", "/*"])
def test_links_are_followed_but_loops_end(folder, argument):
    for name in ("loop", "again", "sub/loop", "sub/again"):
        (folder / name).symlink_to(folder, target_is_directory=True)
    other = folder.parent / (folder.name + "-elsewhere")
    other.mkdir()
    (other / "far.jpg").touch()
    (folder / "link").symlink_to(other, target_is_directory=True)
    found = find_images([f"{folder}{argument}"])
    assert len(found) < 100
    assert folder / "b.jpg" in found
    if argument == "":
        assert folder / "link" / "far.jpg" in found
        assert len({os.path.realpath(path) for path in found}) == len(found) == 5


# ---- the genuine article


@pytest.mark.skipif(not COCO.is_dir(), reason="the COCO sample is not on this machine (../shared/coco_sample)")
def test_every_photograph_of_the_coco_sample_opens():
    found = find_images([str(COCO / "images")])
    assert len(found) == 72
    for path in found:
        opened = open_image(path, size_hint=64)
        assert opened.mode == "RGB"
        assert eval_transform(opened, 32).shape == (3, 32, 32)


# ---- HEIC

HEIC_HEAD = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(100)


def test_heic_without_its_plugin_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(images, "can_open_heif", lambda: False)
    for name in ("a.heic", "b.HEIC", "c.png"):
        (tmp_path / name).write_bytes(HEIC_HEAD)
    refused(images.open_image, tmp_path / "a.heic", says=["a.heic", "pip install -e '.[heif]'"])
    assert images.find_images([str(tmp_path)]) == [tmp_path / "c.png"]
    assert re.fullmatch(r".*2 HEIC images left out.*\.\[heif\].*\n", capsys.readouterr().err)


def test_heic_with_its_plugin(tmp_path):
    pytest.importorskip("pillow_heif")
    assert images.can_open_heif()
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.heic")
    found = images.open_image(tmp_path / "a.heic")
    assert (found.mode, found.size) == ("RGB", (64, 48))
    assert found.getpixel((32, 24))[0] > 200
    assert images.find_images([str(tmp_path)]) == [tmp_path / "a.heic"]
