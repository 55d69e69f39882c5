"""Small and new data: words that a model does not know, languages without spaces, scores that cannot move."""

import json

import numpy as np
import pytest
from helpers import arguments, captions_of, is_one_line, make_captioner, train, typed
from PIL import Image

from captioner.data.vocabulary import SPECIAL, Vocabulary
from captioner.models.captioner import Captioner
from captioner.models.checkpoint import load_pickle

COLOURS = ["red", "green", "blue", "yellow", "white", "black"]
BY_HEART = {
    **{f"model.{name}": 0 for name in ("dropout", "input_dropout", "feature_dropout")},
    **{"model.hidden_size": 64, "model.embedding_size": 64},
    **{"train.lr": 0.01, "train.label_smoothing": 0, "train.patience": 0, "search.max_length": 0, "search.beam": 1},
}


EXTEND = ("--data.vocabulary", "extend")


class Captions:
    """Pictures of sixteen colours, each with a caption, as the `coco` of helpers.train; training is validation."""

    def __init__(self, folder, captions: list[str]) -> None:
        self.folder, self.file = folder, folder / "captions.json"
        folder.mkdir()
        for i in range(len(captions)):
            colours = np.random.default_rng(i).integers(256, size=(4, 4, 3), dtype=np.uint8)
            Image.fromarray(colours).resize((32, 32), Image.Resampling.NEAREST).save(folder / f"{i}.png")
        images = [{"id": i, "file_name": f"{i}.png"} for i in range(len(captions))]
        notes = [{"id": i, "image_id": i, "caption": text} for i, text in enumerate(captions)]
        self.file.write_text(json.dumps({"images": images, "annotations": notes}))

    def options(self) -> list[str]:
        cache = ("--data.feature_cache", self.folder / "features")
        sets = [(f"--data.{split}", self.file, f"--data.{split}_images", self.folder) for split in ("train", "val")]
        return [*sets[0], *sets[1], *cache]


LANGUAGES = {  # ten captions of each
    "Hindi": """
एक लड़की पार्क में दौड़ रही है
दो कुत्ते घास पर खेल रहे हैं
एक आदमी साइकिल चला रहा है
दो बच्चे पानी में तैर रहे हैं
एक महिला बाज़ार में फल खरीद रही है
काली बिल्ली खिड़की के पास बैठी है
लाल कपड़े पहने लड़का गेंद फेंकता है
घोड़े पर सवार व्यक्ति पहाड़ी पर चढ़ता है
तीन लोग नाव में बैठकर नदी पार करते हैं
बूढ़ा किसान खेत में काम कर रहा है""",
    "Arabic": """
فتاة تركض في الحديقة الخضراء
كلبان يلعبان على العشب الأخضر
رجل يركب دراجة حمراء في الشارع
طفلان يسبحان في ماء البحر
امرأة تشتري الفواكه من السوق القديم
قطة سوداء تجلس قرب النافذة
وَلَدٌ يَرْمِي الكُرَةَ إِلَى صَدِيقِهِ
حصان بني يقفز فوق الحاجز
ثلاثة رجال يعبرون النهر في قارب
فلاح عجوز يعمل في حقله""",
    "Chinese": """
一个女孩在公园里骑自行车。
两只狗在水里玩。
一个男孩踢球。
两只狗在草地上奔跑。
一位老人坐在长椅上看报纸。
黑色的猫趴在窗户旁边。
三个人划着小船过河。
穿红衣服的女人在市场买水果。
一匹棕色的马跳过栏杆。
孩子们在沙滩上堆城堡。""",
    "Thai": """
เด็กผู้หญิงวิ่งในสวน
สุนัขสองตัวเล่นบนหญ้า
ผู้ชายขี่จักรยานสีแดง
เด็กว่ายน้ำในทะเล
ผู้หญิงซื้อผลไม้ที่ตลาด
แมวดำนั่งอยู่ข้างหน้าต่าง
ม้าสีน้ำตาลกระโดดข้ามรั้ว
คนสามคนพายเรือข้ามแม่น้ำ
ชายชราอ่านหนังสือพิมพ์บนม้านั่ง
ชาวนาทำงานในทุ่งนา""",
}
CHINESE = LANGUAGES["Chinese"].split("\n")[1:]


@pytest.mark.parametrize(
    "language", ["Thai", *(pytest.param(each, marks=pytest.mark.slow) for each in LANGUAGES if each != "Thai")]
)
def test_captions_of_any_language_are_learned_by_heart(language, tmp_path, cli):
    level = "char" if language in ("Chinese", "Thai") else "word"
    data = Captions(tmp_path / "data", LANGUAGES[language].split("\n")[1:])
    options = {
        **BY_HEART,
        "data.level": level,
        "data.max_length": 40,
        "train.epochs": 150,
        "trainer.check_val_every_n_epoch": 150,
    }
    assert train(data, tmp_path / "run", *typed(options)) == 0
    out = tmp_path / "scores.json"
    common = ("--checkpoint", tmp_path / "run", "--device", "cpu", "--images", data.folder, "--json", out)
    code, printed, err = cli("evaluate", "--annotations", data.file, *common)
    assert code == 0, err
    scores = json.loads(out.read_text())
    assert scores["BLEU-4"] >= 95, printed
    assert f"tokenizer:{'char' if level == 'char' else 'ptb'}" in scores["signature"]


def test_captions_without_spaces_are_said(tmp_path, capsys):
    data = Captions(tmp_path / "data", CHINESE)
    assert train(data, tmp_path / "run", "--train.epochs", 1) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "no spaces" in line]
    assert is_one_line(*said, "--data.level char", "--tokenizer char")


def test_captions_that_are_cut_are_said(tmp_path, capsys):
    data = Captions(tmp_path / "data", [" ".join(f"word{i}" for i in range(40)), "a dog runs"])
    assert train(data, tmp_path / "run", "--train.epochs", 1) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "are cut" in line]
    assert is_one_line(*said, "1 of 2 training captions", "30 words", "--data.max_length 40 keeps them whole")
    assert Captioner.load(tmp_path / "run").max_length == 30


@pytest.mark.slow
def test_long_captions_are_written_whole(tmp_path):
    captions = [" ".join(f"{place}{i}" for i in range(40)) for place in "ab"]
    data = Captions(tmp_path / "data", captions)
    options = ("--data.max_length", 45, "--train.epochs", 60)
    assert train(data, tmp_path / "run", *typed(BY_HEART), *options) == 0
    model = Captioner.load(tmp_path / "run")
    assert model.caption([str(data.folder / f"{i}.png") for i in range(2)], beam=1) == captions


def test_a_vocabulary_grows(tmp_path, capsys):
    """Old words and new ones can be said after a fine-tuning on the new ones."""
    old = Captions(tmp_path / "old", ["a dog runs on the grass", "a cat sits on a chair", "a dog sits", "a cat runs"])
    new = Captions(tmp_path / "new", ["a forklift lifts a pallet", "a worker welds a beam", "a crane lifts a beam"])
    assert train(old, tmp_path / "run", *typed(BY_HEART), "--train.epochs", 30) == 0
    capsys.readouterr()
    start = ("--init-from", tmp_path / "run" / "captioner.safetensors")
    assert train(new, tmp_path / "tuned", *typed(BY_HEART), *start, *EXTEND, "--train.epochs", 60) == 0
    assert "(9 old words, 7 new, 0 lost)" in capsys.readouterr().out
    model = Captioner.load(tmp_path / "tuned")
    assert model.caption(str(new.folder / "0.png"), must="forklift").count("forklift") == 1
    assert "dog" in model.caption(str(new.folder / "0.png"), must="dog")
    assert "forklift" in model.caption(str(new.folder / "0.png"))
    before = Captioner.load(tmp_path / "run").vocabulary.words
    assert model.vocabulary.words[: len(before)] == before


def test_a_vocabulary_grows_from_a_checkpoint_only(tiny, tmp_path, cli):
    code, _, err = cli(*arguments(tiny, tmp_path / "run", *EXTEND))
    assert code == 2
    assert is_one_line(err, "--data.vocabulary extend", "--init-from")


@pytest.mark.parametrize(
    ("choice", "words", "said"),
    [
        ((), "kept", "words of the training captions, "),
        (("--data.vocabulary", "keep"), "kept", "--data.vocabulary extend adds those"),
        (("--data.vocabulary", "PATH"), "kept", "lacks"),
        (EXTEND, "both", None),
        ((*EXTEND, "--data.min_count", 10), "some", "a --data.min_count below 10 adds more"),
        (("--data.vocabulary", "count"), "counted", None),
    ],
)
def test_which_words_a_training_from_a_checkpoint_has(tiny, tmp_path, capsys, choice, words, said):
    """Those of the checkpoint, where nothing else is asked for; what captions lose by them is said."""
    start = tmp_path / "start.safetensors"
    model = make_captioner()
    old = ["zebra", "a", "red", "gnu"]
    Captioner(model.config, Vocabulary(old), model.encoder, model.encoder_digest).save(start)
    choice = [start if word == "PATH" else word for word in choice]
    assert train(tiny, tmp_path / "run", "--train.epochs", 1, "--init-from", start, *choice) == 0
    printed, found = capsys.readouterr().out, Captioner.load(tmp_path / "run").vocabulary.words[len(SPECIAL) :]
    counted = {word for number in range(12) for text in captions_of(number, number % 5 + 1) for word in text.split()}
    expected = {"kept": {*old}, "both": {*old, *counted}, "counted": counted}
    if words == "some":
        assert {*old} < {*found} < expected["both"]
    else:
        assert {*found} == expected[words]
    assert words == "counted" or [*found[:4]] == old
    lines = [line for line in printed.splitlines() if " lacks " in line]
    assert is_one_line(*lines, str(start), said) if said else not lines


@pytest.mark.parametrize(
    ("captions", "reason"),
    [
        (["a dog runs on a chair"], "one validation image"),
        (["a dog runs"] * 3, "all validation images have the same captions"),
        (["zwei Hunde", "eine Katze"], "no word of the validation captions is in the vocabulary"),
    ],
)
def test_a_cider_that_cannot_move_is_not_what_selects(tmp_path, capsys, captions, reason):
    data = Captions(tmp_path / "data", ["a dog runs on grass", "a cat sits on a chair", "a dog sits", "a cat runs"])
    val = Captions(tmp_path / "val", captions)
    sets = ("--data.val", val.file, "--data.val_images", val.folder)
    assert train(data, tmp_path / "run", *sets, "--train.epochs", 4, "--train.patience", 1, "--train.lr", 0.01) == 0
    printed = capsys.readouterr()
    assert is_one_line(*[line for line in printed.err.splitlines() if "val_cider" in line], reason, "lowest val_loss")
    losses = [
        float(line.split("val_loss ")[1].split()[0]) for line in printed.out.splitlines() if line.startswith("epoch")
    ]
    best = losses.index(min(losses))
    assert best > 0
    assert load_pickle(tmp_path / "run" / "best.ckpt")["epoch"] == best
    assert Captioner.load(tmp_path / "run" / "best.ckpt")
