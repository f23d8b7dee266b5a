"""What our CUDA graphs build on: SGLang's runner of draft graphs, and where a replayed verify leaves its logits."""

from __future__ import annotations

from sgl_lvspec.seams.expectation import Contains, Equals, Has, Seam, Signature

_DRAFT = "sglang.srt.speculative.eagle_draft_cuda_graph_runner.EAGLEDraftCudaGraphRunner"
_CONFIG = "sglang.srt.model_executor.cuda_graph_config"
_RUNNER = "sglang.srt.model_executor.model_runner.ModelRunner"
_FLASHINFER = "sglang.srt.layers.attention.flashinfer_backend"
_TRITON = "sglang.srt.layers.attention.triton_backend"
_ENVS = "sglang.srt.environ.Envs"
_USED = "graphs/draft_graph.py"
_RECORDING = "graphs/recording.py"
_WAITS = "graphs/sglang_waits.py"

DRAFT = (
    Seam(
        _DRAFT,
        Signature("(self, eagle_worker, *, draft_attn_backend=None, speculative_num_steps=None)"),
        _USED,
        "we give it our loop, our plans and K + 1",
    ),
    Seam(
        f"{_DRAFT}.__init__",
        Contains(
            "self.model_runner = model_runner = eagle_worker.draft_runner",
            "self.draft_attn_backend = draft_attn_backend or model_runner.draft_attn_backend",
            "self.capture_bs, _ = get_batch_sizes_to_capture(model_runner)",
            "self.captured_req_width = resolve_num_tokens_per_req(phase='draft_decode')",
            "self.draft_attn_backend.init_cuda_graph_state(self.max_bs, self.max_num_token)",
            "out_cache_loc = torch.zeros((self.max_num_token * self.speculative_num_steps,), ...)",
            "self.eagle_worker.seed_dsa_topk_from_draft_extend",
            "self.buffers.share_buffers()",
            "self.backend = resolve_decode_backend(self)",
            "self.capture()",
        ),
        _USED,
        "what it asks of the worker, and that it captures when it is made",
    ),
    Seam(
        f"{_DRAFT}.capture_one_shape",
        Contains(
            "req_pool_indices = buffers.req_pool_indices[:num_seqs]",
            "seq_lens = buffers.seq_lens[:num_seqs]",
            "positions = buffers.positions[:num_tokens]",
            "mrope_positions = buffers.mrope_positions[:, :num_tokens]",
            "topk_index = buffers.topk_index[:num_seqs]",
            "EagleDraftInput(topk_p=topk_p, topk_index=topk_index, draft_probs=draft_probs, "
            "hidden_states=hidden_states, capture_hidden_mode=capture_mode)",
            "ret = self.eagle_worker.draft_forward(forward_batch)",
            "forward_batch.out_cache_loc = output_cache_loc_backup",
            "forward_batch.positions.sub_(self.eagle_worker.speculative_num_steps - 1)",
            "self.draft_attn_backend.init_forward_metadata_out_graph(forward_batch, in_capture=True)",
            "forward_batch.mark_forward_metadata_ready()",
        ),
        _USED,
        "the loop reads the runner's buffers; ours leaves positions as they were, and 1 - 1 is taken off them",
    ),
    Seam(
        f"{_DRAFT}.execute",
        Contains(
            "bs = self._pad_to_bucket(raw_bs, self.capture_bs)",
            "buffers.seq_lens.fill_(self.seq_len_fill_value)\nbuffers.out_cache_loc.zero_()\nbuffers.positions.zero_()",
            "buffers.req_pool_indices.zero_()",
            "copy_dsts = [buffers.seq_lens[:raw_bs], "
            "buffers.out_cache_loc[:raw_num_token * self.speculative_num_steps], "
            "buffers.positions[:raw_num_token], buffers.topk_p[:raw_bs], buffers.topk_index[:raw_bs], "
            "buffers.req_pool_indices[:raw_bs]]",
            "copy_srcs = [forward_batch.seq_lens, forward_batch.out_cache_loc, forward_batch.positions, "
            "forward_batch.spec_info.topk_p, forward_batch.spec_info.topk_index, forward_batch.req_pool_indices]",
            "buffers.mrope_positions[:, :raw_num_token]",
            "SimpleNamespace(**vars(forward_batch), num_padding=bs - raw_bs)",
            "out = self._replay_graph(shape_key, forward_batch)",
        ),
        _USED,
        "rows, lengths, slots, positions and first tokens reach the graph; padding reads row 0 and writes slot 0",
    ),
    Seam(
        f"{_DRAFT}._postprocess_output_to_raw_bs",
        Contains("t[:raw_bs] if t is not None else None", "parent_list, top_scores_index, draft_tokens, draft_probs"),
        _USED,
        "the chain comes back in EAGLE's third place, beside nothing",
    ),
    Seam(f"{_DRAFT}.can_run_graph", Signature("(self, forward_batch)"), _USED, "whether a size was captured"),
    Seam(f"{_DRAFT}.execute", Signature("(self, forward_batch)"), _USED, "replays"),
    Seam(
        "sglang.srt.model_executor.runner.base_cuda_graph_runner.BaseCudaGraphRunner._pad_to_bucket",
        Signature("(raw_size, buckets)"),
        _USED,
        "which graph a batch is padded to",
    ),
    Seam(
        f"{_FLASHINFER}.FlashInferMultiStepDraftBackend.common_template",
        Contains(
            "host_lengths = forward_batch.seq_lens_cpu",
            "envs.SGLANG_OPT_FLASHINFER_DRAFT_HOST_INDPTR.get() and self.draft_window_size == 0 and host_lengths "
            "is not None and host_lengths.device.type == 'cpu' and (host_lengths.numel() == num_seqs)",
            "forward_batch.seq_lens",
            "forward_batch.positions",
            "self.kv_indptr[:, :bs + 1].cpu()",
        ),
        _USED,
        "plans follow from lengths and positions on the device; the host reads them there, because it knows no lengths",
    ),
    Seam(
        f"{_FLASHINFER}.FlashInferMultiStepDraftBackend.init_forward_metadata_out_graph",
        Signature("(self, forward_batch, in_capture=False)"),
        _USED,
        "we call it with the draft's lengths for positions",
    ),
    Seam(
        f"{_TRITON}.TritonMultiStepDraftBackend.common_template",
        Contains("forward_batch.seq_lens", "forward_batch.positions"),
        _USED,
        "plans follow from lengths and positions on the device",
    ),
    Seam(
        f"{_TRITON}.TritonMultiStepDraftBackend.init_forward_metadata_out_graph",
        Signature("(self, forward_batch, in_capture=False)"),
        _USED,
        "we call it with the draft's lengths for positions",
    ),
    Seam(f"{_CONFIG}.Backend", Has("DISABLED"), "drafting/chain.py", "SGLang captures no decode steps"),
    Seam(f"{_CONFIG}.Phase", Has("DECODE"), "drafting/chain.py", "SGLang captures no decode steps"),
    Seam(
        f"{_CONFIG}.check_cuda_graph_backend",
        Signature("(phase, backend)"),
        "drafting/chain.py",
        "SGLang captures no decode steps",
    ),
)

VERIFY = (
    Seam(
        "sglang.srt.model_executor.runner_backend.full_cuda_graph_backend.FullCudaGraphBackend.replay",
        Contains("self._graphs[shape_key].replay()", "return self._outputs[shape_key]"),
        _RECORDING,
        "logits of a replay lie where that graph always leaves them",
    ),
    Seam(
        "sglang.srt.model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner.execute",
        Contains(
            "output = self.backend.replay(self._replay_graph_key, forward_batch)",
            "output.next_token_logits[:self.raw_num_token]",
        ),
        _RECORDING,
        "a round's logits are the first rows of those, not a copy",
    ),
    Seam(
        _RUNNER,
        Has("decode_cuda_graph_capture_bs", "model"),
        "worker.py",
        "whether verify is replayed; its logits processor is watched",
    ),
    Seam(
        "sglang.srt.speculative.eagle_worker_v2.EAGLEWorkerV2.init_cuda_graphs",
        Signature("(self)"),
        "worker.py",
        "the start-up line is written then",
    ),
    Seam(
        "sglang.srt.managers.scheduler.Scheduler",
        Has("tp_worker draft_worker"),
        "worker.py",
        "the target's graphs are captured before ours",
    ),
)

WAITS = (
    Seam(
        f"{_ENVS}.SGLANG_OPT_FLASHINFER_VERIFY_HOST_PLAN",
        Equals("EnvBool(False)"),
        _WAITS,
        "we set it; drop ours once it is SGLang's default",
    ),
    Seam("sglang.srt.environ.EnvField", Has("is_set set"), _WAITS, "how it is set"),
    Seam("sglang.srt.environ", Has("envs"), _WAITS, "how it is set"),
    Seam(
        f"{_FLASHINFER}.fast_prefill_plan",
        Contains("total_num_rows = int(qo_indptr_host[-1])", "uniform_verify_width is not None and page_size == 1"),
        _WAITS,
        "the verify's plan without a wait: by lengths on the host, rounds of one width, pages of one token",
    ),
)

SEAMS = DRAFT + VERIFY + WAITS
