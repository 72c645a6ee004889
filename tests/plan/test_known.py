from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from afina.plan.trace import Trace

IDS = torch.tensor([[5, 9, 9, 2, 0], [5, 9, 9, 9, 2]])
PLACES = (IDS == 9).nonzero().tolist()


def under(run):
    """Run with fake tokens whose numbers are told."""
    trace, mode = Trace(), FakeTensorMode()
    ids = mode.from_tensor(IDS)
    with mode, trace:
        trace.known.tell(ids, IDS)
        run(trace, ids)
    return trace


def test_what_follows_from_tokens_is_known():
    def run(trace, ids):
        places = ids == 9
        assert int(places.sum()) == 5
        assert places.nonzero().tolist() == PLACES
        assert torch.empty(2, 5, 8)[places].shape == (5, 8)
        assert torch.masked_select(ids, places).tolist() == [9] * 5
        assert ids[places].tolist() == [9] * 5
        assert (ids.cumsum(1) * places)[:, 2:].max().item() == 32
        assert torch.arange(3).add(ids[0, 0]).tolist() == [5, 6, 7]
        assert bool((ids != 0).all()) is False
        assert ids[0].repeat_interleave(torch.arange(5) // 2).tolist() == [9, 2, 0, 0]
        assert [part.tolist() for part in ids[0].unique_consecutive(return_counts=True)] == [[5, 9, 2, 0], [1, 2, 1, 1]]

    under(run)


def test_what_is_changed_in_place_stays_known():
    def run(trace, ids):
        out = torch.zeros(2, 5, dtype=torch.long)
        out[ids == 9] = 1
        out[0] += ids[1]
        assert out.tolist() == [[5, 10, 10, 9, 2], [0, 1, 1, 1, 0]]

    under(run)


def test_what_is_changed_by_something_unknown_is_not_known_any_more():
    def run(trace, ids):
        out = ids.clone()
        assert trace.known.of(out) is not None
        out.copy_(torch.empty(2, 5))
        assert trace.known.of(out) is None
        assert trace.known.of(ids) is not None

    under(run)


def test_numbers_that_are_drawn_or_come_of_activations_are_not_known_and_draw_nothing_here():
    def run(trace, ids):
        state = torch.random.get_rng_state()
        assert trace.known.of(torch.randint(0, 9, (3,))) is None
        assert trace.known.of(torch.randint_like(ids, 9)) is None
        assert trace.known.of(torch.empty(3, 4).topk(2).indices) is None
        assert torch.equal(state, torch.random.get_rng_state())

    under(run)


def test_masks_of_pairs_of_many_tokens_are_not_computed_and_still_have_their_shape():
    def run(trace, ids):
        places = torch.arange(8192)
        pairs = places[:, None] >= places[None, :]
        assert trace.known.of(places) is not None
        assert trace.known.of(pairs) is None
        assert pairs.shape == (8192, 8192)

    under(run)


def test_what_is_not_filled_yet_is_not_known():
    def run(trace, ids):
        assert trace.known.of(torch.empty_like(ids)) is None

    under(run)


def test_nothing_but_fake_tensors_is_written_down():
    """Numbers beside them are not memory of the run."""

    def run(trace, ids):
        before = len(trace.events)
        kept = ids + 1
        assert [event.size for event in trace.events[before:]] == [kept.numel() * 8]

    under(run)
