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
