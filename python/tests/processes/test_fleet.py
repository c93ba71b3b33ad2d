"""What is decided about worker processes, without a process."""

import random
import signal
from collections.abc import Callable

import pytest

from django_grpc import conf
from django_grpc.lifecycle.stop_signals import TOGETHER
from django_grpc.processes import fleet
from django_grpc.processes.crashes import EARLY, LIMIT
from django_grpc.processes.fleet import Figures, Fleet, Member, State, Task
from django_grpc.processes.protocol import Plan

ROOM = 64


def plan(**setting):
    config, problems = conf.parse({"workers": 2, "grace": 5, **setting})
    assert config is not None, problems
    return Plan.of(config)


class World:
    """Processes that do as a fleet orders, or as a test has them do.

    Args:
        plan: The settings that new code has.
        behave: Says what a process that has just been started does: seconds until it listens, None
            for never; it is given the number of its generation.
    """

    def __init__(self, plan: Plan, behave: Callable[[int], float | None] = lambda generation: 1.0):
        self.now = 1000.0
        self.plan = plan
        self.behave = behave
        self.fleet = Fleet(plan, ROOM)
        self.listens_at: dict[int, float] = {}
        self.ends_at: dict[int, float] = {}
        self.hung: set[int] = set()
        self.well: set[int] = set()
        self.are_well = True
        self.pulse = 1
        self.actions: list[fleet.Action] = []
        self.cannot_start = False
        self.has_closed = False
        self.pid = 100

    # What happens

    def turn(self, seconds: float = 0.0) -> list[fleet.Action]:
        """Let time pass, and do what is decided."""
        self.now += seconds
        for key, at in list(self.ends_at.items()):
            if self.now >= at:
                self.end(key, 0)
        for key, at in list(self.listens_at.items()):
            if self.now >= at:
                del self.listens_at[key]
                if self.are_well:
                    self.well.add(key)
                self.fleet.listens(key, self.plan, self.now)
        self.pulse += 1
        for member in list(self.fleet.members):
            pulse = 7 if member.key in self.hung else self.pulse + 7
            self.fleet.looked(member.key, pulse, seconds)
        done: list[fleet.Action] = []
        while actions := self.fleet.decide(self.now, self.figures()):
            for action in actions:
                self.check(action)
                self.do(action)
            done += actions
            assert len(done) < 1000, "it decides for ever"
        self.actions += done
        deadline = self.fleet.next_deadline(self.now)
        assert deadline is None or deadline > self.now, "it would be asked for ever"
        return done

    def run(self, seconds: float, step: float = 0.5) -> list[fleet.Action]:
        done = []
        for _ in range(round(seconds / step)):
            done += self.turn(step)
        return done

    def up(self):
        self.run(20)
        assert len(self.serving) == self.fleet.wanted
        return self

    def figures(self) -> dict[int, Figures]:
        return {it.key: Figures(it.key in self.well) for it in self.fleet.members}

    def end(self, key: int, status: int = -9) -> None:
        for gone in (self.listens_at, self.ends_at):
            gone.pop(key, None)
        self.hung.discard(key)
        self.fleet.ended(key, status, self.now)

    def hang(self, key: int) -> None:
        self.hung.add(key)
        self.listens_at.pop(key, None)

    # What is done

    def do(self, action: fleet.Action) -> None:
        if isinstance(action, fleet.Start):
            if self.cannot_start:
                self.fleet.cannot_start(action.worker, "no memory", self.now)
                return
            self.pid += 1
            self.fleet.started(action.worker, self.pid)
            seconds = self.behave(self.member(action.worker).generation)
            if seconds is not None:
                self.listens_at[action.worker] = self.now + seconds
        elif isinstance(action, fleet.Order):
            self.obey(action.task, action.worker)
        elif isinstance(action, fleet.CloseAddress):
            assert not self.has_closed
            self.has_closed = True

    def obey(self, task: Task, key: int) -> None:
        if task in (Task.DRAIN, Task.TERMINATE):
            self.listens_at.pop(key, None)
            if key not in self.hung:
                self.ends_at[key] = self.now + 0.7
        elif task is Task.KILL:
            self.ends_at[key] = self.now
        elif task is Task.ABORT:
            self.listens_at.pop(key, None)

    # What has to hold

    def check(self, action: fleet.Action) -> None:
        members = list(self.fleet.members)
        assert len(members) <= ROOM
        if isinstance(action, fleet.Start):
            assert not self.fleet.is_stopping
            unborn = [it for it in members if it.serves_at is None]
            assert len(unborn) <= self.fleet.wanted + 1, "a storm of starts"

    def member(self, key: int) -> Member:
        return next(it for it in self.fleet.members if it.key == key)

    @property
    def serving(self) -> list[int]:
        return [it.key for it in self.fleet.serving]

    def generations(self) -> set[int]:
        return {it.generation for it in self.fleet.serving}


def orders(actions, task):
    return [it.worker for it in actions if isinstance(it, fleet.Order) and it.task is task]


def starts(actions):
    return [it for it in actions if isinstance(it, fleet.Start)]


def texts(actions):
    return [it.text for it in actions if isinstance(it, fleet.Log | fleet.Say)]


# Starting


def test_one_worker_shows_whether_there_is_anything_to_serve():
    world = World(plan(workers=4))
    assert [it.is_first for it in starts(world.turn())] == [True]
    assert [it.is_first for it in starts(world.run(1))] == [False] * 3
    world.run(2)
    assert len(world.serving) == 4
    assert sum(isinstance(it, fleet.Up) for it in world.actions) == 1


def test_first_worker_that_can_not_serve_ends_the_server_with_its_status():
    world = World(plan(), lambda _: None)
    world.turn()
    world.end(1, 42)
    world.turn()
    assert world.fleet.failure is not None
    assert world.fleet.failure[1] == 42
    assert world.fleet.is_over


def test_first_worker_that_hangs_is_dumped_and_ends_the_server():
    world = World(plan(worker_start_timeout=30), lambda _: None)
    assert orders(world.run(29.5), Task.ABORT) == []
    actions = world.run(1)
    assert orders(actions, Task.ABORT) == [1]
    assert world.fleet.failure is not None
    assert "'worker_start_timeout'" in world.fleet.failure[0]
    assert orders(world.run(3), Task.KILL) == [1]
    assert world.fleet.is_over


def test_start_has_all_the_time_where_there_is_no_limit():
    world = World(plan(worker_start_timeout=None), lambda _: None)
    world.run(3600, step=10)
    assert world.fleet.failure is None
    assert len(list(world.fleet.members)) == 1


def test_first_worker_that_is_not_there_for_want_of_memory_ends_the_server():
    world = World(plan())
    world.cannot_start = True
    world.turn()
    assert world.fleet.failure == (
        "The server can't start: its first worker process can't be started: no memory.",
        1,
    )


def test_worker_whose_checks_do_not_pass_is_taken_in_late():
    world = World(plan(workers=1)).up()
    world.fleet.reload()
    world.are_well = False
    world.run(fleet.WARM_UP)
    assert world.serving == [1]
    world.run(2)
    assert world.serving == [2]


# Reloading


def test_reload_replaces_one_after_the_other():
    world = World(plan(workers=3)).up()
    world.fleet.reload()
    least = 3
    for _ in range(40):
        actions = world.turn(0.25)
        least = min(least, len(world.serving))
        assert len(starts(actions)) <= 1
    assert least == 3
    assert world.generations() == {2}
    assert "All 3 worker processes have been restarted." in texts(world.actions)
    assert [it for it in world.actions if isinstance(it, fleet.Count)] == [
        fleet.Count("reload")
    ] * 3


def test_new_code_that_ends_leaves_those_of_before():
    world = World(plan(), lambda generation: 1.0 if generation != 2 else None).up()
    before = world.serving
    for _ in range(3 * LIMIT):
        world.fleet.reload()
        world.behave = lambda generation: None
        world.turn(1)
        (new,) = [it.key for it in world.fleet.members if it.state is State.STARTING]
        world.end(new, 1)
        assert any("The new code can't serve" in it for it in texts(world.turn()))
        assert starts(world.run(5)) == [], "nothing is missing"
    assert world.serving == before
    assert world.fleet.failure is None
    # And the death of one of those has another account: it is replaced at once.
    world.behave = lambda generation: 1.0
    world.end(before[0])
    assert len(starts(world.turn())) == 1
    world.run(2)
    assert len(world.serving) == 2


def test_new_code_that_hangs_is_given_up_after_a_while():
    world = World(plan(worker_start_timeout=20)).up()
    world.behave = lambda generation: None
    world.fleet.reload()
    actions = world.run(21)
    assert len(orders(actions, Task.ABORT)) == 1
    assert any("The new code can't serve" in it for it in texts(actions))
    assert world.generations() == {1}
    assert not any(it.replaced_for for it in world.fleet.serving)


def test_second_reload_ends_what_still_starts_of_the_first():
    world = World(plan()).up()
    world.behave = lambda generation: 1.0 if generation == 3 else None
    world.fleet.reload()
    world.turn(1)
    hung = [it.key for it in world.fleet.members if it.state is State.STARTING]
    world.fleet.reload()
    actions = world.turn(1)
    assert orders(actions, Task.TERMINATE) == hung
    assert len(starts(actions)) == 1
    actions = world.run(10)
    assert world.generations() == {3}
    assert not any("can't serve" in it for it in texts(actions))


def test_storm_of_reloads_has_few_processes():
    world = World(plan()).up()
    world.behave = lambda generation: None
    for _ in range(100):
        world.fleet.reload()
        world.turn(0.01)
        world.hung.update(it.key for it in world.fleet.members if it.state is State.STARTING)
    assert world.generations() == {1}
    world.behave = lambda generation: 1.0
    world.run(10)
    assert world.generations() == {101}


def test_replacement_does_not_wait_for_new_code_that_hangs():
    world = World(plan()).up()
    world.behave = lambda generation: None
    world.fleet.reload()
    world.turn(1)
    world.behave = lambda generation: 1.0
    world.end(world.serving[0])
    assert len(starts(world.turn())) == 1
    world.run(5)
    assert len(world.serving) == 2
    actions = world.run(130)
    assert world.generations() == {2}, "the one in its place has shown that the code can serve"
    assert not any("can't serve" in it for it in texts(actions))


def test_new_code_that_ends_early_in_service_leaves_those_that_are_left():
    world = World(plan()).up()
    before = world.serving
    world.fleet.reload()
    world.run(1.5)
    (new,) = [it for it in world.serving if it not in before]
    world.end(new)
    assert any("The new code can't serve" in it for it in texts(world.turn()))
    left = [it for it in world.serving if it in before]
    assert left
    for _ in range(40):  # the other one ends again and again
        world.run(3)
        for key in world.serving:
            if key not in before:
                world.end(key)
    assert [it for it in world.serving if it in before] == left
    assert world.fleet.failure is None


def test_settings_of_the_new_code_hold():
    world = World(plan()).up()
    world.plan = plan(workers=4, grace=9)
    world.fleet.reload()
    world.run(10)
    assert len(world.serving) == 4
    assert world.fleet.plan.grace == 9


# Deaths


def test_dead_one_is_replaced_at_once_and_the_next_ones_later():
    world = World(plan(workers=1)).up()
    world.behave = lambda generation: None
    world.end(1)
    pauses = []
    for _ in range(LIMIT - 1):
        begun = world.now
        while not starts(world.turn(0.5)):
            assert world.now - begun < 60
        pauses.append(world.now - begun)
        world.turn(0.5)
        world.end(next(iter(world.fleet.members)).key, 1)
    assert pauses[0] <= 0.5
    assert pauses == sorted(pauses)


def test_nothing_serves_and_nothing_can_ends_the_server():
    world = World(plan()).up()
    world.behave = lambda generation: 0.0 if generation == 0 else None
    for key in world.serving:
        world.end(key)
    for _ in range(200):
        world.turn(1)
        for member in list(world.fleet.members):
            if member.state is State.STARTING:
                world.end(member.key, 1)
        if world.fleet.failure is not None:
            break
    assert world.fleet.failure is not None
    assert world.fleet.failure[1] == 1
    world.run(20)
    assert world.fleet.is_over


def test_workers_that_end_early_end_the_server_when_no_other_serves():
    world = World(plan()).up()
    for _ in range(200):
        world.turn(1)
        for key in world.serving:
            world.end(key)
        if world.fleet.failure is not None:
            break
    assert world.fleet.failure is not None
    assert "5 times in a row" in world.fleet.failure[0]


def test_failures_are_forgotten():
    world = World(plan()).up()
    for _ in range(10 * LIMIT):
        world.end(world.serving[0])
        world.run(3)
        world.end(world.serving[-1])  # early
        world.run(400, step=4)
        assert len(world.serving) == 2
    assert world.fleet.failure is None


def test_worker_that_hangs_up_and_does_not_end_is_ended_and_replaced():
    world = World(plan()).up()
    silent = world.serving[0]
    world.fleet.hung_up(silent, world.now)
    assert orders(world.run(fleet.MARGIN - 1), Task.KILL) == []
    assert orders(world.run(1.5), Task.KILL) == [silent]
    world.run(2)
    assert len(world.serving) == 2


# Hanging


def test_worker_in_which_python_does_not_run_is_dumped_ended_and_replaced():
    world = World(plan(worker_timeout=30)).up()
    hung = world.serving[0]
    world.hang(hung)
    assert orders(world.run(29), Task.ABORT) == []
    actions = world.run(3)
    assert orders(actions, Task.ABORT) == [hung]
    assert fleet.Count("hang") in actions
    assert len(starts(actions)) == 1
    assert orders(world.run(3), Task.KILL) == [hung]
    assert len(world.serving) == 2


def test_worker_may_hang_where_there_is_no_limit():
    world = World(plan(worker_timeout=None)).up()
    world.hang(world.serving[0])
    assert orders(world.run(3600, step=10), Task.ABORT) == []


def test_parent_that_stood_still_itself_takes_nobody_for_hung():
    world = World(plan(worker_timeout=30)).up()
    world.hung.update(world.serving)
    assert orders(world.turn(3600), Task.ABORT) == []
    world.hung.clear()
    assert orders(world.run(60), Task.ABORT) == []


# Leaving


def test_the_only_worker_that_is_told_to_end_by_others_is_replaced_first():
    world = World(plan(workers=1)).up()
    world.fleet.wants_to_leave(1, world.now)
    actions = world.run(0.5)
    assert len(starts(actions)) == 1
    assert orders(actions, Task.DRAIN) == []
    actions = world.run(2)
    assert orders(actions, Task.DRAIN) == [1]
    assert fleet.Count("signal") in actions
    assert world.serving == [2]


def test_one_that_nobody_can_replace_leaves_all_the_same():
    world = World(plan(workers=1)).up()
    world.behave = lambda generation: None
    world.fleet.wants_to_leave(1, world.now)
    assert orders(world.run(fleet.LEAVE_PATIENCE - 1), Task.DRAIN) == []
    assert orders(world.run(2), Task.DRAIN) == [1]


# Number


def test_number_can_be_changed():
    world = World(plan()).up()
    world.fleet.more()
    world.run(3)
    assert len(world.serving) == 3
    for _ in range(5):
        world.fleet.fewer()
    world.run(3)
    assert len(world.serving) == 1


def test_number_that_is_changed_amid_a_reload_stays_changed():
    """The settings of the new code, which the parent learns late, are what is changed."""
    world = World(plan(workers=2)).up()
    world.behave = lambda generation: 1.5
    world.fleet.reload()
    world.run(0.7)
    world.fleet.more()
    world.run(10)
    assert len(world.serving) == 3
    world.fleet.reload()  # which takes the settings anew
    world.run(10)
    assert len(world.serving) == 2
    for _ in range(3):
        world.fleet.fewer()
    assert [it for it in texts(world.turn()) if "SIGTTOU" in it] == [
        "Received SIGTTOU. There will be 1 worker process.",
        "Received SIGTTOU. There will be 1 worker process, as before.",
        "Received SIGTTOU. There will be 1 worker process, as before.",
    ]
    world.fleet.more()
    world.run(10)
    assert len(world.serving) == 2


def test_more_than_there_is_room_for_is_said():
    world = World(plan(workers=ROOM - fleet.SPARE_ROOM)).up()
    world.fleet.more()
    (said, _) = texts(world.turn())
    assert said.startswith("There is room for 56 worker processes, not for 57")
    world.run(5)
    assert len(world.serving) == ROOM - fleet.SPARE_ROOM


def test_no_room_for_the_moment_is_said_once():
    world = World(plan(workers=ROOM - fleet.SPARE_ROOM, grace=1000)).up()
    world.hung.update(world.serving)  # they drain for long
    world.fleet.reload()
    world.run(100)
    assert len(list(world.fleet.members)) == ROOM
    assert sum("as many as there is room for" in it for it in texts(world.actions)) == 1


# Stopping


def test_stop_announces_waits_and_drains():
    world = World(plan(drain_delay=3)).up()
    world.fleet.stop(signal.SIGTERM, world.now)
    actions = world.turn()
    assert len(orders(actions, Task.ANNOUNCE)) == 2
    assert orders(world.run(2.5), Task.DRAIN) == []
    actions = world.run(1)
    assert len(orders(actions, Task.DRAIN)) == 2
    world.run(1)
    assert world.fleet.is_over


def test_address_is_closed_while_there_is_who_serves_those_that_have_connected():
    world = World(plan()).up()
    world.fleet.stop(signal.SIGTERM, world.now)
    while not any(isinstance(it, fleet.CloseAddress) for it in world.actions[-1:]):
        for action in world.fleet.decide(world.now, world.figures()):
            world.do(action)
            world.actions.append(action)
    assert len(world.serving) == 2
    assert len(orders(world.turn(), Task.DRAIN)) == 2


@pytest.mark.parametrize("after", [0.0, TOGETHER - 0.01])
def test_signals_that_come_together_are_one(after):
    world = World(plan()).up()
    world.fleet.stop(signal.SIGTERM, world.now)
    world.fleet.stop(signal.SIGINT, world.now + after)
    assert not any(isinstance(it, fleet.EndAtOnce) for it in world.turn(after))
    world.fleet.stop(signal.SIGINT, world.now - after + TOGETHER)
    assert fleet.EndAtOnce(signal.SIGINT) in world.turn()


def test_one_that_hangs_at_the_end_is_killed():
    world = World(plan(grace=2)).up()
    world.hang(world.serving[0])
    world.fleet.stop(signal.SIGTERM, world.now)
    assert len(orders(world.run(2 + fleet.MARGIN + 1), Task.KILL)) == 1
    assert world.fleet.is_over


# Any order


class Storm(World):
    """A world in which anything may happen, and what has to hold whatever does."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - nothing is secret
        self.leavers: set[int] = set()
        setting = {
            "workers": self.random.randint(1, 4),
            "worker_timeout": self.random.choice([None, 5, 60]),
            "worker_start_timeout": self.random.choice([None, 10, 120]),
            "drain_delay": self.random.choice([0, 2]),
        }
        super().__init__(plan(**setting), self.behaviour)
        self.is_calm = False

    def behaviour(self, generation: int) -> float | None:
        if self.is_calm:
            return 1.0
        return self.random.choice([0.1, 1.0, 1.0, 15.0, None])

    def check(self, action: fleet.Action) -> None:
        super().check(action)
        match action:
            case fleet.Order(Task.DRAIN, key):
                member = self.member(key)
                # Those whose time was out have left in the same turn, perhaps, and count as there.
                left = len(self.fleet.serving) + sum(
                    it.state is State.DRAINING and self.is_time_out(it) for it in self.fleet.members
                )
                is_allowed = (
                    member.serves_at is None
                    or left >= self.fleet.wanted
                    or self.is_time_out(member)
                    or self.fleet.is_stopping
                    or key in self.leavers
                )
                assert is_allowed, "one that served was ended by those that do not"
            case fleet.Order(Task.TERMINATE, key):
                assert self.member(key).serves_at is None

    def is_time_out(self, member: Member) -> bool:
        return member.leave_by is not None and self.now >= member.leave_by

    def happen(self) -> None:
        members = list(self.fleet.members)
        member = self.random.choice(members) if members else None
        serving = self.fleet.serving
        match self.random.randrange(14):
            case 0 | 1 if member is not None:
                self.end(member.key, self.random.choice([0, 1, -9, -6]))
            case 2 if member is not None:
                self.hang(member.key)
            case 3:
                self.fleet.reload()
            case 4:
                self.fleet.more()
            case 5:
                self.fleet.fewer()
            case 6 if member is not None:
                self.fleet.wants_to_leave(member.key, self.now)
            case 7 if member is not None:
                self.leavers.add(member.key)
                self.fleet.drains_itself(member.key, self.now)
            case 11 if member is not None:
                self.fleet.hung_up(member.key, self.now)
            case 8 if serving:
                self.fleet.replace(self.random.choice(serving).key, "age")
            case 9 if member is not None:
                self.well ^= {member.key}
            case 10:
                self.cannot_start = self.random.random() < 0.3

    def proved(self) -> set[int]:
        """Those that have served for long and still do."""
        return {
            it.key
            for it in self.fleet.serving
            if it.serves_at is not None and self.now - it.serves_at >= EARLY
        }

    def end(self, key: int, status: int = -9) -> None:
        was_failed = self.fleet.failure is not None
        super().end(key, status)
        if self.fleet.failure is not None and not was_failed:
            assert not self.proved(), "a failure ended those that serve"

    def turn(self, seconds: float = 0.0) -> list[fleet.Action]:
        was_failed = self.fleet.failure is not None
        done = super().turn(seconds)
        if self.fleet.failure is not None and not was_failed:
            aborted = set(orders(done, Task.ABORT))
            drained = set(orders(done, Task.DRAIN)) - aborted - self.leavers
            proved = {
                it.key
                for it in self.fleet.members
                if it.key in drained
                and self.now - (it.serves_at or self.now) >= EARLY
                and not self.is_time_out(it)
            }
            assert not proved, "a failure ended those that serve"
        generation = self.generation
        assert not any(
            it.state in (State.STARTING, State.LISTENING) and it.generation < generation
            for it in self.fleet.members
        ), "older code still starts"
        return done

    @property
    def generation(self) -> int:
        return 1 + sum(isinstance(it, fleet.Reloading) for it in self.actions)

    def end_storm(self) -> None:
        self.is_calm = True
        self.cannot_start = False
        for member in list(self.fleet.members):
            if member.state is State.STARTING and member.key not in self.hung:
                self.listens_at.setdefault(member.key, self.now + 1)
            elif member.state is State.STARTING and self.fleet.plan.worker_start_timeout is None:
                self.end(member.key)  # it would be waited for for ever


@pytest.mark.parametrize("seed", range(150))
def test_whatever_happens_in_whatever_order(seed):
    world = Storm(seed)
    for _ in range(120):
        for _ in range(world.random.choice([0, 0, 1, 1, 2, 5])):
            world.happen()
        world.turn(world.random.choice([0.0, 0.01, 0.3, 1.0, 1.0, 7.0]))
        if world.fleet.failure is not None:
            break
    world.end_storm()
    if world.fleet.failure is None:
        if world.random.random() < 0.7:
            world.fleet.reload()
        world.run(400)
        assert world.fleet.failure is None
        assert len(world.serving) == world.fleet.wanted
        assert not world.hung & set(world.serving) or world.plan.worker_timeout is None
        assert not any(it.replaced_for for it in world.fleet.serving)
        assert len(list(world.fleet.members)) == world.fleet.wanted, "nothing is left over"
        if any(isinstance(it, fleet.Reloading) for it in world.actions[-1:]):
            assert world.generations() == {world.generation}
        world.fleet.stop(signal.SIGTERM, world.now)
    for member in world.fleet.members:
        if world.random.random() < 0.3:
            world.hang(member.key)
    world.run(world.plan.drain_delay + world.plan.grace + fleet.MARGIN + 5)
    assert world.fleet.is_over
