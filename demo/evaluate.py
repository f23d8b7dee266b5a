"""Measures the pair on held-out clips: `python -m demo.evaluate` (offline) or `--url http://host:port` (a server).

Offline: accuracy by attribute (clear and hard facts apart) for both models, accepted draft tokens per round (T) of the
strict chain, and where the two models' words agree. Against a server: the same questions about the same files.
"""

from __future__ import annotations

import argparse
import base64
import json
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from demo.curriculum import encode_chat
from demo.facts import Marks, merge, score
from demo.heldout import HeldOutClip, held_out, served_patches
from demo.provenance import provenance
from demo.runner import Runner, chain
from demo.tokenizer import Vocabulary, write_json

K = 10
CHUNK = 50  # clips in a batch: bounds the memory of the KV caches


def prompt_ids(vocabulary: Vocabulary, clip: HeldOutClip, index: int) -> list[int]:
    """The prompt of question `index` about `clip`, up to where the answer begins."""
    ids, labels = encode_chat(
        vocabulary, [(clip.questions[index].text, "")], [(vocabulary.video, clip.scene.frames // 2)]
    )
    return ids[: next(i for i, label in enumerate(labels) if label >= 0)]


def readable(marks: Marks) -> dict[str, dict[str, float | int]]:
    """Shares right with their counts, rounded for a result file."""
    return {
        level: {
            **{name: round(right / total, 4) for name, (right, total) in sorted(cells.items())},
            "facts": sum(total for name, (_, total) in cells.items() if name != "all_right"),
            "all_facts": round(
                sum(r for n, (r, _) in cells.items() if n != "all_right")
                / max(1, sum(t for n, (_, t) in cells.items() if n != "all_right")),
                4,
            ),
        }
        for level, cells in marks.items()
        if cells
    }


def accuracy(runner: Runner, clips: list[HeldOutClip], name: str) -> dict[str, Any]:
    """Accuracy of greedy answers: over descriptions, over short questions and over JSON answers."""
    groups: list[Marks] = [{}, {}, {}]
    is_valid = 0
    for begin in tqdm(range(0, len(clips), CHUNK), desc=f"{name} answers"):
        part = clips[begin : begin + CHUNK]
        patches = served_patches(part)
        for index in range(3):
            prompts = [prompt_ids(runner.vocabulary, c, index) for c in part]
            for clip, ids in zip(part, runner.greedy(prompts, patches, len(part)), strict=True):
                answer = runner.vocabulary.decode(ids)
                merge(groups[index], score(answer, clip.scene, clip.questions[index]))
                if index == 2:
                    is_valid += _is_json_object(answer)
    result: dict[str, Any] = {n: readable(m) for n, m in zip(("describe", "short", "json"), groups, strict=True)}
    return {**result, "json_valid": round(is_valid / len(clips), 4)}


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def speculation(target: Runner, draft: Runner, clips: list[HeldOutClip], index: int) -> dict[str, Any]:
    """T of the strict chain on question `index` of every clip, and the agreement of words on the target's text."""
    rounds: list[int] = []
    hits: Counter[str] = Counter()
    is_fact = target.vocabulary.is_fact
    for begin in tqdm(range(0, len(clips), CHUNK), desc=f"chain {index}"):
        part = clips[begin : begin + CHUNK]
        patches = served_patches(part)
        prompts = [prompt_ids(target.vocabulary, c, index) for c in part]
        answers, accepted = chain(target, draft, prompts, patches, len(part), K)
        rounds += [n for row in accepted for n in row]
        longest = max(map(len, answers))
        text = torch.tensor([a + [target.vocabulary.pad] * (longest - len(a)) for a in answers])
        first = draft.prefill(prompts, patches, len(part)).argmax(-1, keepdim=True)
        guess = torch.cat([first, draft.extend(text[:, :-1], draft.lengths).argmax(-1)], 1)
        for row, answer in enumerate(answers):
            for token, guessed in zip(answer, guess[row].tolist(), strict=False):
                kind = "fact" if is_fact[token] else "other"
                hits[kind] += 1
                hits[kind + " agreed"] += int(token == guessed)
    return {
        "T": round(float(np.mean(rounds)), 3),
        "rounds": len(rounds),
        "histogram": np.bincount(rounds, minlength=K + 1).tolist(),
        "agreement_fact_words": round(hits["fact agreed"] / max(1, hits["fact"]), 4),
        "agreement_other_words": round(hits["other agreed"] / max(1, hits["other"]), 4),
        "share_fact_words": round(hits["fact"] / max(1, hits["fact"] + hits["other"]), 4),
    }


def offline(pair: Path, count: int, roles: list[str], chain_count: int) -> dict[str, Any]:
    """Accuracy of each of `roles` on `count` clips, and the strict chain on the first `chain_count` of them."""
    clips = list(held_out(max(count, chain_count)))
    result: dict[str, Any] = {"accuracy": {}, "chain": {}}
    for role in roles:
        measured = accuracy(Runner(pair / role), clips[:count], role)
        result["accuracy"][role] = {"clips": count, **measured, "provenance": provenance("demo.evaluate")}
    if chain_count:
        target, draft = Runner(pair / "target"), Runner(pair / "draft")
        for index, name in enumerate(("describe", "short", "json")):
            result["chain"][name] = speculation(target, draft, clips[:chain_count], index)
        result["chain"] |= {"K": K, "clips": chain_count, "provenance": provenance("demo.evaluate")}
    return result


def keep(result: dict[str, Any], path: Path) -> None:
    """Write `result` to `path`; parts of the file that this run did not measure stay, with their own provenance."""
    old = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, {**old, **{k: {**old.get(k, {}), **v} if isinstance(v, dict) else v for k, v in result.items()}})


def ask_server(url: str, mp4: bytes, question: str, *, model: str = "default", limit: int = 200) -> str:
    """One greedy chat completion about an mp4 file, from an OpenAI-compatible server at `url`."""
    video = "data:video/mp4;base64," + base64.b64encode(mp4).decode()
    content = [{"type": "video_url", "video_url": {"url": video}}, {"type": "text", "text": question}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": limit, "temperature": 0}
    request = urllib.request.Request(
        url.rstrip("/") + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as reply:
        return str(json.load(reply)["choices"][0]["message"]["content"])


def served(url: str, count: int, pair: Path | None) -> dict[str, Any]:
    """Accuracy of a running server on held-out clips; with `pair`, beside the offline answers to the same questions."""
    clips = list(held_out(count))
    groups: list[Marks] = [{}, {}, {}]
    answers: list[list[str]] = []
    for clip in tqdm(clips, desc="asking the server"):
        answers.append([ask_server(url, clip.mp4, q.text) for q in clip.questions])
        for index, question in enumerate(clip.questions):
            merge(groups[index], score(answers[-1][index], clip.scene, question))
    names = ("describe", "short", "json")
    result: dict[str, Any] = {"clips": count, "url": url, "provenance": provenance("demo.evaluate")}
    result["served"] = {n: readable(m) for n, m in zip(names, groups, strict=True)}
    if pair is not None:
        runner, equal = Runner(pair / "target"), [0, 0, 0]
        offline_groups: list[Marks] = [{}, {}, {}]
        for clip, said in zip(clips, answers, strict=True):
            patches = served_patches([clip])
            for index, question in enumerate(clip.questions):
                ids = runner.greedy([prompt_ids(runner.vocabulary, clip, index)], patches, 1, limit=200)[0]
                own = runner.vocabulary.decode(ids)
                equal[index] += own == said[index]
                merge(offline_groups[index], score(own, clip.scene, question))
        result["offline"] = {n: readable(m) for n, m in zip(names, offline_groups, strict=True)}
        result["equal_answers"] = {n: round(e / count, 4) for n, e in zip(names, equal, strict=True)}
    return result


def main() -> None:
    """Parse the command line, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", type=Path, default=Path("demo/pair"))
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--roles", nargs="*", default=["target", "draft"], choices=("target", "draft"))
    parser.add_argument("--chain-clips", type=int, default=200, help="clips for the chain; 0 leaves it out")
    parser.add_argument("--url", help="measure this server instead; --clips of 30 take a minute or two")
    parser.add_argument("--compare", action="store_true", help="with --url: also answer offline, and compare")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="result file (JSON), merged into; printed in any case")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.url:
        result = served(args.url, args.clips, args.pair if args.compare else None)
    else:
        result = offline(args.pair, args.clips, args.roles, args.chain_clips)
    print(json.dumps(result, indent=1))
    if args.out is not None:
        keep(result, args.out)


if __name__ == "__main__":
    main()
