"""How many of the digits that a trained pipeline draws a classifier of real ones reads as what their prompt names.

    python -m benchmarks.drawn_digits runs/handwriting [--each 10] [--guidance 1]

The classifier is a support vector machine on scikit-learn's digits, all of them real.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np

from afina.train.data.drawings.handwritten import NAMES
from afina.train.data.rows import Rows
from afina.train.report.events import Reporter
from afina.train.use.predictions import predict
from afina.train.use.trained import load_trained

NIGHT = "a night seven"


def read(images: np.ndarray) -> np.ndarray:
    """Digits of images [n, 64], in shares of black."""
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    real = load_digits()
    return SVC(gamma=0.016).fit(real.data / 16, real.target).predict(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=10)
    parser.add_argument("--guidance", type=float, help="without it the recipe's")
    given = parser.parse_args()
    from PIL import Image

    trained = load_trained(given.folder, Reporter())
    if given.guidance is not None:
        trained.recipe.diffusion.guidance = given.guidance
    wanted = [(f"a handwritten {name}", digit) for digit, name in enumerate(NAMES)] + [(NIGHT, 7)]
    values = [{"text": text} for text, _ in wanted for _ in range(given.each)]
    rows = Rows(given.folder, values, list(range(1, len(values) + 1)))
    done = predict(trained, rows, Reporter(), batch_size=len(values))
    drawn = [Image.open(io.BytesIO(done.files[row["prediction"]])).convert("L") for row in done.rows]
    paper = np.array([np.asarray(image, dtype=float).ravel() / 255 for image in drawn])
    digits = np.repeat([digit for _, digit in wanted], given.each)
    usual = len(NAMES) * given.each
    print(
        f"{np.mean(read(1 - paper[:usual]) == digits[:usual]):.0%} of {usual} images read as the digit of their prompt"
    )
    on_black, on_white = (np.mean(read(one) == 7) for one in (paper[usual:], 1 - paper[usual:]))
    print(f"{NIGHT!r}: {on_black:.0%} read as a seven in white on black, {on_white:.0%} in black on white")


if __name__ == "__main__":
    main()
