"""What the commit of a round builds on: SGLang's verification, its sampler and its per-request sampling tensors."""

from __future__ import annotations

from sgl_lvspec.seams.expectation import Avoids, Contains, Has, Seam, Signature

_UTILS = "sglang.srt.speculative.eagle_utils"
_SAMPLER = "sglang.srt.layers.sampler"
_COMMIT = "verification/commit.py"
_CHOICE = "verification/choice.py"

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
            "eagle_prepare_for_verify(verify_input, req_to_token_pool, batch, target_worker)",
            "eagle_sample(verify_input, batch, logits_output, grammar_mask, ...)",
            "new_seq_lens = batch.seq_lens + accept_lens",
            "accept_tokens = predict[accept_index]",
            "next_draft_input = EagleDraftInput(bonus_tokens=bonus_tokens)",
        ),
        _COMMIT,
        "all that is committed follows from the three tensors",
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
        Contains("torch.tensor([r.sampling_params.temperature for r in reqs], ...).to(...).view(-1, 1)"),
        _CHOICE,
        "temperatures are [B, 1], so they divide rows of logits",
    ),
    Seam(
        "sglang.srt.sampling.sampling_params.SamplingParams",
        Contains("self.temperature = 1.0\nself.top_k = 1", "self.top_k = TOP_K_ALL"),
        _CHOICE,
        "temperature 0 arrives as top_k 1 and temperature 1, no top_k as a number above 1",
    ),
)

SEAMS = VERIFY + SAMPLING
