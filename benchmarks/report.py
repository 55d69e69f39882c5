"""The size of the page of an evaluation, and the time until a browser shows its images and re-sorts them.

python benchmarks/report.py data/photos/*.jpg --count 5000   (pip install -e '.[browser]', and a Chromium)
"""

import argparse
import os
import random
import shutil
import tempfile
import time
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright

from captioner.data.annotations import Example
from captioner.metrics.scoring import Comparison, score_images
from captioner.models.base import Caption
from captioner.reports.evaluation import EvaluationPage

WORDS = [
    "a",
    "the",
    "man",
    "dog",
    "two",
    "people",
    "in",
    "on",
    "of",
    "and",
    "runs",
    "jumps",
    "stands",
    "red",
    "blue",
    "grass",
    "water",
    "street",
    "field",
    "ball",
]


def caption(grid: int) -> Caption:
    """Ten words drawn at random, with a map for each."""
    terms = tuple(-2 * random.random() for _ in range(11))
    text = " ".join(random.choices(WORDS, k=10))
    return Caption(text, sum(terms), sum(terms), True, terms, torch.rand(11, grid, grid))


def write(path: Path, photos: list[str], count: int, two: bool) -> None:
    """A page of `count` images, the photographs repeated: five references, three captions of a system."""
    references, captions, second = {}, {}, {}
    with EvaluationPage(path, f"{count:,} images", count, True, ["mine", "theirs"][: 1 + two]) as page:
        for i in range(count):
            found, other = ([caption(7) for _ in range(3)] for _ in range(2))
            references[i] = [" ".join(random.choices(WORDS, k=10)) for _ in range(5)]
            captions[i], second[i] = found[0].text, other[0].text
            example = Example(i, Path(photos[i % len(photos)]), tuple(references[i]), f"{i:06}.jpg")
            page.add(example, found, other if two else None)
        page.finish(score_images(references, captions, comparison=Comparison("theirs", second) if two else None))


SORT = """() => {
  const started = performance.now(), order = document.getElementById("order");
  order.value = "best";
  order.dispatchEvent(new Event("input"));
  document.body.offsetHeight;  // lays the page out
  return performance.now() - started;
}"""


def main() -> None:
    """Write the page, for one system and for two, and open it three times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--count", type=int, default=5000)
    options = parser.parse_args()
    random.seed(0)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        for two in (False, True):
            path = Path(folder, "report.html")
            write(path, options.photos, options.count, two)
            found = []
            for _ in range(3):
                opened = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
                page = opened.new_page()
                started = time.perf_counter()
                page.goto(path.as_uri(), wait_until="commit")
                page.wait_for_selector("article.card")
                found.append((time.perf_counter() - started, page.evaluate(SORT) / 1000))
                opened.close()
            first, again = (" ".join(f"{seconds:.2f}" for seconds in column) for column in zip(*found, strict=True))
            size = path.stat().st_size / 1e6
            print(f"{1 + two} systems: {size:.0f} MB; first images after {first} s; re-sorted in {again} s")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
