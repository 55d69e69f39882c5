"""Captions of any language: the words of the vocabulary score as the captions that they come from."""

import unicodedata

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from captioner import metrics
from captioner.data.vocabulary import JOINERS, Vocabulary, is_word, tokenize
from captioner.metrics.tokenizers import TOKENIZERS, characters, tokenize_references, tokenizer_of

LANGUAGES = {
    "Hindi": ["एक लड़की पार्क में दौड़ रही है ।", "दो कुत्ते घास पर खेल रहे हैं ।", "क्‍या बच्चा गेंद के साथ है?"],
    "Bengali": ["একটি মেয়ে পার্কে দৌড়াচ্ছে।", "দুটি কুকুর ঘাসের উপর খেলছে", "একজন লোক বড় গাড়ি চালায়।"],
    "Tamil": ["ஒரு சிறுமி பூங்காவில் வேகமாக ஓடுகிறாள்.", "இரண்டு நாய்கள் புல்லில் விளையாடுகின்றன", "ஒரு மனிதன் மிதிவண்டியில் செல்கிறான்"],
    "Thai": ["เด็กผู้หญิง กำลัง วิ่ง ใน สวน", "สุนัข สอง ตัว เล่น บน หญ้า", "ผู้ชาย คน หนึ่ง ขี่ จักรยาน"],
    "Burmese": ["ကလေးမ လေး ပန်းခြံ ထဲမှာ ပြေးနေသည်", "ခွေး နှစ်ကောင် မြက်ပေါ်မှာ ကစားနေသည်", "လူ တစ်ယောက် စက်ဘီး စီးနေသည်"],
    "Vietnamese": ["Một cô gái đang chạy trong công viên.", "Hai con chó chơi trên bãi cỏ", "Người đàn ông đạp xe đạp"],
    "Arabic, vocalised": ["فَتَاةٌ تَرْكُضُ فِي الْحَدِيقَةِ", "كَلْبَانِ يَلْعَبَانِ عَلَى الْعُشْبِ", "رَجُلٌ يَرْكَبُ دَرَّاجَةً حَمْرَاءَ"],
    "Hebrew, vocalised": ["יַלְדָּה רָצָה בַּפַּארְק הַיָּרֹק", "שְׁנֵי כְּלָבִים מְשַׂחֲקִים בַּדֶּשֶׁא", "אִישׁ רוֹכֵב עַל אוֹפַנַּיִם"],
    "Turkish": [
        "İki köpek İstanbul'da çimlerde oynuyor.",
        "IŞIK altında bir kız koşuyor",
        "Bir adam bisiklete biniyor",
    ],
    "Korean": ["한 소녀가 공원에서 달리고 있다.", "개 두 마리가 잔디에서 놀고 있다", "남자가 빨간 자전거를 탄다"],
    "Russian": ["Девочка бежит по парку ё.", "Две собаки играют на траве", "Мужчина едет на велосипеде"],
    "Persian": ["دختر در پارک می‌دود و می‌خندد", "دو سگ روی چمن بازی می‌کنند", "مردی دوچرخه‌سواری را دوست دارد"],
    "German": [
        "Ein Mädchen läuft über die Straße.",
        "Zwei Hunde spielen auf dem Gras",
        "Ein Mann fährt Fahrrad im Müll",
    ],
    "French": ["L'été, une fille court à l'école.", "Deux chiens jouent sur l'herbe", "Un garçon fait du vélo"],
}

LANGUAGES["Vietnamese NFD"] = [unicodedata.normalize("NFD", text) for text in LANGUAGES["Vietnamese"]]


def score(captions: list[str], written: list[str]) -> float:
    """CIDEr of captions, × 100, against themselves as they were written; perfect ones reach 1000."""
    references = tokenize_references([[text] for text in captions], "ptb")
    return 100 * float(metrics.cider_d(references, TOKENIZERS["ptb"](written)).mean())


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_words_of_a_caption_score_as_the_caption(language):
    captions = LANGUAGES[language]
    vocabulary = Vocabulary.build(captions)
    written = [vocabulary.decode(vocabulary.encode(vocabulary.split(text))) for text in captions]
    assert "<unk>" not in " ".join(written)
    assert score(captions, written) >= 990
    assert len(vocabulary.words) - 4 <= sum(len(text.split()) for text in captions)  # no word is cut


SCRIPTS = (
    "Latin Devanagari Bengali Tamil Thai Myanmar Arabic Hebrew Hangul Cyrillic Greek Sinhala Khmer Ethiopic Armenian"
)


@given(st.data(), st.sampled_from(SCRIPTS.split()))
def test_the_words_of_any_script_are_whole(data, script):
    """Letters with marks and joiners between them: one word for each, entries of a vocabulary, stable."""
    letters = [
        chr(i) for i in range(0x250 if script == "Latin" else 0x1900) if regex.match(rf"\p{{Script={script}}}", chr(i))
    ]
    base = st.sampled_from([c for c in letters if regex.match(r"\p{L}", c)] or ["가", "나"])
    marks = st.sampled_from([c for c in letters if regex.match(r"\p{M}", c)] or ["\u0301"])
    letter = st.builds(
        lambda first, more, joiner: (first + more, joiner), base, st.text(marks, max_size=2), st.booleans()
    )
    words = data.draw(st.lists(st.lists(letter, min_size=1, max_size=5), min_size=1, max_size=6))
    texts = [
        "".join(part + JOINERS[0] * (joined and i < len(word) - 1) for i, (part, joined) in enumerate(word))
        for word in words
    ]
    found = tokenize(" ".join(texts))
    assert len(found) == len(texts)
    assert all(map(is_word, found))
    assert tokenize(" ".join(found)) == found
    assert tokenize(unicodedata.normalize("NFD", " ".join(texts))) == found


@pytest.mark.parametrize("text", ["\u03aa\u0301", "\u0399\u0308\u0301", "\u03ca\u0301", "\u0390"])
def test_lower_case_letters_are_composed(text):
    """Some letters have a composed lower case only, as Greek iota with dialytika and tonos."""
    assert tokenize(text) == characters(text) == TOKENIZERS["ptb"]([text])[0] == ["\u0390"]


def test_marks_and_joiners_alone_are_no_words():
    assert tokenize("❤️ \u0301 \u200d") == []
    assert tokenize("می\u200c رود") == ["می", "رود"]
    assert not is_word("a\u200d")
    assert not is_word("a\u202eb")


def test_characters():
    assert characters("A 狗，跑。") == ["a", "狗", "跑"]
    assert characters("กำลัง วิ่ง") == ["กำ", "ลั", "ง", "วิ่", "ง"]
    assert (tokenizer_of("char"), tokenizer_of("word")) == ("char", "ptb")


def test_references_are_tokenised_in_the_order_of_a_file():
    assert tokenize_references([["Plan b.", "A dog"], ["Plan b."]], "ptb") == [
        [["plan", "b"], ["a", "dog"]],
        [["plan", "b."]],
    ]
