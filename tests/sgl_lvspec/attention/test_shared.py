"""Which requests of a batch share a video, read off their rows: against every pair's common beginning."""

from __future__ import annotations

import torch

from sgl_lvspec.attention.shared import MIN_SAVED, SharedSegment, shared_segments

TEXT, FILM, OTHER_FILM = 0, 1, 2


class World:
    """Rows of SGLang's table, filled from beginnings that are shared and tails that are not.

    A beginning is a list of kinds (TEXT, FILM, ...); the same one twice has the same slots. What stands behind a
    context belongs to somebody else: the slots of the first row.
    """

    def __init__(self) -> None:
        self.is_visual = torch.zeros(20_000, dtype=torch.bool)
        self.table = torch.zeros(12, 3000, dtype=torch.int32)
        self.lens: list[int] = []
        self._next = 1
        self._known: dict[str, list[int]] = {}

    def slots(self, kinds: list[int]) -> list[int]:
        new = list(range(self._next, self._next + len(kinds)))
        self._next += len(kinds)
        self.is_visual[new] = torch.tensor([kind != TEXT for kind in kinds], dtype=torch.bool)
        return new

    def begin(self, name: str, kinds: list[int], after: str = "") -> str:
        """A beginning, perhaps one that goes on from another."""
        self._known[name] = [*self._known.get(after, []), *self.slots(kinds)]
        return name

    def add(self, beginning: str, own: list[int]) -> None:
        context = [*self._known.get(beginning, []), *self.slots(own)]
        row = len(self.lens) + 1
        self.table[row] = self.table[1]
        self.table[row, : len(context)] = torch.tensor(context, dtype=torch.int32)
        self.lens.append(len(context))

    def segments(self, min_saved: int = 1) -> list[SharedSegment]:
        rows = torch.arange(len(self.lens)) + 1
        return shared_segments(self.table, rows, self.lens, self.is_visual, min_saved)

    def length(self, name: str) -> int:
        return len(self._known[name])


def summary(segments: list[SharedSegment]) -> dict[tuple[int, ...], int]:
    return {segment.requests: len(segment.slots) for segment in segments}


def test_two_videos_of_four_questions_each_are_two_groups() -> None:
    """With one system prompt, mixed, and a request about no video in between."""
    world = World()
    world.begin("system", [TEXT] * 5)
    world.begin("first", [FILM] * 30 + [TEXT], after="system")
    world.begin("second", [OTHER_FILM] * 20, after="system")
    for number in range(8):
        world.add("first" if number % 2 else "second", [TEXT] * (number + 3))
    world.add("system", [TEXT] * 9)
    segments = world.segments()
    assert summary(segments) == {(1, 3, 5, 7): world.length("first"), (0, 2, 4, 6): world.length("second")}
    for segment in segments:
        for request in segment.requests:
            assert world.table[request + 1, : len(segment.slots)].tolist() == segment.slots.tolist()
    assert {segment.slots_saved for segment in segments} == {3 * 36, 3 * 25}


def test_a_group_shares_what_all_of_it_does() -> None:
    """Two of three go on alike behind the video: the third ends the segment."""
    world = World()
    world.begin("film", [TEXT] * 2 + [FILM] * 10)
    world.begin("asked", [TEXT] * 6, after="film")
    world.add("asked", [TEXT])
    world.add("film", [TEXT] * 4)
    world.add("asked", [TEXT] * 3)
    assert summary(world.segments()) == {(0, 1, 2): 12}


def test_a_context_that_ends_inside_ends_the_segment() -> None:
    """The shorter one's row goes on with slots of another: they are not read."""
    world = World()
    world.begin("film", [FILM] * 10)
    world.begin("longer", [TEXT] * 6, after="film")
    world.add("longer", [TEXT] * 5)
    world.add("film", [])
    assert summary(world.segments()) == {(0, 1): 10}


def test_what_stands_behind_a_context_is_not_its_video() -> None:
    """The third request is its system prompt and a word; its row goes on with slots of the film's first request."""
    world = World()
    world.begin("system", [TEXT] * 5)
    world.begin("film", [TEXT] * 3 + [FILM] * 10, after="system")
    world.add("film", [TEXT])
    world.add("film", [TEXT] * 2)
    world.add("system", [TEXT])
    assert summary(world.segments()) == {(0, 1): 18}


def test_requests_without_a_video_or_alone_with_theirs_share_nothing() -> None:
    world = World()
    world.begin("system", [TEXT] * 5)
    world.add("system", [TEXT] * 4)
    world.add("system", [FILM] * 20)
    world.add("system", [OTHER_FILM] * 20)
    world.add("system", [TEXT] * 4)
    world.add("", [FILM] * 20)
    assert world.segments() == []


def test_a_context_of_length_zero_is_nobodys_neighbour() -> None:
    """Rows that pad a batch, and requests whose whole context is about to be computed."""
    world = World()
    world.begin("film", [FILM] * 10)
    world.add("film", [TEXT])
    world.add("film", [TEXT])
    world.lens[1] = 0
    assert world.segments() == []


def test_what_saves_little_is_left_out() -> None:
    world = World()
    world.begin("film", [FILM] * (MIN_SAVED // 2))
    for _ in range(2):
        world.add("film", [TEXT] * 3)
    assert world.segments(MIN_SAVED) == []
    world.add("film", [TEXT] * 3)
    assert summary(world.segments(MIN_SAVED)) == {(0, 1, 2): MIN_SAVED // 2}


def test_any_rows_in_any_order_share_their_common_beginning() -> None:
    """Random trees of prefixes: every group is right, and no pair about one video is missed."""
    for seed in range(30):
        rng = torch.Generator().manual_seed(seed)
        world = World()
        names = [""]
        for number in range(4):
            kinds = torch.randint(0, 3, (1,), generator=rng).tolist() * int(torch.randint(1, 9, (1,), generator=rng))
            parent = names[int(torch.randint(0, len(names), (1,), generator=rng))]
            names.append(world.begin(str(number), kinds, after=parent))
        for _ in range(7):
            name = names[int(torch.randint(0, len(names), (1,), generator=rng))]
            world.add(name, [TEXT] * int(torch.randint(1, 4, (1,), generator=rng)))
        contexts = [world.table[row + 1, : world.lens[row]].tolist() for row in range(7)]
        grouped: dict[int, int] = {}
        for index, segment in enumerate(world.segments()):
            members = [contexts[request] for request in segment.requests]
            length = len(segment.slots)
            assert all(member[:length] == segment.slots.tolist() for member in members)
            assert any(len(member) == length or member[length] != members[0][length : length + 1] for member in members)
            grouped |= dict.fromkeys(segment.requests, index)
        for a in range(7):
            for b in range(a):
                films = [next((slot for slot in contexts[x] if world.is_visual[slot]), None) for x in (a, b)]
                if films[0] is not None and films[0] == films[1] and contexts[a][0] == contexts[b][0]:
                    assert grouped[a] == grouped[b]
