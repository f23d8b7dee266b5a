"""What is wrong with an answer: complaints in words, none where it is right."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from bench.torture.client import Answer, Reply
from bench.torture.oracle import NEAR_TIE, Oracle
from bench.torture.question import Question
from bench.torture.request import BAD, HEALTH, STRICT, Request
from sgl_lvspec.presets import PRESETS, Rule

LOOSENED = ("filler", "shift")
PER_TOKEN = ("lvspec_labels", "lvspec_relevance", "lvspec_choice", "lvspec_given_up")
MOST_A_ROUND = 11  # K and the target's own
# SGLang 0.5.23 prefills one token in place of the prompt of a request that is aborted while its grammar is compiled
# (Req.set_finish_with_abort), and returns what follows.
STAND_IN = 1
BUDGET_FROM = 32  # tokens: a budget is a share of the answer, or of so many while it is shorter
# float32 sums over batches and chunks of other shapes; log-probabilities reach -20 here
LOGPROB_TOLERANCE = 1e-3


@dataclass
class Judge:
    """Of one storm.

    Attributes:
        words: text of every token id, "" for what is no text.
        server_rule: what a request without settings gets.
        outcomes: how many answers ended how.
    """

    oracle: Oracle
    words: Sequence[str]
    server_rule: Rule
    outcomes: Counter[str] = field(default_factory=Counter)
    _lock: Any = field(default_factory=Lock)

    def complaints(
        self, request: Request, reply: Reply, *, was_aborted: bool = False, was_set_back: bool = False
    ) -> list[str]:
        """All that is wrong.

        Args:
            was_aborted: an abort of everything, or of this request, was sent while it ran.
            was_set_back: the time of day was set back while it ran.
        """
        if request.kind == HEALTH and was_set_back and reply.status is None:
            # http_server.py: health_generate waits until its time is over, and the time of day is not.
            self._count("health check hung, because SGLang waits by the time of day and that was set back")
            return []
        if request.kind == HEALTH:
            self._count("health check answered")
            return (
                [] if reply.status == 200 else [f"a health check must be answered; found {reply.status} {reply.error}"]
            )
        if request.kind == BAD:
            self._count("refused with a 400")
            is_right = reply.status is not None and 400 <= reply.status < 500
            return [] if is_right else [f"a bad request must be refused; found {reply.status} {reply.error}"]
        assert request.question is not None
        if was_aborted and not reply.left and _says_aborted(reply):
            self._count("aborted before its first token")
            return []
        if reply.error or (reply.status != 200 and not reply.left):
            return [f"an answer is missing; found {reply.status} {reply.error}"]
        found = list(reply.odd)
        if reply.left:
            self._count("hung up")
        elif len(reply.answers) != request.question.body.get("sampling_params", {}).get("n", 1):
            found.append(f"{len(reply.answers)} answers")
        for index, answer in enumerate(reply.answers):
            found += self._complaints_of(request, answer, index, was_aborted, reply.left)
        return found

    def _complaints_of(self, request: Request, answer: Answer, index: int, was_aborted: bool, left: bool) -> list[str]:
        question = request.question
        assert question is not None
        found = []
        if answer.is_aborted:
            self._count("aborted")
            if not was_aborted:
                found.append(f"aborted by nobody: {answer.finish}")
        elif answer.finish is None and not left:
            found.append("no finish reason")
        if request.kind == STRICT:
            found += self._against_oracle(question, answer, index, is_cut=left or answer.is_aborted)
        elif not left:
            self._count(f"{request.kind}, bounds kept")
        if answer.ids is not None and not left:
            found += self._about_itself(request, question, answer)
        return found

    def _against_oracle(self, question: Question, answer: Answer, index: int, is_cut: bool) -> list[str]:
        expected = self.oracle.answers(question)[index]
        if question.is_penalized and answer.meta.get("num_retractions"):
            self._count("strict, not compared: SGLang counts penalties anew after a retraction")
            return []
        if answer.is_aborted and answer.meta.get("prompt_tokens") == STAND_IN:
            self._count("aborted before its prefill, with a token that answers nothing")
            return []
        if answer.is_aborted and answer.ids is not None:
            # SGLang 0.5.23 cuts the last round of an aborted request neither at its length nor at its end.
            ids, known = answer.ids, expected.ids or []
            right = ids[: len(known)] == known[: len(ids)] and len(ids) <= len(known) + MOST_A_ROUND
            if right and len(ids) > len(known):
                self._count("aborted, with tokens of its last round behind the end")
        elif is_cut:
            text = answer.text.rstrip("\N{REPLACEMENT CHARACTER}")
            right = expected.text.startswith(text) or (answer.is_aborted and text.startswith(expected.text))
        elif answer.ids is None:
            right = (answer.text, answer.finish) == (expected.text, expected.finish)
        else:
            right = (answer.ids, answer.text, answer.finish) == (expected.ids, expected.text, expected.finish)
        if right:
            self._count(
                "strict, beginning equal to the target's own" if is_cut else "strict, equal to the target's own"
            )
            return [] if is_cut else self._logprobs(answer, expected)
        if answer.ids is not None and expected.ids is not None:
            same = next((i for i, (a, b) in enumerate(zip(answer.ids, expected.ids, strict=False)) if a != b), None)
            if same is not None:
                gap = self.oracle.gap(question, answer.ids[: same + 1])
                if gap is not None and gap < NEAR_TIE:
                    self._count(f"strict, differs where two tokens tie (within {NEAR_TIE:g})")
                    return []
                found = f"token {same} is {answer.ids[same]} for {expected.ids[same]}, {gap} less likely"
                return [f"not the target's own: {found}: {answer.ids} for {expected.ids}"]
        mine, theirs = (answer.ids or answer.text, answer.finish), (expected.ids or expected.text, expected.finish)
        return [f"not the target's own: {mine} for {theirs}"]

    def _logprobs(self, answer: Answer, expected: Answer) -> list[str]:
        ours, theirs = (each.meta.get("output_token_logprobs") or [] for each in (answer, expected))
        if [row[1] for row in ours] != [row[1] for row in theirs]:
            return [f"log-probabilities of tokens {[row[1] for row in ours]} for {[row[1] for row in theirs]}"]
        worst = max((abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True)), default=0.0)
        return [] if worst <= LOGPROB_TOLERANCE else [f"a log-probability is off by {worst:g}"]

    def _about_itself(self, request: Request, question: Question, answer: Answer) -> list[str]:
        """Length, tally, labels and bounds."""
        ids, meta = answer.ids or [], answer.meta
        most = question.most + (MOST_A_ROUND if answer.is_aborted else 0)
        found = [] if len(ids) <= most else [f"{len(ids)} tokens; at most {question.most} were asked for"]
        if len(ids) != meta["completion_tokens"]:
            found.append(f"{len(ids)} ids for {meta['completion_tokens']} tokens")
        counts = meta.get("lvspec")
        if counts is None:
            return found if answer.is_aborted else [*found, "no summary of LVSPEC"]
        found += _tally_complaints(counts, meta, len(ids))
        rule = self._rule(request, question)
        loosened = counts["accepted"]["filler"] + counts["accepted"]["shift"]
        if rule.is_strict:
            if loosened:
                found.append(f"a strict answer has {loosened} loosened tokens")
            # SGLang takes the images and the grammar from a request that it aborts before its prefill.
            is_told = not _asked_strict(request.settings) and not answer.is_aborted
            reason = question.strict_reason if is_told else counts["strict_reason"]
            if (counts["mode"], counts["strict_reason"]) != ("strict", reason):
                found.append(f"mode {counts['mode']} because of {counts['strict_reason']}, not of {reason}")
        elif counts["strict_reason"] == "guard":
            self._count("asked for loose, held strict by the guard")
        elif counts["mode"] != "loose" and not (answer.is_aborted and meta.get("prompt_tokens") == STAND_IN):
            found.append(f"asked for loose, found {counts['mode']}: {counts['strict_reason']}")
        if loosened > rule.max_share * max(len(ids), BUDGET_FROM):
            found.append(f"{loosened} loosened of {len(ids)} tokens, at most a share of {rule.max_share}")
        if request.wants_labels and ids:
            found += self._label_complaints(request, question, answer, rule)
        return found

    def _label_complaints(self, request: Request, question: Question, answer: Answer, rule: Rule) -> list[str]:
        ids, meta = answer.ids or [], answer.meta
        lengths = {key: len(meta.get(key) or []) for key in PER_TOKEN}
        if set(lengths.values()) != {len(ids)}:
            return [f"{len(ids)} tokens have {lengths}"]
        labels, choices, given_up = meta["lvspec_labels"], meta["lvspec_choice"], meta["lvspec_given_up"]
        counts, seen = meta["lvspec"], Counter(labels)
        found = []
        if {**counts["accepted"], "bonus": counts["bonus"]} != {
            name: seen[name] for name in ("match", "filler", "shift", "bonus")
        }:
            found.append(f"labels {dict(seen)} for a tally of {counts}")
        if labels[0] != "bonus":
            found.append("the first token is the target's own")
        stops = set(question.body["sampling_params"].get("stop_token_ids", ()))
        banned = {int(token) for token, bias in question.sampling.get("logit_bias", {}).items() if bias < -50}
        loosened = run = 0
        for count, (token, label, choice, gap) in enumerate(zip(ids, labels, choices, given_up, strict=True), start=1):
            is_loosened = label in LOOSENED
            run, loosened = (run + 1, loosened + 1) if is_loosened else (0, loosened)
            if run > (rule.max_run or math.inf) or loosened > rule.max_share * max(count, BUDGET_FROM):
                found.append(f"token {count}: {loosened} loosened, {run} of them in a row; the rule is {rule}")
            if (choice is not None) != is_loosened or (gap != 0 and not is_loosened):
                found.append(f"token {count}: {label}, but choice {choice} and {gap} given up")
            if not is_loosened or choice is None:
                continue
            pair = (token, choice)
            if any(not self.words[each] or each in stops for each in pair):
                found.append(f"token {count}: {pair}, of which one ends or structures an answer, was loosened")
            if rule.protect_digits and any(letter.isdigit() for each in pair for letter in self.words[each]):
                found.append(f"token {count}: {pair}, of which one holds a digit, was loosened")
            if label == "shift" and (rule.window == 0 or rule.shift == "off"):
                found.append(f"token {count}: a shifted word, where none is allowed")
            if label == "filler" and gap is not None and rule.floor and gap > -math.log(rule.floor) + LOGPROB_TOLERANCE:
                found.append(f"token {count}: {gap} given up below a floor of {rule.floor}")
            if token in banned:
                found.append(f"token {count}: {token} is banned by a bias")
        return found[:5]

    def _rule(self, request: Request, question: Question) -> Rule:
        """The rule as the documentation says it (docs/settings.md)."""
        settings = request.settings
        if question.strict_reason is not None or _asked_strict(settings):
            return PRESETS["strict"]
        rule = PRESETS[settings["preset"]] if "preset" in settings else self.server_rule
        names = [field for field in Rule.__dataclass_fields__ if field in settings]
        return rule.with_values({name: settings[name] for name in names})

    def _count(self, outcome: str) -> None:
        with self._lock:
            self.outcomes[outcome] += 1


def _tally_complaints(counts: dict[str, Any], meta: dict[str, Any], tokens: int) -> list[str]:
    loosened = counts["accepted"]["filler"] + counts["accepted"]["shift"]
    found = []
    if sum(counts["accepted"].values()) + counts["bonus"] != tokens:
        found.append(f"a tally of {counts} for {tokens} tokens")
    if counts["divergence"] != (loosened / tokens if tokens else None):
        found.append(f"divergence {counts['divergence']} with {loosened} of {tokens} loosened")
    if counts["rounds"] != meta.get("spec_verify_ct", 0):
        found.append(f"{counts['rounds']} rounds, of which SGLang counts {meta.get('spec_verify_ct', 0)}")
    return found


def _asked_strict(settings: dict[str, Any]) -> bool:
    return settings.get("mode") == "strict" or settings.get("preset") == "strict" or settings.get("relaxation") == 0


def _says_aborted(reply: Reply) -> bool:
    return "abort" in reply.error.lower()
