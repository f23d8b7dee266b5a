"""Tree building and greedy verification against their definitions, spelled out node by node."""

from __future__ import annotations

import itertools

import pytest
import torch

from sgl_kernel import build_tree_kernel_efficient_cpu, verify_tree_greedy_cpu

FULL_MASK, QLEN_ONLY, QLEN_ONLY_BITPACKING = 0, 1, 2


def draft_candidates(
    batch: int, topk: int, depth: int, num_nodes: int, rng: torch.Generator, is_closed: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make `parent_list` [B, topk * (depth - 1) + 1] (or [B, 0]) and `selected_index` [B, num_nodes - 1].

    Candidates are numbered as EAGLE numbers them: 0..topk-1 under the root, then per step `topk` children of each of
    the `topk` candidates that were expanded. With `is_closed` a child never scores above its parent, so the parent of
    a selected candidate is selected too; without it some parents are missing.
    """
    parent_lists, selections = [], []
    for _ in range(batch):
        parent_of_group = [-1]
        scores = torch.rand(topk, generator=rng).tolist()
        layer = list(range(topk))
        for _ in range(depth - 1):
            expanded = sorted(sorted(layer, key=lambda c: -scores[c])[:topk])
            layer = []
            for parent in expanded:
                parent_of_group.append(parent)
                for _ in range(topk):
                    layer.append(len(scores))
                    draw = float(torch.rand((), generator=rng))
                    scores.append(draw * scores[parent] if is_closed else draw)
        best = sorted(range(len(scores)), key=lambda c: -scores[c])[: num_nodes - 1]
        parent_lists.append(parent_of_group if depth > 1 else [])
        selections.append(sorted(best))
    return (
        torch.tensor(parent_lists, dtype=torch.int64).reshape(batch, topk * (depth - 1) + 1 if depth > 1 else 0),
        torch.tensor(selections, dtype=torch.int64).reshape(batch, num_nodes - 1),
    )


def build(
    parent_list: torch.Tensor,
    selected_index: torch.Tensor,
    seq_lens: torch.Tensor,
    topk: int,
    depth: int,
    mode: int,
    mask_dtype: torch.dtype = torch.bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, num_nodes = selected_index.shape[0], selected_index.shape[1] + 1
    size = batch * num_nodes**2 + (int(seq_lens.sum()) * num_nodes if mode == FULL_MASK else 0)
    mask = torch.ones(size, dtype=mask_dtype)  # SGLang fills a full mask with True and relies on it for the prefix
    positions = torch.empty(batch * num_nodes, dtype=torch.int64)
    links = [torch.full((batch, num_nodes), -1, dtype=torch.int64) for _ in range(3)]
    build_tree_kernel_efficient_cpu(
        parent_list, selected_index, seq_lens, mask, positions, *links, topk, depth, num_nodes, mode
    )
    return mask, positions, *links


def parents_by_definition(parent_list: list[int], selected: list[int], topk: int) -> list[int | None]:
    """Position of each node's parent; None for the root and for a node whose parent was not selected."""
    parents: list[int | None] = [None]
    for candidate in selected:
        if candidate // topk == 0:
            parents.append(0)
        else:
            parent = parent_list[candidate // topk]
            parents.append(selected.index(parent) + 1 if parent in selected else None)
    return parents


SHAPES = [
    # topk, depth, nodes
    (1, 1, 2),
    (1, 3, 4),
    (1, 7, 8),
    (2, 1, 3),
    (2, 3, 5),
    (4, 3, 8),
    (3, 4, 16),
]


@pytest.mark.parametrize("is_closed", [True, False])
@pytest.mark.parametrize("mode", [FULL_MASK, QLEN_ONLY])
@pytest.mark.parametrize("batch", [0, 1, 3, 7])
@pytest.mark.parametrize(("topk", "depth", "num_nodes"), SHAPES)
def test_tree_is_the_one_the_candidates_describe(
    topk: int, depth: int, num_nodes: int, batch: int, mode: int, is_closed: bool, rng: torch.Generator
) -> None:
    parent_list, selected = draft_candidates(batch, topk, depth, num_nodes, rng, is_closed)
    seq_lens = torch.randint(0, 9, (batch,), generator=rng)
    mask, positions, index, next_token, next_sibling = build(parent_list, selected, seq_lens, topk, depth, mode)

    assert index.flatten().tolist() == list(range(batch * num_nodes))
    mask_start = 0
    for b in range(batch):
        parents = parents_by_definition(parent_list[b].tolist(), selected[b].tolist(), topk)
        prefix = int(seq_lens[b]) if mode == FULL_MASK else 0
        rows = mask[mask_start : mask_start + num_nodes * (prefix + num_nodes)].view(num_nodes, prefix + num_nodes)
        mask_start += rows.numel()
        for node in range(num_nodes):
            children = [i for i in range(num_nodes) if parents[i] == node]
            assert next_token[b, node] == (children[0] if children else -1)
            siblings = [i for i in range(num_nodes) if parents[i] is not None and parents[i] == parents[node]]
            later = [i for i in siblings if i > node]
            assert next_sibling[b, node] == (later[0] if later else -1)

            path = [node]  # towards the root; it breaks off where a parent is missing
            while parents[path[-1]] is not None:
                path.append(parents[path[-1]])
            assert positions[b * num_nodes + node] == seq_lens[b] + sum(i != 0 for i in path)
            visible = {0, *path}
            assert rows[node].tolist() == [True] * prefix + [i in visible for i in range(num_nodes)]
    assert mask_start == mask.numel()


def test_a_chain_by_hand() -> None:
    parent_list = torch.tensor([[-1, 0, 1]])
    mask, positions, _, next_token, next_sibling = build(
        parent_list, torch.tensor([[0, 1, 2]]), torch.tensor([5]), 1, 3, QLEN_ONLY
    )
    assert mask.view(4, 4).tolist() == torch.ones(4, 4).tril().bool().tolist()
    assert positions.tolist() == [5, 6, 7, 8]
    assert next_token.tolist() == [[1, 2, 3, -1]]
    assert next_sibling.tolist() == [[-1, -1, -1, -1]]


def test_the_mask_may_be_bytes(rng: torch.Generator) -> None:
    parent_list, selected = draft_candidates(2, 2, 3, 5, rng, is_closed=True)
    seq_lens = torch.tensor([3, 1])
    as_bool = build(parent_list, selected, seq_lens, 2, 3, FULL_MASK)[0]
    as_bytes = build(parent_list, selected, seq_lens, 2, 3, FULL_MASK, torch.uint8)[0]
    assert as_bytes.tolist() == as_bool.int().tolist()


def test_the_walk_stops_after_depth_steps() -> None:
    # Four nodes in a row, but only two steps allowed: the last node reaches its parent and grandparent, not further.
    parent_list = torch.tensor([[-1, 0, 1]])
    mask, positions, *_ = build(parent_list, torch.tensor([[0, 1, 2]]), torch.tensor([0]), 1, 2, QLEN_ONLY)
    assert mask.view(4, 4)[3].tolist() == [True, False, True, True]
    assert positions.tolist() == [0, 1, 2, 2]


def test_a_slice_is_refused_as_the_compiled_kernel_would_misread_it() -> None:
    wide = torch.arange(8).view(2, 4)
    with pytest.raises(ValueError, match="needs contiguous parent_list and selected_index"):
        build(torch.tensor([[-1, 0], [-1, 0]]), wide[:, :2], torch.tensor([1, 1]), 1, 2, QLEN_ONLY)


def test_packed_masks_are_refused_by_name() -> None:
    with pytest.raises(NotImplementedError, match=r"build_tree_kernel_efficient_cpu.*got 2"):
        build(torch.tensor([[-1, 0]]), torch.tensor([[0, 1]]), torch.tensor([1]), 1, 2, QLEN_ONLY_BITPACKING)


def verify(
    candidates: torch.Tensor, target: torch.Tensor, links: list[torch.Tensor], num_columns: int
) -> tuple[list[int], list[list[int]], list[int]]:
    batch, num_nodes = candidates.shape
    predicts = torch.full((batch * num_nodes,), -5, dtype=torch.int32)
    accept_index = torch.full((batch, num_columns), -1, dtype=torch.int32)
    accept_token_num = torch.full((batch,), -5, dtype=torch.int32)
    verify_tree_greedy_cpu(
        predicts=predicts,
        accept_index=accept_index,
        accept_token_num=accept_token_num,
        candidates=candidates,
        retrive_index=links[0],
        retrive_next_token=links[1],
        retrive_next_sibling=links[2],
        target_predict=target,
    )
    return predicts.tolist(), accept_index.tolist(), accept_token_num.tolist()


def verify_by_definition(
    candidates: torch.Tensor, target: torch.Tensor, links: list[torch.Tensor], num_columns: int
) -> tuple[list[int], list[list[int]], list[int]]:
    """From the root, step to the first child that carries the target's token, until there is none."""
    batch, num_nodes = candidates.shape
    predicts, accept_index, accept_token_num = [-5] * (batch * num_nodes), [], []
    for b in range(batch):
        index, next_token, next_sibling = (link[b].tolist() for link in links)
        node, accepted = 0, []
        while True:
            accepted.append(node)
            predicts[index[node]] = int(target[b, node])
            children, child = [], next_token[node]
            while child != -1:
                children.append(child)
                child = next_sibling[child]
            matches = [child for child in children if candidates[b, child] == target[b, node]]
            if not matches or len(accepted) == num_columns:
                break
            node = matches[0]
        accept_index.append([index[node] for node in accepted] + [-1] * (num_columns - len(accepted)))
        accept_token_num.append(len(accepted) - 1)
    return predicts, accept_index, accept_token_num


@pytest.mark.parametrize("vocab", [2, 3, 50])  # tiny vocabularies: long acceptances and equal siblings
@pytest.mark.parametrize("batch", [0, 1, 3, 16])
@pytest.mark.parametrize(("topk", "depth", "num_nodes"), SHAPES)
def test_verification_follows_the_targets_tokens(
    topk: int, depth: int, num_nodes: int, batch: int, vocab: int, rng: torch.Generator
) -> None:
    parent_list, selected = draft_candidates(batch, topk, depth, num_nodes, rng, is_closed=True)
    links = list(build(parent_list, selected, torch.zeros(batch, dtype=torch.int64), topk, depth, QLEN_ONLY)[2:])
    for num_columns in {1, depth, depth + 1}:
        candidates = torch.randint(0, vocab, (batch, num_nodes), generator=rng)
        target = torch.randint(0, vocab, (batch, num_nodes), generator=rng)
        inputs = [tensor.clone() for tensor in (candidates, target, *links)]
        got = verify(candidates, target, links, num_columns)
        assert all(map(torch.equal, (candidates, target, *links), inputs))
        assert got == verify_by_definition(candidates, target, links, num_columns)


def test_every_chain_of_three_over_two_tokens() -> None:
    pairs = list(itertools.product(itertools.product(range(2), repeat=3), repeat=2))
    candidates = torch.tensor([pair[0] for pair in pairs])
    target = torch.tensor([pair[1] for pair in pairs])
    batch = len(pairs)
    links = [
        torch.arange(batch * 3).view(batch, 3),
        torch.tensor([[1, 2, -1]]).repeat(batch, 1),
        torch.full((batch, 3), -1),
    ]
    _, accept_index, accept_token_num = verify(candidates, target, links, 3)
    for i, (draft, want) in enumerate(pairs):
        expected = 0 if draft[1] != want[0] else 1 if draft[2] != want[1] else 2
        assert accept_token_num[i] == expected
        assert accept_index[i] == [i * 3 + n if n <= expected else -1 for n in range(3)]
