"""What a proxy does to requests, and to which: the words in which the tests say it."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Fault:
    """What happens to a request and its reply; bytes are counted from the body's start.

    `hold` keeps the request from the server, or the reply (or what is left of it) from the client,
    until `Proxy.release`. `answer` is a status and an S3 error code in place of the server's reply;
    without it, and with `lost`, there is none: the connection is reset.
    """

    name: str
    delay: float = 0.0
    forward: bool = True
    hold: Literal["", "request", "reply", "body"] = ""
    answer: tuple[int, str] | None = None
    lost: bool = False
    cut: int | None = None
    shorten: int | None = None
    flip: int | None = None
    flip_request: int | None = None
    page: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


def answer(status: int, code: str, headers: Mapping[str, str] | None = None) -> Fault:
    """The server never sees it; the client is told this."""
    return Fault(f"{status} {code}", forward=False, answer=(status, code), headers=headers or {})


def page(text: str) -> Fault:
    """Another server answers, with a web page."""
    return Fault("page", forward=False, answer=(200, ""), page=text)


def answer_after(status: int, code: str) -> Fault:
    """The server does it; the client is told this."""
    return Fault(f"{status} {code} after all", answer=(status, code))


def delay(seconds: float) -> Fault:
    """It takes so long, and passes."""
    return Fault("delay", delay=seconds)


def cut(at: int) -> Fault:
    """The connection ends after so many bytes of the reply."""
    return Fault("cut", cut=at)


def shorten(to: int) -> Fault:
    """The reply has so many bytes, and says that it has no more."""
    return Fault("shorten", shorten=to)


def stall_at(byte: int) -> Fault:
    """The reply stops after so many bytes."""
    return Fault("stall in the body", hold="body", cut=byte)


def flip(byte: int) -> Fault:
    """One byte of the reply is another."""
    return Fault("flip", flip=byte)


def flip_request(byte: int) -> Fault:
    """One byte of the request's body is another."""
    return Fault("flip the request", flip_request=byte)


PASS = Fault("pass")
SLOW_DOWN = answer(503, "SlowDown")
INTERNAL_ERROR = answer(500, "InternalError")
CONFLICT = answer(409, "ConditionalRequestConflict")
TOO_MANY = answer(429, "TooManyRequests")
DENIED = answer(403, "AccessDenied")
RESET = Fault("reset", forward=False, lost=True)
STALL = Fault("stall", forward=False, hold="request", lost=True)
LATE = Fault("late", hold="request")  # the server gets it once it is released
LOST_REPLY = Fault("lost reply", lost=True)
STALLED_REPLY = Fault("stalled reply", hold="reply")
FAILED_AFTER = answer_after(500, "InternalError")


@dataclass
class Request:
    """A request that the proxy saw. `served` is what the server said (None: it never saw it), `status`
    what the client was told (None: nothing); `received` and `sent` are bytes of the two bodies."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    received: int
    served: int | None = None
    status: int | None = None
    sent: int = 0
    fault: str = ""


@dataclass
class Rule:
    """Which requests a fault befalls; `seen` are all that match, `hits` those that it befell."""

    fault: Fault
    method: str = ""
    path: re.Pattern[str] = re.compile("")
    query: Mapping[str, str | bool] = field(default_factory=dict)
    header: str = ""
    nth: Collection[int] | None = None
    times: int | None = None
    probability: float = 1.0
    random: random.Random = field(default_factory=random.Random)
    seen: int = 0
    hits: list[Request] = field(default_factory=list)

    def matches(self, request: Request) -> bool:
        """Whether the request is one of those meant."""
        for name, wanted in self.query.items():
            found = request.query.get(name)
            if (found is not None) != wanted if isinstance(wanted, bool) else found != wanted:
                return False
        return (
            self.method in ("", request.method)
            and self.header.lower() in ("", *request.headers)
            and self.path.search(request.path) is not None
        )

    def befalls(self, *, free: bool) -> bool:
        """Whether it is the turn of the request that was just seen, unless another rule has it."""
        self.seen += 1
        if not free or (self.times is not None and len(self.hits) >= self.times):
            return False
        if self.nth is not None and self.seen not in self.nth:
            return False
        return self.probability >= 1 or self.random.random() < self.probability
