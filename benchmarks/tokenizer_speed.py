"""captioner.metrics.ptb_tokenizer against the Java program that coco-caption starts, on one file of generated captions.

Java is timed as pycocoevalcap runs it: write the file, start the virtual machine, read the words, drop the
punctuation. Ours starts every turn with an empty cache. Captions have realistic words, lengths and punctuation:
of 8,000 words the commonest are most of the text, most captions end with a full stop, one in eight has something that
needs a rule. The number of equal captions is printed first.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from ratios import caption_lengths, median, rounds_argument, take_turns, verdict

from captioner.metrics import ptb_tokenizer as ptb

CAPTIONS, WORDS, FASTER = 25_000, 8_000, 1.5
SPECIAL = ["man's", "t-shirt", "don't", "2", "1/2", "St. Paul", '"stop"', "(left)", "U.S.", "5:30", "and/or", "50%"]


def find_jar() -> Path | None:
    """pycocoevalcap's tokenizer; None where that or Java is missing."""
    try:
        from pycocoevalcap.tokenizer import ptbtokenizer
    except ImportError:
        return None
    return (
        Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR) if shutil.which("java") else None
    )


def java(jar: Path, captions: list[str]) -> list[list[str]]:
    """Words of each caption by the Java program."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "captions")
        file.write_text("\n".join(captions), encoding="utf-8")
        command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        done = subprocess.run([*command, str(file)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    lines = done.stdout.decode().split("\n")[: len(captions)]
    return [[word for word in line.split() if word not in ptb.DROPPED] for line in lines]


def write_captions(random: np.random.Generator) -> list[str]:
    """CAPTIONS lines of text."""
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = sorted({"".join(random.choice(letters, n)) for n in random.integers(2, 10, WORDS)}, key=len)
    shares = 1 / np.arange(1, len(words) + 1)  # Zipf: the shortest are the commonest
    captions = []
    for length in caption_lengths(CAPTIONS, random):
        text = list(random.choice(words, length, p=shares / shares.sum()))
        if random.random() < 0.05:
            text[length // 2] += ","
        if random.random() < 0.08:
            text[random.integers(length)] = random.choice(SPECIAL)
        captions.append(" ".join(["A", *text]) + random.choice([".", ".", ".", " .", ""]))
    return captions


def main() -> bool:
    """Print the ratio; whether it is within the limit."""
    rounds = rounds_argument(__doc__, 5).parse_args().rounds
    jar = find_jar()
    if jar is None:
        print(
            "Java and pycocoevalcap are needed: install a Java runtime and pip install pycocoevalcap", file=sys.stderr
        )
        sys.exit(2)
    captions = write_captions(np.random.default_rng(0))

    def ours() -> list[list[str]]:
        ptb._chunk.cache_clear()
        return ptb.ptb_tokenize_all(captions)

    same = sum(a == b for a, b in zip(ours(), java(jar, captions), strict=True))
    print(
        f"{same} of {CAPTIONS} captions are the same, {len(set(' '.join(captions).split()))} distinct strings in them"
    )
    times = take_turns({"ours": ours, "java": lambda: java(jar, captions)}, rounds)
    for name, values in times.items():
        print(f"{name} {CAPTIONS / median(values):8.0f} captions/s")
    return verdict("Java / ours, time", times["java"], times["ours"], ">=", FASTER)


if __name__ == "__main__":
    sys.exit(not main())
