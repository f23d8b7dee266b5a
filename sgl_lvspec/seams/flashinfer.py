"""What relevance on FlashInfer builds on: SGLang's FlashInfer backend, and FlashInfer itself where it is installed."""

from __future__ import annotations

from sgl_lvspec.seams.expectation import Contains, Equals, Has, Seam, Signature

_MODULE = "sglang.srt.layers.attention.flashinfer_backend"
_SGLANGS = f"{_MODULE}.FlashInferAttnBackend"
_WRAPPER = "flashinfer.prefill.BatchPrefillWithPagedKVCacheWrapper"
_BACKEND = "attention/flashinfer_backend.py"
_CHECK = "attention/lse_check.py"
_MASSES = "relevance/masses.py"

SEAMS = (
    Seam(
        "sglang.srt.layers.attention.attention_registry.create_flashinfer_backend",
        Contains("return FlashInferAttnBackend(runner, init_new_workspace=runner.init_new_workspace)"),
        _BACKEND,
        "what SGLang registered under the name makes the object that we teach",
    ),
    Seam(
        "sglang.srt.layers.attention.attention_registry",
        Has("ATTENTION_BACKENDS register_attention_backend"),
        _BACKEND,
        "the name flashinfer is registered again",
    ),
    Seam(
        f"{_SGLANGS}.__init__",
        Contains("self.__class__ is FlashInferAttnBackend"),
        _BACKEND,
        "the constructor checks objects of its own class only, so the object changes its class afterwards",
    ),
    Seam(
        _SGLANGS,
        Has(
            "forward_metadata prefill_wrappers_verify workspace_buffer prefill_backend token_to_kv_pool "
            "indices_updater_prefill"
        ),
        _BACKEND,
        "what the verify forward runs with, and the check of its log-sum-exp",
    ),
    Seam(
        f"{_SGLANGS}.forward_extend",
        Signature("(self, q, k, v, layer, forward_batch, save_kv_cache=True)"),
        _BACKEND,
        "the method that we override",
    ),
    Seam(
        f"{_SGLANGS}.forward_extend",
        Contains(
            "prefill_wrapper_paged = self.forward_metadata.prefill_wrappers[self._get_wrapper_idx(layer)]",
            "self.token_to_kv_pool.set_kv_buffer(...)",
            "prefill_wrapper_paged.forward(q.view(-1, layer.tp_q_head_num, layer.head_dim), kv_cache, ..., "
            "causal=causal, sm_scale=layer.scaling, k_scale=layer.k_scale_float)",
        ),
        _BACKEND,
        "attention of a verify forward is one call of `forward` of a wrapper found in the plan",
    ),
    Seam(
        f"{_MODULE}.PrefillMetadata",
        Has("prefill_wrappers use_ragged extend_no_prefix multi_item_params swa_out_cache_loc"),
        _BACKEND,
        "a dataclass that is copied with other wrappers",
    ),
    Seam(
        f"{_SGLANGS}.init_forward_metadata",
        Contains(
            "PrefillMetadata(self.prefill_wrappers_verify, False, False, swa_out_cache_loc=swa_out_cache_loc)",
        ),
        _BACKEND,
        "an eager verify forward attends in one piece, over all keys",
    ),
    Seam(
        f"{_SGLANGS}._prepare_cuda_graph_metadata",
        Contains("PrefillMetadata(prefill_wrappers, forward_mode.is_dllm_extend(), False)"),
        _BACKEND,
        "so does a captured one",
    ),
    Seam(
        f"{_MODULE}.FlashInferIndicesUpdaterPrefill",
        Has("q_data_type data_type"),
        _CHECK,
        "dtypes that verify forwards are planned with",
    ),
    Seam(
        f"{_MODULE}.FlashInferIndicesUpdaterPrefill.call_begin_forward",
        Contains(
            "wrapper_paged.begin_forward(qo_indptr, kv_indptr, kv_indices, self.kv_last_page_len[:bs], "
            "self.num_qo_heads, self.num_kv_heads, self.head_dim, 1, q_data_type=self.q_data_type, "
            "kv_data_type=self.data_type, custom_mask=use_custom_mask, non_blocking=True, "
            "fixed_split_size=fixed_split_size, prefix_len_ptr=prefix_len_ptr, "
            "token_pos_in_items_ptr=token_pos_in_items_ptr, token_pos_in_items_len=token_pos_in_items_len, "
            "max_item_len_ptr=max_item_len_ptr, **paged_plan_kwargs)"
        ),
        _CHECK,
        "the known case is planned as verify forwards are",
    ),
    Seam(
        "sglang.srt.model_executor.model_runner.ModelRunner",
        Has("attn_backend is_draft_worker token_to_kv_pool req_to_token_pool"),
        _MASSES,
        "the target's backend tells where shares come from; the draft's is left alone",
    ),
    Seam(
        "sglang.srt.layers.radix_attention.RadixAttention",
        Has("k_scale_float tp_q_head_num tp_k_head_num qk_head_dim layer_id scaling"),
        _MASSES,
        "a scale of the keys would be in the log-sum-exp and not in the keys that we read",
    ),
    Seam(
        "sglang.srt.model_executor.forward_batch_info.ForwardBatch",
        Has("forward_mode req_pool_indices seq_lens"),
        _MASSES,
        "whose contexts, and how long without the chain",
    ),
    Seam(
        "sglang.srt.speculative.base_spec_worker.BaseSpecWorker.init_attention_backends",
        Signature("(self)"),
        "worker.py",
        "scorers go on once the target's attention backend exists",
    ),
    Seam(
        "sglang.srt.managers.scheduler.Scheduler.init_all_attention_backends",
        Contains("self.tp_worker.init_attention_backends()", "self.draft_worker.init_attention_backends()"),
        "worker.py",
        "the target's comes first",
    ),
    Seam(
        "sglang.srt.managers.scheduler.Scheduler.init_model_worker",
        Contains("self.init_memory_pools()", "self.init_all_attention_backends()", "self.init_all_cuda_graphs()"),
        "worker.py",
        "pools, then backends, then CUDA graphs, which capture the scorers",
    ),
)

# Compared where FlashInfer is installed; it is not on a machine without a GPU.
FLASHINFER_SEAMS = (
    Seam(
        f"{_WRAPPER}.forward",
        Signature(
            "(self, q, paged_kv_cache, causal=False, pos_encoding_mode='NONE', use_fp16_qk_reduction=False, "
            "k_scale=None, v_scale=None, window_left=-1, logits_soft_cap=None, sm_scale=None, rope_scale=None, "
            "rope_theta=None)"
        ),
        _BACKEND,
        "what SGLang calls",
    ),
    Seam(
        f"{_WRAPPER}.forward_return_lse",
        Signature(
            "(self, q, paged_kv_cache, causal=False, pos_encoding_mode='NONE', use_fp16_qk_reduction=False, "
            "k_scale=None, v_scale=None, window_left=-1, logits_soft_cap=None, sm_scale=None, rope_scale=None, "
            "rope_theta=None)"
        ),
        _BACKEND,
        "what we call in its place takes the same arguments",
    ),
    Seam(
        f"{_WRAPPER}.forward_return_lse",
        Contains("return self.run_return_lse(q, paged_kv_cache, k_scale=k_scale, v_scale=v_scale)"),
        _BACKEND,
        "the same run, which keeps the log-sum-exp: no other kernel",
    ),
    Seam(
        f"{_WRAPPER}.run_return_lse",
        Equals("functools.partialmethod(run, return_lse=True)"),
        _BACKEND,
        "output and log-sum-exp of one run",
    ),
    Seam(f"{_WRAPPER}.begin_forward", Equals("plan"), _CHECK, "the known case is planned with it"),
    Seam(
        "flashinfer.prefill._finish_lse",
        Contains("lse_base == 'ln'", "lse.mul_(ln2)"),
        _CHECK,
        "kernels write base 2 and nothing turns it into another base unasked; asserted at start-up too",
    ),
)
