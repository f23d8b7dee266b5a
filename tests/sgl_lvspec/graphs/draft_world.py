"""SGLang's own runner of draft graphs on CPU, over a draft of a few operations that depends on everything it is given.

Graphs are `EagerRecorder`'s; all else of `EAGLEDraftCudaGraphRunner` is SGLang's: buffers, padding, capture, replay.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import DpPaddingMode, ForwardMode
from sglang.srt.model_executor.forward_context import get_forward_context
from sglang.srt.speculative import eagle_draft_cuda_graph_runner as runner_module
from sglang.srt.speculative.eagle_info import EagleDraftInput

from tests.sgl_lvspec.graphs.eager_recorder import EagerRecorder

K, V = 4, 97
CONTEXT, SLOTS, ROWS = 40, 400, 9
SIZES = [1, 2, 4, 8]


class StepBackend:
    """Attention of one step: which slots each request reads, in a buffer that a graph captured."""

    def __init__(self, step: int, max_requests: int) -> None:
        self.step = step
        self.slots = torch.zeros(max_requests, CONTEXT, dtype=torch.int64)
        self.counts = torch.zeros(max_requests, dtype=torch.int64)

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        return 1


class FlashInferMultiStepDraftBackend:
    """Plans all steps by what SGLang's kernel takes: rows, and lengths off the positions."""

    def __init__(self, table: torch.Tensor) -> None:
        self._table = table
        self.attn_backends = [StepBackend(step, ROWS) for step in range(K + 1)]
        self.state_of: tuple[int, int] | None = None

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        self.state_of = (max_bs, max_num_tokens)

    def init_forward_metadata(self, batch: Any) -> None:
        for backend in self.attn_backends:
            count = len(batch.positions)
            backend.slots[:count] = self._table[batch.req_pool_indices]
            backend.counts[:count] = batch.positions + backend.step + 1

    def init_forward_metadata_out_graph(self, batch: Any, in_capture: bool = False) -> None:
        assert in_capture or batch.num_padding == batch.batch_size - self.real
        self.init_forward_metadata(batch)

    def init_forward_metadata_in_graph(self, batch: Any) -> None:
        pass


class Draft:
    """A model whose logits follow from a token, its positions and the KV of its context; KV is one number a slot."""

    def __init__(self, is_mrope: bool) -> None:
        self.kv = torch.zeros(SLOTS)
        self.device = "cpu"
        self.spec_algorithm = SimpleNamespace(is_standalone=lambda: True, is_eagle=lambda: False)
        self.model_config = SimpleNamespace(model_is_mrope=is_mrope, vocab_size=V)
        self.kv_index_translator = SimpleNamespace(bind_runner_slots=lambda _batch: None)
        self.device_timer = None
        self.table = torch.arange(ROWS * CONTEXT).view(ROWS, CONTEXT) + 1
        self.table[0] = 0  # SGLang's dummy row
        self.draft_attn_backend = FlashInferMultiStepDraftBackend(self.table)

    def forward(self, batch: Any) -> SimpleNamespace:
        backend: Any = get_forward_context().attn_backend
        count = len(batch.input_ids)
        place = batch.positions + (0 if batch.mrope_positions is None else batch.mrope_positions.sum(0) * 3)
        self.kv[batch.out_cache_loc] = torch.sin(batch.input_ids * 0.7 + place * 0.3)
        is_context = torch.arange(CONTEXT) < backend.counts[:count, None]
        seen = torch.where(is_context, self.kv[backend.slots[:count]], 0.0).sum(1)
        phase = seen[:, None] * 2.0 + torch.arange(V) * 1.3
        return SimpleNamespace(logits_output=SimpleNamespace(next_token_logits=torch.cos(phase)))


class Backend:
    """SGLang's graph backend, with recordings for graphs."""

    def __init__(self) -> None:
        self.recorder = EagerRecorder()
        self.graphs: dict[Any, tuple[Any, list[Any]]] = {}
        self.replayed: list[int] = []

    def capture_one(self, key: Any, forward: Any, capture_inputs: None, post_warmup_hook: None) -> None:
        del capture_inputs, post_warmup_hook
        for _ in range(2):
            forward()
        outputs: list[Any] = []
        self.graphs[key] = (self.recorder.record(lambda: outputs.append(forward())), outputs)

    def replay(self, key: Any, _batch: Any) -> Any:
        replay, outputs = self.graphs[key]
        self.replayed.append(key.size)
        replay()
        return outputs[0]


def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Let SGLang's runner be made without a device or a server's settings."""
    backend = Backend()
    settings = SimpleNamespace(
        graph=SimpleNamespace(disable_cuda_graph_padding=False, enable_profile_cuda_graph=False),
        deterministic=SimpleNamespace(enable_deterministic_inference=False),
    )
    spec = SimpleNamespace(speculative_num_steps=K, speculative_eagle_topk=1, speculative_use_rejection_sampling=False)
    stand_ins: dict[str, Any] = {
        "get_exec": lambda: settings,
        "get_spec": lambda: spec,
        "get_parallel": lambda: SimpleNamespace(pp_size=1),
        "get_flags": lambda: SimpleNamespace(capture=SimpleNamespace(enable_torch_compile=False)),
        "deployment_attn_dp_size": lambda: 1,
        "resolve_num_tokens_per_req": lambda phase: 1,
        "get_batch_sizes_to_capture": lambda _runner: (SIZES, []),
        "get_draft_recurrent_hidden_state_spec": lambda _runner: (None, None),
        "resolve_decode_backend": lambda _runner: backend,
        "model_capture_mode": nullcontext,
        "maybe_flashinfer_autotune_speculative_draft": lambda *_args, **_kwargs: None,
        "DeepEPCudaGraphRunnerAdapter": lambda: SimpleNamespace(capture=lambda **_: None, replay=lambda: None),
        "DpPaddingMode": SimpleNamespace(get_default_mode_in_cuda_graph=lambda: DpPaddingMode.MAX_LEN),
        "set_dp_buffer_len": lambda *_args: None,
        "set_is_extend_in_batch": lambda _is: None,
        "device_timer_ctx": lambda *_args: nullcontext(),
        **{
            name: lambda: False
            for name in (
                "require_gathered_buffer",
                "require_mlp_tp_gather",
                "require_mlp_sync",
                "require_attn_tp_gather",
            )
        },
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(runner_module, name, stand_in)
    runner: Any = runner_module.EAGLEDraftCudaGraphRunner

    def capture(self: Any) -> None:
        for size in reversed(self.capture_bs):
            self.capture_one_shape(size, None)

    monkeypatch.setattr(runner, "capture", capture)
    monkeypatch.setattr(runner, "model_context", lambda _self: nullcontext())
    return backend


def round_batch(rows: list[int], lens: list[int], positions: list[int], is_mrope: bool) -> Any:
    """A round's forward batch, as `ChainDraftWorker._place` leaves it."""
    return SimpleNamespace(
        forward_mode=ForwardMode.DECODE,
        batch_size=len(rows),
        input_ids=None,
        req_pool_indices=torch.tensor(rows),
        seq_lens=torch.tensor(lens),
        seq_lens_cpu=None,
        seq_lens_sum=sum(positions),  # the target's
        positions=torch.tensor(positions),
        mrope_positions=torch.tensor([positions] * 3) + torch.tensor([[0], [2], [5]]) if is_mrope else None,
        out_cache_loc=torch.full((len(rows) * (K + 1),), 399),  # the target's slots: nobody's business
        spec_info=EagleDraftInput(bonus_tokens=torch.zeros(len(rows), dtype=torch.int64), num_tokens_per_req=1),
        rids_int=None,
        bootstrap_room_ids_int=None,
        sampling_info=None,
        moe_num_token_non_padded=None,
    )
