from __future__ import annotations

import os
import signal
import threading

import pytest

from afina.train.report.interrupts import ENDING, Interrupted, interruptible, postponed


@pytest.mark.parametrize("number", ENDING)
def end(number):
    try:
        os.kill(os.getpid(), number)
    except Exception:
        pytest.fail("caught, as libraries do")


@pytest.mark.parametrize("number", ENDING)
def test_signal_is_raised_past_what_catches_errors(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as told, interruptible():
        end(number)
    assert (told.value.name, told.value.exit_code) == (number.name, 128 + number)
    assert signal.getsignal(number) is before


def test_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def work_in_peace(done):
    with postponed():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append(1)
    done.append(2)


def test_postponed_signal_comes_at_the_end():
    done = []
    with pytest.raises(Interrupted), interruptible():
        work_in_peace(done)
    assert done == [1]


def test_other_threads_do_not_listen():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with interruptible():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
