from __future__ import annotations

import contextlib

import torch

from afina.kernels.cuda.clock import milliseconds


def test_timing_takes_the_least_of_five_after_the_first(monkeypatch):
    clock, told = [0.0], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = clock[0]

        def synchronize(self):
            told.append("waited")

        def elapsed_time(self, end):
            return end.at - self.at

    def lasting(times):
        waiting = iter(times)

        def act():
            clock[0] += next(waiting)

        return act

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    first, second = lasting([1, 9, 5, 6, 7, 8]), lasting([30, 20, 21, 19, 22, 23])
    assert milliseconds([first, second], torch.device("cuda")) == [5, 19]
    assert len(told) == 12


def test_on_a_processor_the_hosts_clock_is_read(monkeypatch):
    now = iter([0, 1, 0, 30, 10, 19, 0, 20, 20, 25, 0, 21, 0, 6, 0, 19, 0, 7, 0, 22, 0, 8, 0, 23])
    monkeypatch.setattr("afina.kernels.cuda.clock.time.perf_counter", lambda: next(now))
    assert milliseconds([lambda: None, lambda: None], torch.device("cpu")) == [5000, 19000]
