"""Videos, animated images and albums: evenly spaced frames, in order, and one caption each from the command line."""

import json
import shutil
import struct

import numpy as np
import pytest
import torch
from helpers import arguments, is_one_line, make_captioner, train, write_set
from PIL import Image

from captioner.config import SearchConfig
from captioner.data.annotations import Example
from captioner.data.clips import album_images, evenly_spaced, load_pixels
from captioner.data.dataset import CaptionDataset
from captioner.data.images import ImageError, find_images
from captioner.data.vocabulary import Vocabulary
from captioner.errors import UserError
from captioner.models.captioner import Ensemble

SIDE = 32
PLAYLIST = b"#EXTM3U\n#EXTINF:1,\nsecret.mp4\n"  # ffmpeg would open the file it names


def grey(i: int) -> Image.Image:
    """Frame i of a clip."""
    return Image.new("RGB", (SIDE, SIDE), (10 + 10 * i,) * 3)


def numbers(seen: torch.Tensor) -> list[int]:
    """Numbers of these frames (S, 3, H, W), without the padding."""
    return [round((value - 10) / 10) for value in seen.float().mean(dim=(1, 2, 3)).tolist() if value]


@pytest.fixture
def gif(tmp_path):
    first, *rest = (grey(i) for i in range(20))
    first.save(tmp_path / "clip.gif", save_all=True, append_images=rest)
    return tmp_path / "clip.gif"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "album" / "deeper").mkdir(parents=True)
    for i in range(12):
        grey(i).save(tmp_path / "album" / f"photo {i}.png")
    grey(19).save(tmp_path / "album" / ".hidden.png")
    grey(19).save(tmp_path / "album" / "deeper" / "0.png")
    (tmp_path / "album" / "notes.txt").write_text("words")
    return tmp_path / "album"


def write_video(path, count=20, draw=grey, **options):
    """A video whose frame i is draw(i)."""
    av = pytest.importorskip("av", reason="PyAV, which the extra [video] brings, is not here")
    with av.open(str(path), "w") as file:
        stream = file.add_stream(options.pop("codec", "mpeg4"), rate=10, options=options)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for i in range(count):
            for packet in stream.encode(av.VideoFrame.from_image(draw(i))):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path


def test_evenly_spaced():
    assert evenly_spaced(8, 8) == list(range(8))
    assert evenly_spaced(3, 8) == [0, 1, 2]
    assert evenly_spaced(0, 8) == []
    for available in (9, 10, 17, 100, 1001):
        for wanted in (2, 5, 8):
            found = evenly_spaced(available, wanted)
            steps = np.diff(found)
            assert (found[0], found[-1], len(found)) == (0, available - 1, wanted)
            assert steps.min() >= 1
            assert steps.max() - steps.min() <= 1


def test_an_animated_image_is_a_clip(gif):
    seen = load_pixels(gif, 16, 5)
    assert (seen.shape, seen.dtype) == ((5, 3, 16, 16), torch.uint8)
    assert numbers(seen) == [0, 5, 10, 14, 19]
    assert numbers(load_pixels(gif, 16, 64)) == list(range(20))
    assert load_pixels(gif, 16).shape == (3, 16, 16)  # its first frame, for a model of images


@pytest.mark.parametrize("suffix", ["webp", "png"])
def test_other_animations(tmp_path, suffix):
    first, *rest = (grey(i) for i in range(6))
    first.save(tmp_path / f"clip.{suffix}", save_all=True, append_images=rest, lossless=True)
    assert numbers(load_pixels(tmp_path / f"clip.{suffix}", 16, 3)) == [0, 3, 5]


def test_pages_are_no_frames_and_an_image_is_an_album_of_one(tmp_path):
    grey(4).save(tmp_path / "pages.tiff", save_all=True, append_images=[grey(5)])
    for source in (tmp_path / "pages.tiff", grey(4)):
        seen = load_pixels(source, 16, 3)
        assert numbers(seen) == [4]
        assert not seen[1:].any()


def test_an_album_is_in_natural_order(folder):
    assert [path.name for path in album_images(folder)] == [f"photo {i}.png" for i in range(12)]
    assert numbers(load_pixels(folder, 16, 4)) == [0, 4, 7, 11]
    assert numbers(load_pixels(folder, 16, 20)) == list(range(12))


@pytest.mark.parametrize(
    ("name", "options"),
    [("clip.mp4", {}), ("clip.mkv", {}), ("clip.avi", {}), ("clip.mp4", {"codec": "libx264", "bf": "3"})],
    ids=["mp4", "mkv, which has no count", "avi", "B-frames"],
)
def test_a_video(tmp_path, name, options):
    path = write_video(tmp_path / name, **options)
    assert numbers(load_pixels(path, 16, 5)) == [0, 5, 10, 14, 19]
    assert numbers(load_pixels(path, 16, 64)) == list(range(20))


def test_a_video_is_turned_upright(tmp_path):
    """As phones write them: the matrix of the track header says to turn it by 90° clockwise."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    image.paste("black", (0, 0, SIDE // 2, SIDE))  # the left half, which comes to lie above
    path = write_video(tmp_path / "clip.mp4", 3, lambda _: image)
    content = path.read_bytes()
    place = content.index(b"tkhd") + 44
    matrix = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, SIDE << 16, 0, 0x40000000)
    path.write_bytes(content[:place] + matrix + content[place + len(matrix) :])
    for frame in load_pixels(path, SIDE, 3).float():
        assert frame[:, : SIDE // 2].mean() < 30
        assert frame[:, SIDE // 2 :].mean() > 225


@pytest.mark.parametrize("content", [b"", b"words", PLAYLIST], ids=["empty", "text", "list"])
def test_what_is_no_video_is_one_line(tmp_path, content):
    pytest.importorskip("av", reason="PyAV, which the extra [video] brings, is not here")
    write_video(tmp_path / "secret.mp4")
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(ImageError, match=r"^[^\n]*clip\.mp4: [^\n]+$"):
        load_pixels(tmp_path / "clip.mp4", 16, 4)


def test_a_video_that_is_cut_short_or_missing_is_one_line(tmp_path):
    path = write_video(tmp_path / "clip.mp4")
    path.write_bytes(path.read_bytes()[:300])
    for name in ("clip.mp4", "gone.mp4"):
        with pytest.raises(ImageError, match=rf"^[^\n]*{name}: [^\n]+$"):
            load_pixels(tmp_path / name, 16, 4)


def test_sound_alone_is_one_line(tmp_path):
    av = pytest.importorskip("av", reason="PyAV, which the extra [video] brings, is not here")
    with av.open(str(tmp_path / "sound.mkv"), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), layout="mono")
        frame.sample_rate = 8000
        for packet in (*stream.encode(frame), *stream.encode()):
            file.mux(packet)
    with pytest.raises(ImageError, match="sound but no images"):
        load_pixels(tmp_path / "sound.mkv", 16, 4)


def test_without_pyav_the_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImageError, match=r"^[^\n]*clip\.mp4: [^\n]*pip install -e '\.\[video\]'$"):
        load_pixels(tmp_path / "clip.mp4", 16, 4)


def test_a_model_of_images_takes_no_video(tmp_path):
    with pytest.raises(ImageError, match=r"^[^\n]*clip\.mp4: is a video[^\n]*--model\.frames 8$"):
        load_pixels(tmp_path / "clip.mp4", 16)


def test_an_empty_folder_and_a_bad_image_in_an_album(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="empty: no image in this folder"):
        load_pixels(tmp_path / "empty", 16, 4)
    (folder / "photo 0.png").write_bytes(b"words")
    with pytest.raises(ImageError, match=r"photo 0\.png"):
        load_pixels(folder, 16, 4)


def test_find_images_with_clips(tmp_path, folder, gif):
    (tmp_path / "a.mp4").touch()
    found = find_images([str(folder), f"{tmp_path}/*", str(tmp_path / "a.mp4")], clips=True)
    assert [path.name for path in found] == ["album", "a.mp4", "clip.gif"]
    assert find_images([f"{tmp_path}/*.gif"]) == [gif]
    with pytest.raises(UserError, match="no image there"):
        find_images([f"{tmp_path}/*.mp4"])


# ---- models


@pytest.mark.parametrize("grid", [0, 2])
def test_frames_are_encoded_one_by_one_and_padding_is_zero(grid):
    model = make_captioner(frames=4, grid=grid)
    images = torch.randint(1, 256, (2, 4, 3, SIDE, SIDE), dtype=torch.uint8)
    images[1, 2:] = 0
    features = model.features(images)
    each = (4, 512) if grid else (512,)
    assert features.shape == (2, 4, *each)
    assert len(model.search(features, SearchConfig(beam=2))) == 2
    for i in range(2):
        for s in range(4):
            expected = torch.zeros(each) if (i, s) in ((1, 2), (1, 3)) else model.encoder(images[i, s : s + 1])[0]
            torch.testing.assert_close(features[i, s], expected)
    black = model.features(torch.zeros_like(images))
    assert black.flatten(2).any(dim=2).tolist() == [[True, False, False, False]] * 2


def test_a_checkpoint_is_enough(tmp_path, gif, folder):
    from captioner.models.captioner import Captioner

    model = make_captioner(frames=4)
    model.save(tmp_path / "model.safetensors", half=False)
    again = Captioner.load(tmp_path / "model.safetensors")
    assert again.frames == 4
    assert again.caption([gif, folder, grey(3)], beam=2) == model.caption([gif, folder, grey(3)], beam=2)
    both = Ensemble([model, again], ["a", "b"])
    assert both.caption(gif, beam=2) == model.caption(gif, beam=2)
    with pytest.raises(UserError, match="take 4 and 0 frames"):
        Ensemble([model, make_captioner()], ["a", "b"])


def test_all_frames_are_augmented_alike(tmp_path):
    (tmp_path / "album").mkdir()
    for i in range(3):
        Image.linear_gradient("L").save(tmp_path / "album" / f"{i}.png")
    data = CaptionDataset(
        [Example(1, tmp_path / "album", ("a b",))], Vocabulary(["a", "b"]), 5, 16, augment=0, by_image=True, frames=4
    )
    (clip,) = data[[0]].images
    assert not torch.equal(clip[0], load_pixels(tmp_path / "album" / "0.png", 16))
    assert torch.equal(clip[0], clip[1])
    assert torch.equal(clip[0], clip[2])
    assert not clip[3].any()


# ---- the command line


@pytest.fixture(scope="module")
def albums(tmp_path_factory):
    """A data set in which every image is an album of three, or a GIF of two frames."""
    coco = write_set(tmp_path_factory.mktemp("albums") / "set")
    for split in ("train", "val"):
        data = json.loads(coco.annotations(split).read_text())
        for n, image in enumerate(data["images"]):
            path = coco.images(split) / image["file_name"]
            pixels = Image.open(path).convert("RGB")
            turned = pixels.transpose(Image.Transpose.ROTATE_90).point(lambda value: value // 2 + 20)
            path.unlink()
            if n % 2:
                image["file_name"] = path.with_suffix(".gif").name
                pixels.save(path.with_suffix(".gif"), save_all=True, append_images=[turned])
            else:
                image["file_name"] = path.stem
                path.with_suffix("").mkdir()
                for i, each in enumerate((pixels, turned, pixels)):
                    each.save(path.with_suffix("") / f"{i}.png")
        coco.annotations(split).write_text(json.dumps(data))
    return coco


@pytest.fixture(scope="module")
def run(albums, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(albums, folder, "--model.frames", "3") == 0
    return folder / "captioner.safetensors"


def test_train_predict_evaluate(albums, run, cli, tmp_path):
    for index in (albums.folder / "features").glob("*/index.json"):
        assert json.loads(index.read_text())["fingerprint"]["frames"] == 3
    code, out, err = cli("predict", f"{albums.images('val')}/*", "--checkpoint", run, "--beam", 2)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 6  # one caption a clip or album
    code, out, _ = cli("predict", albums.images("val") / "012", "--checkpoint", run, "--beam", 2)
    assert (code, len(out.splitlines())) == (0, 1)
    files = ("--annotations", albums.annotations("val"), "--images", albums.images("val"))
    report = tmp_path / "report.html"
    assert cli("evaluate", *files, "--checkpoint", run, "--beam", 2, "--report", report)[0] == 0
    assert report.read_text().count('src="data:image/jpeg') == 6  # a frame of each


def test_predict_a_video_beside_one_that_cannot_be_read(run, cli, tmp_path):
    path = write_video(tmp_path / "clip.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"words")
    code, out, err = cli("predict", tmp_path / "bad.mp4", path, "--checkpoint", run, "--beam", 2)
    assert (code, len(out.splitlines())) == (1, 1)
    assert out.startswith(f"{path}\t")
    assert "bad.mp4" in err.splitlines()[0]


def test_a_changed_album_is_computed_again(albums, tmp_path):
    shutil.copytree(albums.folder, tmp_path / "set", ignore=shutil.ignore_patterns("features"))
    coco = type(albums)(tmp_path / "set")
    made = lambda: len([path for path in (coco.folder / "features").iterdir() if path.is_dir()])  # noqa: E731
    assert train(coco, tmp_path / "one", "--model.frames", "3", "--train.epochs", "1") == 0
    assert made() == 2
    grey(9).save(coco.images("val") / "012" / "9.png")
    assert train(coco, tmp_path / "two", "--model.frames", "3", "--train.epochs", "1") == 0
    assert made() == 3


@pytest.mark.slow
def test_fine_tuning_sees_frames(albums, tmp_path):
    assert train(albums, tmp_path / "run", "--model.frames", "2", "--model.trainable_layers", "1") == 0


@pytest.mark.slow
def test_frames_of_a_grid_of_cells(albums, tmp_path, cli):
    assert train(albums, tmp_path / "run", "--model.frames", "2", "--model.grid", "2", "--train.ema_decay", "0.5") == 0
    model = ("--checkpoint", tmp_path / "run" / "captioner.safetensors", "--beam", 2)
    code, out, _ = cli("predict", albums.images("val") / "012", *model)
    assert (code, len(out.splitlines())) == (0, 1)


def test_albums_are_for_models_with_frames(albums, tmp_path, cli):
    code, _, err = cli(*arguments(albums, tmp_path / "run"))
    assert code == 2
    assert is_one_line(err, "no file '000'")
