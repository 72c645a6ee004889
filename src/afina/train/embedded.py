"""Data sets that afina prepares itself from what registry packages ship."""

from __future__ import annotations

import json
import random
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from ..errors import RecipeError, did_you_mean
from .assets import cache_dir, locate, make_once, sha256
from .events import Reporter

_SEED = 0
_TWEETS_TEST = 800
_TWEETS_MIN_RATING = 0.5


def prepare(name: str, reporter: Reporter) -> Path:
    """The folder of the embedded data set `name`, prepared on first use: `train.jsonl`, `test.jsonl`, `origin.json`.

    Raises:
        RecipeError: there is no such data set.
    """
    if name not in _DATASETS:
        raise RecipeError("no such embedded data set", got=name, fix=did_you_mean(name, _DATASETS))
    folder = cache_dir() / "data" / name
    if folder.is_dir():
        return folder
    reporter.note(f"preparing the data set {name!r}")
    return make_once(folder, lambda work: _DATASETS[name](work, reporter))


def _tweets(work: Path, reporter: Reporter) -> None:
    """Tweets with the sign of their mean human rating (Hutto and Gilbert, ICWSM 2014; MIT licence).

    Ratings lie in -4..4; those nearer to 0 than 0.5 are left out. The same text up to case and punctuation is kept
    once, so that no test row was trained on. The split is drawn with a fixed seed.
    """
    source = locate("sdist:vaderSentiment==3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", reporter)
    with tarfile.open(source) as archive:
        member = archive.extractfile("hutto_ICWSM_2014/tweets_GroundTruth.txt")
        if member is None:
            raise RecipeError("the archive has no tweets", where=source)
        lines = member.read().decode("utf-8").splitlines()
    unique: dict[str, dict[str, str]] = {}
    for line in lines:
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) >= _TWEETS_MIN_RATING:
            label = "positive" if float(rating) > 0 else "negative"
            unique.setdefault(re.sub(r"[\W_]+", "", text.lower()), {"text": text.strip(), "label": label})
    rows = list(unique.values())
    random.Random(_SEED).shuffle(rows)
    _write_split(work, rows, _TWEETS_TEST, source)


def _write_split(work: Path, rows: list[dict[str, str]], n_test: int, source: Path) -> None:
    files = {"test.jsonl": rows[:n_test], "train.jsonl": rows[n_test:]}
    for name, part in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (work / name).write_text(text, encoding="utf-8")
    origin = {
        "source": source.name,
        "source_sha256": sha256(source),
        "seed": _SEED,
        "files": {name: {"rows": len(part), "sha256": sha256(work / name)} for name, part in files.items()},
    }
    (work / "origin.json").write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")


_DATASETS: Mapping[str, Callable[[Path, Reporter], None]] = MappingProxyType({"tweets": _tweets})
