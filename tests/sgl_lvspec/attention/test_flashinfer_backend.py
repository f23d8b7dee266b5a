"""SGLang's FlashInfer backend, taught to keep a log-sum-exp: who gets it, what it keeps, and the check of what it says.

FlashInfer is a stand-in (`fake_flashinfer`); SGLang's backend around it is SGLang's own. What needs FlashInfer itself,
its sources, is compared where it is installed.
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.attention import attention_registry
from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend

from sgl_lvspec.attention import flashinfer_backend
from sgl_lvspec.attention.flashinfer_backend import LseFlashInferBackend
from sgl_lvspec.attention.lse_check import check_lse
from sgl_lvspec.seams import FLASHINFER_SEAMS, Seam, SourceTree, check
from tests.sgl_lvspec.attention.fake_flashinfer import FakeWrapper, make_backend
from tests.sgl_lvspec.relevance.target import HEAD_WIDTH, KV_HEADS, QUERY_HEADS, WIDTH, Target

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="runs a target on CPU, with FlashInfer in torch")


@pytest.fixture
def target() -> Target:
    target = Target()
    target.attn_backend = LseFlashInferBackend.adopt(make_backend(target, (QUERY_HEADS, KV_HEADS, HEAD_WIDTH)))
    return target


def test_what_is_kept_is_the_log_sum_exp_of_the_layer(target: Target) -> None:
    target.attn_backend.ask(1)
    target.prefill(3, [7] * 9)
    target.verify([3], [9])
    lse = target.attn_backend.take_lse(1)
    for node in range(WIDTH):
        keys = target.keys[1][target.context(3, 9 + node + 1)].double().repeat_interleave(2, dim=1)
        scores = torch.einsum("lhe,he->hl", keys, target.query[1][node].double()) * 0.4
        expected = scores.logsumexp(dim=1) / math.log(2)
        torch.testing.assert_close(lse[node].double(), expected, rtol=0, atol=1e-5)  # float32, of size 5


def test_it_is_kept_until_it_is_taken_and_only_where_asked(target: Target) -> None:
    target.attn_backend.ask(1)
    target.prefill(3, [7] * 9)
    with pytest.raises(AssertionError, match="layer 1 has had no verify forward"):
        target.attn_backend.take_lse(1)
    target.verify([3], [9])
    target.attn_backend.take_lse(1)
    for layer in (0, 1):
        with pytest.raises(AssertionError, match=f"layer {layer} has had no verify forward"):
            target.attn_backend.take_lse(layer)


def test_the_plan_is_back_in_place_after_a_forward_that_failed(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    target.attn_backend.ask(2)
    target.prefill(3, [7] * 9)
    monkeypatch.setattr(FakeWrapper, "forward_return_lse", lambda *_args, **_options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        target.verify([3], [9])
    assert target.attn_backend.forward_metadata.prefill_wrappers == target.attn_backend.prefill_wrappers_verify


# --- registration


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """SGLang's registry, with a factory that needs no GPU."""
    known = dict(attention_registry.ATTENTION_BACKENDS)

    def create(runner: Any) -> Any:
        return runner.made

    known["flashinfer"] = create
    for module in (attention_registry, flashinfer_backend):
        monkeypatch.setattr(module, "ATTENTION_BACKENDS", known)
    return known


@pytest.mark.parametrize(("is_draft", "taught"), [(False, LseFlashInferBackend), (True, FlashInferAttnBackend)])
def test_the_targets_runner_gets_it_under_sglangs_name(registry: dict[str, Any], is_draft: bool, taught: type) -> None:
    others = {name: factory for name, factory in registry.items() if name != "flashinfer"}
    flashinfer_backend.register()
    made = make_backend(Target(), (QUERY_HEADS, KV_HEADS, HEAD_WIDTH))
    backend = registry["flashinfer"](SimpleNamespace(made=made, is_draft_worker=is_draft))
    assert backend is made
    assert type(backend) is taught
    assert isinstance(backend, FlashInferAttnBackend), "SGLang looks for its own class before it captures graphs"
    assert {name: factory for name, factory in registry.items() if name != "flashinfer"} == others


def test_a_second_registration_changes_nothing(registry: dict[str, Any]) -> None:
    flashinfer_backend.register()
    first = registry["flashinfer"]
    flashinfer_backend.register()
    assert registry["flashinfer"] is first


def test_another_class_of_the_same_name_is_left_as_it_is(registry: dict[str, Any]) -> None:
    """SGLang has one of its own for MLA, whose forward is another."""

    class Mla(FlashInferAttnBackend):
        pass

    flashinfer_backend.register()
    made = object.__new__(Mla)
    assert type(registry["flashinfer"](SimpleNamespace(made=made, is_draft_worker=False))) is Mla


def test_without_lvspec_nothing_is_registered() -> None:
    assert not hasattr(attention_registry.ATTENTION_BACKENDS["flashinfer"], "keeps_lse")


# --- the known case


def make_checked(dtype: torch.dtype = torch.float32, heads: tuple[int, int, int] = (4, 2, 8)) -> tuple[Any, Any]:
    """A taught backend over a pool of this kind, and its layer."""
    num_heads, kv_heads, width = heads
    pool = SimpleNamespace(get_kv_buffer=lambda _layer: (torch.zeros(3, kv_heads, width, dtype=dtype),) * 2)
    runner = SimpleNamespace(req_to_token_pool=SimpleNamespace(req_to_token=None), token_to_kv_pool=pool)
    layer = SimpleNamespace(tp_q_head_num=num_heads, tp_k_head_num=kv_heads, qk_head_dim=width, layer_id=5)
    return LseFlashInferBackend.adopt(make_backend(runner, heads, dtype)), layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("heads", [(4, 2, 8), (7, 1, 64), (28, 4, 128), (8, 8, 80)], ids=str)
def test_the_log_sum_exp_that_we_expect_passes(dtype: torch.dtype, heads: tuple[int, int, int]) -> None:
    check_lse(*make_checked(dtype, heads))


def test_weights_that_are_rounded_before_they_are_added_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashInfer's tensor cores do so."""
    honest = FakeWrapper._run

    def rounded(self: FakeWrapper, *args: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        output, lse = honest(self, *args, **options)
        return output, lse + torch.linspace(-1, 1, lse.numel()).view_as(lse) * math.log2(1 + 2**-8)

    monkeypatch.setattr(FakeWrapper, "_run", rounded)
    check_lse(*make_checked(torch.bfloat16))


def _other_mask(wrapper: FakeWrapper, q: torch.Tensor, kv: Any, **options: Any) -> Any:
    wrapper._mask = None
    return FakeWrapper._run(wrapper, q, kv, **options | {"causal": False})


def _other_scale(wrapper: FakeWrapper, q: torch.Tensor, kv: Any, **options: Any) -> Any:
    return FakeWrapper._run(wrapper, q, kv, **options | {"sm_scale": options["sm_scale"] * 1.1})


def _other_heads(wrapper: FakeWrapper, q: torch.Tensor, kv: Any, **options: Any) -> Any:
    output, lse = FakeWrapper._run(wrapper, q, kv, **options)
    return output, lse.flip(1)


def _transposed(wrapper: FakeWrapper, q: torch.Tensor, kv: Any, **options: Any) -> Any:
    output, lse = FakeWrapper._run(wrapper, q, kv, **options)
    return output, lse.t()


def _half(wrapper: FakeWrapper, q: torch.Tensor, kv: Any, **options: Any) -> Any:
    output, lse = FakeWrapper._run(wrapper, q, kv, **options)
    return output, lse.half()


def _no_numbers(wrapper: FakeWrapper, q: torch.Tensor, kv: Any, **options: Any) -> Any:
    output, lse = FakeWrapper._run(wrapper, q, kv, **options)
    return output, lse * torch.nan


def _fails(*_args: Any, **_options: Any) -> Any:
    raise RuntimeError("no kernel image")


@pytest.mark.parametrize(
    ("behaviour", "found"),
    [
        (_other_mask, r"off by up to"),
        (_other_scale, r"off by up to"),
        (_other_heads, r"off by up to"),
        (_no_numbers, r"off by up to nan"),
        (_transposed, r"of shape \(4, 6\) instead of float32 \(6, 4\)"),
        (_half, r"torch\.float16 of shape \(6, 4\)"),
        (_fails, r"RuntimeError: no kernel image"),
    ],
)
def test_any_other_log_sum_exp_is_refused(behaviour: Any, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeWrapper, "forward_return_lse", behaviour)
    with pytest.raises(ValueError, match=rf"in base 2, .*{found}.*\. Set --lvspec-mass keys, which reads the keys"):
        check_lse(*make_checked())


# --- FlashInfer itself


try:
    FLASHINFER: SourceTree | None = SourceTree.installed("flashinfer")
except ModuleNotFoundError:
    FLASHINFER = None


@pytest.mark.parametrize("seam", FLASHINFER_SEAMS, ids=lambda seam: seam.name)
@pytest.mark.skipif(FLASHINFER is None, reason="not checkable without flashinfer")
def test_flashinfer_is_what_we_take_it_for(seam: Seam) -> None:
    assert FLASHINFER is not None
    message = check(seam, FLASHINFER)
    assert message is None, message


def test_the_stand_in_takes_what_sglang_passes() -> None:
    """The call in SGLang's source, with its keywords, binds to the stand-in as it does to FlashInfer."""
    source = ast.parse(textwrap.dedent(inspect.getsource(FlashInferAttnBackend.forward_extend)))
    [call] = [
        node
        for node in ast.walk(source)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "prefill_wrapper_paged.forward"
    ]
    keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg}
    inspect.signature(FakeWrapper._run).bind(None, *call.args, **keywords)
