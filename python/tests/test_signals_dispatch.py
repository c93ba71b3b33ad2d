"""CallSignal: a Django signal whose send() takes a short cut."""

import gc
import itertools
import threading
import weakref
from unittest import mock

import pytest
from django.core.cache import close_caches
from django.db import close_old_connections, reset_queries
from django.dispatch import Signal

from django_grpc import signals
from django_grpc.signals import grpc_request_finished, grpc_request_started
from django_grpc.signals.dispatch import CallSignal

pytestmark = pytest.mark.usefixtures("databases_allowed")


@pytest.fixture(params=[Signal, CallSignal])
def signal(request):
    """Django's own signal beside ours: whatever holds of the one holds of the other."""
    return request.param()


class Recorder:
    def __init__(self, name="recorder", log=None):
        self.name = name
        self.log = [] if log is None else log

    def receive(self, **kwargs):
        self.log.append((self.name, kwargs))
        return f"response of {self.name}"


def test_stock_receivers_are_those_of_djangos_request_signals():
    responses = grpc_request_started.send(None, request=1, context=2)
    # In any order: a test that takes a receiver out for a while puts it back at the end.
    assert sorted(responses, key=str) == sorted(
        [(reset_queries, None), (close_old_connections, None)], key=str
    )
    responses = grpc_request_finished.send(None, request=1, context=2)
    assert sorted(responses, key=str) == sorted(
        [(close_old_connections, None), (close_caches, None)], key=str
    )


def test_receiver_gets_signal_sender_and_arguments(signal):
    recorder = Recorder()
    signal.connect(recorder.receive)
    assert signal.send(None, request="r", context="c") == [
        (recorder.receive, "response of recorder")
    ]
    assert recorder.log == [
        ("recorder", {"signal": signal, "sender": None, "request": "r", "context": "c"})
    ]


def test_order_is_that_of_connecting_with_stock_receivers_in_between(signal):
    log = []
    first, last = Recorder("first", log), Recorder("last", log)
    signal.connect(first.receive)
    signal.connect(close_old_connections)
    signal.connect(last.receive)
    assert [receiver for receiver, _ in signal.send(None)] == [
        first.receive,
        close_old_connections,
        last.receive,
    ]
    assert [name for name, _ in log] == ["first", "last"]


def test_receivers_that_come_and_go_between_sends_are_honoured(signal):
    one, other = Recorder("one"), Recorder("other")
    assert signal.send(None) == []
    signal.connect(one.receive)
    assert len(signal.send(None)) == 1
    # One for one: the list has its old length again.
    assert signal.disconnect(one.receive) is True
    signal.connect(other.receive)
    assert signal.send(None) == [(other.receive, "response of other")]
    assert signal.disconnect(one.receive) is False
    signal.disconnect(other.receive)
    signal.connect(close_old_connections)
    assert signal.send(None) == [(close_old_connections, None)]
    signal.disconnect(close_old_connections)
    assert signal.send(None) == []


def test_receiver_that_died_is_not_called_and_not_kept_alive(signal):
    recorder = Recorder()
    alive = weakref.ref(recorder)
    log = recorder.log
    signal.connect(recorder.receive)
    signal.send(None)
    del recorder
    gc.collect()
    assert alive() is None
    assert signal.send(None) == []
    assert len(log) == 1


def test_strong_receiver_stays(signal):
    log = []
    signal.connect(lambda **kwargs: log.append("called"), weak=False)
    gc.collect()
    signal.send(None)
    assert log == ["called"]


def test_receiver_connected_twice_is_called_once(signal):
    recorder = Recorder()
    signal.connect(recorder.receive, dispatch_uid="uid")
    signal.connect(Recorder("other").receive, dispatch_uid="uid")
    signal.connect(recorder.receive, dispatch_uid="uid")
    assert len(signal.send(None)) == 1


def test_receiver_for_one_sender_hears_that_sender_only(signal):
    class Sender:
        pass

    recorder = Recorder()
    signal.connect(recorder.receive, sender=Sender)
    signal.connect(close_old_connections)
    assert signal.send(None) == [(close_old_connections, None)]
    assert len(signal.send(Sender)) == 2


def test_exception_of_a_receiver_propagates_and_ends_the_sending(signal):
    log = []
    last = Recorder("last", log)

    def fail(**kwargs):
        raise ValueError("receiver")

    signal.connect(fail)
    signal.connect(last.receive)
    with pytest.raises(ValueError, match="receiver"):
        signal.send(None)
    assert log == []


def test_receiver_without_a_hash_is_called(signal):
    class Unhashable:
        __hash__ = None

        def __call__(self, **kwargs):
            return "called"

    receiver = Unhashable()
    signal.connect(receiver)
    assert signal.send(None) == [(receiver, "called")]


def test_list_of_receivers_that_is_exchanged_is_honoured(signal):
    """factory_boy's mute_signals does this."""
    recorder = Recorder()
    signal.connect(recorder.receive)
    signal.send(None)
    receivers, signal.receivers = signal.receivers, []
    assert signal.send(None) == []
    signal.receivers = receivers
    assert len(signal.send(None)) == 1


def test_robust_sending_hands_the_exception_back(signal):
    def fail(**kwargs):
        raise ValueError("receiver")

    signal.connect(fail)
    [(receiver, response)] = signal.send_robust(None)
    assert receiver is fail
    assert isinstance(response, ValueError)


@pytest.mark.skipif(not hasattr(Signal, "asend"), reason="Django before 5.0 has no such receivers")
def test_coroutine_receiver_is_awaited(signal):
    async def receive(**kwargs):
        return kwargs["request"]

    signal.connect(close_old_connections)
    signal.connect(receive)
    assert (receive, "r") in signal.send(None, request="r")


def test_receivers_connected_while_others_send_are_all_called_in_the_end():
    """Threads that send at the same time never leave a plan of an older list behind."""
    signal = CallSignal()
    receivers = [Recorder(str(number)) for number in range(200)]
    done = threading.Event()

    def keep_sending():
        while not done.is_set():
            signal.send(None)

    threads = [threading.Thread(target=keep_sending) for _ in range(2)]
    for thread in threads:
        thread.start()
    for one, next_one in itertools.pairwise(receivers):
        signal.connect(next_one.receive)
        signal.disconnect(one.receive)
    done.set()
    for thread in threads:
        thread.join()
    assert [receiver.__self__ for receiver, _ in signal.send(None)] == [receivers[-1]]


@pytest.mark.parametrize(
    "name",
    [
        "grpc_request_started",
        "grpc_request_finished",
        "grpc_got_request_exception",
        "grpc_shutdown",
    ],
)
def test_send_can_be_mocked(name):
    signal = getattr(signals, name)
    with mock.patch(f"django_grpc.signals.{name}.send") as send:
        signal.send(None, request=1)
    send.assert_called_once_with(None, request=1)
    assert signal.has_listeners() == (name in {"grpc_request_started", "grpc_request_finished"})
