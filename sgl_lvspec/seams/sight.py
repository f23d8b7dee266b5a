"""What labels and counts travel on: SGLang's auxiliary outputs, its output streamer, its metadata, its metrics."""

from __future__ import annotations

from sgl_lvspec.seams.expectation import Contains, Equals, Has, Seam, Signature

_AUXILIARY = "sglang.srt.managers.auxiliary_output"
_RESULTS = "sglang.srt.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"
_STREAMER = "sglang.srt.managers.scheduler_components.output_streamer"
_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
_TOKENIZER = "sglang.srt.managers.tokenizer_manager"
_REQ = "sglang.srt.managers.schedule_batch.Req"
_REPORT = "sight/round_report.py"
_OURS = "sight/streamer.py"
_RESPONSE = "sight/response.py"
_REQUEST = "sight/request_sight.py"

REPORT = (
    Seam(
        "sglang.srt.layers.logits_processor.LogitsProcessorOutput",
        Has("auxiliary_device_output"),
        _REPORT,
        "where a forward's report hangs",
    ),
    Seam(
        f"{_AUXILIARY}.append_auxiliary_output",
        Signature("(current, output)"),
        _REPORT,
        "reports of others on the same forward stay",
    ),
    Seam(f"{_AUXILIARY}.CompositeDeviceAuxiliaryOutput", Has("outputs"), _REPORT, "reports of others on one forward"),
    Seam(
        f"{_AUXILIARY}.DeviceAuxiliaryOutput.copy_to_host",
        Signature("(self, copy_tensor)"),
        _REPORT,
        "SGLang asks for copies with its own primitive",
    ),
    Seam(
        f"{_AUXILIARY}.HostAuxiliaryOutput.consume",
        Signature("(self, batch, commits)"),
        _REPORT,
        "SGLang hands over what each request keeps",
    ),
    Seam(f"{_AUXILIARY}.CommittedTokens", Has("output_index token_ids"), _REPORT, "new tokens of a request"),
    Seam(
        "sglang.srt.managers.utils.GenerationBatchResult.copy_to_cpu",
        Contains("self.copy_auxiliary_output_to_cpu()", "self.copy_done.record()"),
        _REPORT,
        "the copies are waited for together with SGLang's own",
    ),
    Seam(
        "sglang.srt.managers.utils.GenerationBatchResult.copy_auxiliary_output_to_cpu",
        Contains(
            "self.auxiliary_host_output = device_output.copy_to_host(_async_d2h)",
            "self.logits_output.auxiliary_device_output = None",
        ),
        _REPORT,
        "every report is taken off once, so none meets the next round",
    ),
    Seam(
        f"{_RESULTS}.process_batch_result_decode",
        Contains(
            "result.copy_done.synchronize()",
            "self.snapshot_auxiliary_output_starts(batch, result)",
            "if (self.enable_overlap or self.enable_overlap_mlx) and (req.finished() or req.is_retracted):\n"
            "    continue",
            "req.output_ids.extend(next_token_id)",
            "req.update_finish_state(new_accept_len)",
            "self.consume_auxiliary_output(batch, auxiliary_output, auxiliary_output_starts)",
            "self.output_streamer.stream_output(batch.reqs, batch.return_logprob)",
        ),
        _REPORT,
        "tokens are cut before they are booked, and booked before they are streamed; those of a round that was under "
        "way at a retraction are dropped",
    ),
    Seam(
        f"{_RESULTS}.process_batch_result_prefill",
        Contains(
            "self.snapshot_auxiliary_output_starts(batch, result)",
            "req.output_ids.append(next_token_id)",
            "self.consume_auxiliary_output(batch, auxiliary_output, auxiliary_output_starts)",
            "self.output_streamer.stream_output(batch.reqs, batch.return_logprob, skip_stream_req)",
        ),
        _REPORT,
        "a prefill's token is booked before it is streamed",
    ),
    Seam(
        f"{_RESULTS}._build_auxiliary_commits",
        Contains(
            "output_end = cls._visible_output_len(req)",
            "if output_end == output_start:\n    commits.append(None)\n    continue",
            "CommittedTokens(output_index=output_start, token_ids=tuple(req.output_ids[output_start:output_end]))",
        ),
        _REPORT,
        "only what a request newly shows is booked, one entry per request",
    ),
    Seam("sglang.srt.managers.schedule_batch.ScheduleBatch", Has("reqs"), _REPORT, "rows of the report"),
    Seam(
        "sglang.srt.managers.utils.GenerationBatchResult",
        Has("logits_output accept_lens"),
        "worker.py",
        "what a forward hands over is reported on",
    ),
    Seam(
        "sglang.srt.speculative.eagle_worker_v2.EAGLEWorkerV2",
        Has("verify _forward_prefill_batch"),
        "worker.py",
        "the two forwards that commit tokens",
    ),
    Seam(_REQ, Has("rid"), _REPORT, "health checks are nobody's requests"),
    Seam(
        "sglang.srt.constants.HEALTH_CHECK_RID_PREFIX",
        Equals("'HEALTH_CHECK'"),
        _REPORT,
        "health checks are nobody's requests",
    ),
)

REQUEST = (
    Seam(_REQ, Has("customized_info sampling_params"), _REQUEST, "labels go out with the request's tokens"),
    Seam(
        "sglang.srt.sampling.sampling_params.SamplingParams",
        Has("custom_params"),
        _REQUEST,
        "where a request asks for labels",
    ),
    Seam(
        f"{_STREAMER}._GenerationStreamAccumulator.accept",
        Contains(
            "send_token_offset = req.send_token_offset",
            "output_ids_ = req.output_ids_through_stop",
            "self.output_ids.append(output_ids_[send_token_offset:])",
            "values = req_values[send_token_offset:len(output_ids_)]",
            "per_request_values.append([] if self.is_request_level_customized_info_key(key) "
            "else [None] * current_output_len)",
        ),
        _REQUEST,
        "lists on a request are sliced as its tokens are; rows without one are filled with None",
    ),
    Seam(
        f"{_REQ}.reset_for_retract",
        Contains("if self.input_embeds is not None:\n    self.output_ids = array('q')\n    ..."),
        _REQUEST,
        "a retracted request keeps its tokens unless it came as embeddings",
    ),
)

STREAMER = (
    Seam(
        f"{_SCHEDULER}.get_output_streamer_class",
        Signature("(self)"),
        _OURS,
        "SGLang's place for a streamer with more to say",
    ),
    Seam(
        f"{_SCHEDULER}.__init__",
        Contains(
            "self.init_metrics_collector()",
            "self.init_model_worker()",
            "self.init_metrics_reporter()",
            "self.init_output_streamer()",
        ),
        _OURS,
        "the hook is set by the worker's factory and called when metrics stand",
    ),
    Seam(
        f"{_STREAMER}.SchedulerOutputStreamer",
        Has("has_additional_customized_info build_additional_customized_info"),
        _OURS,
        "what a streamer overrides to say more",
    ),
    Seam(
        f"{_STREAMER}.SchedulerOutputStreamer.build_additional_customized_info",
        Signature("(self, reqs)"),
        _OURS,
        "asked for one value per request that is being sent",
    ),
    Seam(
        f"{_STREAMER}.SchedulerOutputStreamer._stream_output_generation",
        Contains(
            "if req.finished() and req.finished_output:\n    continue",
            "self.build_additional_customized_info(acc.output_reqs)",
            "acc.customized_info[key] = values",
        ),
        _OURS,
        "a finished request is sent once",
    ),
    Seam(_REQ, Has("finished"), _OURS, "a finished request is counted"),
    Seam(
        _SCHEDULER,
        Has("metrics_reporter metrics_collector draft_worker"),
        _OURS,
        "whether this rank reports, and under which labels; LVSPEC's worker, which knows K",
    ),
    Seam(
        "sglang.srt.speculative.standalone_worker_v2.StandaloneWorkerV2",
        Has("speculative_num_steps"),
        _OURS,
        "K as SGLang resolved it",
    ),
    Seam(
        "sglang.srt.managers.scheduler_components.metrics_reporter.SchedulerMetricsReporter",
        Has("current_scheduler_metrics_enabled"),
        _OURS,
        "whether this rank reports",
    ),
    Seam(
        "sglang.srt.observability.metrics_collector.SchedulerMetricsCollector",
        Has("labels"),
        "sight/counters.py",
        "our metrics carry the labels of SGLang's",
    ),
)

RESPONSE = (
    Seam(
        f"{_TOKENIZER}.TokenizerManager.update_request_meta_info",
        Signature("(self, meta_info, state, customized_info, index, finish_reason)"),
        _RESPONSE,
        "where customized values become metadata",
    ),
    Seam(
        f"{_TOKENIZER}.TokenizerManager._accumulate_request_meta_info",
        Contains(
            "accumulated = state.customized_info_accumulated.setdefault(key, [])",
            "accumulated.extend(values)",
            "meta_info[key] = accumulated",
            "state.customized_info_reported_keys.add(key)",
        ),
        _RESPONSE,
        "all values of a request become one list per key",
    ),
    Seam(
        f"{_TOKENIZER}.ReqState",
        Has("customized_info_accumulated customized_info_reported_keys"),
        _RESPONSE,
        "what is accumulated; a key taken out is neither repeated nor sliced by token",
    ),
    Seam(
        f"{_TOKENIZER}._slice_streaming_output_meta_info",
        Signature("(meta_info, last_output_offset, customized_info_keys=None)"),
        _RESPONSE,
        "incremental chunks slice accumulated keys by token",
    ),
)

SEAMS = REPORT + REQUEST + STREAMER + RESPONSE
