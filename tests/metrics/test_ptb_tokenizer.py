"""The tokenizer: recorded output of the Java program, properties, and the program itself where available (slow)."""

import json
import random
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.metrics.ptb_tokenizer import DROPPED, ptb_tokenize, ptb_tokenize_all

SHARED = Path(__file__).parents[3] / "shared"
NBSP = "\N{NO-BREAK SPACE}"
DOG = "\N{DOG FACE}"

# caption → its words, in a file where a line that begins with a small letter follows
EXAMPLES = {
    "words": {
        "A man rides a horse.": "a man rides a horse",
        "  Two   dogs\tplay \n": "two dogs play",
        "": "",
        "Café naïve ÉCLAIR straße": "café naïve éclair straße",
        "Cannot GONNA wanna gotta gimme lemme cannots": "can not gon na wan na got ta gim me lem me cannots",
        "colour grey centre": "colour grey centre",
        "日本 привет": "日本 привет",
    },
    "full stops": {
        "bench.A man, street.The dog": "bench.a man street.the dog",
        "a man. . He": "a man he",
        "wait.. what... no.... ok . . . fine…": "wait what no ok fine",
        "dog.,cat dog., cat a.b.": "dog. cat dog. cat a.b.",
        "?! !!! wow!! a!b what?yes ? !": "?! !!! wow !! a!b what?yes",
        "yes;no;": "yes no",
    },
    "abbreviations": {
        "the U.S. and a T.V.": "the u.s. and a t.v.",
        "Mr. Smith, Dr. Who and St. Paul on 5th Ave.": "mr. smith dr. who and st. paul on 5th ave.",
        "etc. dogs, cats etc.": "etc. dogs cats etc.",
        "No. 5 no.5 no. No.": "no. 5 no. 5 no no",
        "fig. 2 vs. modern art. 2 art.": "fig. 2 vs. modern art. 2 art",
        "at 3 p.m. or 3p.m. or 3:00p.m.": "at 3 p.m. or 3p m. or 3:00 p.m.",
        "a Ph.D. a.k.a. doc": "a ph.d. a.k.a. doc",
        "Mass. mass. La. la. Ill. ill.": "mass. mass la. la ill. ill",
        "sq.m inc.-a lb. 20 ft. tall": "sq. m inc. a lb 20 ft. tall",
        "plan b. x": "plan b. x",
        "plan b. A man": "plan b a man",
        "plan b.  The man. U.S. The": "plan b the man u.s. the",
        "plan b. Theo": "plan b. theo",
    },
    "apostrophes": {
        "man's dogs' it's isn't can't I'll we've": "man 's dogs it 's is n't ca n't i 'll we 've",
        "ISN'T He’s don’t isn`t": "is n't he 's do n't is n`t",
        "'tis 'Twas 'em 'til 'n' '50s '99 '99.": "'t is 't was 'em 'til 'n' '50s '99 99",
        "rock'n'roll o'clock O'Brien ma'am y'all d'art": "rock 'n' roll o'clock o'brien ma'am y' all d'art",
        "60's 1950's 6'2\" s'mores c'mon it''s cat`s": "60 's 1950 's 6 2 s'mores c'mon it s cat s",
        "'quoted' \"double\" ``tex'' “smart” ‘single’": "quoted double tex smart single",
        "couldn't've who'd've don't'": "could n't 've who 'd 've do n't",
        "cat's-eye jack-o'-lantern": "cat 's eye jack-o lantern",
    },
    "hyphens": {
        "t-shirt black-and-white x-ray- mid -air": "t-shirt black-and-white x-ray mid air",
        "a - b -- c --- d ---- e ----- f": "a b c d e ----- f",
        "a--b en–dash em—dash": "a b en dash em dash",
        "non-U.S. pro- anti-war 3-way 20-30": "non-u.s. pro- anti-war 3-way 20-30",
        "red,white-blue Ave.-yes": "red,white-blue ave.-yes",
        "soft\xadhyphen": "softhyphen",
    },
    "numbers": {
        "1,000 5.5 .5 10:30am 2x4 5ft 1st": "1,000 5.5 .5 10:30 am 2x4 5ft 1st",
        "50% $5.99 US$5 #1 -5 +5 5-a 1,2,3": "50 % $ 5.99 us$ 5 # 1 -5 +5 5-a 1,2,3",
        "1/2 9/11 3/4ths ½ 1½ 10-12-2010": "1/2 9/11 3/4ths 1/2 1 1/2 10-12-2010",
        "£5 5€ 5¢ ¥5 90° x²": "# 5 5 $ 5 cents ¥ 5 90 ° x ²",
    },
    "signs": {
        "a & b/c w/ and/or @ * a_b + = < > ^ ~ | \\": "a & b/c w / and/or @ * a_b + = < > ^ ~ | \\",
        "(2) [a] {b} (a,b)": "-lrb- 2 -rrb- -lsb- a -rsb- -lcb- b -rcb- -lrb- a b -rrb-",
        ":) :-( ;D =P :/ <3 ^_^": ":-rrb- :--lrb- ;d =p / < 3 ^_^",
        "AT&T b&w R&amp;D a &amp; b &quot;c&quot; &lt;": "at&t b & w r&d a & b c <",
        "<b>bold</b> a<b": "<b> bold </b> a < b",
        "A+ c++ B- C#": "a + c++ b c#",
        f"dog{DOG}s ♥ ☺\N{ZERO WIDTH SPACE}x\x07y": "dog s ♥ ☺ x y",
    },
    "addresses": {
        "www.foo.com foo.com/bar, foo.jpg 3.jpg.": "www.foo.com foo.com/bar foo.jpg 3.jpg",
        "http://foo.com/a?b=c a@b.com @name #tag #a-b": "http://foo.com/a?b=c a@b.com @name #tag #a b",
    },
}
# Words with a no-break space in them.
SPACED = {
    "2 1/2 cups": ["2 1/2", "cups"],
    "(555) 555-1234": ["-lrb-555-rrb- 555-1234"],
    '<a href="x">': ['<a href="x">'],
}


@pytest.mark.parametrize(
    ("caption", "words"),
    [pytest.param(*pair, id=f"{group}: {pair[0]}") for group, pairs in EXAMPLES.items() for pair in pairs.items()],
)
def test_examples(caption, words):
    assert ptb_tokenize(caption, "\nx\n") == words.split(" ") if words else ptb_tokenize(caption) == []


@pytest.mark.parametrize(("caption", "words"), SPACED.items())
def test_some_words_keep_a_space_that_no_longer_breaks(caption, words):
    assert ptb_tokenize(caption) == [word.replace(" ", NBSP) for word in words]


def test_the_next_caption_decides_about_a_last_letter_and_a_number_about_no():
    assert ptb_tokenize("Plan b.") == ["plan", "b."]
    assert ptb_tokenize("Plan b.", "\nA dog") == ["plan", "b"]
    assert ptb_tokenize_all(["Plan b.", "The man", "Plan b.", "Men", "Plan b."]) == [
        ["plan", "b"],
        ["the", "man"],
        ["plan", "b."],
        ["men"],
        ["plan", "b."],
    ]
    assert ptb_tokenize_all(["Plan b.", " ", "", "A man"])[0] == ["plan", "b"]
    assert ptb_tokenize_all(["no.", "2 men", "no.", "A man"]) == [["no."], ["2", "men"], ["no"], ["a", "man"]]


def test_at_the_end_of_the_file_nothing_follows():
    assert ptb_tokenize_all([":)", ":)"]) == [[":-rrb-"], ["-rrb-"]]
    assert ptb_tokenize_all(["3.jpg", "3.jpg"]) == [["3.jpg"], ["3", "jpg"]]
    assert ptb_tokenize_all([]) == []


any_text = st.text() | st.text(st.sampled_from("aAbx15 .,-'’\"/&;:()<>@#$%!?\t\n\xa0\xad½é")) | st.text("Ab. 2/")


@given(any_text)
def test_words_are_lower_case_without_white_space_for_any_text(text):
    for word in ptb_tokenize(text):
        assert word
        assert word == word.lower()
        assert word not in DROPPED
        assert not set(word) & set(" \t\n\r\v\f\u2028\u2029")


@given(any_text, st.sampled_from("\n\r\v\f\u2028\u2029"))
def test_a_line_break_is_a_space(text, line_break):
    assert ptb_tokenize(text.replace(" ", line_break)) == ptb_tokenize(text)
    assert ptb_tokenize(f"a {text}".replace("\n", " ")) == ptb_tokenize(f"a\n{text}")


@given(st.lists(any_text, max_size=5))
def test_all_at_once_is_one_by_one_with_what_follows(texts):
    lines = [" ".join(text.splitlines() + [""] * text.endswith("\n")).replace("\n", " ") for text in texts]
    rests = ["".join(f"\n{line}" for line in lines[i + 1 :]) for i in range(len(lines))]
    assert ptb_tokenize_all(lines) == [ptb_tokenize(line, rest) for line, rest in zip(lines, rests, strict=True)]


@given(
    st.lists(st.sampled_from(["a", "Dog", "x.", "no.", "2", "1/2", "b.c.", "<b", ">", "(555)", ":)", "The", "'", "."]))
)
def test_the_cache_of_chunks_changes_nothing(chunks):
    text = " ".join(chunks)
    assert ptb_tokenize(text, "\nx\n") == ptb_tokenize(f"{text} \N{NO-BREAK SPACE}", "\nx\n")  # not ASCII: as a whole


def test_long_captions_are_fast():
    for part in ("a ", "a.", "a-", "'", "<a ", "1/", "1 ", "-", "a@", "&amp;", "é", ". ", "www.", "(-"):
        assert isinstance(ptb_tokenize(part * 1000), list)


def coco_caption(captions):
    """Each caption's words as one string, by pycocoevalcap."""
    if not shutil.which("java"):
        pytest.skip("no Java")
    if not find_spec("pycocoevalcap"):
        pytest.skip("no pycocoevalcap")
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    lines = PTBTokenizer().tokenize({0: [{"caption": caption} for caption in captions]})[0]
    assert len(lines) == len(captions)
    return lines


def differences(captions):
    ours = [" ".join(words) for words in ptb_tokenize_all(captions)]
    rows = zip(captions, coco_caption(captions), ours, strict=True)
    return [row for row in rows if row[1] != row[2]]


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["flickr8k", "coco_sample"])
def test_real_captions_as_coco_caption(folder):
    files = sorted((SHARED / folder / "annotations").glob("*.json"))
    if not files:
        pytest.skip(f"no captions in {SHARED / folder}")
    captions = [row["caption"] for file in files for row in json.loads(file.read_text())["annotations"]]
    assert differences(captions) == []
    assert ptb_tokenize_all(captions) == [ptb_tokenize(caption, "\nA\n") for caption in captions]


@pytest.mark.slow
def test_examples_as_coco_caption():
    captions = [*(caption for pairs in EXAMPLES.values() for caption in pairs), *SPACED]
    assert differences([line for caption in captions for line in (caption, "x")]) == []
    assert differences(captions) == []


PIECES = [
    *".,;:!?'\"-()/&#$%*+=_@~`^|\\<>[]{} \t",
    *[
        "...",
        "..",
        "--",
        " - ",
        "'s",
        "n't",
        "’",
        "“",
        "”",
        " & ",
        "1",
        "2",
        "10",
        "½",
        " 1/2",
        "é",
        "°",
        "…",
        "–",
        "—",
        NBSP,
    ],
    *[
        "U.S.",
        " a.m.",
        " St.",
        " No. 5",
        " x.",
        " No.",
        " fig.",
        " 3",
        "50's",
        "'90s",
        " etc.",
        " w/ ",
        " and/or ",
        ":)",
    ],
    *[
        " :D",
        "www.foo.com",
        "<b>",
        "</b>",
        "&amp;",
        "#1",
        "A",
        ". The ",
        ". A ",
        "s'",
        "y'all",
        " 'n' ",
        "t.v.",
        "10:30",
    ],
    *[
        "p.m.",
        "a+",
        "\u200b",
        DOG,
        "(2)",
        "?!",
        "!!!",
        "ft.",
        "5ft",
        "2x4",
        "Ph.D.",
        "foo.jpg",
        "a@b.com",
        "$5.99",
        "-",
    ],
]


def damaged(rng):
    """A caption from a little grammar with up to five changes."""
    text = " ".join(
        rng.choice(["A man", "The dogs", "Two kids", "there is a cat", "Children", "9 birds", "a St. Bernard"])
        + " "
        + rng.choice(["on a skate-board", "in a red, white shirt", "at 5 p.m.", "who isn't big", "by the man's car"])
        for _ in range(rng.choice([1, 1, 2]))
    ) + rng.choice([".", " .", "", "!", " x."])
    for _ in range(rng.choice([0, 1, 1, 2, 3, 5])):
        i = rng.randrange(len(text) + 1)
        text = rng.choice(
            [text[:i] + rng.choice(PIECES) + text[i:]] * 4 + [text[:i] + text[i + 1 :], text[:i], text[i:]]
        )
        text = text[:i] + text[i : i + 1].swapcase() + text[i + 1 :]
    return text


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_damaged_captions_as_coco_caption(seed):
    rng = random.Random(seed)
    assert differences([damaged(rng) for _ in range(10_000)]) == []
