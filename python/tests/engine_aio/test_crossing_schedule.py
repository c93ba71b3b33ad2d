"""The policy of interceptor threads, in random orders of events."""

from __future__ import annotations

import random
import threading

import pytest
from log_handlers import odd_handler

from .support import OURS, PATIENCE

if OURS:
    from django_grpc.engine import crossings
    from django_grpc.engine.crossings import CrossingSchedule, CrossingThreads, Look

pytestmark = pytest.mark.skipif(not OURS, reason="ours")


class Simulation:
    """Threads that are counters: those that sleep until woken, and those that are about to look."""

    def __init__(self, chance, *, limit, most_waiting):
        self.chance = chance
        self.schedule = CrossingSchedule(limit, most_waiting)
        self.is_short = False
        self.asleep = self.awake = self.running = self.waiting = 0

    def call_for_one(self):
        if not self.schedule.jobs:
            return
        self.wake()
        if self.schedule.is_wanted:
            if not self.is_short:
                self.schedule.started()
                self.awake += 1
            elif self.schedule.is_hopeless:
                self.schedule.refused()

    def wake(self):
        if self.asleep:
            self.asleep -= 1
            self.awake += 1

    def submit(self):
        self.schedule.queued()
        self.call_for_one()

    def look(self):
        if not self.awake:
            return
        self.awake -= 1
        found = self.schedule.look()
        if found is Look.TAKE:
            self.running += 1
            assert self.schedule.running <= self.schedule.most
            self.call_for_one()
        elif found is Look.WAIT:
            self.asleep += 1

    def finish(self):
        if self.running:
            self.running -= 1
            self.awake += 1
            self.schedule.finished()

    def wait(self):
        if self.running:
            self.running -= 1
            self.waiting += 1
            self.schedule.waits()
            self.call_for_one()

    def come_back(self):
        if self.waiting:
            self.waiting -= 1
            self.running += 1
            self.schedule.is_back()
            if self.schedule.has_surplus:
                self.wake()

    def turn_short(self):
        self.is_short = self.chance.random() < 0.3

    def check(self):
        schedule = self.schedule
        assert schedule.running == self.running + self.waiting
        assert schedule.idle == self.awake + self.asleep
        assert schedule.waiting == self.waiting
        # Before a thread was refused for the first time, or one has been asked for again.
        if not self.is_short:
            room = schedule.most - schedule.running
            assert self.awake >= min(schedule.jobs, room)


@pytest.mark.parametrize("has_shortages", [False, True])
def test_no_job_waits_while_there_is_room(has_shortages):
    for seed in range(300):
        chance = random.Random(seed)  # noqa: S311 - the same ones each time
        it = Simulation(chance, limit=chance.randint(1, 3), most_waiting=chance.choice([2, 100]))
        events = [it.submit, it.look, it.look, it.finish, it.wait, it.come_back]
        if has_shortages:
            events.append(it.turn_short)
        for _ in range(300):
            was_short = it.is_short
            chance.choice(events)()
            if was_short and not it.is_short:
                for _ in range(it.schedule.jobs + 1):  # whoever was refused asks again
                    it.call_for_one()
            it.check()
        it.is_short = False
        for _ in range(it.schedule.jobs + 1):
            it.call_for_one()
        while it.schedule.jobs or it.awake or it.running or it.waiting:
            while it.awake:
                it.look()
            assert it.running or it.waiting or not it.schedule.jobs
            it.come_back()
            it.finish()
            it.check()
        assert it.schedule.threads <= it.schedule.most  # the surplus ones have left
        it.schedule.is_closed = True
        while it.asleep:
            it.wake()
            it.look()
        assert it.schedule.threads == 0


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_job_that_raises_costs_no_thread(error):
    """Though it must not."""

    def fail():
        raise error("a job's")

    threads, done = CrossingThreads(1, []), threading.Event()
    for job in (fail, fail, done.set):
        assert threads.submit(job, lambda refusal: None)
    assert done.wait(PATIENCE)
    threads.close()


def test_jobs_without_a_thread_are_refused_whatever_log_handlers_raise(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(crossings, "log_seldom", type(crossings.log_seldom)())
    threads, refused = CrossingThreads(1, []), []
    with odd_handler("django_grpc") as lines, monkeypatch.context() as patch:
        lines.failure = ConnectionError("the database of the log is away")
        patch.setattr(threading.Thread, "start", refuse)
        assert not threads.submit(lambda: None, refused.append)
        assert len(lines.records) == 1
    assert [str(it) for it in refused] == ["The server has no thread for its interceptors"]
