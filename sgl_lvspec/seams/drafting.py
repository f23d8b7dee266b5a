"""What the draft worker builds on: SGLang's two-model draft worker, its inputs and its forwards."""

from __future__ import annotations

from sgl_lvspec.seams.expectation import Avoids, Contains, Extends, Has, Seam, Signature

_DRAFT = "sglang.srt.speculative.standalone_worker_v2.StandaloneDraftWorker"
_EAGLE_DRAFT = "sglang.srt.speculative.eagle_worker_v2.EagleDraftWorker"
_BASE = "sglang.srt.speculative.base_spec_worker.EagleDraftWorkerBase"
_COMMON = "sglang.srt.speculative.eagle_worker_common"
_INFO = "sglang.srt.speculative.eagle_info"
_FORWARD = "sglang.srt.model_executor.forward_batch_info"
_CONTEXT = "sglang.srt.model_executor.forward_context"
_CHAIN = "drafting/chain.py"

WORKER = (
    Seam(_DRAFT, Extends("EagleDraftWorker"), _CHAIN, "our draft worker is one, without EAGLE's loop"),
    Seam(
        _DRAFT,
        Has(
            "server_args device topk speculative_num_steps target_worker draft_worker draft_runner tree_mask_mode "
            "req_to_token_pool token_to_kv_pool_allocator"
        ),
        _CHAIN,
        "attributes that the chain reads",
    ),
    Seam(
        _BASE,
        Has("_topk1_parents_prealloc", "_topk1_score_indices_prealloc"),
        _CHAIN,
        "the constant shape of a chain, one row per request",
    ),
    Seam(
        f"{_BASE}._rebuild_topk1_chain_buffers",
        Contains("self.speculative_num_draft_tokens == self.speculative_num_steps + 1"),
        _CHAIN,
        "the chain's rows are built for K and K + 1; a shorter chain takes their beginning",
    ),
    Seam(
        f"{_DRAFT}.__init__",
        Contains("max(self.speculative_num_steps * self.topk, self.speculative_num_draft_tokens)"),
        _CHAIN,
        "every round reserves K + 1 slots, and no chain writes more",
    ),
    Seam(
        f"{_DRAFT}.alloc_memory_pool",
        Signature("(self, memory_pool_config=None, req_to_token_pool=None, token_to_kv_pool_allocator=None)"),
        _CHAIN,
        "the draft's own pool is made once both models are loaded",
    ),
    Seam(
        f"{_DRAFT}.alloc_memory_pool",
        Contains(
            "self.req_to_token_pool = req_to_token_pool",
            "self.token_to_kv_pool_allocator = token_to_kv_pool_allocator",
            "self.draft_worker.alloc_memory_pool(memory_pool_config=memory_pool_config, "
            "req_to_token_pool=req_to_token_pool, token_to_kv_pool_allocator=token_to_kv_pool_allocator)",
        ),
        _CHAIN,
        "the model gets the pools that we name; afterwards a round's slots are asked of the target's",
    ),
    Seam(
        f"{_EAGLE_DRAFT}.init_attention_backends",
        Contains("self.draft_worker.init_attention_backends()", "self.init_attention_backend()"),
        _CHAIN,
        "our backends of the K + 1 steps come after the runner's own",
    ),
    Seam(f"{_EAGLE_DRAFT}.init_attention_backend", Signature("(self)"), _CHAIN, "we override it"),
    Seam(
        f"{_EAGLE_DRAFT}.init_cuda_graphs",
        Contains("self._capture_cuda_graphs()"),
        _CHAIN,
        "we capture nothing for the draft's steps",
    ),
    Seam(f"{_EAGLE_DRAFT}._capture_cuda_graphs", Signature("(self)"), _CHAIN, "we override it"),
    Seam(f"{_EAGLE_DRAFT}.draft", Signature("(self, batch, *, with_topology=False)"), _CHAIN, "we override it"),
    Seam(
        f"{_EAGLE_DRAFT}._draft_extend_for_prefill",
        Signature("(self, batch, target_hidden_states, next_token_ids, mm_input_embeds=None, kv_loc_plan=None)"),
        _CHAIN,
        "we override it",
    ),
    Seam(
        f"{_EAGLE_DRAFT}._draft_extend_for_prefill",
        Contains("torch.cat((input_ids[1:], tail_tokens[i].reshape(1)))"),
        _CHAIN,
        "SGLang rotates the prompt for the draft, which is why ours does not inherit this",
    ),
    Seam(
        f"{_EAGLE_DRAFT}._draft_extend_for_decode",
        Signature("(self, batch, batch_result, *, kv_loc_plan=None)"),
        _CHAIN,
        "we override it: nothing is re-run after verification",
    ),
    Seam(
        "sglang.srt.speculative.eagle_worker_v2.EAGLEWorkerV2.spec_v2_attn_backends",
        Contains(
            "self._draft_worker.draft_attn_backend",
            "self._draft_worker.draft_extend_attn_backend or self._draft_worker.draft_runner.attn_backend",
        ),
        _CHAIN,
        "the scheduler asks these for needs_cpu_seq_lens; we leave the extend backend None",
    ),
)

ROUND = (
    Seam(
        f"{_COMMON}.prepare_for_draft",
        Signature(
            "(draft_input, req_to_token_pool, batch, cuda_graph_runner, draft_model_runner, topk, num_steps, *, "
            "target_translator=None, num_draft_tokens=None)"
        ),
        _CHAIN,
        "assigns the K + 1 slots of a round and builds the draft's forward batch",
    ),
    Seam(
        f"{_COMMON}.prepare_for_draft",
        Contains(
            "assign_draft_cache_locs_contiguous_func(batch.req_pool_indices, req_to_token_pool.req_to_token, "
            "batch.seq_lens, batch.out_cache_loc, topk, window_cols, ...)",
            "CaptureHiddenMode.NULL if draft_model_runner.spec_algorithm.is_standalone() else CaptureHiddenMode.LAST",
            "ForwardBatch.init_new(batch, draft_model_runner, ...)",
            "return forward_batch, can_run_decode_cuda_graph, kv_loc_plan",
        ),
        _CHAIN,
        "slots stand request by request, positions start at the committed length, no hidden states are asked for",
    ),
    Seam(
        f"{_COMMON}.build_eagle_verify_input",
        Signature(
            "(batch, draft_input, parent_list, top_scores_index, draft_tokens, draft_probs, *, target_worker, topk, "
            "num_steps, num_draft_tokens, tree_mask_mode, device)"
        ),
        _CHAIN,
        "turns the chain into SGLang's verify input",
    ),
    Seam(
        f"{_INFO}.EagleVerifyInput.create_idle_input",
        Signature("(cls, topk, spec_steps, num_verify_tokens, device)"),
        _CHAIN,
        "the verify input of an idle rank",
    ),
    Seam(
        f"{_INFO}.EagleDraftInput",
        Has("bonus_tokens num_tokens_per_req num_tokens_for_logprob_per_req topk_p topk_index"),
        _CHAIN,
        "what one round hands to the next",
    ),
    Seam(
        f"{_INFO}.EagleDraftInput.filter_batch",
        Contains("self.topk_p = self.topk_p[new_indices]", "self.topk_index = self.topk_index[new_indices]"),
        _CHAIN,
        "candidates are sliced whenever the batch changes, so a chain carries empty ones",
    ),
    Seam(
        f"{_INFO}.EagleDraftInput.merge_batch",
        Contains("torch.cat([self.topk_p, spec_info.topk_p])", "torch.cat([self.topk_index, spec_info.topk_index])"),
        _CHAIN,
        "candidates are joined whenever the batch changes, so a chain carries empty ones",
    ),
    Seam(
        f"{_INFO}.EagleDraftExtendInput",
        Has("hidden_states num_tokens_per_req num_tokens_for_logprob_per_req positions"),
        _CHAIN,
        "the spec input of the draft's prefill",
    ),
    Seam(
        "sglang.srt.managers.utils.GenerationBatchResult",
        Has("next_draft_input", "next_token_ids"),
        _CHAIN,
        "where the next round's input is put",
    ),
)

FORWARD = (
    Seam(
        f"{_FORWARD}.ForwardBatch.init_new",
        Signature(
            "(cls, batch, model_runner, *, capture_hidden_mode=None, return_hidden_states_before_norm, "
            "extend_position_info=None, spec_mrope_positions=None, kv_loc_plan=None, write_cols=None)"
        ),
        _CHAIN,
        "builds the draft's prefill batch",
    ),
    Seam(
        f"{_FORWARD}.ForwardBatch.init_new",
        Contains(
            "req.extend_end == len(req.full_untruncated_fill_ids)",
            "kv_loc_plan = translator.own_plan(ret)",
            "if ret.spec_info is not None and getattr(ret.spec_info, 'positions', None) is not None:\n"
            "    ret.positions = ret.spec_info.positions",
            "ret.extend_prefix_lens_cpu = list(extend_prefix_lens)",
            "ret.mrope_positions = spec_mrope_positions",
            "ret.compute_spec_mrope_positions(model_runner, batch)",
            "ret._compute_mrope_positions(model_runner, batch)",
        ),
        _CHAIN,
        "positions that we name are used, slots are the batch's own; a decode batch gets M-RoPE positions from those "
        "in its spec input; which prefill is a prompt's last (context/evidence.py)",
    ),
    Seam(
        f"{_FORWARD}.ForwardBatch.compute_spec_mrope_positions",
        Contains(
            "mm_inputs[i].mrope_position_delta.squeeze(0)",
            "seq_positions + mrope_delta_tensor",
            "self.mrope_positions = next_input_positions",
        ),
        _CHAIN,
        "a fresh tensor [3, B], to which every draft step adds one; what follows a prompt lies at its index and delta",
    ),
    Seam(
        f"{_FORWARD}.ForwardBatch",
        Has(
            "batch_size forward_mode input_ids out_cache_loc positions mrope_positions seq_lens seq_lens_cpu "
            "extend_seq_lens req_pool_indices spec_info return_logprob mark_forward_metadata_ready"
        ),
        _CHAIN,
        "fields that the chain and the CPU backend read or set",
    ),
    Seam(f"{_FORWARD}.CaptureHiddenMode", Has("NULL"), _CHAIN, "the draft's prefill asks for no hidden states"),
    Seam(
        f"{_CONTEXT}.forward_context",
        Signature("(ctx, *, forward_batch=None)"),
        _CHAIN,
        "each step has its own backend",
    ),
    Seam(f"{_CONTEXT}.ForwardContext", Has("attn_backend"), _CHAIN, "each step has its own backend"),
    Seam(
        "sglang.srt.model_executor.model_runner.ModelRunner",
        Has("model_config req_to_token_pool token_to_kv_pool attn_backend forward spec_algorithm"),
        _CHAIN,
        "what the draft and the CPU backend take from a runner",
    ),
    Seam(
        "sglang.srt.speculative.draft_utils.DraftBackendFactory",
        Signature(
            "(self, draft_model_runner, topk, speculative_num_steps, seed_dsa_topk_from_draft_extend=False, "
            "qsa_profile=None)"
        ),
        _CHAIN,
        "builds the step backends on a GPU",
    ),
    Seam(
        "sglang.srt.speculative.draft_utils.DraftBackendFactory.create_decode_backend",
        Avoids("'torch_native'"),
        _CHAIN,
        "there is no step backend for CPU without AMX, which is why we bring one",
    ),
    Seam(
        "sglang.srt.layers.attention.triton_backend.TritonMultiStepDraftBackend.__init__",
        Contains("range(self.speculative_num_steps - 1)"),
        _CHAIN,
        "one backend fewer than steps, so we ask for K + 2",
    ),
    Seam(
        "sglang.srt.layers.attention.flashinfer_backend.FlashInferMultiStepDraftBackend.__init__",
        Contains("range(self.speculative_num_steps - 1)"),
        _CHAIN,
        "one backend fewer than steps, so we ask for K + 2",
    ),
    Seam("sglang.srt.environ", Has("envs EnvField"), _CHAIN, "a switch of SGLang's, for one forward"),
    Seam("sglang.srt.environ.EnvField", Has("override"), _CHAIN, "a switch of SGLang's, for one forward"),
    Seam(
        "sglang.srt.environ.Envs",
        Has("SGLANG_EAGER_INPUT_NO_COPY"),
        _CHAIN,
        "a forward with more rows than there are places for requests",
    ),
    Seam(
        "sglang.srt.model_executor.runner.eager_runner.EagerRunner.load_batch",
        Contains("envs.SGLANG_EAGER_INPUT_NO_COPY.get()", "replace(forward_batch)"),
        _CHAIN,
        "such a forward goes round the input buffers, which have a row for each place",
    ),
    Seam(
        "sglang.srt.mem_cache.kv_loc_plan.KVLocPlan",
        Has("bind"),
        _CHAIN,
        "a prefill hands us the target's plan, which we leave alone: the draft has slots of its own",
    ),
)

SEAMS = WORKER + ROUND + FORWARD
