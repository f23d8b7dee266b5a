"""Where SGLang declares the fields of the modes that are refused, and what they are unless named."""

from __future__ import annotations

from sgl_lvspec.modes import MODES
from sgl_lvspec.seams.expectation import Contains, Equals, Seam

_FIELDS = "sglang.srt.arg_groups.fields"

# Class of SGLang's field declarations -> fields. A field that moves is found here first.
_OWNERS = {
    "spec.Spec": "speculative_use_rejection_sampling speculative_use_block_verification "
    "speculative_accept_threshold_single speculative_accept_threshold_acc speculative_adaptive speculative_token_map "
    "enable_multi_layer_eagle",
    "exec_.ExecFeatures": "enable_watermark",
    "parallel.Parallel": "attn_dp_size pp_size dcp_size attn_cp_size enable_prefill_cp enable_layernorm_sp "
    "enable_attn_tp_input_scattered ep_size moe_dp_size dwdp_size enable_kv_cache_sharding",
    "exec_.ExecMoe": "enable_eplb elastic_ep_backend",
    "exec_.ExecOverlap": "enable_two_batch_overlap",
    "device.Device": "use_ray device",
    "memory.Memory": "enable_hierarchical_cache enable_unified_cache_external_linker enable_lmcache enable_flexkv "
    "radix_cache_backend enable_hisparse enable_unified_memory",
    "serving.Serving": "enable_streaming_session",
    "disagg.Disagg": "disaggregation_mode decoupled_spec_role enable_pdmux language_model_only",
    "model.Model": "model_impl is_embedding",
    "exec_.ExecDllm": "dllm_algorithm",
    "lora.Lora": "enable_lora lora_paths",
    "exec_.ExecGraph": "enable_torch_compile",
    "exec_.ExecKernel": "enable_nvidia_megakernel enable_amd_monokernel",
    "mm.Mm": "enable_mm_global_cache trust_mm_content_hashes mm_feature_transport",
}
_OWNER_OF = {field: owner for owner, fields in _OWNERS.items() for field in fields.split()}

SEAMS = tuple(
    Seam(
        f"{_FIELDS}.{_OWNER_OF[mode.field]}.{mode.field}",
        # SGLang finds the device out before it calls us.
        Equals("None") if mode.field == "device" else Equals(repr(mode.allowed[0])),
        "modes.py",
        f"refused at anything else: {mode.reason}",
    )
    for mode in MODES
    if mode.field not in ("encoder_only", "language_only")  # pinned by `media`, for main_process.py
)
SEAMS += (
    Seam(
        "sglang.srt.arg_groups.parallel_hook.handle_deprecated_dp_attention",
        Contains("declare_resolution(server_args, ..., attn_dp_size=cfg.dp_size, dp_size=1)"),
        "modes.py",
        "--enable-dp-attention becomes --attn-dp-size before we look, and what is left in dp_size are copies",
    ),
)
