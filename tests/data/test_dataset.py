"""Examples to batches: every caption once, in an order that can be resumed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import draw, equal_batches
from PIL import Image

from captioner.data import dataset as datasets
from captioner.data.annotations import Example
from captioner.data.dataset import (
    CaptionDataset,
    load_batch,
    read_images,
)
from captioner.data.images import ImageError, eval_transform, open_image
from captioner.data.samplers import BucketSampler, ResumableLoader
from captioner.data.vocabulary import END, PAD, START, UNK, Vocabulary, tokenize
from captioner.devices import choose_workers, needed_workers

CAPTIONS = [("a b c", "a"), ("b b b b b b",), ("c, A!", "zebra c", "a b"), ("a b a b", "...", "c", "b", "c c")]
VOCABULARY = Vocabulary(["a", "b", "c"])


def examples(captions=CAPTIONS, folder: Path = Path("nowhere")) -> list[Example]:
    return [Example(i, folder / f"{i}.png", tuple(texts)) for i, texts in enumerate(captions)]


def many(images: int = 60, seed: int = 0) -> list[Example]:
    """Images with one to five captions of 1 to 12 words."""
    random = np.random.default_rng(seed)
    return examples(
        [[" ".join("a" for _ in range(random.integers(1, 13)))] * random.integers(1, 6) for _ in range(images)]
    )


def dataset(of=None, **options) -> CaptionDataset:
    of = examples() if of is None else of
    options = {"max_length": 30, "image_size": 32, "rows": np.arange(len(of)), **options}
    return CaptionDataset(of, VOCABULARY, **options)


def loader(of: CaptionDataset, batch_size: int = 8, epoch: int = 0, workers: int = 0, **options) -> ResumableLoader:
    lengths = np.zeros(len(of), dtype=np.int64) if of.by_image else of.lengths
    sampler = BucketSampler(lengths, batch_size, **{"seed": 0, "pool": 3, **options})
    sampler.set_epoch(epoch)
    return ResumableLoader(of, None, sampler=sampler, num_workers=workers)


def same(a, b) -> bool:
    return len(a) == len(b) and all(equal_batches(one, two) for one, two in zip(a, b, strict=True))


# ---- batches


def test_layout_of_the_words():
    batch = dataset()[[0, 1, 3]]
    assert batch.words.tolist() == [
        [START, 4, 5, 6, END],
        [START, 4, END, PAD, PAD],
        [START, 6, 4, END, PAD],
    ]
    assert batch.words.dtype == torch.int64
    assert dataset()[[4]].words.tolist() == [[START, UNK, 6, END]]
    assert dataset()[[7]].words.tolist() == [[START, END]]  # a caption without a word


def test_captions_of_an_image_share_its_row():
    batch = dataset(rows=np.array([9, 8, 7, 6]))[[10, 0, 6, 1, 3]]
    assert batch.examples.tolist() == [0, 2, 3]
    assert batch.images.tolist() == [9, 7, 6]
    assert batch.examples[batch.image_of].tolist() == [3, 0, 3, 0, 2]
    assert batch.images.dtype == torch.int64


def test_by_image_keeps_the_captions_of_an_image_together():
    by_image = dataset(by_image=True)
    assert len(by_image) == 4
    batch = by_image[[3, 0]]
    assert batch.examples.tolist() == [3, 0]
    assert batch.images.tolist() == [3, 0]
    assert batch.image_of.tolist() == [0] * 5 + [1] * 2
    assert [VOCABULARY.decode(row[row > UNK]) for row in batch.words] == ["a b a b", "", "c", "b", "c c", "a b c", "a"]


@pytest.mark.parametrize("longest", [1, 2, 3, 30])
def test_long_captions_are_cut(longest):
    words = dataset(max_length=longest)[list(range(11))].words
    texts = [text for example in examples() for text in example.captions]
    for row, text in zip(words.tolist(), texts, strict=True):
        ids = VOCABULARY.encode(tokenize(text))
        end = [END] if len(ids) <= longest else []  # none is taught after a cut
        assert row[: min(len(ids), longest) + 1 + len(end)] == [START, *ids[:longest], *end]
        assert not any(row[min(len(ids), longest) + 1 + len(end) :])
    assert words.shape[1] == min(longest, 6) + 2


def test_features_come_from_the_map_or_their_rows():
    table = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float16)
    rows = np.array([8, 3, 5, 1])
    streamed = dataset(rows=rows, read=lambda rows: torch.from_numpy(table[rows]))[[10, 0, 3]]
    looked_up = dataset(rows=rows)[[10, 0, 3]]
    assert streamed.images.dtype == torch.float16
    assert np.array_equal(streamed.images, table[looked_up.images])
    assert np.array_equal(streamed.images, table[[8, 5, 1]])


@pytest.fixture
def drawn(tmp_path) -> list[Example]:
    for i in range(4):
        draw(tmp_path / f"{i}.png", i)
    return examples(folder=tmp_path)


def test_images_are_decoded_as_in_prediction(drawn):
    batch = dataset(drawn, rows=None, image_size=40, by_image=True)[[2, 0]]
    assert batch.images.shape == (2, 3, 40, 40)
    assert batch.images.dtype == torch.uint8
    for image, i in zip(batch.images, (2, 0), strict=True):
        assert torch.equal(image, eval_transform(open_image(drawn[i].path), 40))
        assert torch.equal(image, load_batch([drawn[i].path], 40)[0][0])


def test_augmentation_depends_on_seed_epoch_and_image_alone(drawn):
    def view(seed=0, epoch=0, items=(0, 1)):
        augmented = dataset(drawn, rows=None, augment=seed, by_image=True)
        augmented.epoch = epoch
        return augmented[list(items)].images

    assert torch.equal(view(), view())
    assert torch.equal(view(items=(1, 0)), view().flip(0))
    for other in (view(seed=1), view(epoch=1)):
        assert not torch.equal(view(), other)


def test_augmentation_is_the_same_in_other_processes(drawn):
    batches = [
        list(loader(dataset(drawn, rows=None, augment=0, by_image=True), 2, epoch=3, workers=workers))
        for workers in (0, 2)
    ]
    assert same(*batches)


SIDED = Vocabulary(["white", "on", "the", "left", "right"])


@pytest.fixture
def sided(tmp_path) -> list[Example]:
    """Images that are white on one side, which their captions name; one caption of the last could mean either."""
    found = []
    for i in range(20):
        side = ("left", "right")[i % 2]
        image = Image.new("RGB", (32, 32))
        image.paste("white", (16 * (i % 2), 0, 16 + 16 * (i % 2), 32))
        image.save(tmp_path / f"{i}.png")
        more = ("white right",) if i == 19 else ()
        found.append(
            Example(i, tmp_path / f"{i}.png", (f"white on the {side}", "white", f"{side} of the white", *more))
        )
    return found


@pytest.mark.parametrize("by_image", [False, True])
def test_flipped_images_have_left_and_right_exchanged(sided, by_image):
    of = CaptionDataset(sided, SIDED, 30, 32, augment=0, horizontal_flip=True, by_image=by_image)
    flipped = []
    for of.epoch in range(6):
        batch = of[list(range(len(of)))[::-1]]
        white_left = batch.images[:, 0, :, :8].float().mean(dim=(1, 2)) > 128
        white_right = batch.images[:, 0, :, -8:].float().mean(dim=(1, 2)) > 128
        assert (white_left != white_right).all()
        for words, image in zip(batch.words, batch.image_of, strict=True):
            text = SIDED.decode(words[words > UNK])
            if text not in ("white", "white right"):
                assert ("left" in text) == white_left[image], text
        shown = (white_left == batch.examples % 20 % 2).tolist()
        assert shown == (batch.examples >= 20).tolist()
        flipped.append({int(i) % 20 for i in batch.examples[batch.examples >= 20]})
        assert 3 <= len(flipped[-1]) <= 17
        assert 19 not in flipped[-1]  # "white right" may be a side or not
    assert len(set(map(frozenset, flipped))) == 6
    of.epoch = 0
    part = of[[4, 0, 5]]
    assert {int(i) % 20 for i in part.examples if i >= 20} == {int(i) % 20 for i in part.examples} & flipped[0]


def test_captions_stay_as_they_are_unless_flipped(sided):
    options = {"augment": 0, "by_image": True}
    plain = CaptionDataset(sided, SIDED, 30, 32, **options)[list(range(20))]
    for more in ({"horizontal_flip": True, "augment": None}, {"augment": 0}):
        other = CaptionDataset(sided, SIDED, 30, 32, **{**options, **more})[list(range(20))]
        assert torch.equal(plain.words, other.words)


def test_read_images_says_which_are_unreadable(drawn, tmp_path):
    (tmp_path / "2.png").write_bytes(b"nothing")
    paths = [example.path for example in drawn] + [tmp_path / "missing.png"]
    batches = list(read_images(paths, 32, 2))
    assert [len(images) for images, _ in batches] == [2, 1, 0]
    errors = [error for _, some in batches for error in some]
    assert [isinstance(error, ImageError) for error in errors] == [False, False, True, False, True]
    assert torch.equal(batches[1][0][0], eval_transform(open_image(paths[3]), 32))


def test_workers():
    assert choose_workers(0, "cuda") == choose_workers(-1, "cpu") == 0
    assert choose_workers(3, "cpu") == 3
    assert 1 <= choose_workers(-1, "cuda") <= 8
    assert [needed_workers(8, batches) for batches in (0, 1, 2, 7, 100)] == [0, 0, 2, 7, 8]
    assert needed_workers(0, 100) == 0


@pytest.mark.parametrize(("images", "started"), [(1, 0), (3, 2), (4, 2)])
def test_no_more_workers_than_batches(drawn, monkeypatch, images, started):
    made, loader = [], datasets.DataLoader

    def record(*given, num_workers, **more):
        made.append(num_workers)
        return loader(*given, **more)

    monkeypatch.setattr(datasets, "DataLoader", record)
    paths = [example.path for example in drawn][:images]
    assert sum(len(batch) for batch, _ in read_images(paths, 32, 2, workers=8)) == images
    assert made == [started]


# ---- the order


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
@pytest.mark.parametrize("by_image", [False, True])
def test_every_caption_once_an_epoch(batch_size, by_image):
    captions = dataset(many(), by_image=by_image)
    for epoch in range(2):
        feeder = loader(captions, batch_size, epoch)
        batches = list(feeder.sampler)
        assert sorted(i for batch in batches for i in batch) == list(range(len(captions)))
        assert len(batches) == len(feeder) == -(-len(captions) // batch_size)
        assert all(1 <= len(batch) <= batch_size for batch in batches)


def test_the_words_of_an_epoch_are_those_of_the_set():
    of = many()
    rows = [r[r != PAD].tolist() for batch in loader(dataset(of)) for r in batch.words]
    texts = [text for example in of for text in example.captions]
    assert sorted(rows) == sorted([START, *VOCABULARY.encode(tokenize(text)), END] for text in texts)


def test_the_order_depends_on_seed_and_epoch_alone():
    lengths = dataset(many()).lengths

    def order(seed=0, epoch=0):
        sampler = BucketSampler(lengths, 8, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    torch.manual_seed(1)
    np.random.seed(1)
    first = order()
    torch.manual_seed(2)
    np.random.seed(2)
    assert order() == first
    others = [order(1), order(2), order(0, 1), order(0, 2), order(1, 1)]
    assert all(a != b for i, a in enumerate([first, *others]) for b in others[i:])


def test_a_batch_has_captions_of_similar_length():
    of = dataset(many(400))

    def padding(batches):
        total = sum(len(batch) * of.lengths[batch].max() for batch in batches)
        return 1 - of.lengths.sum() / total

    bucketed = list(BucketSampler(of.lengths, 16, 0))
    shuffled = np.random.default_rng(0).permutation(len(of))
    assert padding(bucketed) < 0.1 < 0.3 < padding([shuffled[i : i + 16] for i in range(0, len(of), 16)])
    means = [of.lengths[batch].mean() for batch in bucketed]
    assert means != sorted(means)  # but not the short ones first
    assert np.corrcoef(means, range(len(means)))[0, 1] < 0.5


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("batch_size", [8, 9, 1000])
def test_processes_share_the_batches(world, batch_size):
    """At each step, all of them together have the batch that one process alone would have."""
    lengths = dataset(many()).lengths
    alone = list(BucketSampler(lengths, batch_size, 0))
    ranks = [list(BucketSampler(lengths, batch_size, 0, rank, world)) for rank in range(world)]
    assert {len(BucketSampler(lengths, batch_size, 0, rank, world)) for rank in range(world)} == {len(alone)}
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert sorted(item for part in parts for item in part) == sorted(whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        words = [lengths[part].mean() for part in parts]
        assert max(words) - min(words) <= np.ptp(lengths[whole])


def test_a_batch_of_fewer_captions_than_processes_is_filled_up():
    ranks = [list(BucketSampler(np.ones(9, dtype=int), 8, 0, rank, 4)) for rank in range(4)]
    assert {len(rank) for rank in ranks} == {2}
    (short,) = {place for place in range(2) if len({rank[place][0] for rank in ranks}) == 1}
    assert [len(rank[short]) for rank in ranks] == [1] * 4
    assert {rank[short][0] for rank in ranks} | {i for rank in ranks for i in rank[1 - short]} == set(range(9))


@pytest.mark.parametrize(
    ("stop", "workers"),
    [
        *((stop, 0) for stop in (0, 1, 5, "last")),
        *((5, 2), *(pytest.param(stop, 2, marks=pytest.mark.slow) for stop in (0, 1, "last"))),
    ],
)
def test_a_loader_resumes_where_another_stopped(stop, workers):
    captions = dataset(many(20))
    every = list(loader(captions, epoch=3))
    stop = len(every) - 1 if stop == "last" else stop
    stopped = loader(captions, epoch=3, workers=workers)
    begun = [batch for _, batch in zip(range(stop), stopped, strict=False)]
    assert stopped.state_dict() == {"delivered": stop}
    resumed = loader(captions, epoch=3, workers=workers)
    resumed.load_state_dict(stopped.state_dict())
    assert same([*begun, *resumed], every)
    assert same(list(resumed), every)  # and the next time from the beginning


def test_after_a_whole_epoch_the_next_one_begins_at_its_beginning():
    captions = dataset(many(20))
    first = loader(captions)
    list(first)
    resumed = loader(captions, epoch=1)
    resumed.load_state_dict(first.state_dict())
    assert same(list(resumed), list(loader(captions, epoch=1)))


def test_a_resumed_epoch_can_be_stopped_again():
    captions = dataset(many(20))
    every = list(loader(captions))
    second = loader(captions)
    second.load_state_dict({"delivered": 2})
    iterator = iter(second)
    got = [next(iterator) for _ in range(3)]
    assert second.state_dict() == {"delivered": 5}
    third = loader(captions)
    third.load_state_dict(second.state_dict())
    assert same([*every[:2], *got, *third], every)
