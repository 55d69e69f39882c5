"""The same set in every layout: the same examples, batches and scores; errors are one line."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
import webdataset as wds
from helpers import captions_of, draw, is_one_line, make_captioner
from torch.utils._pytree import tree_flatten

from captioner.config import DataConfig, ModelConfig, SearchConfig, TrainConfig
from captioner.data.annotations import read_examples
from captioner.data.formats import detect_format
from captioner.errors import UserError
from captioner.models.captioner import Captioner
from captioner.models.encoder import Encoder
from captioner.training.datamodule import CaptionData
from captioner.training.task import CaptionTask

COUNTS = {"train": 6, "val": 4}
LAYOUTS = {
    "coco": "coco",
    "karpathy": "karpathy",
    "tokens": "flickr",
    "kaggle": "flickr",
    "csv": "table",
    "tsv": "table",
    "jsonl": "table",
    "json": "table",
    "parquet": "table",
    "parquet_bytes": "table",
    "parquet_structs": "parquet",
    "pairs": "pairs",
    "imagefolder": "imagefolder",
    "imagefolder_csv": "imagefolder",
    "webdataset": "webdataset",
    "webdataset_json": "webdataset",
}


def rows(split: str) -> list[tuple[str, list[str]]]:
    first = 0 if split == "train" else COUNTS["train"]
    return [(f"{n:03}.png", captions_of(n, n % 3 + 1)) for n in range(first, first + COUNTS[split])]


def write(layout: str, folder: Path) -> dict[str, dict[str, str]]:
    """Write the set in a layout; what `read` is given, by split."""
    options: dict[str, dict[str, str]] = {}
    for split in COUNTS:
        here = folder / split
        here.mkdir(parents=True)
        for name, _ in rows(split):
            draw(here / name, int(name[:3]))
        path, images = folder / f"{split}.{layout}", str(here)
        flat = [(name, text) for name, texts in rows(split) for text in texts]
        if layout == "coco":
            path = folder / f"{split}.json"
            listed = [{"id": 50 + n, "file_name": name} for n, (name, _) in enumerate(rows(split))]
            ids = {image["file_name"]: image["id"] for image in listed}
            annotations = [{"image_id": ids[name], "caption": text} for name, text in flat]
            path.write_text(json.dumps({"images": listed, "annotations": annotations}))
        elif layout == "karpathy":
            path, images, listed = folder / "dataset.json", str(folder), []
            for part in COUNTS:
                for n, (name, texts) in enumerate(rows(part)):
                    sentences = [{"raw": t + " "} if i % 2 else {"tokens": t.split()} for i, t in enumerate(texts)]
                    kind = "restval" if (part, n) == ("train", 1) else part
                    image = {"filepath": part, "filename": name, "split": kind, "sentences": sentences}
                    listed.append({**image, "imgid": len(listed), "cocoid": 900 + len(listed)})
            path.write_text(json.dumps({"images": listed, "dataset": "coco"}))
        elif layout == "tokens":  # all splits in one file, with lists
            for name, _ in rows(split):
                shutil.copy(here / name, folder / name)
            path, images = folder / "Flickr8k.token.txt", str(folder)
            every = [(name, texts) for part in COUNTS for name, texts in rows(part)]
            path.write_text("".join(f"{n}#{i}\t{t}\n" for n, texts in every for i, t in enumerate(texts)))
            (folder / f"{split}Images.txt").write_text("\n".join(name for name, _ in rows(split)) + "\n")
            options.setdefault(split, {})["listed"] = str(folder / f"{split}Images.txt")
        elif layout in ("kaggle", "csv"):
            path = folder / f"{split}.{'txt' if layout == 'kaggle' else 'csv'}"
            with open(path, "w", newline="") as file:
                csv.writer(file).writerows([("image", "caption"), *flat])
        elif layout == "tsv":  # a list in a cell, columns of other names
            lines = [f"{name}\t{texts!r}\n" for name, texts in rows(split)]
            path.write_text("where\twhat\n" + "".join(lines))
            options.setdefault(split, {})["columns"] = "where,what"
        elif layout == "jsonl":
            path.write_text("".join(json.dumps({"file_name": n, "text": t}) + "\n" for n, t in flat))
        elif layout == "json":
            path.write_text(json.dumps([{"image": n, "captions": texts} for n, texts in rows(split)]))
        elif layout == "parquet":
            import pyarrow
            from pyarrow import parquet

            names, texts = zip(*rows(split), strict=True)
            parquet.write_table(pyarrow.table({"filename": names, "captions": texts}), path)
        elif layout == "parquet_bytes":  # one file; a row for each image, with its name in another column
            import pyarrow
            from pyarrow import parquet

            names, texts = zip(*rows(split), strict=True)
            path, images = folder / f"{split}.parquet", None
            structs = [{"bytes": (here / name).read_bytes(), "path": name} for name in names]
            parquet.write_table(pyarrow.table({"image": structs, "captions": texts}), path, row_group_size=2)
        elif layout == "parquet_structs":  # as Hugging Face's datasets: several files; a row for each caption
            import pyarrow
            from pyarrow import parquet

            path, images = folder, None
            (folder / "data").mkdir(exist_ok=True)
            half = COUNTS[split] // 2
            for part in range(2):
                mine = [(n, t) for n, texts in rows(split)[part * half : (part + 1) * half] for t in texts]
                structs = [{"bytes": (here / name).read_bytes(), "path": name} for name, _ in mine]
                name = f"{'validation' if split == 'val' else split}-{part:05}-of-00002.parquet"
                table = pyarrow.table({"image": structs, "caption": [text for _, text in mine]})
                parquet.write_table(table, folder / "data" / name, row_group_size=2)
        elif layout == "pairs":
            path, images = here, None
            for name, texts in rows(split):
                (here / name).with_suffix(".txt").write_text("\n".join(texts) + "\n")
        elif layout == "imagefolder":
            path, images = folder, None  # found by the name of the split
            (here / "metadata.jsonl").write_text(
                "".join(json.dumps({"file_name": n, "text": t}) + "\n" for n, t in flat)
            )
        elif layout == "imagefolder_csv":
            path, images = here, None
            with open(here / "metadata.csv", "w", newline="") as file:
                csv.writer(file).writerows([("file_name", "caption"), *flat])
        else:
            path, images = folder / f"{split}-{{000..001}}.tar", None
            half = COUNTS[split] // 2
            for shard in range(2):
                with wds.TarWriter(str(folder / f"{split}-{shard:03}.tar")) as out:
                    for name, texts in rows(split)[shard * half : (shard + 1) * half]:
                        said = (
                            {"json": {"captions": texts}} if layout == "webdataset_json" else {"txt": "\n".join(texts)}
                        )
                        out.write({"__key__": name[:3], "png": (here / name).read_bytes(), **said})
        options.setdefault(split, {}).update(path=str(path), images=images)
    return options


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The set in every layout. Read only."""
    top = tmp_path_factory.mktemp("layouts")
    return {layout: write(layout, top / layout) for layout in LAYOUTS}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read(sets, layout):
    for split, options in sets[layout].items():
        assert detect_format(options["path"]).name == LAYOUTS[layout]
        examples, skipped = read_examples(**{**options, "split": split})
        assert skipped == []
        assert [(e.path.name, list(e.captions)) for e in examples] == rows(split)
        assert len({e.image_id for e in examples}) == len(examples)


def data_of(options, tmp_path, trained: int, layout: str) -> CaptionData:
    named = {"path": "", "images": "_images", "listed": "_list"}
    given = {f"{s}{named[k]}": v for s, one in options.items() for k, v in one.items() if k in named}
    given["columns"] = options["train"].get("columns")
    model = ModelConfig("resnet18", image_size=32, second_size=0, trainable_layers=trained)
    cache = str(tmp_path / layout)
    return CaptionData(DataConfig(**given, min_count=1, batch_size=8, workers=0, feature_cache=cache), model)


@pytest.mark.parametrize("trained", [0, 1])
def test_every_layout_trains_on_the_same_batches(sets, tmp_path, trained):
    """Same words, images (or features) and order, so the same loss."""
    known = None
    for layout in LAYOUTS if trained else ("coco", "webdataset", "jsonl"):
        data = data_of(sets[layout], tmp_path, trained, layout)
        batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
        torch.manual_seed(0)
        model = Captioner(data.model, data.vocabulary, Encoder(data.model), "resnet18").train()
        loss = float(CaptionTask(model, TrainConfig(), SearchConfig(), [], 1).loss(batch)[0].detach())
        tensors = [tensor for tensor in tree_flatten(batch)[0] if isinstance(tensor, torch.Tensor)]
        found = (data.vocabulary.words, data.references(), loss, tensors)
        known = known or found
        assert found[:3] == known[:3], layout
        assert all(torch.equal(a, b) for a, b in zip(found[3], known[3], strict=True)), layout


def test_every_layout_is_inspected_the_same(sets, tmp_path, cli):
    known = None
    for layout in LAYOUTS:
        one = sets[layout]["train"]
        names = {"images": "--images", "columns": "--columns", "listed": "--list"}
        files = [word for key, name in names.items() if one.get(key) is not None for word in (name, one[key])]
        code, _, err = cli("data", "inspect", one["path"], *files, "--json", tmp_path / "found.json", "--workers", 0)
        assert (code, err) == (0, ""), layout
        found = json.loads((tmp_path / "found.json").read_text())["splits"][0]
        assert found.pop("format") == LAYOUTS[layout]
        del found["path"]
        known = known or found
        assert found == known, layout


def test_every_layout_is_scored_the_same(sets, tmp_path, cli):
    make_captioner().save(tmp_path / "model.safetensors")
    known = None
    for layout in ("coco", "karpathy", "tokens", "tsv", "imagefolder", "webdataset"):
        one = sets[layout]["val"]
        names = {"path": "--annotations", "images": "--images", "listed": "--list", "columns": "--columns"}
        files = [word for key, value in one.items() if value is not None for word in (names[key], value)]
        results, scores = tmp_path / f"{layout}.json", tmp_path / f"{layout}.scores.json"
        model = ("--checkpoint", tmp_path / "model.safetensors", "--device", "cpu", "--beam", 1, "--workers", 0)
        code, out, err = cli("evaluate", *files, *model, "--output", results, "--json", scores)
        assert (code, out != "") == (0, True), err
        assert [row["caption"] for row in json.loads(results.read_text())]
        again = cli("score", *files, "--results", results)
        assert again[0] == 0, again[2]
        assert again[1] == out.replace(str(scores), ""), layout
        known = known or json.loads(scores.read_text())
        assert json.loads(scores.read_text()) == known, layout


BROKEN = {
    "a.csv": ("image,caption\n000.png,a\n../b.png,b\n", "leaves"),
    "b.csv": ("image,caption\n000.png,a\n999.png,b\n", "line 3: no file '999.png'"),
    "c.csv": ("image,caption\n000.png,a\n001.png, \n", "'001.png') has no caption"),
    "d.csv": ("image;caption\n000.png;a\n001.png\n", "line 3 has 1 cell, the first line has 2"),
    "e.txt": ("000.png#0\ta\n001.png a\n", "line 2 is not name.jpg#0<TAB>caption"),
    "f.jsonl": ('{"image": "000.png", "caption": ["a", " "]}', "blank caption"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_bad_images_are_named_or_skipped(sets, tmp_path, name):
    text, says = BROKEN[name]
    (tmp_path / name).write_text(text)
    images = sets["csv"]["train"]["images"]
    with pytest.raises(UserError, match=r"--data\.skip_bad_images to skip") as caught:
        read_examples(tmp_path / name, images)
    assert is_one_line(str(caught.value), str(tmp_path / name), says)
    examples, skipped = read_examples(tmp_path / name, images, skip_bad=True)
    assert [e.path.name for e in examples] == ["000.png"]
    assert len(skipped) == 1
    assert says in skipped[0]


REFUSED = {
    "a.csv": ("x,y\n1,2\n", "no columns of file names and captions with the usual names among 'x', 'y'"),
    "b.csv": ('image,caption\n000.png,"a" b\n', "line 2"),
    "c.jsonl": ('{"image": {"bytes": ""}, "caption": "a"}', "images inside a table are read from Parquet"),
    "i.csv": ("image,caption\n", "it lists none"),
    "d.csv": ("image,caption,split\n000.png,a,test\n", "nothing of the split 'train'; there is test"),
    "e.txt": ("just text\n", "neither name.jpg#0<TAB>caption"),
    "f.json": ('{"a": 1}', "expected COCO's"),
    "g.csv": ("image_id,image,caption\n1,000.png,a\n1,001.png,b\n", "image id '1' has two files"),
    "h.parquet": ("no", "cannot be read"),
    "j.csv": ("image,caption,caption\n000.png,a,b\n", "line 1: several columns are named 'caption'"),
    "k.jsonl": ('{"image": "000.png", "caption": "a", "caption": "b"}', "'caption' comes twice, as 'a' and as 'b'"),
    "l.json": ('{"images": [], "annotations": [1], "annotations": []}', "'annotations' comes twice"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_invalid_files_are_refused(sets, tmp_path, name):
    text, says = REFUSED[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        read_examples(tmp_path / name, sets["csv"]["train"]["images"], skip_bad=True)
    assert is_one_line(str(caught.value), str(tmp_path / name), says)


def test_folders_and_lists(sets, tmp_path):
    with pytest.raises(UserError, match=r"looked for metadata\.jsonl"):
        detect_format(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        detect_format(tmp_path / "none")
    with pytest.raises(UserError, match=r"--data\.train_images"):
        read_examples(sets["coco"]["train"]["path"])
    with pytest.raises(UserError, match="no folder of the split 'test'; there is train, val"):
        read_examples(sets["imagefolder"]["train"]["path"], split="test")
    (tmp_path / "list.txt").write_text("000\nnone.jpg\n")
    tokens = sets["tokens"]["train"]
    with pytest.raises(UserError, match=r"'none\.jpg' is not in the captions"):
        read_examples(tokens["path"], tokens["images"], listed=tmp_path / "list.txt")
    examples, skipped = read_examples(tokens["path"], tokens["images"], listed=tmp_path / "list.txt", skip_bad=True)
    assert ([e.path.name for e in examples], len(skipped)) == (["000.png"], 1)


def test_a_caption_with_commas_that_are_not_quoted_is_whole(sets, tmp_path):
    (tmp_path / "captions.txt").write_text("image,caption\n000.png,one, two\n")
    examples, _ = read_examples(tmp_path / "captions.txt", sets["csv"]["train"]["images"])
    assert examples[0].captions == ("one, two",)


@pytest.mark.slow
def test_a_training_on_shards_and_parquet_is_the_same_as_on_files(sets, tmp_path, cli):
    """By the command line, fine-tuning, so that images are read in every epoch: the same weights, also resumed."""
    from helpers import SMALL, typed
    from safetensors.torch import load_file

    weights = {}
    for layout in ("coco", "webdataset", "parquet_structs"):
        files = [
            word
            for split, one in sets[layout].items()
            for key, option in (("path", f"--data.{split}"), ("images", f"--data.{split}_images"))
            if one[key] is not None
            for word in (option, one[key])
        ]
        out = (
            "--output",
            tmp_path / layout,
            "--model.trainable_layers",
            1,
            "--data.feature_cache",
            tmp_path / "features",
        )
        for resumed in (("--train.epochs", 1), ("--train.epochs", 2, "--resume")):
            code, _, err = cli("train", *typed(SMALL), *files, *out, *resumed)
            assert code == 0, err
        weights[layout] = load_file(tmp_path / layout / "captioner.safetensors")
    for layout in ("webdataset", "parquet_structs"):
        assert weights["coco"].keys() == weights[layout].keys()
        assert all(torch.equal(value, weights[layout][name]) for name, value in weights["coco"].items())


def test_a_data_set_of_the_hub_is_its_download(sets, monkeypatch):
    """With a stand-in for the download; the folder has the layout of Hugging Face's datasets."""
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(name, **options):
        asked.append((name, options))
        return sets["parquet_structs"]["train"]["path"]

    monkeypatch.setattr(hub, "snapshot_download", download)
    for split in COUNTS:
        examples, _ = read_examples("hf://datasets/org/name@main", split=split)
        assert [(e.path.name, list(e.captions)) for e in examples] == rows(split)
    assert asked[0] == ("org/name", {"repo_type": "dataset", "revision": "main"})
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match=r"hf://datasets/org/name cannot be fetched \(division by zero\)"):
        read_examples("hf://datasets/org/name")
