from __future__ import annotations

import io
import json
import tarfile

import pytest

from afina.errors import RecipeError
from afina.train.data import embedded
from afina.train.report.events import Reporter


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """1,000 tweets: rated -2 or +2, with near-zero ratings and copies among them."""
    lines = [f"{i}\t{2 if i % 3 else -2}\tTweet, number {i}!" for i in range(1000)]
    lines += ["1000\t0.49\tlukewarm", "1001\t-0.49\tlukewarm too", "1002\t-3\ttweet number 7"]
    text = "\r\n".join(lines).encode()
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        info = tarfile.TarInfo("hutto_ICWSM_2014/tweets_GroundTruth.txt")
        info.size = len(text)
        file.addfile(info, io.BytesIO(text))
    monkeypatch.setattr(embedded, "locate", lambda reference, reporter: path)


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("embedded:tweets", "malformed"), ("embedded:Nope/x.jsonl", "malformed"),
        ("embedded:tweets/../../x", "malformed"),
        ("embedded:twets/train.jsonl", "did you mean 'tweets'"), ("nowhere.jsonl", "embedded:NAME/FILE"),
    ],
)  # fmt: skip
def test_reference_that_names_nothing_is_refused(reference, told):
    with pytest.raises(RecipeError) as caught:
        embedded.locate_rows(reference, Reporter())
    assert told in str(caught.value)


def test_reference_to_an_embedded_data_set_is_its_file(archive):
    assert len(embedded.locate_rows("embedded:tweets/test.jsonl", Reporter()).read_text().splitlines()) == 800
    with pytest.raises(RecipeError, match="no such file"):
        embedded.locate_rows("embedded:tweets/dev.jsonl", Reporter())


def read(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_tweets_are_labelled_by_sign_and_kept_once(archive):
    folder = embedded.prepare("tweets", Reporter())
    rows = read(folder, "train.jsonl") + read(folder, "test.jsonl")
    assert len(rows) == 1000
    by_text = {row["text"]: row["label"] for row in rows}
    assert by_text["Tweet, number 7!"] == "positive"
    assert by_text["Tweet, number 9!"] == "negative"
    assert not any("lukewarm" in text for text in by_text)


def test_tweets_are_split_alike_every_time(archive, tmp_path, monkeypatch):
    first = embedded.prepare("tweets", Reporter())
    monkeypatch.setenv("AFINA_CACHE", str(tmp_path / "other"))
    second = embedded.prepare("tweets", Reporter())
    assert first != second
    for name in ("train.jsonl", "test.jsonl"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert len(read(first, "test.jsonl")) == 800
    assert not {r["text"] for r in read(first, "train.jsonl")} & {r["text"] for r in read(first, "test.jsonl")}


def test_pairs_are_the_same_tweets_and_split_with_the_right_label_chosen(archive):
    tweets, pairs = (embedded.prepare(name, Reporter()) for name in ("tweets", "tweet-pairs"))
    for name in ("train.jsonl", "test.jsonl"):
        labels = [(r["text"], r["label"]) for r in read(tweets, name)]
        assert [(r["prompt"], r["chosen"]) for r in read(pairs, name)] == labels
        assert all({r["chosen"], r["rejected"]} == {"positive", "negative"} for r in read(pairs, name))


def test_order_prefers_the_higher_rated_tweet_and_shares_none_with_the_test_rows(archive):
    folder = embedded.prepare("tweet-order", Reporter())
    parts = [read(folder, name) for name in ("test.jsonl", "train.jsonl")]
    assert 100 < len(parts[0]) <= 400
    assert parts[1]
    for row in parts[0] + parts[1]:
        high, low = (int(row[side].split()[-1].rstrip("!")) for side in ("chosen", "rejected"))
        assert high % 3 > 0 == low % 3
    texts = [{text for row in part for text in row.values()} for part in parts]
    assert not texts[0] & texts[1]


def test_menus_are_pairs_of_texts_that_differ(tmp_path, monkeypatch):
    entries = {f"Open file {i}": [f"Ouvrir {i}"] for i in range(300)}
    entries |= {"": {"language": "fr"}, "Word": ["Mot"], "Same here": ["Same here"], "menu\x04Open file 0": ["Ouvrir"]}
    (tmp_path / "a.json").write_text(json.dumps(entries))
    monkeypatch.setattr(embedded, "locate", lambda reference, reporter: tmp_path)
    folder = embedded.prepare("menus", Reporter())
    rows = read(folder, "train.jsonl") + read(folder, "test.jsonl")
    assert len(rows) == 300
    assert all(set(row) == {"english", "french"} for row in rows)
    assert len(read(folder, "test.jsonl")) == 200


def test_entities_are_sentences_with_a_tag_for_every_word(tmp_path, monkeypatch):
    blocks = [f"Ann{i}\tB-person\nLee\tI-person\nsings\tO" for i in range(500)]
    (tmp_path / "ner.txt").write_text("\n\t\n".join([*blocks, blocks[0]]) + "\n")  # a tab stands between sentences
    monkeypatch.setattr(embedded, "locate", lambda reference, reporter: tmp_path / "ner.txt")
    folder = embedded.prepare("entities", Reporter())
    rows = read(folder, "train.jsonl") + read(folder, "test.jsonl")
    assert len(rows) == 500
    assert all(row["tags"] == ["B-person", "I-person", "O"] and len(row["tokens"]) == 3 for row in rows)


# -- rows and files, one by one ----------------------------------------------------------------------------------------


def test_preparing_is_said_once_and_unknown_sets_are_told_the_nearest(archive):
    notes = []

    class Told(Reporter):
        def note(self, text):
            notes.append(text)

    first = embedded.prepare("tweets", Told())
    assert embedded.prepare("tweets", Told()) == first
    assert notes == ["preparing the data set 'tweets'"]
    with pytest.raises(RecipeError, match="did you mean 'menus'"):
        embedded.prepare("menu", Told())


def test_origin_has_the_sources_and_what_was_made_of_them(archive, tmp_path):
    import hashlib

    folder = embedded.prepare("tweets", Reporter())
    origin = json.loads((folder / "origin.json").read_text())
    assert origin["sources"] == {"a.tar.gz": hashlib.sha256((tmp_path / "a.tar.gz").read_bytes()).hexdigest()}
    assert origin["seed"] == 0
    for name, n in (("test.jsonl", 800), ("train.jsonl", 200)):
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert origin["files"][name] == {"rows": n, "sha256": digest}


def test_verdicts_are_the_tweets_with_a_right_and_a_wrong_label_in_turn(archive):
    tweets, verdicts = (embedded.prepare(name, Reporter()) for name in ("tweets", "tweet-verdicts"))
    labels = [(r["text"], r["label"]) for n in ("test.jsonl", "train.jsonl") for r in read(tweets, n)]
    rows = [r for n in ("test.jsonl", "train.jsonl") for r in read(verdicts, n)]
    assert [r["prompt"] for r in rows] == [text for text, _ in labels]
    assert [r["label"] for r in rows] == [i % 2 == 0 for i in range(1000)]
    assert all((r["completion"] == label) == r["label"] for r, (_, label) in zip(rows, labels, strict=True))
    assert {r["completion"] for r in rows} == {"positive", "negative"}


@pytest.fixture
def rated(tmp_path, monkeypatch):
    """Make an archive of rated tweets."""

    def make(*lines, name="hutto_ICWSM_2014/tweets_GroundTruth.txt", folder=False):
        text = "\n".join(lines).encode()
        path = tmp_path / "a.tar.gz"
        with tarfile.open(path, "w:gz") as file:
            info = tarfile.TarInfo(name)
            info.size = 0 if folder else len(text)
            info.type = tarfile.DIRTYPE if folder else tarfile.REGTYPE
            file.addfile(info, io.BytesIO(text))
        monkeypatch.setattr(embedded, "locate", lambda reference, reporter: path)
        return embedded._rated_tweets(Reporter())

    return make


def test_tweets_rated_near_zero_and_copies_are_left_out(rated):
    found, _ = rated("1\t0.5\t a\tb! ", "2\t-0.5\tc", "3\t0.4\td", "4\t-0.4\te", "5\t-3\tA b", "6\t2\tf")
    assert sorted(found) == [("a\tb!", 0.5), ("c", -0.5), ("f", 2.0)]
    assert [embedded._sign(rating) for _, rating in sorted(found)] == ["positive", "negative", "positive"]


def test_archive_without_its_file_is_refused(rated):
    with pytest.raises(RecipeError, match="no tweets"):
        rated("x", folder=True)


def test_order_takes_tweets_two_by_two_and_leaves_equal_ones_out(monkeypatch, tmp_path):
    ratings = [1, 2, 2, 2, -1, -3, 5, 4, 7]
    tweets = [(f"t{i}", float(r)) for i, r in enumerate(ratings)]
    monkeypatch.setattr(embedded, "_rated_tweets", lambda reporter: (tweets, tmp_path / "source"))
    monkeypatch.setattr(embedded, "_TWEETS_TEST", 4)
    (tmp_path / "source").write_text("x")
    embedded._tweet_order(tmp_path, Reporter())
    assert read(tmp_path, "test.jsonl") == [{"chosen": "t1", "rejected": "t0"}]
    assert read(tmp_path, "train.jsonl") == [{"chosen": "t4", "rejected": "t5"}, {"chosen": "t6", "rejected": "t7"}]


def test_menus_have_texts_of_several_words_once_without_their_context(tmp_path, monkeypatch):
    entries = {
        "": {"language": "fr"}, "Word": ["Mot"], "menu\x04Open it": ["Ouvrir"], "Open it!": ["autre"],
        "Same here": [" Same here "], "Not yet": [""], "Two  words ": [" Deux mots ", "x"], "! ?": ["y"],
    }  # fmt: skip
    (tmp_path / "b.json").write_text(json.dumps(entries))
    (tmp_path / "a.json").write_text(json.dumps({"Open it": ["Ouvre"]}))
    (tmp_path / "c.txt").write_text("no json")
    monkeypatch.setattr(embedded, "locate", lambda reference, reporter: tmp_path)
    folder = embedded.prepare("menus", Reporter())
    rows = read(folder, "test.jsonl")
    assert sorted(r["english"] for r in rows) == ["Open it", "Two  words"]
    assert {r["french"] for r in rows} == {"Ouvre", "Deux mots"}
    assert read(folder, "train.jsonl") == []
    assert list(json.loads((folder / "origin.json").read_text())["sources"]) == ["a.json", "b.json"]


def test_words_of_tagged_tweets_are_read_line_by_line(tmp_path, monkeypatch):
    text = "Ann\tB-person\n\tO\nno tab\na\tb\t O \n\n\nann _\tO\na b\tO\n \n\n"
    (tmp_path / "ner.txt").write_text(text)
    monkeypatch.setattr(embedded, "locate", lambda reference, reporter: tmp_path / "ner.txt")
    rows, source = embedded._tagged_tweets(Reporter())
    assert source == tmp_path / "ner.txt"
    assert rows == [{"tokens": ["Ann", "_", "a\tb"], "tags": ["B-person", "O", "O"]}]  # the second has the same letters


def test_questions_are_asked_for_what_is_named_once():
    tokens = ["Ann", "Lee", "met", "Bo", "in", "Rio"]
    tags = ["B-person", "I-person", "O", "B-company", "O", "B-geo-loc"]
    rows = embedded._questions(tokens, tags)
    assert [(r["question"], r["answers"]) for r in rows] == [
        ("Which person is named?", {"text": ["Ann Lee"], "answer_start": [0]}),
        ("Which place is named?", {"text": ["Rio"], "answer_start": [18]}),
        ("Which company is named?", {"text": ["Bo"], "answer_start": [12]}),
    ]  # fmt: skip
    assert all(r["context"] == "Ann Lee met Bo in Rio" for r in rows)
    assert embedded._questions(["Ann", "Bo"], ["B-person", "B-person"]) == []
    assert embedded._questions(["Ann", "Bo"], ["B-other", "O"]) == []


def test_questions_have_the_split_of_the_tweets(tmp_path, monkeypatch):
    blocks = [f"Ann{i}\tB-person\nsings\tO" for i in range(401)] + ["x\tO"]
    (tmp_path / "ner.txt").write_text("\n\n".join(blocks))
    monkeypatch.setattr(embedded, "locate", lambda reference, reporter: tmp_path / "ner.txt")
    tagged, asked = (embedded.prepare(name, Reporter()) for name in ("entities", "entity-questions"))
    for name in ("test.jsonl", "train.jsonl"):
        named = [" ".join(r["tokens"]) for r in read(tagged, name) if "B-person" in r["tags"]]
        assert [r["context"] for r in read(asked, name)] == named
    assert len(read(tagged, "test.jsonl")) == 400


def test_digits_are_images_of_what_the_table_says(tmp_path, monkeypatch):
    import gzip

    from PIL import Image

    lines = ["\n".join(",".join(map(str, [*([i % 17] * 32), *([16] * 32), i % 10])) for i in range(600))]
    (tmp_path / "digits.csv.gz").write_bytes(gzip.compress("".join(lines).encode()))
    monkeypatch.setattr(embedded, "locate", lambda reference, reporter: tmp_path / "digits.csv.gz")
    folder = embedded.prepare("digits", Reporter())
    train, test = read(folder, "train.jsonl"), read(folder, "test.jsonl")
    assert (len(train), len(test)) == (100, 500)
    assert {row["image"] for row in train}.isdisjoint(row["image"] for row in test)
    for row in train[:5]:
        number = int(row["image"].removesuffix(".png"))
        image = Image.open(folder / row["image"])
        assert row["label"] == str(number % 10)
        assert (image.size, image.mode) == ((8, 8), "L")
        assert (image.getpixel((0, 0)), image.getpixel((0, 7))) == (round(255 * (16 - number % 17) / 16), 0)
