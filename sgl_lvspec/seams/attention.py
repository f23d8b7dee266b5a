"""What the CPU attention backend builds on: the registry of backends, their interface, the KV pool."""

from __future__ import annotations

from sgl_lvspec.seams.expectation import Avoids, Contains, Equals, Has, Seam, Signature

_BACKEND = "sglang.srt.layers.attention.base_attn_backend.AttentionBackend"
_POOL = "sglang.srt.mem_cache.memory_pool.MHATokenToKVPool"
_CPU = "attention/cpu_backend.py"
_REGISTER = "attention/__init__.py"

SEAMS = (
    Seam(
        "sglang.srt.layers.attention.attention_registry.register_attention_backend",
        Signature("(name)"),
        _REGISTER,
        "how a backend gets its name",
    ),
    Seam(
        "sglang.srt.layers.attention.attention_registry.register_attention_backend",
        Contains("ATTENTION_BACKENDS[name] = fn"),
        _REGISTER,
        "a runner creates the backend by calling what we registered",
    ),
    Seam(
        "sglang.srt.layers.attention.attention_registry",
        Has("ATTENTION_BACKENDS"),
        "doctor.py",
        "the backends by name",
    ),
    Seam(
        "sglang.srt.arg_groups.choices.add_attention_backend_choices",
        Equals("ATTENTION_BACKEND_CHOICES.extend"),
        _REGISTER,
        "the name must be a choice of --attention-backend",
    ),
    Seam(
        "sglang.srt.arg_groups.choices",
        Has("ATTENTION_BACKEND_CHOICES", "add_attention_backend_choices"),
        _REGISTER,
        "the name must be a choice of --attention-backend",
    ),
    Seam(
        _BACKEND,
        Has(
            "init_forward_metadata forward_extend forward_decode forward_mixed support_triton "
            "needs_cpu_seq_lens verify_mask update_verify_buffers_to_fill_after_draft"
        ),
        _CPU,
        "methods that we override or inherit",
    ),
    Seam(f"{_BACKEND}.init_forward_metadata", Signature("(self, forward_batch)"), _CPU, "we plan a forward here"),
    Seam(
        f"{_BACKEND}.forward_extend",
        Signature("(self, q, k, v, layer, forward_batch, save_kv_cache=True, **kwargs)"),
        _CPU,
        "prefill and verify",
    ),
    Seam(
        f"{_BACKEND}.forward_decode",
        Signature("(self, q, k, v, layer, forward_batch, save_kv_cache=True, **kwargs)"),
        _CPU,
        "decode and draft steps",
    ),
    Seam(
        f"{_BACKEND}.forward",
        Contains(
            "forward_batch.forward_mode.is_idle()",
            "forward_batch.forward_mode.is_decode()",
            "self.forward_decode(q, k, v, layer, forward_batch, save_kv_cache=save_kv_cache, **kwargs)",
            "self.forward_extend(q, k, v, layer, forward_batch, save_kv_cache=save_kv_cache, **kwargs)",
        ),
        _CPU,
        "idle batches never reach us, decode is one row a request, all else is extend",
    ),
    Seam(f"{_BACKEND}.needs_cpu_seq_lens", Equals("True"), _CPU, "lengths are read on the host"),
    Seam(
        "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend",
        Avoids("forward_batch.forward_mode.is_target_verify()"),
        _REGISTER,
        "SGLang's own CPU backend takes a verify forward for a prefill, which is why we bring one",
    ),
    Seam(
        "sglang.srt.model_executor.forward_batch_info.ForwardMode",
        Has("is_idle is_decode is_target_verify"),
        _CPU,
        "which forward it is",
    ),
    Seam(
        "sglang.srt.layers.radix_attention.RadixAttention",
        Has(
            "layer_id tp_q_head_num qk_head_dim v_head_dim scaling attn_type sliding_window_size "
            "is_cross_attention logit_cap xai_temperature_len"
        ),
        _CPU,
        "what a layer says about itself",
    ),
    Seam(
        "sglang.srt.layers.radix_attention.AttentionType",
        Has("ENCODER_ONLY DECODER_BIDIRECTIONAL"),
        _CPU,
        "layers that see everything",
    ),
    Seam(
        "sglang.srt.mem_cache.memory_pool.KVWriteLoc",
        Has("loc swa_loc full_loc physical"),
        _CPU,
        "KVWriteLoc(slots, None) names the slots to write",
    ),
    Seam(
        f"{_POOL}.set_kv_buffer",
        Signature(
            "(self, layer, loc_info, cache_k, cache_v, k_scale=None, v_scale=None, layer_id_override=None, "
            "dcp_kv_mask=None)"
        ),
        _CPU,
        "writes new keys and values",
    ),
    Seam(f"{_POOL}.get_key_buffer", Signature("(self, layer_id)"), _CPU, "keys of a layer, [slots, Hk, E]"),
    Seam(f"{_POOL}.get_value_buffer", Signature("(self, layer_id)"), _CPU, "values of a layer, [slots, Hk, E]"),
    Seam(
        "sglang.srt.mem_cache.memory_pool.KVCache",
        Has("set_kv_buffer get_key_buffer get_value_buffer"),
        _CPU,
        "the pool's interface",
    ),
    Seam(
        "sglang.srt.mem_cache.memory_pool.ReqToTokenPool",
        Has("req_to_token"),
        _CPU,
        "slot of every position of every request row",
    ),
)
