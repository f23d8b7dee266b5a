"""Locust's own page with the same users: `make loadtest-ui`, or `locust -f loadtest/locustfile.py`.

Each of Locust's "users" is here a source of visitors: it lets one in at random instants, `--arrivals` a second on
average, and waits for nobody. So twice the users are twice the offered load, whatever the server makes of it.
"""

from __future__ import annotations

import random
import time
from typing import Any

import gevent
from gevent.pool import Group
from locust import events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtest import users
from loadtest.api import api_named
from loadtest.arms import ARMS, NONE, require_loopback
from loadtest.conversation import Draw
from loadtest.media import Library, samples
from loadtest.record import Record
from loadtest.users import VideoUser, Visit

SERVER_DEFAULT = "server"  # requests say nothing of LVSPEC
_DRAWS: dict[str, Draw] = {}


@events.init_command_line_parser.add_listener
def add_arguments(parser: LocustArgumentParser) -> None:
    """Flags of ours; Locust shows them on its page, too."""
    parser.add_argument("--arrivals", type=float, default=0.2, help="Visitors a second that each user lets in")
    parser.add_argument(
        "--lvspec", choices=(SERVER_DEFAULT, *ARMS[1:]), default=SERVER_DEFAULT,
        help="Preset that requests ask for; server: they ask for none, which a server without LVSPEC needs",
    )  # fmt: skip
    parser.add_argument("--endpoint", choices=("generate", "chat"), default="generate", help="API that is asked")
    parser.add_argument("--seed", type=int, default=1, help="Of conversations", include_in_web_ui=False)
    parser.add_argument(
        "--allow-remote", action="store_true", help="The server is my own, though not here", include_in_web_ui=False
    )


@events.init.add_listener
def prepare(environment: Environment, **_kwargs: Any) -> None:
    """Read the clips once, before any load."""
    options = environment.parsed_options
    if options is not None:
        videos, images = samples()
        _DRAWS["all"] = Draw(Library(tuple(videos), tuple(images), ()), options.seed)


@events.test_start.add_listener
def check_host(environment: Environment, **_kwargs: Any) -> None:
    """Refuse a host that was typed on the page and is not on this machine."""
    options = environment.parsed_options
    try:
        require_loopback(environment.host or "", allow_remote=options is not None and options.allow_remote)
    except ValueError as error:
        print(error)
        if environment.runner is not None:
            gevent.spawn(environment.runner.quit if environment.web_ui is None else environment.runner.stop)


class Source(VideoUser):
    """Lets visitors of one kind in."""

    abstract = True

    def on_start(self) -> None:
        """Nobody is here yet."""
        self._visitors = Group()
        self._count = 0
        self._clock = random.Random(f"{self.scenario} {id(self)}")

    def on_stop(self) -> None:
        """Everybody leaves."""
        self._visitors.kill()

    @task
    def let_one_in(self) -> None:
        """Wait for the next drawn instant and start a conversation beside those that are under way."""
        options = self.environment.parsed_options
        require_loopback(self.host or "", allow_remote=options.allow_remote)
        gevent.sleep(self._clock.expovariate(options.arrivals))
        self._count += 1
        talk = _DRAWS["all"].conversation(self.scenario, f"{self.scenario}/{id(self)}/{self._count}")
        lvspec = None if options.lvspec in (SERVER_DEFAULT, NONE) else {"preset": options.lvspec}
        visit = Visit(
            api_named(options.endpoint), options.lvspec, "page", 0, 0.0, time.perf_counter(), lvspec, _ignore, _ignore
        )
        self._visitors.spawn(self.hold, talk, visit)


def _ignore(_record: Record) -> None:
    """Locust's table has it."""


class SingleQuestion(Source, users.SingleQuestion):
    """One question about a clip."""


class VideoChat(Source, users.VideoChat):
    """Several turns about one video."""


class PopularVideo(Source, users.PopularVideo):
    """One of many who ask about the same few videos."""


class MixedTraffic(Source, users.MixedTraffic):
    """Text alone, an image, or a video."""


class SlowReader(Source, users.SlowReader):
    """Reads the answer slower than it comes."""


class HangsUp(Source, users.HangsUp):
    """Closes the connection in the middle of an answer."""
