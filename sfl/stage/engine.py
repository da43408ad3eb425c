"""The edge's one compute thread: it owns the model, coroutines own bytes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from sfl.errors import RunFailed
from sfl.metrics.stats import PhaseTimes
from sfl.node.causes import cause_of
from sfl.stage.messages import Kind, Outgoing, TensorMessage
from sfl.stage.orders import ORDERS, Order, Waiting
from sfl.stage.session import Computed, Group, Request, Session
from sfl.stage.threads import compute_here

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(eq=False, slots=True)
class Lane:
    """Jobs of one kind: in which order they come, and how many of one group are one batch."""

    order: Order
    together: int


@dataclass(eq=False, slots=True)
class Work:
    """A job in the queue, and who waits for it. `task` is a device's, with what orders go by."""

    job: Callable[[], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    number: int
    task: Task | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """One message for one session; tasks of one `group` may go through the base together."""

    lane: Lane
    session: Computed
    message: Any
    tail_seconds: float
    group: Group | None


class Engine:
    """Runs jobs one at a time, never on the event loop; `order` says which device's comes next.

    Where `phases` are counted, its idle time is: `wait`, of the job that ended it.

    Up to `together` waiting jobs of one group are computed as one batch. Jobs that are no device's
    (loading, rounds that begin and end) go first: a device waits for each of its own before it
    asks for the next, so nothing of one device overtakes. Steps of conversations go before jobs of
    training, as they come, up to `answering` as one batch: somebody waits for the next word.
    """

    def __init__(
        self,
        threads: int,
        order: Order = ORDERS["first_come"],
        together: int = 1,
        phases: PhaseTimes | None = None,
        answering: int = 1,
    ) -> None:
        self._training = Lane(order, together)
        self._answers = Lane(ORDERS["first_come"], answering)
        self._phases = phases
        self._queue: list[Work] = []
        self._changed = threading.Condition()
        self._number = 0
        self._closed = False
        self._thread = threading.Thread(
            target=self._work, args=(threads,), name="compute", daemon=True
        )
        self._thread.start()

    def serve_by(self, order: Order) -> None:
        """From now on take waiting jobs of training in this order."""
        with self._changed:
            self._training.order = order

    async def run(self, job: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Queue a job and wait for its result; what it raises is raised here."""
        result: R = await self._put(lambda: job(*args, **kwargs), None)
        return result

    async def serve(
        self, session: Session, message: Request, tail_seconds: float = 0.0
    ) -> list[Outgoing]:
        """Queue a device's message and wait for what is to be sent then."""
        outgoing: list[Outgoing] = await self._compute(
            self._training, session, message, tail_seconds
        )
        return outgoing

    async def teach(self, lessons: Computed, message: Any) -> Any:
        """The same for what a teacher is asked; it takes its turn among what trains."""
        return await self._compute(self._training, lessons, message)

    async def answer(self, conversation: Computed, step: Any) -> Any:
        """The same for a step of a conversation; it goes before all that trains."""
        return await self._compute(self._answers, conversation, step)

    async def _compute(
        self, lane: Lane, session: Computed, message: Any, tail_seconds: float = 0.0
    ) -> Any:
        group = session.group(message) if lane.together > 1 else None
        task = Task(lane, session, message, tail_seconds, group)
        return await self._put(lambda: session.handle(message), task)

    def close(self) -> None:
        """Let the running job end, drop what waits."""
        with self._changed:
            self._closed = True
            for work in self._queue:
                work.loop.call_soon_threadsafe(work.future.cancel)
            self._queue.clear()
            self._changed.notify()
        self._thread.join()

    async def _put(self, job: Callable[[], Any], task: Task | None) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        with self._changed:
            if self._closed:
                raise RunFailed("the compute thread has ended")
            self._number += 1
            self._queue.append(Work(job, future, loop, self._number, task))
            self._changed.notify()
        return await future

    # -- on the compute thread ------------------------------------------------------------------

    def _work(self, threads: int) -> None:
        """Serve until closed; what ends this thread ends everybody's waiting for it."""
        try:
            self._serve(threads)
        except Exception as error:  # noqa: BLE001 - raised where each job is awaited
            cause = cause_of(error)
            with self._changed:
                self._closed = True
                for work in self._queue:
                    _post(work, None, cause)
                self._queue.clear()

    def _serve(self, threads: int) -> None:
        compute_here(threads)  # on the thread itself: OpenMP keeps the number per thread
        while True:
            idle = None
            with self._changed:
                while not self._still_wanted() and not self._closed:
                    idle = idle or time.perf_counter()
                    self._changed.wait()
                if self._closed:
                    return
                chosen = self._choose()
                self._queue = [work for work in self._queue if work not in chosen]
            if idle is not None:
                self._note_wait(idle, chosen[0].task)
            began = time.perf_counter()
            self._do(chosen)
            seconds = (time.perf_counter() - began) / len(chosen)
            for work in chosen:
                if work.task is not None:
                    work.task.session.served_seconds += seconds

    def _note_wait(self, begin: float, task: Task | None) -> None:
        if self._phases is None:
            return
        if task is None or task.lane is self._answers:
            self._phases.observe("wait", time.perf_counter() - begin)
        else:
            self._phases.interval("wait", task.message.key, task.session.device, begin)

    def _still_wanted(self) -> bool:
        """Drop the jobs of streams that have ended; whether any is left."""
        self._queue = [work for work in self._queue if not work.future.cancelled()]
        return bool(self._queue)

    def _choose(self) -> list[Work]:
        """The next job, and those that go with it: of its group, as the order ranks them."""
        for work in self._queue:
            if work.task is None:
                return [work]
        every = [(work, work.task) for work in self._queue if work.task is not None]
        answers = any(task.lane is self._answers for _, task in every)
        lane = self._answers if answers else self._training
        queue, tasks = zip(*((w, task) for w, task in every if task.lane is lane), strict=True)
        waiting = [
            Waiting(
                work.number,
                task.session.device,
                task.tail_seconds,
                task.session.served_seconds,
            )
            for work, task in zip(queue, tasks, strict=True)
        ]
        first = _most_urgent(tasks, lane.order.choose(waiting))
        group, chosen = tasks[first].group, [first]
        left = [n for n, task in enumerate(tasks) if n != first and task.group == group]
        while group is not None and left and len(chosen) < lane.together:
            chosen.append(left.pop(lane.order.choose([waiting[n] for n in left])))
        return [queue[n] for n in chosen]

    def _do(self, chosen: Sequence[Work]) -> None:
        """Run the jobs and hand each its result, or what it raised."""
        try:
            results = self._results(chosen)
        except Exception as error:  # noqa: BLE001 - raised where each is awaited
            results = [error] * len(chosen)
        for work, result in zip(chosen, results, strict=True):
            if isinstance(result, Exception):
                _post(work, None, result)
            else:
                _post(work, result, None)

    def _results(self, chosen: Sequence[Work]) -> Sequence[Any]:
        """What each job gives, or the error that is its own."""
        tasks = [work.task for work in chosen if work.task is not None]
        if len(chosen) > 1 and (group := tasks[0].group) is not None:
            return group.run([(task.session, task.message) for task in tasks])
        return [work.job() for work in chosen]


def _most_urgent(tasks: Sequence[Task], chosen: int) -> int:
    """The chosen device's first gradient, where one waits; else what was chosen."""
    for index, task in enumerate(tasks):
        gradient = isinstance(task.message, TensorMessage) and task.message.kind is Kind.GRADIENT
        if gradient and task.session is tasks[chosen].session:
            return index
    return chosen


def _post(work: Work, result: Any, error: Exception | None) -> None:
    def settle() -> None:
        if work.future.cancelled():
            return
        if error is None:
            work.future.set_result(result)
        else:
            work.future.set_exception(error)

    work.loop.call_soon_threadsafe(settle)
