"""What the slot tables and the scorers build on: KV slots, padded ids, and the modules of the target's forward."""

from __future__ import annotations

from sgl_lvspec.seams.expectation import Contains, Has, Seam, Signature

_WORKER = "sglang.srt.speculative.eagle_worker_v2.EAGLEWorkerV2"
_BASE_WORKER = "sglang.srt.speculative.base_spec_worker.BaseSpecWorker"
_BATCH = "sglang.srt.managers.schedule_batch"
_RADIX = "sglang.srt.layers.radix_attention"
_SLOTS = "relevance/slots.py"
_ATTENTION = "relevance/attention.py"
_SIMILARITY = "relevance/similarity.py"

SLOTS = (  # padded ids are a seam of `context`, their clamping in place is one of `media`
    Seam(
        f"{_BATCH}.MultimodalDataItem",
        Has("offsets"),
        _SLOTS,
        "first and last position of each run of visual tokens, the oracle of the slot tables",
    ),
    Seam(
        "sglang.srt.mem_cache.allocator.base.BaseTokenToKVPoolAllocator",
        Has("size page_size device"),
        _SLOTS,
        "slots 0 to size + page_size are all that there are",
    ),
    Seam(
        "sglang.srt.mem_cache.allocator.token.TokenToKVPoolAllocator.clear",
        Contains("torch.arange(1, self.size + 1, ...)"),
        _SLOTS,
        "slot 0 is never handed out, slot `size` is",
    ),
    Seam(
        "sglang.srt.mem_cache.memory_pool.MHATokenToKVPool._kv_buffer_shapes",
        Contains("rows = self.size + self.page_size", "(rows, self.head_num, self.head_dim)"),
        _SLOTS,
        "the pool has as many rows as the tables",
    ),
)

WORKER = (
    Seam(
        f"{_BASE_WORKER}.alloc_memory_pool",
        Signature("(self, memory_pool_config=None, req_to_token_pool=None, token_to_kv_pool_allocator=None)"),
        "worker.py",
        "tables and hooks are made here",
    ),
    Seam(
        "sglang.srt.managers.scheduler.Scheduler.init_memory_pools",
        Contains("self.init_target_memory_pool()", "self.draft_worker.alloc_memory_pool(...)"),
        "worker.py",
        "the target's pools exist when ours are made",
    ),
    Seam(f"{_BASE_WORKER}.clear_cache_pool", Signature("(self)"), "worker.py", "tables are cleared here"),
    Seam(
        "sglang.srt.managers.scheduler.Scheduler.flush_cache",
        Contains("self.token_to_kv_pool_allocator.clear()", "self.draft_worker.clear_cache_pool()"),
        "worker.py",
        "a flush reaches us",
    ),
    Seam(
        f"{_WORKER}.verify",
        Signature("(self, batch, pp_proxy_tensors=None, grammar_barrier=None)"),
        "worker.py",
        "we mark the chain's slots before it",
    ),
    Seam(
        f"{_WORKER}.verify",
        Contains("self.speculative_num_draft_tokens"),
        "worker.py",
        "a round's own width is set around it: chains may end early",
    ),
    Seam(
        "sglang.srt.managers.scheduler_components.batch_result_processor._get_speculative_output_stride",
        Contains("stride = result.speculative_num_draft_tokens"),
        "worker.py",
        "the scheduler cuts a round's tokens by the width that its result tells",
    ),
    Seam(
        "sglang.srt.speculative.standalone_worker_v2.StandaloneWorkerV2",
        Has(
            "server_args device target_worker token_to_kv_pool_allocator req_to_token_pool speculative_num_draft_tokens"
        ),
        "worker.py",
        "where the settings, the target and its slots are found",
    ),
    Seam(f"{_BATCH}.ScheduleBatch", Has("forward_mode input_ids out_cache_loc"), "worker.py", "what is marked where"),
)

HOOKS = (
    Seam(
        f"{_RADIX}.RadixAttention",
        Signature(
            "(self, num_heads, head_dim, scaling, num_kv_heads, layer_id, logit_cap=0.0, v_head_dim=-1, "
            "sliding_window_size=-1, is_cross_attention=False, pos_encoding_mode='NONE', "
            "logit_capping_method='tanh', quant_config=None, attn_type=AttentionType.DECODER, use_irope=False, "
            "prefix='', use_prefill_attention_wrapper=True)"
        ),
        _ATTENTION,
        "a rank's own heads, its keys' shape and its scale",
    ),
    Seam(
        f"{_RADIX}.RadixAttention",
        Has("tp_k_head_num register_forward_hook"),
        _ATTENTION,
        "a module with hooks, which knows its KV heads",
    ),
    Seam(
        f"{_RADIX}.RadixAttention.forward",
        Signature("(self, q, k, v, forward_batch, save_kv_cache=True, key_value_num_tokens=None, **kwargs)"),
        _ATTENTION,
        "the hook gets these arguments",
    ),
    Seam(
        f"{_RADIX}.RadixAttention.forward",
        Contains("get_attn_backend().forward(q, k, v, self, forward_batch, save_kv_cache, **kwargs)"),
        _ATTENTION,
        "every backend is called from here, and has written the keys when it returns",
    ),
    Seam(f"{_RADIX}.AttentionType", Has("DECODER"), _ATTENTION, "attention of a row over all before it"),
    Seam(
        "sglang.srt.models.qwen2.Qwen2Attention.forward",
        Contains(
            "q, k = self.rotary_emb(positions, q, k)",
            "attn_output = self.attn(q, k, v, forward_batch)",
        ),
        _ATTENTION,
        "the module is called, so hooks fire, with rotated queries, as positional arguments (Qwen2.5-VL)",
    ),
    Seam(
        "sglang.srt.models.qwen3.Qwen3Attention.forward",
        Contains("attn_output = self.attn(q, k, v, forward_batch, save_kv_cache=save_kv_cache)"),
        _ATTENTION,
        "the same for Qwen3-VL",
    ),
    Seam(
        "sglang.srt.models.qwen2_5_vl.Qwen2_5_VLForConditionalGeneration.forward",
        Contains(
            "return self.logits_processor(input_ids, hidden_states, self.lm_head, forward_batch, aux_hidden_states)"
        ),
        _SIMILARITY,
        "the states of all tokens come by here, as positional arguments",
    ),
    Seam(
        "sglang.srt.models.qwen3_vl.Qwen3VLForConditionalGeneration.forward",
        Contains(
            "return self.logits_processor(input_ids, hidden_states, self.lm_head, forward_batch, aux_hidden_states)"
        ),
        _SIMILARITY,
        "the same for Qwen3-VL",
    ),
    Seam(
        "sglang.srt.models.qwen2.Qwen2Model.forward",
        Contains("hidden_states = residual_batch.final_norm(hidden_states, forward_batch, self.norm, ...)"),
        _SIMILARITY,
        "states have gone through the final norm",
    ),
    Seam(
        "sglang.srt.model_executor.model_runner.ModelRunner",
        Has("model"),
        _ATTENTION,
        "the target's modules",
    ),
    Seam(
        "sglang.srt.model_executor.forward_batch_info.ForwardMode.is_extend",
        Contains("self == ForwardMode.EXTEND", "self == ForwardMode.TARGET_VERIFY"),
        _SIMILARITY,
        "a verify forward is an extend too, so it is asked for first",
    ),
    Seam(
        "sglang.srt.model_executor.forward_batch_info.ForwardMode",
        Has("is_extend"),
        _SIMILARITY,
        "which forward it is",
    ),
    Seam(
        "sglang.srt.distributed.parallel_state.GroupCoordinator",
        Has("rank_in_group all_reduce"),
        _ATTENTION,
        "which heads are this rank's",
    ),
    Seam(
        "sglang.srt.distributed.parallel_state.GroupCoordinator.all_reduce",
        Signature("(self, input_)"),
        _ATTENTION,
        "the ranks' parts of a score are added up",
    ),
    Seam(
        "sglang.srt.model_executor.runner.base_cuda_graph_runner.get_batch_sizes_to_capture",
        Contains("[bs for bs in capture_bs if bs <= num_max_requests]"),
        _ATTENTION,
        "no captured batch is larger than the request pool, which sizes our buffers",
    ),
)

PAGES = (
    Seam(
        "sglang.srt.mem_cache.allocation.get_last_loc",
        Contains("impl = get_last_loc_triton", "impl = get_last_loc_torch"),
        "startup.py",
        "the kernel unless the backend is torch_native, so on CPU a larger page ends the scheduler",
    ),
)

SEAMS = SLOTS + WORKER + HOOKS + PAGES
