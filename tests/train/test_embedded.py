from __future__ import annotations

import io
import json
import tarfile

import pytest

from afina.train import embedded
from afina.train.events import Reporter


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
