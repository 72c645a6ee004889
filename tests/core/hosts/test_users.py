"""Many calls or one change."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from afina.core.hosts.users import Users
from afina.errors import ConfigError


def elsewhere(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def ends(thread: threading.Thread, within: float = 5.0) -> bool:
    thread.join(within)
    return not thread.is_alive()


def change(users: Users) -> threading.Thread:
    def work() -> None:
        with users.changing():
            pass

    return elsewhere(work)


def call(users: Users) -> threading.Thread:
    def work() -> None:
        with users.calling():
            pass

    return elsewhere(work)


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not come to that")


def test_a_thread_is_inside_as_long_as_its_outermost_call() -> None:
    users = Users()
    assert not users.inside
    with users.calling():
        with users.calling():
            assert users.inside
        assert users.inside
        assert ends(call(users))  # calls do not wait for each other
        waiting = change(users)
        assert not ends(waiting, 0.05)
    assert not users.inside
    assert ends(waiting)


def test_a_change_keeps_others_out_until_the_outermost_ends() -> None:
    users = Users()
    with users.changing():
        with users.changing(), users.changing(), users.calling():
            pass
        others = [change(users), call(users)]
        assert not any(ends(thread, 0.05) for thread in others)
    assert all(map(ends, others))
    with users.changing():
        pass


def test_a_call_that_comes_after_a_waiting_change_waits_and_one_inside_a_call_does_not() -> None:
    users = Users()
    with users.calling():
        changing = change(users)
        wait_for(lambda: users._waiting == 1)
        late = call(users)
        assert not ends(late, 0.05)
        with users.calling():
            pass
    assert ends(changing)
    assert ends(late)
    assert users._waiting == 0


def test_failures_leave_nothing_locked() -> None:
    users = Users()
    for enter in (users.calling, users.changing):
        with pytest.raises(KeyError), enter():
            raise KeyError
    assert ends(change(users))
    assert ends(call(users))


def test_change_inside_a_call_is_refused_where_another_thread_waits_to_change() -> None:
    users = Users()
    with users.calling():
        with users.changing():
            pass  # alone it may
        waiting = change(users)
        wait_for(lambda: users._waiting == 1)
        with pytest.raises(ConfigError, match="between calls"), users.changing():
            pass
    assert ends(waiting)
