"""Speculation must not show in the answers: a test kit for video LLM servers, in the form of SGLang's own.

Mix `VideoParityKit` into a `unittest.TestCase` and set its attributes, as with `sglang.test.kits`; or run it:

    python -m sgl_lvspec.testing.video_parity_kit --url http://127.0.0.1:30000 --reference-url http://127.0.0.1:30001 \
        --video a.mp4 --video b.mp4 --image still.png

The reference is the target served without speculation. Where two servers do not fit on one machine, ask it first, stop
it, and compare with its answers later: `--reference-url R --save-reference answers.json`, then
`--url U --reference answers.json`, both with the same media. Ids are equal in float32; in bfloat16 verification
computes in other shapes than decoding, and near-ties may fall the other way: see `--tie-margin`.
"""

from __future__ import annotations

import argparse
import sys
import unittest
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sgl_lvspec.testing.endpoint import Answer, Endpoint, EndpointError, PromptFormat, Turn, new_salt
from sgl_lvspec.testing.reference import Reference, Scenario, find_parting, play

if TYPE_CHECKING:
    from unittest import TestCase as _Case  # what the mix-in is mixed into
else:
    _Case = object


@dataclass
class Tally:
    """What the checks of one class added up to."""

    answers: int = 0
    tokens: int = 0
    rounds: int = 0
    near_ties: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, answer: Answer) -> None:
        """Count one answer of the server under test."""
        self.answers += 1
        self.tokens += len(answer.ids)
        self.rounds += answer.num_rounds

    def __str__(self) -> str:
        length = f"{self.tokens / self.rounds:.2f} tokens a round" if self.rounds else "no speculation"
        ties = f", {self.near_ties} parted at a near-tie" if self.near_ties else ""
        return "\n".join([*self.notes, f"{self.answers} answers compared{ties}, {self.tokens} tokens, {length}"])


class VideoParityKit(_Case):
    """Greedy answers about videos and images, over every way to ask, against the same target without speculation."""

    # The server under test, and the reference: its address, or a file of its answers.
    base_url: str
    reference_url: str | None = None
    reference_file: str | None = None
    # What is asked about: paths, or URLs that the servers can fetch.
    videos: Sequence[str]
    images: Sequence[str] = ()

    model = "default"  # the name that the chat API is sent
    api_key: str | None = None
    max_tokens = 96
    describe_video = "Describe the video in detail."
    describe_image = "Describe the image."
    follow_up = "What happens first?"
    compare_videos = "Compare the two videos."
    prompt_format = PromptFormat()  # for /generate; Qwen-VL's

    acc_length_thres = 1.5  # tokens a verify round, the bonus token included, as in SGLang's kits
    tie_margin: float | None = None  # log-probability below which a reference's preference is no preference
    concurrency = 4

    tally: ClassVar[Tally]
    _known_reference: ClassVar[Reference]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.tally = Tally()

    def test_video(self) -> None:
        """Each video, chat"""
        for scenario in self._one_video_each():
            with self.subTest(scenario.name):
                self._ask_and_compare(scenario)

    def test_image(self) -> None:
        """Each image, chat"""
        if not self.images:
            self.skipTest("no image was given")
        for scenario in self._one_image_each():
            with self.subTest(scenario.name):
                self._ask_and_compare(scenario)

    def test_two_videos(self) -> None:
        """Two videos in one question, chat"""
        if len(self.videos) < 2:
            self.skipTest("only one video was given")
        self._ask_and_compare(self._two_videos())

    def test_multi_turn_with_cached_video(self) -> None:
        """A second turn about the same video, chat"""
        ours, theirs = self._ask_and_compare(self._multi_turn())
        if ours[0].ids == theirs[0].ids:  # parted at a near-tie, other tokens are cached
            self._compare_cached_tokens("second turn", ours, theirs)

    def test_second_question_reads_video_from_cache(self) -> None:
        """A second question about the same video finds it cached"""
        self._compare_cached_tokens("second question", *self._ask_and_compare(self._second_question()))

    def test_generate_endpoint(self) -> None:
        """Video, image and both, /generate"""
        for scenario in self._generate():
            with self.subTest(scenario.name):
                self._ask_and_compare(scenario)

    def test_stream(self) -> None:
        """A streamed chat about each video"""
        for scenario in self._one_video_each():
            with self.subTest(scenario.name):
                theirs = self._reference().answers(self._endpoint(), scenario)
                ours = self._endpoint().stream_chat(scenario.conversations[0], [], new_salt())
                self._compare(scenario, [ours], theirs)

    def test_concurrent_requests(self) -> None:
        """The same questions at once, sharing their videos' cache"""
        # Each twice: of two requests about one video, one often starts while the other is being answered.
        scenarios = [*self.scenarios(), *self.scenarios()]
        theirs = [self._reference().answers(self._endpoint(), scenario) for scenario in scenarios]
        salt = new_salt()
        with ThreadPoolExecutor(self.concurrency) as pool:
            played = [pool.submit(play, self._endpoint(), *pair, salt) for pair in zip(scenarios, theirs, strict=True)]
            ours = [future.result() for future in played]
        for scenario, answers, expected in zip(scenarios, ours, theirs, strict=True):
            with self.subTest(scenario.name):
                self._compare(scenario, answers, expected)

    def test_acceptance_length(self) -> None:
        """Tokens a verify round about the videos"""
        answers = [answer for scenario in self._one_video_each() for answer in play(self._endpoint(), scenario)]
        rounds = sum(answer.num_rounds for answer in answers)
        if rounds == 0:
            self.fail(f"{self.base_url} does not speculate")
        acc_length = sum(len(answer.ids) for answer in answers) / rounds
        self.tally.notes.append(f"acceptance length about the videos: {acc_length:.4f}")
        if acc_length <= self.acc_length_thres:
            self.fail(f"{acc_length:.4f} tokens a round; required: more than {self.acc_length_thres}")

    def scenarios(self) -> list[Scenario]:
        """Everything that the checks ask, and so what a captured reference holds."""
        found = [*self._one_video_each(), *self._one_image_each(), *self._generate()]
        found += [self._multi_turn(), self._second_question()]
        return [*found, self._two_videos()] if len(self.videos) > 1 else found

    def capture(self) -> Reference:
        """The reference with all its answers."""
        for scenario in self.scenarios():
            self._reference().answers(self._endpoint(), scenario)
        return self._reference()

    def _one_video_each(self) -> list[Scenario]:
        turns = [Turn(self.describe_video, videos=(video,)) for video in self.videos]
        return [Scenario(f"video {i}", ((turn,),)) for i, turn in enumerate(turns)]

    def _one_image_each(self) -> list[Scenario]:
        turns = [Turn(self.describe_image, images=(image,)) for image in self.images]
        return [Scenario(f"image {i}", ((turn,),)) for i, turn in enumerate(turns)]

    def _two_videos(self) -> Scenario:
        return Scenario("two videos", ((Turn(self.compare_videos, videos=tuple(self.videos[:2])),),))

    def _multi_turn(self) -> Scenario:
        first = Turn(self.describe_video, videos=(self.videos[0],))
        return Scenario("multi-turn", ((first, Turn(self.follow_up)),))

    def _second_question(self) -> Scenario:
        video = (self.videos[0],)
        turns = (Turn(self.describe_video, videos=video), Turn(self.follow_up, videos=video))
        return Scenario("second question", tuple((turn,) for turn in turns))

    def _generate(self) -> list[Scenario]:
        video, image = (self.videos[0],), tuple(self.images[:1])
        turns = {"generate video": Turn(self.describe_video, videos=video)}
        if image:
            turns["generate image"] = Turn(self.describe_image, images=image)
            turns["generate image and video"] = Turn(self.describe_video, videos=video, images=image)
        return [Scenario(name, ((turn,),), api="generate") for name, turn in turns.items()]

    def _endpoint(self) -> Endpoint:
        return Endpoint(self.base_url, self.model, self.api_key, self.max_tokens, self.prompt_format)

    @classmethod
    def _reference(cls) -> Reference:
        """One for the class, so that its server is asked once."""
        if "_known_reference" not in cls.__dict__:
            cls._known_reference = cls._make_reference()
        return cls._known_reference

    @classmethod
    def _make_reference(cls) -> Reference:
        if cls.reference_file is not None:
            return Reference.load(Path(cls.reference_file))
        if cls.reference_url is None:
            raise EndpointError("a reference is needed; found neither reference_url nor reference_file. Set one.")
        return Reference(Endpoint(cls.reference_url, cls.model, cls.api_key, cls.max_tokens, cls.prompt_format))

    def _ask_and_compare(self, scenario: Scenario) -> tuple[list[Answer], list[Answer]]:
        """The answers of the server under test, and the reference's."""
        theirs = self._reference().answers(self._endpoint(), scenario)
        ours = play(self._endpoint(), scenario, theirs)
        self._compare(scenario, ours, theirs)
        return ours, theirs

    def _compare(self, scenario: Scenario, ours: Sequence[Answer], theirs: Sequence[Answer]) -> None:
        for i, (answer, expected) in enumerate(zip(ours, theirs, strict=True)):
            self.tally.add(answer)
            parting = find_parting(answer, expected)
            if parting is None:
                continue
            if parting.gap is not None and self.tie_margin is not None and parting.gap <= self.tie_margin:
                self.tally.near_ties += 1
                continue
            preferred = "" if parting.gap is None else f", which the reference preferred by {parting.gap:.4f}"
            self.fail(
                f"{scenario.name}, answer {i + 1}: token {parting.position} of {len(expected.ids)} is {parting.ours}; "
                f"without speculation {parting.theirs}{preferred}: {parting.excerpt}"
            )

    def _compare_cached_tokens(self, name: str, ours: Sequence[Answer], theirs: Sequence[Answer]) -> None:
        found, expected = ([answer.cached_tokens for answer in answers] for answers in (ours, theirs))
        if found != expected:
            self.fail(f"{name}: cached tokens are {found}; without speculation {expected}")
        if found[-1] <= found[0]:
            self.fail(f"{name}: cached tokens are {found}; the second must find the video cached")
        self.tally.notes.append(f"cached tokens, {name}: {found[-1]}, as without speculation")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: run the kit, or capture a reference for it.

    Returns:
        0 when every check passed, 1 when one failed, 2 when the checks could not be made.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.save_reference is None and options.url is None:
        parser.error("name --url, or --save-reference to ask the reference alone")
    if options.save_reference is not None and options.reference_url is None:
        parser.error("--save-reference asks --reference-url")

    class VideoParity(VideoParityKit, unittest.TestCase):
        """The checks of this run."""

        def __str__(self) -> str:
            return self.shortDescription() or super().__str__()

    for name, value in _attributes(options).items():
        setattr(VideoParity, name, value)
    try:
        for url in (options.url, options.reference_url):
            if url is not None:
                Endpoint(url, api_key=options.api_key).require_sglang()
        if options.save_reference is not None:
            captured = VideoParity().capture()
            captured.save(options.save_reference)
            print(f"{len(captured.known)} scenarios captured from {options.reference_url} in {options.save_reference}")
        if options.url is None:
            return 0
    except (EndpointError, OSError, ValueError) as error:
        print(f"the checks could not be made: {error}", file=sys.stderr)
        return 2
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(VideoParity)
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2, descriptions=False).run(suite)
    print(f"{options.url} against {options.reference or options.reference_url}")
    print(VideoParity.tally)
    return 0 if result.wasSuccessful() else 1


def _attributes(options: argparse.Namespace) -> dict[str, object]:
    """The class attributes that the command line sets; the kit's defaults stand for the rest."""
    given = {
        "base_url": options.url or options.reference_url,
        "reference_url": options.reference_url,
        "reference_file": options.reference,
        "videos": options.video,
        "images": options.image,
        "model": options.model,
        "api_key": options.api_key,
        "max_tokens": options.max_tokens,
        "acc_length_thres": options.acc_length,
        "tie_margin": options.tie_margin,
        "concurrency": options.concurrency,
        "describe_video": options.question,
        "follow_up": options.follow_up,
    }
    return {name: value for name, value in given.items() if value is not None}


def _parser() -> argparse.ArgumentParser:
    kit = VideoParityKit
    parser = argparse.ArgumentParser(
        prog="python -m sgl_lvspec.testing.video_parity_kit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", help="server under test; may be left out with --save-reference")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--reference-url", help="the same target without speculation")
    source.add_argument("--reference", metavar="FILE", help="its answers, captured with --save-reference")
    parser.add_argument("--save-reference", metavar="FILE", type=Path, help="ask --reference-url and write its answers")
    parser.add_argument("--video", action="append", required=True, help="path or URL; repeat it for more")
    parser.add_argument("--image", action="append", help="path or URL; repeat it for more")
    parser.add_argument("--question", help=f"about each video (default: {kit.describe_video})")
    parser.add_argument("--follow-up", help=f"about a video that is cached (default: {kit.follow_up})")
    parser.add_argument("--max-tokens", type=int, help=f"of an answer (default: {kit.max_tokens})")
    parser.add_argument("--acc-length", type=float, help=f"tokens a round to exceed (default: {kit.acc_length_thres})")
    parser.add_argument(
        "--tie-margin",
        type=float,
        help="accept another token where the reference preferred its own by no more than this log-probability; the "
        "rest of that answer is not compared (default: every token must be equal)",
    )
    parser.add_argument("--concurrency", type=int, help=f"requests at once (default: {kit.concurrency})")
    parser.add_argument("--model", help="name to send (default: default, which a server of one model ignores)")
    parser.add_argument("--api-key", help="of both servers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
