"""What the commit of a round builds on: SGLang's verification, its sampler and its per-request sampling tensors."""

from __future__ import annotations

from sgl_lvspec.seams.expectation import Avoids, Contains, Has, Seam, Signature

_UTILS = "sglang.srt.speculative.eagle_utils"
_SAMPLER = "sglang.srt.layers.sampler"
_COMMIT = "verification/commit.py"
_CHOICE = "verification/choice.py"
_LOOSE = "verification/loose.py"
_ROWS = "verification/rows.py"
_ENDS = "verification/ends.py"
_BATCH = "sglang.srt.managers.schedule_batch"

VERIFY = (
    Seam(
        f"{_UTILS}.eagle_sample",
        Signature(
            "(verify_input, batch, logits_output, grammar_mask=None, uno_target_max_top_k=None, *, "
            "watermark_state=None, watermark_full_mask=True)"
        ),
        _COMMIT,
        "our AFTER hook gets these arguments",
    ),
    Seam(
        f"{_UTILS}.eagle_sample",
        Contains(
            "next_token_logits = logits_output.next_token_logits",
            "next_token_logits.add_(torch.repeat_interleave(sampling_info.acc_additive_penalties, ...))",
            "apply_scaling_penalties(next_token_logits, ...)",
            "next_token_logits.add_(torch.repeat_interleave(sampling_info.logit_bias, ...))",
            "grammar_mask.apply(next_token_logits)",
            "accept_index = torch.full((bs, verify_input.max_tree_depth), -1, ...)",
            "torch.argmax(next_token_logits, dim=-1)",
            "accept_lens = num_correct_drafts + 1",
            "return predict, accept_lens, accept_index",
        ),
        _COMMIT,
        "penalties, bias and grammar are in the logits, in place, before anything is chosen; our result has the same "
        "order, padding and convention",
    ),
    Seam(
        f"{_UTILS}.eagle_sample",
        Avoids("sampling_info.need_min_p_sampling", "sampling_info.min_ps"),
        _COMMIT,
        "verification ignores min-p, so we draw for the rows that ask for it; drop ours once SGLang does",
    ),
    Seam(
        f"{_UTILS}._verify_uses_greedy",
        Contains("is_all_greedy or is_cpu or is_xpu or (is_hip and (not use_rejection_sampling))"),
        _COMMIT,
        "on CPU verification takes the argmax at any temperature, so we draw there",
    ),
    Seam(
        "sglang.srt.speculative.eagle_worker_common.run_eagle_verify",
        Contains(
            "verify_input: EagleVerifyInput = batch.spec_info",
            "eagle_prepare_for_verify(verify_input, req_to_token_pool, batch, target_worker)",
            "logits_output = forward_batch_output.logits_output",
            "(predict, accept_lens, accept_index) = eagle_sample(verify_input, batch, logits_output, ...)",
            "new_seq_lens = batch.seq_lens + accept_lens",
            "accept_tokens = predict[accept_index]",
            "next_draft_input = EagleDraftInput(bonus_tokens=bonus_tokens)",
        ),
        _COMMIT,
        "the verify input is the one that the worker hung our rule on, all that is committed follows from three "
        "tensors, and a round's logits are still on its output when verify returns (calibrate/probe.py)",
    ),
    Seam(
        f"{_UTILS}.eagle_prepare_for_verify",
        Contains(
            "batch.input_ids = verify_input.draft_token",
            "batch.out_cache_loc = assign_extend_cache_locs_uniform_func(req_pool_indices=batch.req_pool_indices, "
            "req_to_token=req_to_token_pool.req_to_token, start_offset=batch.seq_lens, batch_size=bs, "
            "draft_token_num=verify_input.draft_token_num, device=device)",
            "CaptureHiddenMode.NULL if target_worker.model_runner.spec_algorithm.is_standalone() "
            "else CaptureHiddenMode.FULL",
        ),
        _COMMIT,
        "root and chain are the input of the target's verify forward, written to the K + 1 slots behind the context",
    ),
    Seam(
        "sglang.srt.speculative.eagle_info.EagleVerifyInput",
        Has("draft_token draft_token_num positions spec_steps max_tree_depth"),
        _COMMIT,
        "the chain as SGLang passes it to the hook",
    ),
    Seam(
        "sglang.srt.managers.schedule_batch.ScheduleBatch.cumulate_penalty_output_tokens",
        Contains("req.output_ids[-1] if len(req.output_ids) else req.origin_input_ids[-1]"),
        _COMMIT,
        "penalties count one token a round, so penalized rows commit one",
    ),
    Seam("sglang.srt.managers.schedule_batch.Req", Has("sampling_params", "output_ids"), _COMMIT, "penalized rows"),
    Seam(
        "sglang.srt.sampling.sampling_params.SamplingParams",
        Has("frequency_penalty presence_penalty repetition_penalty min_new_tokens"),
        _COMMIT,
        "what makes a row a penalized one",
    ),
    Seam(
        "sglang.srt.layers.logits_processor.LogitsProcessorOutput",
        Has("next_token_logits"),
        _COMMIT,
        "float [B * D, V] of the verify forward",
    ),
    Seam("sglang.srt.runtime_context.get_parallel", Signature("()"), _COMMIT, "the tensor-parallel group"),
    Seam(
        "sglang.srt.distributed.parallel_state.get_tp_group",
        Contains("get_parallel().tp_group"),
        _COMMIT,
        "the tensor-parallel group is an attribute of the parallel context",
    ),
    Seam(
        "sglang.srt.distributed.parallel_state.GroupCoordinator.broadcast",
        Signature("(self, input_, src=0)"),
        _COMMIT,
        "rank 0's draw is everybody's",
    ),
    Seam(
        "sglang.srt.distributed.parallel_state.GroupCoordinator",
        Has("world_size", "broadcast"),
        _COMMIT,
        "rank 0's draw is everybody's",
    ),
)

SAMPLING = (
    Seam(
        f"{_SAMPLER}.top_k_top_p_min_p_sampling_from_probs_torch",
        Signature(
            "(probs, top_ks, top_ps, min_ps, need_min_p_sampling, sampling_seed, positions, *, "
            "return_filtered_probs=False, max_top_k=None)"
        ),
        _CHOICE,
        "our draw is SGLang's own",
    ),
    Seam(
        f"{_SAMPLER}.sampling_from_probs_torch",
        Signature("(probs, sampling_seed=None, positions=None)"),
        _CHOICE,
        "our draw is SGLang's own",
    ),
    Seam(
        "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo",
        Has(
            "temperatures top_ks top_ps min_ps is_all_greedy need_top_k_sampling need_top_p_sampling "
            "need_min_p_sampling sampling_seed max_top_k acc_additive_penalties acc_scaling_penalties"
        ),
        _CHOICE,
        "per-request sampling tensors",
    ),
    Seam(
        "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch",
        Contains(
            "torch.tensor([r.sampling_params.temperature for r in reqs], ...).to(...).view(-1, 1)",
            "top_ps = torch.tensor([r.sampling_params.top_p for r in reqs], ...).to(...)",
            "top_ks = torch.tensor([r.sampling_params.top_k for r in reqs], ...).to(...)",
            "min_ps = torch.tensor([r.sampling_params.min_p for r in reqs], ...).to(...)",
            "all((r.sampling_params.top_k <= 1 for r in reqs))",
        ),
        _CHOICE,
        "temperatures are [B, 1], so they divide rows of logits; filters are [B], and a row of top_k 1 is greedy at "
        "any temperature",
    ),
    Seam(
        "sglang.srt.sampling.sampling_params.SamplingParams",
        Contains("self.temperature = 1.0\nself.top_k = 1", "self.top_k = TOP_K_ALL"),
        _CHOICE,
        "temperature 0 arrives as top_k 1 and temperature 1, no top_k as a number above 1",
    ),
)

LOOSE = (
    Seam(
        f"{_BATCH}.ScheduleBatch",
        Has("reqs req_pool_indices sampling_info spec_info device forward_mode"),
        _COMMIT,
        "rows of a round and whose they are",
    ),
    Seam(
        f"{_SAMPLER}.top_k_top_p_min_p_sampling_from_probs_torch",
        Contains(
            "torch.arange(0, probs_sort.shape[-1], device=probs.device).view(1, -1) >= top_ks.view(-1, 1)",
            "probs_sort[probs_sum - probs_sort > top_ps.view(-1, 1)] = 0.0",
            "min_p_thresholds = probs_sort[:, 0] * min_ps",
            "probs_sort[probs_sort < min_p_thresholds.view(-1, 1)] = 0.0",
        ),
        _LOOSE,
        "a token that a filter drops is not loosened either: each filter reads the whole distribution",
    ),
    Seam(
        "sglang.srt.model_executor.model_runner.ModelRunner",
        Has("req_to_token_pool model_config"),
        _LOOSE,
        "a row for each row of the pool",
    ),
    Seam(
        "sglang.srt.mem_cache.memory_pool.ReqToTokenPool",
        Has("req_to_token size"),
        _LOOSE,
        "a row for each row of the pool",
    ),
    Seam(
        "sglang.srt.configs.model_config.ModelConfig",
        Has("hf_eos_token_id vocab_size hidden_size"),
        _LOOSE,
        "ends of an answer, columns of the logits, width of a state",
    ),
)

ROWS = (
    Seam(
        f"{_BATCH}.release_req",
        Signature(
            "(*, req, remaing_req_count, req_to_token_pool, token_to_kv_pool_allocator, tree_cache, "
            "hisparse_coordinator, offload_kv=True)"
        ),
        _ROWS,
        "our BEFORE hook gets `req` by name",
    ),
    Seam(
        f"{_BATCH}.release_req",
        Contains("release_kv_cache(req, tree_cache, checkpoint=False)", "req.reset_for_retract()"),
        _ROWS,
        "the row is the request's until here",
    ),
    Seam(
        f"{_BATCH}.ScheduleBatch.release_req",
        Contains(
            "return release_req(req=self.reqs[idx], remaing_req_count=remaing_req_count, "
            "req_to_token_pool=self.req_to_token_pool, token_to_kv_pool_allocator=self.token_to_kv_pool_allocator, "
            "tree_cache=self.tree_cache, hisparse_coordinator=self.hisparse_coordinator, offload_kv=offload_kv)"
        ),
        _ROWS,
        "retraction and preemption give a request's row back by the hooked function",
    ),
    Seam(
        f"{_BATCH}.retract_all",
        Contains(
            "release_req(req=reqs[idx], remaing_req_count=len(reqs) - idx, req_to_token_pool=req_to_token_pool, "
            "token_to_kv_pool_allocator=token_to_kv_pool_allocator, tree_cache=tree_cache, "
            "hisparse_coordinator=hisparse_coordinator, offload_kv=offload_kv)"
        ),
        _ROWS,
        "so does a pause that retracts all",
    ),
    Seam(f"{_BATCH}.Req", Has("kv output_ids sampling_params"), _ROWS, "a request's row and what it has said"),
    Seam(f"{_BATCH}.ReqKvInfo", Has("req_pool_idx"), _ROWS, "the row of a request, None where it holds none"),
    Seam(
        f"{_BATCH}.Req.refresh_fill_ids",
        Contains("self.full_untruncated_fill_ids = self.origin_input_ids + self.output_ids"),
        _ROWS,
        "a retracted request is prefilled with what it has said, and that prefill's token is one more",
    ),
    Seam(
        "sglang.srt.sampling.sampling_params.SamplingParams",
        Has("stop_token_ids logit_bias"),
        _ROWS,
        "a request's own stops and bans",
    ),
)

ENDS = (
    Seam(
        f"{_BATCH}.Req.update_finish_state",
        Contains(
            "self._check_str_based_finish(new_accepted_len)",
            "self._check_token_based_finish(new_accepted_tokens)",
        ),
        _ENDS,
        "a stop string behind the end of an answer would win over the end; drop ours once it does not",
    ),
    Seam(f"{_BATCH}.Req", Has("eos_token_ids tokenizer"), _ENDS, "tokens that end an answer"),
    Seam(
        "sglang.srt.sampling.sampling_params.SamplingParams",
        Has("stop_strs stop_regex_strs ignore_eos"),
        _ENDS,
        "which requests have stop strings, and which no end",
    ),
)

SEAMS = VERIFY + SAMPLING + LOOSE + ROWS + ENDS
