"""Metrics: properties, then the oracles (pycocoevalcap, nltk), then examples worked by hand."""

import inspect
import json
import math
import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner import __version__, metrics
from captioner.metrics import ptb_tokenize, ptb_tokenizer, scores, significance
from captioner.metrics.scores import (
    DocumentFrequencies,
    PerImage,
    bleu,
    bleu_counts,
    bleu_from_counts,
    cider,
    cider_d,
    distinct,
    distinct_n,
    nltk_bleu,
    per_image,
    rouge_l,
    score_tokens,
    seen_share,
    self_bleu,
)

FLICKR8K = Path(__file__).parents[3] / "shared" / "flickr8k" / "annotations" / "captions_val.json"

captions = st.lists(st.sampled_from("abcd"), max_size=7)
sets = st.lists(captions, min_size=1, max_size=6)
images = st.tuples(st.lists(captions, min_size=1, max_size=4), captions)
corpora = st.lists(images, min_size=1, max_size=5).map(lambda rows: tuple(map(list, zip(*rows, strict=True))))


def words(text: str) -> list[str]:
    return text.split()


@cache
def generated(short: bool, n: int = 1000, seed: int = 7):
    """n images with 1 to 5 references and one caption each from a little grammar; short adds 0 to 3 words, repeated."""
    rng = random.Random(seed)

    def noun() -> list[str]:
        size = rng.choice([[], [], ["small"], ["big"], ["very", "big"]])
        return [rng.choice(["a", "the", "two"]), *size, rng.choice(["dog", "cat", "man", "child", "ball", "beach"])]

    def sentence() -> list[str]:
        tail = [word for _ in range(rng.randrange(3)) for word in [rng.choice(["on", "near", "with"]), *noun()]]
        return noun() + [rng.choice(["runs", "sits", "jumps", "plays"])] + (tail or ["outside"])

    def caption() -> list[str]:
        if short and rng.random() < 0.2:
            return rng.choices(["a", "dog", "runs"], k=rng.randrange(4))
        return sentence()

    references = [[caption() for _ in range(rng.randint(1, 5))] for _ in range(n)]
    hypotheses = [list(rng.choice(refs)) if rng.random() < 0.3 else caption() for refs in references]
    return references, hypotheses


@cache
def flickr8k():
    """Flickr8k val with each image's first caption held out as the hypothesis."""
    if not FLICKR8K.exists():
        pytest.skip(f"no Flickr8k at {FLICKR8K} (for research use only, not in the repository)")
    by_image: dict[int, list[list[str]]] = {}
    for row in json.loads(FLICKR8K.read_text())["annotations"]:
        by_image.setdefault(row["image_id"], []).append(ptb_tokenize(row["caption"]))
    return [rows[1:] for rows in by_image.values()], [rows[0] for rows in by_image.values()]


@cache
def extreme(seed: int = 3):
    """40 images, 1 to 31 references: of 0 to 300 words, of one word over and over, of unknown words, copies."""
    rng = random.Random(seed)

    def caption(words: str) -> list[str]:
        return rng.choices(words, k=rng.choice([0, 1, 2, 3, 4, 11, 63, 64, 65, 300]))

    references, hypotheses = [], []
    for i in range(40):
        refs = [caption(rng.choice(["a", "ab", "abcdefgh"])) for _ in range(rng.choice([1, 2, 30]))]
        references.append([[]] * len(refs) if i % 10 == 0 else [*refs, refs[0]])
        hypotheses.append([caption("xyz"), caption("ab"), list(refs[-1]), caption("abcdefgh")][i % 4])
    return references, hypotheses


def with_short(corpus):
    """The same corpus with every fifth caption cut to 0, 1, 2 or 3 words, in turn."""
    references, hypotheses = corpus
    return references, [h[: i // 5 % 4] if i % 5 == 0 else h for i, h in enumerate(hypotheses)]


CORPORA: dict[str, Callable[[], tuple[list[list[list[str]]], list[list[str]]]]] = {
    "generated": lambda: generated(short=False),
    "generated with short captions": lambda: generated(short=True),
    "Flickr8k": flickr8k,
    "Flickr8k with short captions": lambda: with_short(flickr8k()),
    "extreme": extreme,
}


@pytest.fixture(params=["generated with short captions", "Flickr8k", "Flickr8k with short captions", "extreme"])
def corpus(request):
    """A thousand images of real and of generated captions, and extreme ones."""
    return CORPORA[request.param]()


def close(expected):
    """Equal but for rounding."""
    return pytest.approx(expected, rel=1e-9, abs=1e-290)


# Properties


@given(corpora)
def test_ranges(corpus):
    references, hypotheses = corpus
    assert all(0 <= value <= 1 for value in bleu(references, hypotheses))
    for metric, top in [(rouge_l, 1), (cider_d, 10), (cider, 10)]:
        scores = metric(references, hypotheses)
        assert scores.shape == (len(hypotheses),)
        assert ((scores >= 0) & (scores <= top + 1e-9)).all()
    assert 1 / len(hypotheses) <= distinct(hypotheses) <= 1
    assert 0 <= self_bleu(hypotheses) <= 1


@given(corpora, st.randoms(use_true_random=False))
def test_order_of_references_does_not_matter(corpus, rng):
    references, hypotheses = corpus
    shuffled = [rng.sample(refs, len(refs)) for refs in references]
    for metric in (bleu, nltk_bleu, rouge_l, cider_d, cider):
        assert metric(shuffled, hypotheses) == pytest.approx(metric(references, hypotheses), abs=1e-12)


@given(corpora)
def test_order_of_images_moves_only_the_scores_with_them(corpus):
    references, hypotheses = corpus
    assert bleu(references[::-1], hypotheses[::-1]) == pytest.approx(bleu(references, hypotheses), abs=1e-12)
    for metric in (rouge_l, cider_d, cider):
        assert metric(references[::-1], hypotheses[::-1]) == pytest.approx(metric(references, hypotheses)[::-1])


@given(corpora)
def test_a_reference_twice_changes_only_cider(corpus):
    references, hypotheses = corpus
    doubled = [[*refs, refs[0]] for refs in references]
    assert bleu(doubled, hypotheses) == bleu(references, hypotheses)
    assert (rouge_l(doubled, hypotheses) == rouge_l(references, hypotheses)).all()


@given(corpora)
def test_images_together_and_alone_have_the_same_counts_and_rouge(corpus):
    counts, rouge = bleu_counts(*corpus), rouge_l(*corpus)
    for i, (refs, words) in enumerate(zip(*corpus, strict=True)):
        assert (bleu_counts([refs], [words])[0] == counts[i]).all()
        assert rouge_l([refs], [words])[0] == rouge[i]


@given(corpora, st.integers(1, 40))
def test_the_number_of_pairs_at_a_time_does_not_matter_to_rouge(corpus, cells):
    expected = rouge_l(*corpus)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("captioner.metrics.scores.LCS_CELLS", cells)
        assert (rouge_l(*corpus) == expected).all()


@given(corpora)
def test_a_word_is_anything_that_can_be_hashed(corpus):
    def renamed(words):
        return tuple(("abcd".index(word), None) for word in words)

    other = [[renamed(words) for words in refs] for refs in corpus[0]], [renamed(words) for words in corpus[1]]
    for ours, expected in zip(per_image(*other), per_image(*corpus), strict=True):
        assert (ours == expected).all()


@given(corpora)
def test_corpus_scores_are_what_each_function_gives(corpus):
    images = per_image(*corpus)
    assert images.counts.dtype == np.int64
    expected = [*bleu(*corpus), rouge_l(*corpus).mean(), cider_d(*corpus).mean()]
    assert images.corpus_scores() == close(100 * np.array(expected))


@given(corpora)
def test_an_image_alone_with_the_frequencies_of_all_has_the_cider_it_has_among_them(corpus):
    frequencies, expected = DocumentFrequencies(corpus[0]), cider_d(*corpus)
    assert (cider_d(*corpus, frequencies) == expected).all()
    for i, (refs, words) in enumerate(zip(*corpus, strict=True)):
        assert cider_d([refs], [words], frequencies) == close(expected[i : i + 1])
        assert per_image([refs], [words], frequencies).cider == close(expected[i : i + 1])


@given(captions.filter(len), captions.filter(len))
def test_rouge_uses_the_longest_common_subsequence(hypothesis, reference):
    @cache
    def lcs(i: int, j: int) -> int:
        if not i or not j:
            return 0
        same = hypothesis[i - 1] == reference[j - 1]
        return lcs(i - 1, j - 1) + 1 if same else max(lcs(i - 1, j), lcs(i, j - 1))

    # with one reference F simplifies to (1 + β²)·L / (|hypothesis| + β²·|reference|)
    expected = 2.44 * lcs(len(hypothesis), len(reference)) / (len(hypothesis) + 1.44 * len(reference))
    assert rouge_l([[reference]], [hypothesis]) == pytest.approx([expected])


@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=4, max_size=9), min_size=1, max_size=5))
def test_perfect_captions(hypotheses):
    references = [[["x", "y"], words, ["a"]] for words in hypotheses]
    assert bleu(references, hypotheses) == pytest.approx([1.0] * 4, abs=1e-6)
    assert rouge_l(references, hypotheses) == pytest.approx(1.0)


@given(images)
def test_one_image_gives_no_cider(image):
    assert cider_d([image[0]], [image[1]]).tolist() == cider([image[0]], [image[1]]).tolist() == [0.0]


@given(sets)
def test_self_bleu_is_the_mean_bleu_against_all_others(hypotheses):
    each = [bleu([hypotheses[:i] + hypotheses[i + 1 :]], [h])[-1] for i, h in enumerate(hypotheses[1:], 1)]
    first = bleu([hypotheses[1:]], hypotheses[:1])[-1] if each else 0.0
    assert self_bleu(hypotheses) == close(np.mean([first, *each]))


@given(sets, st.integers(1, 5))
def test_distinct_n_counts_distinct_ngrams(hypotheses, n):
    ngrams = [tuple(words[i : i + n]) for words in hypotheses for i in range(len(words) - n + 1)]
    assert distinct_n(hypotheses, n) == close(len(set(ngrams)) / max(1, len(ngrams)))


@given(sets, sets)
def test_seen_share_counts_the_captions_of_the_training_set(hypotheses, training):
    assert seen_share(hypotheses, iter(map(tuple, training))) == close(np.mean([h in training for h in hypotheses]))
    assert seen_share(hypotheses, hypotheses) == 1


# Oracles


def coco_caption(name: str, references, hypotheses):
    """(corpus score, per-image scores) by coco-caption, which takes {image: [string]} twice, references first."""
    oracle = pytest.importorskip(f"pycocoevalcap.{name.lower()}.{name.lower()}")
    refs = {i: [" ".join(words) for words in image] for i, image in enumerate(references)}
    hyps = {i: [" ".join(words)] for i, words in enumerate(hypotheses)}
    if name == "Bleu":
        total, each = oracle.Bleu(4).compute_score(refs, hyps, verbose=0)
        return total, np.array(each).T  # (4,), (N, 4)
    return getattr(oracle, name)().compute_score(refs, hyps)


def test_bleu_equals_coco_caption(corpus):
    total, each = coco_caption("Bleu", *corpus)
    assert bleu(*corpus) == close(total)
    assert bleu_from_counts(bleu_counts(*corpus)) == close(each)


@pytest.mark.parametrize(("metric", "name"), [(rouge_l, "Rouge"), (cider_d, "Cider")])
def test_rouge_l_and_cider_d_equal_coco_caption(corpus, metric, name):
    total, each = coco_caption(name, *corpus)
    scores = metric(*corpus)
    assert scores.mean() == close(total)
    assert scores == close(each)


@given(corpora)
def test_all_equal_coco_caption_on_the_smallest_corpora(corpus):
    total, each = coco_caption("Bleu", *corpus)
    assert bleu(*corpus) == close(total)
    assert bleu_from_counts(bleu_counts(*corpus)) == close(each)
    assert rouge_l(*corpus) == close(coco_caption("Rouge", *corpus)[1])
    if any(words for refs in corpus[0] for words in refs):  # coco-caption's CIDEr crashes when all references are empty
        assert cider_d(*corpus) == close(coco_caption("Cider", *corpus)[1])


def textbook_cider(references, hypotheses) -> list[float]:
    """CIDEr as the paper writes it, but for its stems: w_n = 1/4, weights tf · idf with tf a share; times 10."""

    def share(words, n):
        counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        return {gram: count / counts.total() for gram, count in counts.items()}

    scores = [0.0] * len(hypotheses)
    for n in range(1, 5):
        images = Counter(gram for refs in references for gram in {gram for ref in refs for gram in share(ref, n)})

        def vector(words, n=n, images=images):
            idf = {gram: math.log(len(references) / max(1, images[gram])) for gram in share(words, n)}
            return {gram: tf * idf[gram] for gram, tf in share(words, n).items()}

        for i, (refs, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
            for h, r in [(vector(hypothesis), vector(ref)) for ref in refs]:
                norms = math.hypot(*h.values()) * math.hypot(*r.values())
                if norms:
                    scores[i] += 10 / 4 / len(refs) * sum(h[gram] * r.get(gram, 0) for gram in h) / norms
    return scores


@given(corpora)
def test_plain_cider_equals_the_textbook(corpus):
    assert cider(*corpus) == close(textbook_cider(*corpus))


def test_plain_cider_equals_the_textbook_on_sentences():
    references, hypotheses = (side[:100] for side in generated(short=True))
    assert cider(references, hypotheses) == close(textbook_cider(references, hypotheses))
    assert (cider(references, hypotheses) >= cider_d(references, hypotheses) - 1e-12).all()


@pytest.mark.parametrize("name", ["generated", "Flickr8k"])
def test_bleu_equals_nltk_where_every_caption_has_four_words(name):
    references, hypotheses = CORPORA[name]()
    long = [i for i, words in enumerate(hypotheses) if len(words) >= 4]
    references, hypotheses = [references[i] for i in long], [hypotheses[i] for i in long]
    assert len(long) >= 900
    assert bleu(references, hypotheses) == pytest.approx(nltk_bleu(references, hypotheses), abs=1e-6)


@pytest.mark.parametrize("name", ["generated with short captions", "Flickr8k with short captions"])
def test_short_captions_cost_more_in_nltk(name):
    references, hypotheses = CORPORA[name]()
    for ours, theirs in zip(bleu(references, hypotheses), nltk_bleu(references, hypotheses), strict=True):
        assert theirs < ours - 1e-3  # empty captions are there too, so BLEU-1 differs as well


def test_short_captions_differ_from_nltk_only_from_their_order_on():
    references, hypotheses = [[words("a dog runs on grass")]] * 2, [words("a dog"), words("a dog runs on sand")]
    ours, theirs = bleu(references, hypotheses), nltk_bleu(references, hypotheses)
    assert ours[:2] == pytest.approx(theirs[:2], abs=1e-6)
    assert ours[2] > theirs[2] + 1e-3
    assert ours[3] > theirs[3] + 1e-3


@pytest.mark.filterwarnings("error")
def test_an_order_without_a_match_is_zero_in_nltk_and_tiny_in_ours():
    corpus = [[words("a dog runs on grass")]], [words("grass on runs dog a")]
    assert all(value < 1e-70 for value in nltk_bleu(*corpus)[1:])
    assert all(1e-12 < value < 1e-3 for value in bleu(*corpus)[1:])
    assert nltk_bleu(corpus[0], [["sand"]]) == [0.0] * 4


# Examples


@pytest.mark.parametrize("refs", [["a b", "a b c d"], ["a b c d", "a b"]])
def test_two_references_equally_close_in_length_take_the_shorter(refs):
    assert bleu([list(map(words, refs))], [words("a b c")])[0] == pytest.approx(1.0)  # r = 2, not 4: no penalty


def test_bleu_by_hand():
    references, hypotheses = [[words("a b c d e f")]], [words("a b a b")]
    brevity = math.exp(1 - 6 / 4)
    # a and b count once each: 2 of 4 words; "a b" once: 1 of 3 pairs
    assert bleu(references, hypotheses)[:2] == pytest.approx(
        [brevity * 2 / 4, brevity * math.sqrt(2 / 4 * 1 / 3)], abs=1e-6
    )


def test_corpus_bleu_is_not_the_mean_of_the_images():
    references, hypotheses = [[words("a b c d e f")], [words("x y")]], [words("a b c d e f"), words("x z")]
    each = [bleu([refs], [h])[0] for refs, h in zip(references, hypotheses, strict=True)]
    assert each == pytest.approx([1.0, 0.5])
    assert bleu(references, hypotheses)[0] == pytest.approx(7 / 8)  # not 3/4


def test_rouge_takes_precision_and_recall_from_different_references():
    # precision 3/4 from the second, recall 1 from the first
    expected = 2.44 * 0.75 * 1 / (1 + 1.44 * 0.75)
    assert rouge_l([[words("a b"), words("a b c x y z")]], [words("a b c d")]) == pytest.approx([expected])


def test_cider_by_hand():
    references = [[words("a b")], [words("c d")]]
    # orders 1 and 2 are perfect, 3 and 4 do not exist: 10 · 2/4; what is in every image's references is worth nothing
    assert cider_d(references, [words("a b"), words("d")]) == pytest.approx(
        [5.0, 10 / 4 * math.sqrt(0.5) * math.exp(-1 / 72)]
    )
    assert cider_d([[["a"]], [["a"]]], [["a"], ["a"]]).tolist() == [0.0, 0.0]
    full = [words("a dog runs on grass"), words("two men sit outside")]
    assert cider_d([[full[0]], [full[1]]], full) == pytest.approx([10.0, 10.0])


def test_repeating_a_rare_word_raises_plain_cider_only():
    references = [[words("a dog runs")], [words("a cat sits")]]
    repeated = [words("dog dog dog"), words("cat")]
    # orders: only single words match; "a" is worth nothing
    assert cider(references, repeated) == pytest.approx([10 / 4 * math.sqrt(0.5)] * 2)
    assert cider_d(references, repeated)[0] == pytest.approx(10 / 4 * math.sqrt(0.5) / 3)


def test_nothing_but_empty_captions():
    corpus = [[[], []], [[]]], [[], []]
    assert bleu(*corpus) == cider_d(*corpus).tolist() + cider(*corpus).tolist() == [0.0] * 4
    assert rouge_l(*corpus).tolist() == [1.0, 1.0]  # as coco-caption has it
    result = score_tokens(*corpus, tokenizer="x")
    assert result["self-BLEU-4"] == result["distinct-1"] == result["vocabulary"] == 0


def test_empty_captions_score_nothing():
    references = [[words("a dog runs fast")], [words("a cat sits still")]]
    assert bleu(references, [[], []]) == nltk_bleu(references, [[], []]) == [0.0] * 4
    assert rouge_l(references, [[], []]).tolist() == cider_d(references, [[], []]).tolist() == [0.0, 0.0]


def test_bleu_counts_by_hand():
    # a and b count once each, "a b" once; 4 to 1 n-grams; of the references with 2 and 6 words the shorter is as close
    counts = bleu_counts([[words("a b c d e f"), words("a c")]], [words("a b a b")])
    assert counts.tolist() == [[2, 1, 0, 0, 4, 3, 2, 1, 4, 2]]


def test_diversity():
    hypotheses = [["a"], ["a"], ["b", "a"], ("a",)]
    assert distinct(hypotheses) == 0.5
    assert distinct_n(hypotheses, 1) == 2 / 5
    assert distinct_n(hypotheses, 2) == 1
    assert distinct_n(hypotheses, 3) == 0
    assert self_bleu([["a", "b", "c", "d"]]) == 0.0
    assert seen_share(hypotheses, [("a",), ["b"]]) == 0.75


def test_one_caption_for_all_is_all_self_bleu():
    one, many = [words("a dog runs on grass")] * 5, [words(f"w{i} x{i} y{i} z{i}") for i in range(5)]
    assert self_bleu(one) == pytest.approx(1)
    assert self_bleu(many) < 1e-3


def test_score_reports_a_hundred_times_coco_caption():
    references, hypotheses = (side[:50] for side in generated(short=True))
    result = score_tokens(references, hypotheses, tokenizer="captioner-words", nltk=True)
    assert [*result] == [
        *("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"),
        *("distinct", "distinct-1", "distinct-2", "vocabulary", "self-BLEU-4"),
        *("mean_length", "images", "signature", "nltk"),
    ]
    assert [result[f"BLEU-{n}"] for n in range(1, 5)] == [100 * value for value in bleu(references, hypotheses)]
    assert [*result["nltk"].values()] == [100 * value for value in nltk_bleu(references, hypotheses)]
    assert [*result["nltk"]] == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"]
    assert result["ROUGE-L"] == close(100 * rouge_l(references, hypotheses).mean())
    assert result["CIDEr"] == close(100 * cider_d(references, hypotheses).mean())
    assert result["distinct"] == 100 * distinct(hypotheses)
    assert result["distinct-1"] == 100 * distinct_n(hypotheses, 1)
    assert result["distinct-2"] == 100 * distinct_n(hypotheses, 2)
    assert result["vocabulary"] == len({word for words in hypotheses for word in words})
    assert result["self-BLEU-4"] == 100 * self_bleu(hypotheses)
    assert result["mean_length"] == pytest.approx(np.mean([len(h) for h in hypotheses]))
    assert result["images"] == 50
    assert result["signature"] == (
        f"captioner {__version__} | tokenizer:captioner-words | refs:1-5 | images:50 | scale:0-100"
        " | BLEU, ROUGE-L, CIDEr-D as coco-caption"
    )
    assert json.loads(json.dumps(result)) == result
    even = score_tokens([[["a"], ["b"]]] * 2, [["a"], ["a"]], tokenizer="ptb")["signature"]
    assert "| tokenizer:ptb | refs:2 | images:2 |" in even


def test_score_reuses_per_image_and_runs_nltk_only_on_request():
    references, hypotheses = (side[:20] for side in generated(short=False))
    known = per_image(references, hypotheses)
    plain = score_tokens(references, hypotheses, "x")
    assert score_tokens(references, hypotheses, "x", images=known) == plain
    assert "nltk" not in plain
    other = score_tokens(references, hypotheses, "x", images=PerImage(known.counts, known.rouge, known.cider * 2))
    assert other["CIDEr"] == pytest.approx(2 * plain["CIDEr"])


@pytest.mark.parametrize(
    "metric",
    [bleu, bleu_counts, nltk_bleu, rouge_l, cider_d, cider, per_image, lambda *corpus: score_tokens(*corpus, "x")],
)
@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        ([[["a"]], [["b"]]], [["a"]], "1 caption but references for 2 images"),
        ([[["a"]], []], [["a"], ["b"]], "image 1 has no reference"),
        ([], [], "no captions"),
        ([[["a"]]], ["a"], "image 0: a caption must be a sequence of words"),
        ([["a dog"]], [["a"]], "image 0: a caption must be a sequence of words"),
        (["a dog"], [["a"]], "image 0: a caption must be a sequence of words"),
    ],
)
def test_invalid_input_is_an_error(metric, references, hypotheses, message):
    with pytest.raises(ValueError, match=message):
        metric(references, hypotheses)


@pytest.mark.parametrize("metric", [distinct, lambda h: distinct_n(h, 1), self_bleu, lambda h: seen_share(h, [])])
def test_invalid_captions_alone_are_an_error(metric):
    with pytest.raises(ValueError, match="no captions"):
        metric([])
    with pytest.raises(ValueError, match="image 1: a caption must be a sequence of words"):
        metric([["a"], "a dog"])


def test_training_captions_are_words_too():
    with pytest.raises(ValueError, match="a training caption must be a sequence of words"):
        seen_share([["a"]], ["a dog"])


def test_the_package_exports_every_public_function():
    for module in (scores, significance, ptb_tokenizer):
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"):
                assert getattr(metrics, name) is value
