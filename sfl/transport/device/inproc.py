"""A device and its edge in one process: a `Link` over two ends, without sockets and threads.

Every message becomes the bytes that a socket would carry, and is read from them at the other end. A
session does its work when a message is sent; what it answers waits to be received.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from sfl.adapters.names import belongs_to
from sfl.errors import ProtocolError
from sfl.plan import taken_by
from sfl.rounds.values import Assignment, Point
from sfl.stage.messages import (
    BlockMoments,
    GradientNorm,
    Message,
    RoundOrder,
    RoundOutcome,
    TensorMessage,
    begins_step,
)
from sfl.stage.session import Session
from sfl.stage.training import TrainingSession
from sfl.transport.device.end import DeviceEnd, EdgeEnd, End, trained_by
from sfl.transport.frames.chunks import decode_adapter
from sfl.transport.frames.envelope import Frame
from sfl.transport.frames.wire import EDGE_SESSION
from sfl.v1 import edge_pb2, tensor_pb2

Watch = Callable[[End, TensorMessage, Sequence[Frame]], None]

UP, DOWN = 0, 1


class InProcessLink:
    """What a device's trainer sends goes to its session at once, through both ends' codecs.

    `watch` sees each tensor, with its frames, as the end that is given sends it.
    """

    def __init__(
        self,
        device: DeviceEnd,
        edge: EdgeEnd,
        session: Session,
        watch: Watch = lambda sender, message, frames: None,
    ) -> None:
        self.device = device
        self.edge = edge
        self.session = session
        self._watch = watch
        self._answers: deque[Message] = deque()

    def send(self, message: TensorMessage | GradientNorm | BlockMoments) -> None:
        """Have the session do what the message asks for. Raises SflError."""
        if isinstance(message, BlockMoments):
            self._take_moments(message)
            return
        if isinstance(message, TensorMessage):
            message = self._carry(message, self.device, self.edge, UP)
            self._about_to_compute(message)
            self.edge.credits.computed()
        answers = [out.message for out in self.session.handle(message)]
        self.edge.answered(answers)
        for answer in answers:
            self._answers.append(self._answered(answer))

    def _about_to_compute(self, message: TensorMessage) -> None:
        """A tensor has come, and its session has not seen it yet."""

    def _take_moments(self, message: BlockMoments) -> None:
        """Moments are for a session that trains. Raises ProtocolError."""
        raise ProtocolError(f"moments for round {message.round} came that were not due")

    def receive(self) -> Message:
        """The oldest answer that was not taken yet. Raises ProtocolError where there is none."""
        if not self._answers:
            raise ProtocolError("nothing was asked that is not answered")
        return self._answers.popleft()

    def _answered(self, answer: TensorMessage | GradientNorm) -> Message:
        if isinstance(answer, GradientNorm):
            return answer
        arrived = self._carry(answer, self.edge, self.device, DOWN)
        self.edge.credits.sent()
        return replace(arrived, arrived=self.device.phases.now())

    def _carry(
        self, message: TensorMessage, sender: End, receiver: End, direction: int
    ) -> TensorMessage:
        frames = sender.encode(message)
        self._watch(sender, message, frames)
        for frame in frames:
            arrived = EDGE_SESSION.carried(frame, direction)
            arrival = receiver.take_frame(arrived, receiver.phases.now())
        assert arrival is not None
        return receiver.decode(arrival)


class InProcessTraining(InProcessLink):
    """The same with a session that trains: the adapter goes both ways, too."""

    def __init__(
        self,
        device: DeviceEnd,
        edge: EdgeEnd,
        session: TrainingSession,
        watch: Watch = lambda sender, message, frames: None,
    ) -> None:
        super().__init__(device, edge, session, watch)
        self._training = session
        self._begin: Callable[..., None] = session.begin_round

    def _about_to_compute(self, message: TensorMessage) -> None:
        if begins_step(message) and self.edge.settings.recovery.due(message.key.step):
            self.edge.passed(self._training.within())
            self.edge.remembered.written()

    def begin_round(self, own: Assignment, values: Mapping[str, np.ndarray]) -> RoundOrder:
        """Give both sides their parts of the global adapter; the order is the device's.

        The session begins once it has the moments of all its blocks.
        """
        middle = own.plan.middle
        mine = {name: value for name, value in values.items() if belongs_to(name, middle)}
        theirs = {name: value for name, value in values.items() if name not in mine}
        go_on, training = self.edge.begin_round(own), self._training
        given = BlockMoments(own.round, training.given(go_on))
        self._begin = partial(training.begin_round, own, mine, go_on=go_on)
        if not taken_by("edge", go_on.moves):
            self._begin()
        self.device.begin_round(own)
        order = self._sent_down(self.edge.round_frames(theirs, own.round))
        if taken_by("device", go_on.moves):
            order = self._sent_down(self.edge.moments_frames(given))
        assert isinstance(order, RoundOrder)
        return order

    def _sent_down(self, frames: Iterable[tensor_pb2.AdapterFrame]) -> object:
        """What the last of these frames completes at the device."""
        taken: object = None
        for frame in frames:
            message = EDGE_SESSION.carried(edge_pb2.EdgeMessage(adapter=frame), DOWN)
            taken = self.device.take_adapter(message.adapter)
        return taken

    def _take_moments(self, message: BlockMoments) -> None:
        for frame in self.device.moments_frames(message):
            carried = EDGE_SESSION.carried(edge_pb2.DeviceMessage(adapter=frame), UP)
            whole = self.edge.put_together(carried.adapter)
        assert whole is not None
        self._begin(moments=self.edge.moments_of(*whole).moments)

    def end_round(self, outcome: RoundOutcome) -> dict[str, np.ndarray]:
        """The whole adapter after a round, as the cloud would get it from the edge."""
        part = self.device.update(outcome.values, outcome.round)
        trains = trained_by(self._training.plan.device_spans, self.edge.settings)
        payload = self.edge.whole_update(part.codec, part.payload, trains)
        mine = self._training.end_round()
        self.reached(outcome)
        return {**mine, **decode_adapter(payload)}

    @property
    def at(self) -> Point:
        """What both sides can go on from without a snapshot."""
        return self.device.remembered.at

    def reached(self, outcome: RoundOutcome) -> None:
        """Both sides have done a round, and keep what the next one goes on from."""
        point = self.device.point(outcome.num_steps)
        self.device.reached(point, outcome.moments)
        self.edge.reached(point, self._training.moments())
        for end in (self.device, self.edge):
            end.remembered.written()
