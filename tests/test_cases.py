"""The inputs of ../shared/cases, each with its right value or its right line; skipped where they are not."""

import json

import pytest
from helpers import ROOT, arguments, is_one_line, refused

from captioner import metrics
from captioner.data.annotations import read_examples
from captioner.data.vocabulary import Vocabulary, has_no_spaces
from captioner.metrics.tokenizers import characters, tokenize_references

CASES = ROOT.parent / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.exists(), reason=f"no {CASES}")
PICS = CASES / "pics"


def captions(name: str) -> list[str]:
    return [note["caption"] for note in json.loads((CASES / name).read_text())["annotations"]]


@pytest.mark.parametrize("name", ["01_hindi.json", "01_thai.json", "01_vietnamese_nfd.json"])
def test_words(name):
    """As high as captions that are written without a change, of which one has fewer than four words."""
    texts = captions(name)
    vocabulary = Vocabulary.build(texts)
    written = [vocabulary.decode(vocabulary.encode(vocabulary.split(text))) for text in texts]
    references = tokenize_references([[text] for text in texts], "ptb")
    found, best = (metrics.cider_d(references, metrics.ptb_tokenize_all(each)) for each in (written, texts))
    assert found.tolist() == pytest.approx(best.tolist())
    assert best.max() == pytest.approx(10)


def test_no_spaces(cli):
    assert has_no_spaces(captions("02_chinese_train.json"))
    _, out, _ = cli("data", "inspect", CASES / "02_chinese_train.json", "--images", PICS)
    assert "--data.level char" in out
    assert characters(captions("02_chinese_val.json")[0])[0] in "一两"


def test_one_image(cli):
    code, out, _ = cli("score", "--annotations", CASES / "03_one_val.json", "--results", CASES / "03_one_results.json")
    assert "CIDEr is 0 for one image" in out
    corpus = ("--document_frequency", CASES / "03_english_train.json")
    code, out, _ = cli(
        "score", "--annotations", CASES / "03_one_val.json", "--results", CASES / "03_one_results.json", *corpus
    )
    assert code == 0
    assert "df:03_english_train.json (4 images)" in out


def test_encodings():
    folder = CASES / "04_pairs_cp1252"
    refused(read_examples, folder, says=["a.txt", "byte", "save it as UTF-8"])
    (example,), _ = read_examples(folder, encoding="cp1252")
    assert "\ufffd" not in example.captions[0]


def test_columns_and_splits():
    stair = CASES / "05_stair.json"
    (example,), _ = read_examples(stair, PICS, "test", columns="file_name,tokenized_caption")
    assert example.captions == ("猫 が 座る",)
    refused(lambda: read_examples(CASES / "03_english_train.json", PICS, "test"), says=["no splits", "'test'"])
    refused(lambda: read_examples(CASES / "04_pairs_cp1252", columns="a,b"), says=["--columns", "pairs"])
    assert read_examples(CASES / "13_five_columns.csv")[0][0].captions == ("A dog", "A hound")


@pytest.mark.parametrize(("name", "file"), [("08_nfc.json", "café.jpg"), ("08_backslash.json", "c.jpg")])
def test_names(name, file):
    import unicodedata

    (example,), _ = read_examples(CASES / name, CASES / "08_names")
    assert unicodedata.normalize("NFC", example.path.name) == unicodedata.normalize("NFC", file)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("09_mixed_ids.json", ["image id 1", "a string", "write both in one way"]),
        ("09_null_caption.json", ["annotation", "'caption' is null"]),
        ("09_caption_list.json", ["annotation", "'caption' is a list"]),
    ],
)
def test_messages(name, says):
    refused(read_examples, CASES / name, PICS, says=[name, *says])


def test_rows_of_a_table():
    assert read_examples(CASES / "09_sentences.jsonl")[0][0].captions == ("A dog", "A hound")
    refused(read_examples, CASES / "09_nan.json", CASES, says=["entry 0", "'caption' is NaN"])
    examples, problems = read_examples(CASES / "09_nan.json", CASES, skip_bad=True)
    assert (len(examples), len(problems)) == (1, 1)


def test_results(cli, tmp_path):
    scores = []
    for name in ("10_hf_pipeline.json", "10_padded.json", "10_predict_output.tsv"):
        out = tmp_path / "scores.json"
        code, _, err = cli("score", "--annotations", CASES / "10_ref.json", "--results", CASES / name, "--json", out)
        assert code == 0, err
        scores.append({key: value for key, value in json.loads(out.read_text()).items() if key in metrics.NAMES})
    assert scores[0] == scores[1] == scores[2]


def test_a_submission(cli, tmp_path):
    info = CASES / "11_image_info_test.json"
    code, out, err = cli("predict", PICS / "1.jpg", "--format", "coco", "--annotations", info)
    assert code == 0, err
    assert [entry["image_id"] for entry in json.loads(out)] == [1]
    code, _, err = cli("predict", PICS / "2.jpg", "--format", "coco", "--annotations", info)
    assert (code, is_one_line(err, "lacks 1 of 1 image", "2.jpg")) == (2, True)


class Case:
    """A case as the `coco` of helpers.arguments."""

    def __init__(self, name: str, tmp_path) -> None:
        self.name, self.tmp_path = name, tmp_path

    def options(self) -> list:
        sets = [[f"--data.{split}", CASES / self.name, f"--data.{split}_images", PICS] for split in ("train", "val")]
        return [*sets[0], *sets[1], "--data.feature_cache", self.tmp_path / "features"]


@pytest.mark.parametrize(
    ("name", "says"), [("06_long.json", "--data.max_length 45"), ("02_chinese_train.json", "--data.level char")]
)
def test_what_training_says(cli, tmp_path, name, says):
    code, out, err = cli(*arguments(Case(name, tmp_path), tmp_path / "run", "--train.epochs", 1))
    assert code == 0, err
    assert says in out


def test_new_words(cli, tmp_path):
    old = Case("03_english_train.json", tmp_path)
    assert cli(*arguments(old, tmp_path / "old", "--train.epochs", 1))[0] == 0
    new, start = Case("07_new_words.json", tmp_path), ("--init-from", tmp_path / "old", "--data.vocabulary", "extend")
    code, out, err = cli(*arguments(new, tmp_path / "new", "--train.epochs", 1, *start))
    assert code == 0, err
    assert ", 0 lost)" in out
