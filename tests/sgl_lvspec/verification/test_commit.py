"""What `after_eagle_sample` changes of SGLang's result, and that it changes nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.speculative import eagle_utils

from lvspec_kernels import accept_chain
from sgl_lvspec.verification import commit
from sgl_lvspec.verification.commit import Commit, after_eagle_sample, one_token_rows
from tests.sgl_lvspec.verification.sampling import Batch, Request

V, WIDTH = 8, 4
GREEDY = {"temperature": 0.0}


class Round:
    """A verified batch: what SGLang hands to `eagle_sample`, and its greedy result."""

    def __init__(self, *requests: Request) -> None:
        rng = torch.Generator().manual_seed(len(requests))
        self.batch = Batch(list(requests), V, forward_mode=ForwardMode.DECODE)
        self.logits = torch.randn(len(requests) * WIDTH, V, generator=rng)
        # Row b drafts what the target wants for b + 1 tokens, then something else.
        wanted = self.logits.argmax(dim=-1).view(-1, WIDTH)
        self.draft = torch.cat([torch.zeros(len(requests), 1, dtype=torch.int64), wanted[:, :-1]], dim=1)
        for row in range(len(requests)):
            self.draft[row, row + 2 :] = (self.draft[row, row + 2 :] + 1) % V
        self.result = accept_chain(self.draft, wanted)
        self.verify_input = SimpleNamespace(
            draft_token=self.draft.flatten(), draft_token_num=WIDTH, positions=torch.arange(len(requests) * WIDTH)
        )

    def commit(self) -> Commit | None:
        """The hook, called as SGLang's hook registry does."""
        logits_output = SimpleNamespace(next_token_logits=self.logits)
        return after_eagle_sample(self.result, self.verify_input, self.batch, logits_output, None, watermark_state=None)  # type: ignore[arg-type]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The draw of a batch of four: token 7 everywhere, or what a test writes into it."""
    choice = torch.full((4, WIDTH), 7)
    monkeypatch.setattr(commit, "draw_choice", lambda *_args: choice)
    return choice


def assert_rows_equal(ours: Commit, theirs: Any, rows: list[int]) -> None:
    """Both commit the same in these rows, nodes behind the last accepted one included."""
    theirs = Commit(*theirs)
    assert torch.equal(ours.accept_lens[rows], theirs.accept_lens[rows])
    assert torch.equal(ours.accept_index[rows], theirs.accept_index[rows])
    assert torch.equal(ours.predict.view(-1, WIDTH)[rows], theirs.predict.view(-1, WIDTH)[rows])
    for tensor in ours:
        assert tensor.dtype == torch.int32


def assert_one_token(ours: Commit, theirs: Any, rows: list[int]) -> None:
    """The rows commit the token after the root and nothing else."""
    assert ours.accept_lens[rows].tolist() == [1] * len(rows)
    assert ours.accept_index[rows].tolist() == [[row * WIDTH] + [-1] * (WIDTH - 1) for row in rows]
    roots = [row * WIDTH for row in rows]
    assert torch.equal(ours.predict[roots], Commit(*theirs).predict[roots])


def test_sglangs_result_stands_when_every_row_is_greedy() -> None:
    assert Round(Request(**GREEDY), Request(top_k=1)).commit() is None


def test_sglangs_result_stands_for_sampled_rows_on_a_gpu() -> None:
    """Its CUDA sampler draws them, except where min-p asks for more than it knows."""
    round_ = Round(Request(), Request(top_p=0.9, top_k=5))
    round_.batch.device = "cuda"
    assert round_.commit() is None


def test_an_idle_batch_is_left_alone() -> None:
    round_ = Round(Request())
    round_.batch.forward_mode = ForwardMode.IDLE
    round_.batch.sampling_info = None  # an idle batch has none
    assert round_.commit() is None


def test_on_cpu_sampled_rows_are_drawn_again_and_greedy_rows_are_not(drawn: torch.Tensor) -> None:
    round_ = Round(Request(**GREEDY), Request(), Request(top_k=1), Request(top_p=0.9))
    drawn[1] = round_.draft[1].roll(-1)  # every draft of row 1 is what was drawn
    ours = round_.commit()
    assert ours is not None
    assert_rows_equal(ours, round_.result, [0, 2])
    assert_rows_equal(ours, accept_chain(round_.draft, drawn), [1, 3])
    assert ours.accept_lens[1] == WIDTH


def test_on_a_gpu_only_rows_with_min_p_are_drawn_again(drawn: torch.Tensor) -> None:
    round_ = Round(Request(), Request(min_p=0.1), Request(**GREEDY), Request(top_p=0.9))
    round_.batch.device = "cuda"
    ours = round_.commit()
    assert ours is not None
    assert_rows_equal(ours, round_.result, [0, 2, 3])
    assert_rows_equal(ours, accept_chain(round_.draft, drawn), [1])


def test_the_draw_reads_the_logits_parameters_and_positions_of_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(commit, "draw_choice", lambda *args: seen.extend(args) or torch.zeros(1, WIDTH).long())
    round_ = Round(Request())
    round_.commit()
    assert [id(arg) for arg in seen] == [
        id(part) for part in (round_.logits, round_.batch.sampling_info, round_.verify_input.positions)
    ]


def test_ranks_commit_what_rank_0_drew(drawn: torch.Tensor, tp_group: SimpleNamespace) -> None:
    round_ = Round(*[Request() for _ in range(4)])
    of_rank_0 = round_.draft.roll(-1, dims=1)

    def broadcast(tensor: torch.Tensor, src: int) -> None:
        assert src == 0
        if tensor.shape == of_rank_0.shape:  # else the commit that follows from it
            tensor.copy_(of_rank_0)

    tp_group.world_size, tp_group.broadcast = 2, broadcast
    ours = round_.commit()
    assert ours is not None
    assert ours.accept_lens.tolist() == [WIDTH] * 4
    assert_rows_equal(ours, accept_chain(round_.draft, of_rank_0), [0, 1, 2, 3])


def test_ranks_commit_what_rank_0_commits_where_sglang_decides(tp_group: SimpleNamespace) -> None:
    """Greedy and strict: SGLang's own result, of which every rank has found its own."""
    round_ = Round(Request(**GREEDY), Request(**GREEDY))
    assert round_.commit() is None, "with one rank there is nothing to change"
    of_rank_0 = Commit(*accept_chain(round_.draft, round_.draft.roll(-1, dims=1)))
    assert not torch.equal(of_rank_0.accept_lens, round_.result[1]), "the ranks must not agree by chance"

    def broadcast(tensor: torch.Tensor, src: int) -> None:
        assert src == 0
        assert tensor.dtype == torch.int32
        tensor.copy_(torch.cat([part.flatten() for part in of_rank_0]))

    tp_group.world_size, tp_group.broadcast = 2, broadcast
    ours = round_.commit()
    assert ours is not None
    for found, expected in zip(ours, of_rank_0, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "request_",
    [
        Request(**GREEDY, frequency_penalty=0.5),
        Request(**GREEDY, presence_penalty=-0.5),
        Request(**GREEDY, repetition_penalty=1.1),
        Request([4], **GREEDY, min_new_tokens=2),
        Request(**GREEDY, min_new_tokens=1),
    ],
    ids=["frequency", "presence", "repetition", "one-below-min-new-tokens", "before-the-first-token"],
)
def test_a_row_whose_penalty_depends_on_its_own_tokens_commits_one(request_: Request) -> None:
    round_ = Round(Request(**GREEDY), Request(**GREEDY), request_)
    ours = round_.commit()
    assert Commit(*round_.result).accept_lens.tolist() == [2, 3, 4], "the row would commit more"
    assert ours is not None
    assert_one_token(ours, round_.result, [2])
    assert_rows_equal(ours, round_.result, [0, 1])


def test_a_row_that_reached_min_new_tokens_commits_what_it_can() -> None:
    done, short = Request([4, 5], **GREEDY, min_new_tokens=2), Request([4], **GREEDY, min_new_tokens=2)
    round_ = Round(short, done)
    ours = round_.commit()
    assert ours is not None
    assert_one_token(ours, round_.result, [0])
    assert_rows_equal(ours, round_.result, [1])


def test_sglangs_result_stands_once_every_row_reached_min_new_tokens() -> None:
    assert Round(Request([4, 5], **GREEDY, min_new_tokens=2), Request(**GREEDY)).commit() is None


def test_a_sampled_row_with_a_penalty_commits_one_token_of_our_draw(drawn: torch.Tensor) -> None:
    round_ = Round(Request(frequency_penalty=0.5), Request(**GREEDY), Request(), Request(**GREEDY, min_new_tokens=3))
    drawn[0] = round_.draft[0].roll(-1)
    ours = round_.commit()
    assert ours is not None
    assert_one_token(ours, accept_chain(round_.draft, drawn), [0])
    assert_rows_equal(ours, round_.result, [1])
    assert_rows_equal(ours, accept_chain(round_.draft, drawn), [2])
    assert_one_token(ours, round_.result, [3])


@pytest.mark.parametrize("seed", range(5))
def test_no_row_commits_more_than_the_strict_rule(seed: int) -> None:
    """Whatever the mix: a commit is the strict prefix of the row's choice, or its first token."""
    torch.manual_seed(seed)
    kinds = [GREEDY, {}, {"min_p": 0.2}, {"presence_penalty": 0.3}, {**GREEDY, "min_new_tokens": 2}, {"top_k": 2}]
    requests = [Request(**kinds[(seed + row) % len(kinds)]) for row in range(4)]
    round_ = Round(*requests)
    ours = round_.commit()
    assert ours is not None
    nodes = torch.arange(WIDTH)
    for row, lens in enumerate(ours.accept_lens.tolist()):
        committed = ours.predict.view(-1, WIDTH)[row, :lens]
        assert committed[:-1].tolist() == round_.draft[row, 1:lens].tolist(), "all but the last are drafted tokens"
        expected = torch.where(nodes < lens, row * WIDTH + nodes, -1)
        assert ours.accept_index[row].tolist() == expected.tolist()
        if requests[row].sampling_params.top_k == 1:
            assert lens <= Commit(*round_.result).accept_lens[row]


def test_rows_that_commit_one_token_are_found_by_request_not_by_batch() -> None:
    batch = Batch([Request(), Request(repetition_penalty=0.9), Request([1], min_new_tokens=1)], V)
    rows = one_token_rows(batch)  # type: ignore[arg-type]
    assert rows is not None
    assert rows.tolist() == [False, True, False]
    assert rows.dtype == torch.bool


@pytest.mark.skipif(torch.cuda.is_available(), reason="SGLang's verify on CPU is argmax; on a GPU another test's")
@pytest.mark.parametrize("name", ["penalty", "plain"])
def test_behind_sglangs_own_eagle_sample_a_penalised_row_commits_the_penalised_choice(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole verification of a round: SGLang penalises the logits in place and walks the tree, then our hook."""
    monkeypatch.setattr(eagle_utils, "get_spec", lambda: SimpleNamespace(speculative_use_rejection_sampling=False))
    params = {"repetition_penalty": 2.0} if name == "penalty" else {}
    round_ = Round(Request([5], **GREEDY, **params), Request(**GREEDY))
    if name == "penalty":
        # Token 5 was written before: halving its logit lets token 6 win after the root.
        round_.batch.sampling_info.penalizer_orchestrator.cumulate_output_tokens(torch.tensor([5, 0]))
        round_.batch.sampling_info.update_penalties()
    round_.logits[0, :] = torch.tensor([0, 0, 0, 0, 0, 3.0, 2.0, 0])
    round_.batch.seq_lens = torch.tensor([9, 9])
    nodes = torch.arange(2 * WIDTH).view(2, WIDTH)
    vars(round_.verify_input).update(
        max_tree_depth=WIDTH,
        tree_topk=1,
        retrieve_index=nodes,
        retrieve_next_token=torch.tensor([[1, 2, 3, -1]] * 2),
        retrieve_next_sibling=torch.full((2, WIDTH), -1),
    )
    logits_output = SimpleNamespace(next_token_logits=round_.logits)
    round_.result = eagle_utils.eagle_sample(round_.verify_input, round_.batch, logits_output)  # type: ignore[arg-type]
    ours = round_.commit()
    if name == "plain":
        assert ours is None
        assert round_.result[0][0] == 5
        return
    assert ours is not None
    assert ours.predict[0] == 6
    assert_one_token(ours, round_.result, [0])
    assert_rows_equal(ours, round_.result, [1])
