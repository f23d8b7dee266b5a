"""What the draft's own context builds on: SGLang's requests and media, KV pools and their sizes, layers."""

from __future__ import annotations

from sgl_lvspec.seams.expectation import Contains, Equals, Has, Seam, Signature

_BATCH = "sglang.srt.managers.schedule_batch"
_MEDIA = "sglang.srt.managers.mm_schedule"
_CACHE = "sglang.srt.mem_cache.multimodal_cache"
_ALLOCATOR = "sglang.srt.mem_cache.allocator"
_CONFIGURATOR = "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator"
_SIZES = "sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator"
_FORWARD = "sglang.srt.model_executor.forward_batch_info"
_RESIDUAL = "sglang.srt.layers.layer_boundary.residual"
_RUNTIME = "sglang.srt.runtime_context"
_CHAIN = "drafting/chain.py"
_PROMPT = "context/prompt.py"
_READER = "context/reader.py"
_FEATURES = "context/features.py"
_EVIDENCE = "context/evidence.py"
_POOL = "context/pool.py"
_SIZING = "context/sizing.py"
_UPKEEP = "context/upkeep.py"

REQUEST = (
    Seam(f"{_BATCH}.MM_PAD_SHIFT_VALUE", Equals("1000000"), _PROMPT, "ids from here on are hashes of media"),
    Seam(
        f"{_BATCH}.Req",
        Has("origin_input_ids output_ids multimodal_inputs kv extend_end full_untruncated_fill_ids"),
        _PROMPT,
        "ids, media and row of a request; whether its prompt ends with this prefill",
    ),
    Seam(
        f"{_BATCH}.MultimodalInputs",
        Has("mm_items mrope_positions mrope_position_delta release_features"),
        _PROMPT,
        "media and positions of a prompt; the draft gets a copy with its own items",
    ),
    Seam(
        f"{_BATCH}.MultimodalDataItem",
        Has("modality precomputed_embeddings hash offsets feature padding_values"),
        _READER,
        "an image or a video: where it lies, its pixels, and embeddings that the client computed",
    ),
    Seam(
        f"{_BATCH}.Modality",
        Contains("IMAGE = auto()", "VIDEO = auto()"),
        _FEATURES,
        "a model's method is called after the modality: get_image_feature, get_video_feature",
    ),
    Seam(
        f"{_BATCH}.ScheduleBatch",
        Has(
            "forward_mode input_ids multimodal_inputs extend_lens prefix_lens spec_info sampling_info reqs device "
            "seq_lens req_pool_indices batch_size"
        ),
        _CHAIN,
        "fields of a batch that we read, or set on a copy",
    ),
    Seam(
        "sglang.srt.configs.model_config.ModelConfig",
        Has("is_multimodal", "vocab_size"),
        _PROMPT,
        "whether the draft sees, and its number of tokens",
    ),
)

SHOWN = (
    Seam(
        _MEDIA,
        Has("embedding_cache", "init_mm_embedding_cache"),
        _FEATURES,
        "one cache of vision features a process; the draft has its own",
    ),
    Seam(
        _MEDIA,
        Contains("embedding_cache.get_single(item.hash)"),
        _FEATURES,
        "the cache is keyed by hash alone, so the draft would find the target's features in it",
    ),
    Seam(
        f"{_MEDIA}._move_items_to_device",
        Signature("(items, device, data_embedding_func)"),
        _FEATURES,
        "brings pixels back from the host, as the target's encoder gets them",
    ),
    Seam(
        f"{_CACHE}.MultiModalStaticCache",
        Signature("(self, max_size)"),
        _FEATURES,
        "the draft's cache is another one of this class and size",
    ),
    Seam(
        f"{_CACHE}.MultiModalStaticCache",
        Has("max_size get set combine_hashes"),
        _FEATURES,
        "the draft's cache is another one of this class and size",
    ),
    Seam(
        f"{_CACHE}.MultiModalStaticCache.get",
        Contains("combined_hash = self.combine_hashes(mm_hashes)", "self.mm_cache.get(combined_hash)"),
        _FEATURES,
        "what `set` puts under the combined hash of one item is found by that item's hash",
    ),
    Seam(f"{_CACHE}.EmbeddingResult", Has("embedding"), _FEATURES, "an entry of the cache"),
    Seam(
        f"{_BATCH}.MultimodalInputs.release_features",
        Contains("item.feature = None"),
        _FEATURES,
        "pixels that are gone are None",
    ),
    Seam(
        "sglang.srt.managers.scheduler.Scheduler._maybe_clear_mm_inputs",
        Contains(
            "if not req.finished() or not (mm_inputs := req.multimodal_inputs):\n    continue",
            "mm_inputs.release_features()",
        ),
        _FEATURES,
        "pixels are kept until a request ends, so the draft can read them later than the target",
    ),
    Seam(
        "sglang.srt.managers.mm_utils.prepare_mm_inputs",
        Contains("mm_item.feature = feature.to('cpu', non_blocking=True)"),
        _FEATURES,
        "pixels that the target has read wait on the host",
    ),
    Seam(
        f"{_MEDIA}._get_precomputed_embedding",
        Signature("(items, items_size, prefix_length, extend_length, items_offset_list)"),
        _READER,
        "the draft's features are handed over as embeddings that are ready",
    ),
    Seam(
        f"{_MEDIA}._get_precomputed_embedding",
        Contains(
            "get_embedding_chunk(item.precomputed_embeddings, prefix_length[i], extend_len, item.offsets)[0]",
            "torch.concat(precomputed_embeddings)",
        ),
        _READER,
        "each item's rows are cut by its own offsets and joined in the order of the items",
    ),
    Seam(
        f"{_MEDIA}.get_embedding_chunk",
        Contains(
            "extend_start_index = extend_prefix_len",
            "extend_end_index = extend_prefix_len + extend_seq_len - 1",
            "embedding_chunk = embedding[start_index:end_index]",
        ),
        _READER,
        "an item that begins where the piece begins gives all of its rows",
    ),
    Seam(
        f"{_MEDIA}._get_multimodal_mask",
        Contains("(placeholders[idx] == input_ids).unsqueeze(-1)"),
        _READER,
        "the tokens of an item are found by their ids, wherever they lie",
    ),
)

POOLS = (
    Seam(
        "sglang.srt.mem_cache.memory_pool.ReqToTokenPool",
        Signature("(self, size, max_context_len, device, enable_memory_saver)"),
        _POOL,
        "the draft's row table is another one of this class",
    ),
    Seam(
        "sglang.srt.mem_cache.memory_pool.ReqToTokenPool.__init__",
        Contains(
            "self._alloc_size = size + 1",
            "torch.zeros((self._alloc_size, max_context_len), dtype=torch.int32, device=device)",
        ),
        _POOL,
        "one row more than requests, of int32",
    ),
    Seam(
        f"{_ALLOCATOR}.token.TokenToKVPoolAllocator.free",
        Signature("(self, free_index)"),
        _UPKEEP,
        "our BEFORE hook frees the draft's slots with the target's",
    ),
    Seam(
        f"{_ALLOCATOR}.token.TokenToKVPoolAllocator.free_page_ids",
        Contains("self.free(page_ids)"),
        _UPKEEP,
        "every slot of a pool with pages of one token is freed through `free`",
    ),
    Seam(
        f"{_ALLOCATOR}.base.BaseTokenToKVPoolAllocator.free_group_end",
        Contains("self.free(torch.cat(pending))"),
        _UPKEEP,
        "slots freed in a group are named a second time, which must do no harm",
    ),
    Seam(
        f"{_ALLOCATOR}.base.BaseTokenToKVPoolAllocator",
        Has("get_all_free_pages"),
        _UPKEEP,
        "what the target has freed, for the check of an idle server",
    ),
    Seam(
        "sglang.srt.managers.scheduler.Scheduler.on_idle",
        Signature("(self)"),
        _UPKEEP,
        "our AFTER hook checks the draft's slots here",
    ),
    Seam(
        "sglang.srt.managers.tp_worker.TpModelWorker.alloc_memory_pool",
        Contains(
            "if req_to_token_pool is not None:\n    ...\n    self.model_runner.req_to_token_pool = req_to_token_pool",
            "if token_to_kv_pool_allocator is not None:\n    ...",
        ),
        _CHAIN,
        "the draft gets our rows, and no allocator of the target's where we name none",
    ),
    Seam(
        f"{_CONFIGURATOR}.configure",
        Contains(
            "if not self.spec_algorithm.is_none() and self.is_draft_worker:\n"
            "    ...\n"
            "    config = self.memory_pool_config\n"
            "else:\n"
            "    ..."
        ),
        _CHAIN,
        "a draft's pool is as large as the config that it is given says",
    ),
    Seam(
        f"{_CONFIGURATOR}._build_token_to_kv_pool_allocator",
        Contains("token_to_kv_pool_allocator is None", "TokenToKVPoolAllocator(sizes.max_total_num_tokens, ...)"),
        _CHAIN,
        "a draft without an allocator of the target's builds its own, which nobody asks",
    ),
)

SIZES = (
    Seam(f"{_SIZES}.__init__", Signature("(self, kvc)"), _SIZING, "our AFTER hook corrects what it charged"),
    Seam(
        f"{_SIZES}.__init__",
        Contains(
            "num_layers = kvc.layer_info.num_effective_layers",
            "self._cell_size = self._compute_cell_size(kvc, num_layers)",
            "self._fixed_overhead_bytes = compute_page_shard_scratch_bytes(kvc, ...)",
            "draft_kv_size = int(self._cell_size * draft_num_layers / int(num_layers))",
            "self._cell_size += draft_kv_size * draft_loc_space_scale",
        ),
        _SIZING,
        "the draft's layers are charged at the target's bytes for every token of the target's",
    ),
    Seam(
        f"{_SIZES}.calculate_pool_sizes",
        Contains("max(available_bytes - self._fixed_overhead_bytes, 0)", "available_bytes // self._cell_size"),
        _SIZING,
        "what the sizes are made of",
    ),
    Seam(f"{_SIZES}._compute_cell_size", Signature("(self, kvc, num_layers)"), _SIZING, "the target's own bytes"),
    Seam(
        "sglang.srt.model_executor.model_runner.ModelRunner",
        Has("model kv_cache_dtype token_to_kv_pool req_to_token_pool device"),
        _SIZING,
        "the draft's layers and the type of their keys; the target's pool; where a batch of the draft lies",
    ),
    Seam(
        "sglang.srt.layers.radix_attention.RadixAttention",
        Has("layer_id tp_q_head_num tp_k_head_num tp_v_head_num qk_head_dim v_head_dim scaling"),
        _SIZING,
        "a rank's own heads and their widths",
    ),
    Seam(f"{_RUNTIME}.get_schedule", Signature("()"), _SIZING, "settings of the schedule as SGLang resolved them"),
    Seam(
        "sglang.srt.arg_groups.fields.schedule.Schedule",
        Has("max_running_requests", "max_prefill_tokens"),
        _SIZING,
        "rows that have slots of their own; the largest prefill",
    ),
)

LAYERS = (
    *(
        Seam(
            f"sglang.srt.models.{model}DecoderLayer.forward",
            Signature(f"(self, positions, hidden_states, forward_batch, {extra}capture_output=None)"),
            _EVIDENCE,
            "the hook before a layer gets these arguments, by place or by name",
        )
        for model, extra in (("qwen2.Qwen2", ""), ("qwen3.Qwen3", "post_residual_addition=None, "))
    ),
    Seam(
        "sglang.srt.models.qwen2.Qwen2Model",
        Contains("residual_batch.start(forward_batch)", "self.layers[i](positions, hidden_states, forward_batch, ...)"),
        _EVIDENCE,
        "layers are called, so hooks fire; what is added up lies with the batch and in no argument",
    ),
    Seam(
        "sglang.srt.models.qwen3_vl.Qwen3LLMModel",
        Contains("residual_batch.start(forward_batch)", "layer(positions, hidden_states, forward_batch, ...)"),
        _EVIDENCE,
        "the same for Qwen3-VL",
    ),
    Seam(
        f"{_RESIDUAL}.batch.snapshot",
        Signature("(hidden_states, forward_batch)"),
        _EVIDENCE,
        "states before a layer, without a change to them",
    ),
    Seam(
        f"{_RESIDUAL}.stream.ResidualStream.snapshot",
        Contains("return value.clone() if self.residual is None else value + self.residual"),
        _EVIDENCE,
        "a layer's input and the residual together are the states",
    ),
    Seam(
        f"{_FORWARD}.ForwardMode.is_extend_without_speculative",
        Contains("self.is_extend() and (not self.is_target_verify())"),
        _EVIDENCE,
        "which forwards of the target read a prompt",
    ),
    Seam(
        "sglang.srt.distributed.parallel_state.GroupCoordinator",
        Has("world_size all_reduce"),
        _EVIDENCE,
        "the ranks' scores are averaged",
    ),
)

READ = (
    Seam(f"{_FORWARD}.ForwardMode", Has("EXTEND is_extend_without_speculative"), _CHAIN, "a prompt is read as one"),
)

SEAMS = REQUEST + SHOWN + POOLS + SIZES + LAYERS + READ
