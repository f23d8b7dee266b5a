"""How SGLang resolves its arguments around our two callbacks, and every field that they read or assign."""

from __future__ import annotations

from sgl_lvspec.seams.expectation import Contains, Equals, Has, Seam, Signature

_SPECULATIVE = "sglang.srt.arg_groups.speculative_hook"
_OVERRIDES = "sglang.srt.arg_groups.overrides"
_FIELDS = "sglang.srt.arg_groups.fields"

RESOLUTION = (
    Seam(
        f"{_SPECULATIVE}.handle_speculative_decoding",
        Contains(
            "declare_resolution(server_args, ..., speculative_algorithm=cfg.speculative_algorithm.upper())",
            "record_foreign_defaults(server_args, ..., algo.validate_server_args)",
            "record_foreign_defaults(server_args, ..., algo.handle_server_args)",
        ),
        "startup.py",
        "validate() runs first, then set_defaults(), both on a stand-in that records assignments",
    ),
    Seam(
        f"{_OVERRIDES}.record_foreign_defaults",
        Contains(
            "recorder = _ForeignDefaults(server_args)",
            "result = resolve(recorder)",
            "name in field_names(type(server_args))",
            "declare_resolution(server_args, source, **written)",
        ),
        "startup.py",
        "fields that we assign become the server's",
    ),
    Seam(
        f"{_OVERRIDES}._ForeignDefaults.__getattr__",
        Contains(
            "if name in written:\n    return written[name]", "getattr(object.__getattribute__(self, '_cfg'), name)"
        ),
        "startup.py",
        "we read what the steps before us resolved, and what we assigned",
    ),
    Seam(
        "sglang.srt.arg_groups.pipeline.run_resolution_pipeline",
        Contains(
            "run_hook(handle_deprecated_args, server_args)",
            "run_hook(handle_pd_disaggregation, server_args)",
            "run_hook(handle_cpu_backends, server_args)",
            "run_hook(handle_attention_backend_compatibility, server_args)",
            "run_hook(handle_hicache, server_args)",
            "run_hook(handle_data_parallelism, server_args)",
            "run_hook(handle_speculative_decoding, server_args)",
        ),
        "startup.py",
        "device, attention backend, attention DP and the caches are resolved before we judge them",
    ),
    Seam(
        "sglang.srt.arg_groups.platform_hook.handle_cpu_backends",
        Contains("'torch_native' if is_host_cpu_arm64() else 'intel_amx'"),
        "startup.py",
        "these two are what a CPU server has when the user named no attention backend",
    ),
    Seam(
        "sglang.srt.utils.numa_utils.init_threads_binding",
        Contains(
            "omp_cpuids = os.environ.get('SGLANG_CPU_OMP_THREADS_BIND', 'all')",
            "assert world_size <= n_numa_node, ...",
            "threads_bind_list = omp_cpuids.split('|')",
            "local_omp_cpuid = threads_bind_list[numa_index]",
        ),
        "ranks.py",
        "more ranks on a CPU than NUMA nodes need their cores named",
    ),
    Seam(
        "sglang.srt.distributed.bootstrap._bind_threads_if_cpu",
        Contains("numa_utils.init_threads_binding(..., numa_index=get_device().gpu_id)"),
        "ranks.py",
        "a rank finds its cores by the number of its device",
    ),
    Seam(
        f"{_OVERRIDES}._attention_backend_platform_fallbacks",
        Contains("{'attention_backend': 'torch_native'}"),
        "startup.py",
        "intel_amx becomes torch_native on a CPU without AMX",
    ),
    Seam(
        f"{_SPECULATIVE}._handle_eagle_family",
        Contains(
            "cfg.max_running_requests is None",
            "declare_resolution(server_args, ..., max_running_requests=48)",
            "_disable_overlap_schedule_for_cpu(server_args)",
            "cfg.enable_mixed_chunk and (not algo.supports_mixed_chunk())",
            "declare_resolution(server_args, ..., enable_mixed_chunk=False)",
        ),
        "startup.py",
        "set_defaults() restates what SGLang does for STANDALONE and not for a plugin's name",
    ),
    Seam(
        "sglang.srt.utils.hf_transformers_utils.get_config",
        Signature(
            "(model, trust_remote_code, revision=None, model_override_args=None, model_config_parser='auto', **kwargs)"
        ),
        "models.py",
        "reads both models' configs as the server will",
    ),
    Seam(
        "sglang.srt.utils.hf_transformers_utils.get_tokenizer",
        Signature(
            "(tokenizer_name, *args, tokenizer_mode='auto', trust_remote_code=False, tokenizer_revision=None, "
            "tokenizer_backend='huggingface', **kwargs)"
        ),
        "models.py",
        "reads both models' tokenizers as the server will",
    ),
)

# Class of SGLang's field declarations, field, default, why we read or assign it.
_DECLARED = (
    ("model.Model", "trust_remote_code", "False", "passed on when the configs are read"),
    ("model.Model", "revision", "None", "of the target"),
    ("model.Model", "json_model_override_args", "'{}'", "changes the target's config"),
    ("serving.Serving", "sampling_defaults", "'model'", "chats inherit a model's repetition penalty: worth a warning"),
    ("serving.Serving", "host", "'127.0.0.1'", "another one without a key is worth a warning"),
    ("serving.Serving", "api_key", "None", "none on an address that others reach is worth a warning"),
    ("device.Device", "base_gpu_id", "0", "number of the first rank's device"),
    ("device.Device", "gpu_id_step", "1", "from one rank's device to the next one's"),
    ("parallel.Parallel", "tp_size", "1", "ranks of a CPU server share its cores"),
    ("parallel.Parallel", "dp_size", "1", "ranks of a CPU server share its cores"),
    ("parallel.Parallel", "nnodes", "1", "ranks of a CPU server share its cores"),
    ("schedule.Schedule", "max_total_tokens", "None", "each rank of a CPU server would take all of the memory"),
    ("exec_.ExecKernel", "attention_backend", "None", "set to lvspec_cpu on CPU"),
    ("exec_.ExecKernel", "prefill_attention_backend", "None", "another one on CPU is refused"),
    ("exec_.ExecKernel", "decode_attention_backend", "None", "another one on CPU is refused"),
    ("schedule.Schedule", "max_running_requests", "None", "filled in"),
    ("schedule.Schedule", "disable_overlap_schedule", "False", "set on CPU"),
    ("schedule.Schedule", "page_size", "None", "above 1 is refused"),
    ("schedule.Schedule", "enable_mixed_chunk", "False", "switched off"),
    ("serving.Serving", "skip_tokenizer_init", "False", "protected tokens are found in the tokenizer"),
    ("spec.Spec", "speculative_algorithm", "None", "LVSPEC is named here"),
    ("spec.Spec", "speculative_draft_model_path", "None", "the draft"),
    ("spec.Spec", "speculative_draft_model_revision", "None", "of the draft"),
    ("spec.Spec", "speculative_num_steps", "None", "K"),
    ("spec.Spec", "speculative_eagle_topk", "None", "1"),
    ("spec.Spec", "speculative_num_draft_tokens", "None", "K + 1"),
    ("spec.Spec", "speculative_draft_attention_backend", "None", "another one on CPU is refused"),
)

SECRETS = (
    Seam(
        "sglang.srt.sampling.watermarking.core.redact_watermark_secrets",
        Signature("(value, *, in_watermark_config=False)"),
        "api_key.py",
        "our AFTER hook redacts the API keys, too",
    ),
    Seam(
        "sglang.srt.entrypoints.engine._server_args_for_logging",
        Contains("redact_watermark_secrets(server_args.resolved_dict())"),
        "api_key.py",
        "what is logged of the arguments",
    ),
    Seam(
        "sglang.srt.entrypoints.http_server.server_info",
        Contains("msgspec_to_builtins(redact_watermark_secrets(...))"),
        "api_key.py",
        "what is told of the arguments",
    ),
)

FIELDS = (
    Seam(f"{_FIELDS}.model.Model", Has("model_path"), "startup.py", "the target"),
    *(
        Seam(f"{_FIELDS}.{owner}.{field}", Equals(default), "startup.py", why)
        for owner, field, default, why in _DECLARED
    ),
)

SEAMS = RESOLUTION + SECRETS + FIELDS
