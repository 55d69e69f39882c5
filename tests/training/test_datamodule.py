"""The data module: vocabulary of the training split, bad images, features in memory or memory-mapped."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers import captions_of, equal_batches, is_one_line, refused, write_set
from PIL import Image

from captioner.config import DataConfig, ModelConfig
from captioner.data.images import eval_transform, open_image
from captioner.data.vocabulary import END, PAD, UNK, tokenize
from captioner.errors import UserError
from captioner.models.encoder import Encoder, cached_shape
from captioner.training import datamodule, split
from captioner.training.datamodule import CaptionData

FROZEN, TRAINED = 0, 1


def load(coco, trained: int = FROZEN, **options) -> CaptionData:
    model = ModelConfig("resnet18", image_size=32, second_size=0, trainable_layers=trained)
    return CaptionData(DataConfig(**{**coco.data(), "min_count": 1, "batch_size": 8, "workers": 0, **options}), model)


def hold(data: CaptionData, **options) -> None:
    """As a trainer on a CPU does."""
    data.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)
    data.setup("fit")
    data.trainer = None


def batches(data: CaptionData) -> list:
    return [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]


def edit(coco, split: str, change) -> None:
    file = coco.annotations(split)
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_the_vocabulary_is_counted_on_the_training_split(fresh):
    edit(fresh, "val", lambda content: content["annotations"][0].update(caption="a zebra a zebra"))
    data = load(fresh)
    words = {word for e in data.train.examples for caption in e.captions for word in tokenize(caption)}
    assert set(data.vocabulary.words[4:]) == words
    assert "zebra" not in words
    batch = next(iter(data.val_dataloader()))
    assert (batch.words == UNK).sum() == 2
    assert data.references()[0][0] == ["a", "zebra", "a", "zebra"]


def test_min_count_counts_training_words(tiny):
    assert len(load(tiny, min_count=5).vocabulary) < len(load(tiny).vocabulary)
    with pytest.raises(UserError, match=r"seen 1000 times: lower --data\.min_count"):
        load(tiny, min_count=1000)


@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
def test_a_fraction_is_of_images_chosen_by_the_seed(tiny, trained):
    whole = load(tiny, trained)
    model = ModelConfig("resnet18", image_size=32, second_size=0, trainable_layers=trained)

    def part(fraction: float, seed: int) -> CaptionData:
        return CaptionData(DataConfig(**{**tiny.data(), "min_count": 1, "fraction": fraction}), model, seed)

    names = {seed: [e.path.name for e in part(0.3, seed).train.examples] for seed in range(4)}
    assert all(len(one) == 4 and one == sorted(one) for one in names.values())  # 3.6 of 12, in the order of the file
    assert len({tuple(one) for one in names.values()}) > 1
    assert names[0] == [e.path.name for e in part(0.3, 0).train.examples]
    assert set(names[0]) < {e.path.name for e in part(0.6, 0).train.examples}
    assert len(part(1e-9, 0).train.examples) == 1
    data = part(0.3, 1)
    assert len(data.val.examples) == 6
    assert {word for e in data.train.examples for c in e.captions for word in tokenize(c)} == set(
        data.vocabulary.words[4:]
    )
    said = {data.vocabulary.decode(row[row > UNK]) for batch in data.train_dataloader() for row in batch.words}
    assert said == {caption for example in data.train.examples for caption in example.captions}
    if trained == FROZEN:  # each image keeps its own feature
        place = [[e.path for e in whole.train.examples].index(e.path) for e in data.train.examples]
        assert np.array_equal(data.train.table[data.train.rows], whole.train.table[whole.train.rows[place]])


def test_a_vocabulary_may_come_from_a_checkpoint(tiny, run):
    """That of a run on other captions, with its words and ids."""
    there = load(tiny, vocabulary=str(run / "captioner.safetensors"), fraction=0.1, min_count=1000)
    assert there.vocabulary.words == load(tiny).vocabulary.words
    assert there.train_set.flat.max() < len(there.vocabulary)
    with pytest.raises(UserError, match="there is no checkpoint"):
        load(tiny, vocabulary="none.safetensors")
    with pytest.raises(UserError, match="level word, not char"):
        load(tiny, vocabulary=str(run / "captioner.safetensors"), level="char")


def test_captions_may_be_written_in_letters(tiny):
    data = load(tiny, level="char", max_length=20)
    assert data.vocabulary.level == "char"
    assert set(data.vocabulary.words[4:]) == {
        letter for n in range(12) for text in captions_of(n, n % 5 + 1) for letter in text
    }
    rows = [data.vocabulary.decode(row[row > UNK]) for batch in batches(data) for row in batch.words]
    assert sorted(rows) == sorted(text[:20] for n in range(12) for text in captions_of(n, n % 5 + 1))


@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
def test_every_caption_once(tiny, trained):
    data = load(tiny, trained)
    rows = [data.vocabulary.decode(row[row > UNK]) for batch in batches(data) for row in batch.words]
    assert sorted(rows) == sorted(text for n in range(12) for text in captions_of(n, n % 5 + 1))
    assert len(data.train_dataloader()) == len(data.train_sampler())
    seen = [i for batch in data.val_dataloader() for i in batch.examples.tolist()]
    assert seen == list(range(6))


@torch.no_grad()
def test_a_frozen_encoder_s_features_are_its_own(tiny):
    data = load(tiny)
    encoder = Encoder(data.model)
    for batch in batches(data):
        assert batch.images.dtype == torch.float16
        paths = [data.train.examples[i].path for i in batch.examples]
        images = torch.stack([eval_transform(open_image(path), 32) for path in paths])
        assert torch.allclose(batch.images.float(), encoder(images), atol=1e-3)


@pytest.mark.parametrize("held", [pytest.param(True, marks=pytest.mark.slow), False])
def test_features_of_mirrored_images(fresh, held):
    edit(fresh, "train", lambda content: [a.update(caption="on the left") for a in content["annotations"]])
    edit(fresh, "train", lambda content: content["annotations"].append({"image_id": 100, "caption": "to the right"}))
    (fresh.images("train") / "003.png").write_bytes(b"no pixels")
    with Image.open(fresh.images("train") / "000.png") as image:
        image.paste("white", (0, 0, 9, 32))  # no longer its own mirror image
        image.save(fresh.images("train") / "000.png")
    data = load(fresh, horizontal_flip=True, skip_bad_images=True)
    if held:
        hold(data)
    encoder = Encoder(data.model)
    left = data.vocabulary.ids["left"]
    seen = set()
    for epoch in range(4):
        data.train_set.epoch = epoch
        batch = data.on_after_batch_transfer(data.train_set[list(range(len(data.train_set)))], 0)
        for row, (features, number) in enumerate(zip(batch.images, batch.examples.tolist(), strict=True)):
            mirrored, number = divmod(number, len(data.train.examples))
            example = data.train.examples[number]
            words = batch.words[batch.image_of == row]
            assert mirrored == (left not in words[0])
            seen.add(mirrored)
            pixels = eval_transform(open_image(example.path), 32)
            expected = encoder((pixels.flip(-1) if mirrored else pixels)[None])[0]
            assert torch.allclose(features.float(), expected, atol=1e-3), (number, mirrored)
            if number == 0:
                assert (left in words[-1]) == mirrored  # "to the right"
    assert seen == {True, False}
    assert len(data.train.table) == 2 * 12
    assert len(data.val.table) == 6

    # A reward compares with the captions that are true of the pixels as it is shown.
    words, lengths, rewards = np.array([[left, END], [data.vocabulary.ids["right"], END]]), [2, 2], data.rewards(0.0)
    for shown, best in ((0, 0), (len(data.train.examples), 1)):
        assert rewards(np.array([shown, shown]), words, np.array(lengths)).argmax() == best


def test_a_share_of_the_images_keeps_its_mirrored_features(fresh):
    data = load(fresh, horizontal_flip=True, fraction=0.5)
    assert (data.train.mirrored_rows == data.train.rows + 12).all()


def test_features_are_computed_once(fresh, monkeypatch):
    first = batches(load(fresh))
    monkeypatch.setattr(split, "extract_features", lambda *_: pytest.fail("computed again"))
    for a, b in zip(first, batches(load(fresh)), strict=True):
        assert equal_batches(a, b)


def test_a_changed_image_is_computed_again(fresh):
    first = load(fresh).train.table[0].copy()
    file = fresh.images("train") / "000.png"
    file.write_bytes((fresh.images("train") / "007.png").read_bytes() + b"  ")
    assert not np.array_equal(load(fresh).train.table[0], first)


@pytest.mark.parametrize(
    ("limit", "free", "processes", "places"),
    [
        (-1, 400, 1, "features: train 1 MB in memory, val 1 MB in memory\n"),
        (-1, 30, 1, "features: train 1 MB in memory, val 1 MB read from the disk\n"),
        (-1, 30, 2, "features: train 1 MB read from the disk, val 1 MB in memory\n"),
        (-1, 10, 1, "features: train 1 MB read from the disk, val 1 MB read from the disk\n"),
        (0, 400, 1, "features: train 1 MB read from the disk, val 1 MB read from the disk\n"),
    ],
)
def test_where_features_are(tiny, capsys, monkeypatch, limit, free, processes, places):
    """12 KB of features of training images, and 6 KB for validation."""
    data = load(tiny, feature_memory=limit)
    monkeypatch.setattr(datamodule, "free_memory", lambda device: free * 1024)
    capsys.readouterr()
    hold(data, devices=processes)
    assert capsys.readouterr().out == places
    train, val = ("in memory" in place for place in places.split(","))
    assert [isinstance(part.table, torch.Tensor) for part in (data.train, data.val)] == [train, val]
    assert [part.read is None for part in (data.train_set, data.val_set)] == [train, val]


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader"])
def test_features_in_memory_equal_those_read_from_the_disk(tiny, loader):
    memory, streamed = load(tiny), load(tiny)
    hold(memory)
    split = memory.train if loader == "train_dataloader" else memory.val
    for a, b in zip(getattr(memory, loader)(), getattr(streamed, loader)(), strict=True):
        assert a.images.dtype == torch.int64
        assert b.images.dtype == torch.float16
        assert torch.equal(split.table[a.images], b.images)
        assert equal_batches(a, b._replace(images=a.images))


def test_images_for_a_trained_encoder(tiny):
    data = load(tiny, TRAINED, augment=True)
    assert data.train.table is None
    for batch in batches(data):
        assert batch.images.shape == (len(batch.examples), 3, 32, 32)
        assert batch.images.dtype == torch.uint8
        assert batch.image_of.tolist() == sorted(batch.image_of.tolist())
        counts = batch.image_of.bincount().tolist()
        assert counts == [len(data.train.examples[i].captions) for i in batch.examples]  # all captions of each
        assert (batch.words != PAD).any(dim=0).all()


@pytest.mark.parametrize("flip", [False, True])
def test_maps_before_the_first_trained_stage_are_cached(tiny, flip):
    """The features from them are those of the images, to fp16."""
    data = load(tiny, TRAINED, horizontal_flip=flip)
    decoded = load(tiny, TRAINED, horizontal_flip=flip, augment=True)
    encoder = Encoder(data.model)
    for mine, batch in zip(batches(data), decoded.train_dataloader(), strict=True):
        assert mine.images.dtype == torch.float16
        assert mine.images.shape[1:] == cached_shape(data.model)
        assert equal_batches(mine, batch._replace(images=mine.images))
        n = len(data.train.examples)
        whole = [eval_transform(open_image(data.train.examples[i % n].path), 32) for i in batch.examples.tolist()]
        whole = [x.flip(-1) if i >= n else x for x, i in zip(whole, batch.examples.tolist(), strict=True)]
        with torch.no_grad():
            torch.testing.assert_close(encoder(mine.images), encoder(torch.stack(whole)), atol=1e-3, rtol=0)
    assert flip == any(i >= n for b in batches(data) for i in b.examples.tolist())


def test_crops_need_a_trained_encoder(tiny):
    refused(lambda: load(tiny, augment=True), says=["--data.augment", "--model.trainable_layers is 0"])


def spoil(coco, split: str, name: str) -> None:
    (coco.images(split) / name).write_bytes(b"\x89PNG\r\n\x1a\nnothing more")


@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
@pytest.mark.parametrize(("split", "name"), [("train", "004.png"), ("val", "013.png")])
def test_an_unreadable_image_stops_unless_it_may_be_skipped(fresh, capsys, trained, split, name):
    spoil(fresh, split, name)
    if not (trained and split == "train"):  # else it is met while training, see test_training
        with pytest.raises(UserError) as caught:
            list(load(fresh, trained).val_dataloader())
        assert is_one_line(str(caught.value), str(fresh.images(split) / name))
    data = load(fresh, trained, skip_bad_images=True)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert is_one_line(line, f"captions_{split}.json: 1 skipped, e.g. ", name)
    assert (len(data.train.examples), len(data.val.examples)) == ((11, 6) if split == "train" else (12, 5))
    seen = []
    for batch in batches(data):
        seen += batch.examples[batch.image_of].tolist()
        assert batch.images.dtype == torch.uint8 or not batch.images.isnan().any()
    assert sorted(seen) == sorted(i for i, e in enumerate(data.train.examples) for _ in e.captions)
    assert all(name != example.path.name for example in data.train.examples + data.val.examples)
    assert sum(len(batch.examples) for batch in data.val_dataloader()) == len(data.val.examples)


def test_features_belong_to_their_images_after_skipping(fresh):
    """Rows of the table are numbered by image in the file, those of the examples without the skipped ones."""
    whole = load(fresh)
    expected = {e.path: torch.from_numpy(whole.train.table[i].copy()) for i, e in enumerate(whole.train.examples)}
    spoil(fresh, "train", "004.png")
    data = load(fresh, skip_bad_images=True)
    for batch in batches(data):
        for row, i in zip(batch.images, batch.examples, strict=True):
            assert torch.equal(row, expected[data.train.examples[i].path])


def test_a_missing_image_and_one_without_captions(fresh, capsys):
    (fresh.images("train") / "002.png").unlink()
    edit(fresh, "train", lambda content: content["images"].append({"id": 999, "file_name": "000.png"}))
    with pytest.raises(UserError, match=r"002.png.*--data.skip_bad_images"):
        load(fresh)
    assert len(load(fresh, skip_bad_images=True).train.examples) == 11
    assert "captions_train.json: 2 skipped, e.g. " in capsys.readouterr().err


def test_features_with_a_bad_image_are_not_used_where_none_may_be_skipped(fresh):
    spoil(fresh, "train", "004.png")
    load(fresh, skip_bad_images=True)
    with pytest.raises(UserError) as caught:
        load(fresh)
    assert is_one_line(str(caught.value), "004.png", "--data.skip_bad_images")


def test_all_images_bad(fresh):
    for n in range(12):
        spoil(fresh, "train", f"{n:03}.png")
    with pytest.raises(UserError, match="no usable image"):
        load(fresh, skip_bad_images=True)


@pytest.mark.parametrize("missing", ["train", "train_images", "val", "val_images"])
def test_missing_options_are_named(tiny, missing):
    with pytest.raises(UserError, match=f"--data.{missing}.*"):
        load(tiny, **{missing: None})


def test_long_captions_are_cut(tiny):
    data = load(tiny, max_length=2)
    assert max(batch.words.shape[1] for batch in batches(data)) == 4
    assert max(len(words) for references in data.references() for words in references) > 2  # the references are not


@pytest.mark.parametrize("trained", [FROZEN, TRAINED])
def test_processes_share_each_batch(tiny, trained):
    """Of captions, or of images with about as many captions."""
    data = load(tiny, trained)
    shares = zip(*(data.train_sampler(rank, 3) for rank in range(3)), strict=True)
    for batch, share in zip(data.train_sampler(), shares, strict=True):
        if len(batch) >= 3:
            assert list(share) == [batch[rank::3] for rank in range(3)]
    says = ["data.batch_size is 8", f"batches of {3 if trained else 8}", "9 devices"]
    refused(data.train_sampler, 0, 9, says=says)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_features_are_computed_on_the_device_of_the_training(fresh, monkeypatch, device):
    """Not on any other that is there."""
    asked, move = [], Encoder.to
    monkeypatch.setattr(Encoder, "to", lambda self, place: asked.append(place) or move(self, "cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = ModelConfig("resnet18", image_size=32, second_size=0)
    data = CaptionData(DataConfig(**{**fresh.data(), "min_count": 1, "workers": 0}), model, device=device)
    assert asked == [device, device]  # for both splits
    assert not data.train_dataloader().pin_memory


@pytest.mark.parametrize("images", [1, 2, 3, 64, 129, 1025, 5000])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_processes_share_the_validation_images(tiny, monkeypatch, images, world):
    """Each has as many batches, at least one; every image is in one batch, which is only repeated if images are few."""
    data = load(tiny)
    data.val.examples = data.val.examples[:1] * images
    shares = []
    for rank in range(world):
        monkeypatch.setattr(datamodule, "rank_and_world", lambda trainer, rank=rank: (rank, world))
        shares.append([tuple(batch) for batch in data.val_dataloader().sampler])
    assert {len(share) for share in shares} == {-(-images // (64 * world))}
    found = [batch for share in shares for batch in share]
    assert all(1 <= len(batch) <= 64 for batch in found)
    assert sorted(i for batch in set(found) for i in batch) == list(range(images))
    assert (len(found) > len(set(found))) == (images < world)


def test_several_sets(tiny, tmp_path):
    """Their examples in turn, each image with the captions and the feature of its own set."""
    other = write_set(tmp_path / "other", 5, 3, lambda number: [f"another number {number}"])
    both = {
        name: [str(value), str(other.data()[name])]
        for name, value in tiny.data().items()
        if name in ("train", "train_images", "val", "val_images")
    }
    data = load(tiny, **both, captions_per_image=4)
    first, second = load(tiny), load(other)
    counts = [len(part.examples) for part in (first.train, second.train)]
    assert [e.path for e in data.train.examples] == [e.path for part in (first, second) for e in part.train.examples]
    assert [e.path for e in data.val.examples] == [e.path for part in (first, second) for e in part.val.examples]
    assert set(data.vocabulary.words) == {*first.vocabulary.words, *second.vocabulary.words}
    assert np.array_equal(data.train.table[: counts[0]], first.train.table)
    assert np.array_equal(data.train.table[counts[0] :], second.train.table)
    few = data.train.examples[counts[0]].captions
    assert few == second.train.examples[0].captions * 4
    assert data.train.examples[1].captions == first.train.examples[1].captions * 2  # of two
    assert data.train.examples[4] == first.train.examples[4]  # of five
    assert len(data.train_set.lengths) == sum(len(e.captions) for e in data.train.examples)
    assert [len(e.captions) for e in data.val.examples[-3:]] == [1, 1, 1]


def test_sets_without_a_folder_each(tiny):
    both = [str(tiny.annotations("train"))] * 3
    refused(lambda: load(tiny, train=both, train_images=["a", "b"]), says=["data.train_images", "one value, or 3"])
    same = load(tiny, train=both, train_images=str(tiny.images("train")))
    assert len(same.train.examples) == 3 * 12


def test_an_image_that_was_changed_after_its_features_is_found(tmp_path):
    """Of the same name and size."""
    fresh = write_set(tmp_path)
    load(fresh).check_features()
    path = fresh.images("train") / "003.png"
    old = path.read_bytes()
    other = next(p for p in sorted(fresh.images("train").iterdir()) if p.name > "003.png").read_bytes()
    path.write_bytes(other[: len(old)].ljust(len(old), b"\0"))
    later = (Path(fresh.folder) / "features").stat().st_mtime + 100
    os.utime(path, (later, later))
    refused(load(fresh).check_features, says=["003.png", "delete the folder"])
