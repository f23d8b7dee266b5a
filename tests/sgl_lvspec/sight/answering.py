"""A server's way from a round's report to `meta_info`, made of SGLang's own parts: requests, result processing, output
streamer, accumulation. Only the models, the sockets and the detokenizer are left out."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.managers.io_struct import unwrap_from_pickle
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.scheduler_components import output_streamer
from sglang.srt.managers.scheduler_components.batch_result_processor import SchedulerBatchResultProcessor
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.sampling.sampling_params import SamplingParams

from sgl_lvspec.sight import round_report
from sgl_lvspec.sight.response import after_update_request_meta_info
from sgl_lvspec.sight.round_report import PrefillReport, RoundReport
from sgl_lvspec.sight.streamer import LVSpecOutputStreamer

WIDTH = 4  # nodes of a round, K + 1
STOP = 2  # a token id that ends every answer
CHOICE = 77  # what the target would have said in the place of a loosened token
NAN, INF = float("nan"), float("inf")


def request(rid: str, *, labels: bool = False, stream: bool = False, max_new_tokens: int = 100, **params: Any) -> Req:
    """A request as the scheduler holds it."""
    custom = {"lvspec": {"labels": True}} if labels else None
    sampling = SamplingParams(max_new_tokens=max_new_tokens, custom_params=custom, **params)
    sampling.normalize(None)
    return Req(rid, "", array("q", [5, 6, 7]), sampling, stream=stream, eos_token_ids={STOP}, vocab_size=100)


def report_of(*rows: str, gap: float = 0.5) -> RoundReport:
    """A round from one letter per committed token: m(atch), f(iller), s(hift), b(onus)."""
    label = torch.full((len(rows), WIDTH), -1, dtype=torch.int8)
    for b, row in enumerate(rows):
        label[b, : len(row)] = torch.tensor(["mfsb".index(letter) for letter in row], dtype=torch.int8)
    # A bonus stands in the place of a rejected draft, whose numbers these are.
    relevance = torch.where(label == 3, 0.9, torch.arange(WIDTH) / 10.0)
    gaps = torch.where((label == 1) | (label == 2), gap, torch.where(label == 3, 7.0, 0.0))
    accept_lens = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    choice = torch.where((label == 1) | (label == 2), CHOICE, -1).to(torch.int32)
    return RoundReport(label, relevance, gaps, choice, accept_lens, WIDTH - 1)


class Answering:
    """Requests in one batch, and what their clients have got."""

    def __init__(self, *reqs: Req) -> None:
        self.reqs = list(reqs)
        self.clients = {
            req.rid: SimpleNamespace(
                customized_info_accumulated={}, customized_info_reported_keys=set(), ids=[], meta={}, chunks=[]
            )
            for req in reqs
        }
        self._streamer = LVSpecOutputStreamer(
            send_to_detokenizer=SimpleNamespace(send_output=self._receive),
            tree_cache=None,
            server_args=None,
            is_generation=True,
            spec_algorithm=SimpleNamespace(is_none=lambda: False),
            disaggregation_mode=None,
            enable_hicache_storage=lambda: False,
        )

    def prefill(self, *, prompt_goes_on: tuple[str, ...] = ()) -> None:
        """One target token each, except for requests whose prompt is not at its end."""
        output = LogitsProcessorOutput(next_token_logits=None)
        round_report.attach(output, PrefillReport())
        self._commit(output, [[] if req.rid in prompt_goes_on else [10] for req in self.reqs])

    def round(self, report: RoundReport | None, tokens: list[list[int]] | None = None) -> None:
        """A verified round; tokens of a row count from 20 unless given."""
        output = LogitsProcessorOutput(next_token_logits=None)
        if report is not None:
            round_report.attach(output, report)
            tokens = tokens or [list(range(20, 20 + n)) for n in report.accept_lens.tolist()]
        assert tokens is not None
        self._commit(output, tokens)

    def strict_round(self, *accept_lens: int) -> None:
        """A round of which only the lengths are known, as SGLang's own verification leaves it."""
        output = LogitsProcessorOutput(next_token_logits=None)
        round_report.attach_strict(output, torch.tensor(accept_lens, dtype=torch.int32), WIDTH - 1)
        self._commit(output, [list(range(20, 20 + n)) for n in accept_lens])

    def answer(self, rid: str) -> SimpleNamespace:
        """What the client of a request has got: all ids, the newest meta_info, every chunk's."""
        return self.clients[rid]

    def _commit(self, output: LogitsProcessorOutput, tokens: list[list[int]]) -> None:
        """As `process_batch_result_decode` orders it (batch_result_processor.py:950)."""
        processor = SchedulerBatchResultProcessor
        batch: Any = SimpleNamespace(reqs=self.reqs)
        result = GenerationBatchResult(logits_output=output)
        result.copy_auxiliary_output_to_cpu()
        starts = processor.snapshot_auxiliary_output_starts(batch, result)
        for req, ids in zip(self.reqs, tokens, strict=True):
            if ids and not req.finished() and not req.is_retracted:
                req.output_ids.extend(ids)
                req.update_finish_state(len(ids))
        if result.auxiliary_host_output is not None:
            assert starts is not None
            processor.consume_auxiliary_output(batch, result.auxiliary_host_output, starts)
        self._streamer.stream_output(self.reqs, return_logprob=False)

    def _receive(self, payload: Any) -> None:
        customized = unwrap_from_pickle(payload.customized_info)
        for i, rid in enumerate(payload.rids):
            client = self.clients[rid]
            client.ids.extend(payload.output_ids[i])
            client.meta = {}
            if customized is not None:
                arguments = (client.meta, client, customized, i, payload.finished_reasons[i])
                TokenizerManager.update_request_meta_info(TokenizerManager, *arguments)  # type: ignore[arg-type]
                after_update_request_meta_info(None, None, *arguments)
            client.chunks.append({key: list(v) if isinstance(v, list) else v for key, v in client.meta.items()})


def serve_without_a_server(monkeypatch: Any) -> None:
    """What SGLang's streamer reads of the server's settings."""
    monkeypatch.setattr(output_streamer, "get_serving", lambda: SimpleNamespace(stream_interval=1, weight_version="v"))
    monkeypatch.setattr(output_streamer, "get_parallel", lambda: SimpleNamespace(dp_rank=None, attn_tp_rank=0))
    settings = SimpleNamespace(enable_request_time_stats_logging=False)
    monkeypatch.setattr(output_streamer, "get_observability", lambda: settings)
