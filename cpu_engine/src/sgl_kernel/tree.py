"""Draft tree on CPU: building its links, mask and positions, and the greedy walk that verifies it.

Called by `sglang/kernels/ops/speculative/spec_tree.py`. A chain is the case `topk = 1`. All outputs are written in
place; the caller fills the link tensors and `accept_index` with -1 beforehand, as SGLang does.
"""

from __future__ import annotations

import torch

_FULL_MASK, _QLEN_ONLY = 0, 1  # TreeMaskMode, sglang 0.5.23 kernels/ops/speculative/spec_tree.py


def _parents(parent_list: torch.Tensor, selected_index: torch.Tensor, topk: int) -> torch.Tensor:
    """Find the tree position of every node's parent.

    Args:
        parent_list: int [B, P], candidate index of the parent of each expanded group; P is 0 for a single step.
        selected_index: int [B, D - 1], candidate index of each non-root node, ascending.
        topk: branches per node; candidate `c` was expanded from group `c // topk`, group 0 is the root.

    Returns:
        int64 [B, D]: position of the parent in 0..D-1; -1 for the root, and for a node whose parent was not selected.
    """
    num_reqs, num_drafts = selected_index.shape
    parents = torch.full((num_reqs, num_drafts + 1), -1, dtype=torch.int64)
    if num_drafts == 0:
        return parents
    group = selected_index // topk
    has_root_parent = group == 0
    parents[:, 1:] = torch.where(has_root_parent, 0, -1)
    if parent_list.numel():
        candidate = parent_list.gather(1, group)
        is_parent = selected_index[:, None, :] == candidate[:, :, None]
        # argmax of a boolean row is its first True: the first match wins, as in the kernel.
        position = is_parent.to(torch.int8).argmax(-1) + 1
        is_linked = is_parent.any(-1) & ~has_root_parent
        parents[:, 1:] = torch.where(is_linked, position, parents[:, 1:])
    return parents


def _link_children(
    parents: torch.Tensor, retrieve_next_token: torch.Tensor, retrieve_next_sibling: torch.Tensor
) -> None:
    """Write first-child and next-sibling links, both int64 [B, D], children in ascending order."""
    num_nodes = parents.shape[1]
    node = torch.arange(num_nodes)
    is_child = parents[:, None, :] == node[:, None]
    first_child = torch.where(is_child, node, num_nodes).amin(-1)
    has_child = first_child < num_nodes
    retrieve_next_token[has_child] = first_child[has_child].to(retrieve_next_token.dtype)

    is_later = node[None, :] > node[:, None]
    shares_parent = (parents[:, None, :] == parents[:, :, None]) & (parents[:, :, None] >= 0)
    next_sibling = torch.where(shares_parent & is_later, node, num_nodes).amin(-1)
    has_sibling = next_sibling < num_nodes
    retrieve_next_sibling[has_sibling] = next_sibling[has_sibling].to(retrieve_next_sibling.dtype)


def build_tree_kernel_efficient_cpu(
    parent_list: torch.Tensor,
    selected_index: torch.Tensor,
    verified_seq_len: torch.Tensor,
    tree_mask: torch.Tensor,
    positions: torch.Tensor,
    retrieve_index: torch.Tensor,
    retrieve_next_token: torch.Tensor,
    retrieve_next_sibling: torch.Tensor,
    topk: int,
    depth: int,
    draft_token_num: int,
    tree_mask_mode: int,
) -> None:
    """Build the tree of every request from the draft's selected candidates.

    Args (D = draft_token_num, node 0 is the root):
        parent_list: int64 [B, P]; selected_index: int64 [B, D - 1]; see `_parents`.
        verified_seq_len: int [B], committed tokens of each request.
        tree_mask: bool or uint8, flat. FULL_MASK: per request D rows of `verified_seq_len + D` columns, of which
            only the last D are written here. QLEN_ONLY: D rows of D columns.
        positions: int64 [B * D], `verified_seq_len` + depth of the node.
        retrieve_index: int64 [B, D], flat index of each node, `b * D + i`.
        retrieve_next_token, retrieve_next_sibling: int64 [B, D], first child and next sibling, -1 for none.
        topk, depth: branches per node, draft steps.
        tree_mask_mode: `TreeMaskMode`.

    Source: `sgl_build_tree_kernel_efficient_triton`, sglang 0.5.23 `kernels/ops/speculative/spec_tree.py`.
    """
    mode = int(tree_mask_mode)
    if mode not in (_FULL_MASK, _QLEN_ONLY):
        raise NotImplementedError(
            f"build_tree_kernel_efficient_cpu: the CPU engine knows FULL_MASK (0) and QLEN_ONLY (1), got {mode}."
        )
    num_reqs, num_nodes = verified_seq_len.numel(), draft_token_num
    if num_reqs == 0:
        return
    if not (parent_list.is_contiguous() and selected_index.is_contiguous()):
        # SGLang's compiled kernel reads them by pointer: what runs here must run there.
        raise ValueError(
            f"build_tree_kernel_efficient_cpu needs contiguous parent_list and selected_index; found strides "
            f"{parent_list.stride()} and {selected_index.stride()}. Call contiguous() on them."
        )
    seq_len = verified_seq_len.long()
    parents = _parents(parent_list.long(), selected_index.long(), topk)
    _link_children(parents, retrieve_next_token, retrieve_next_sibling)
    retrieve_index.view(-1)[: num_reqs * num_nodes] = torch.arange(num_reqs * num_nodes, dtype=retrieve_index.dtype)

    # Walk from every node towards the root, all nodes at once, at most `depth` steps.
    node = torch.arange(num_nodes)
    sees = torch.zeros(num_reqs, num_nodes, num_nodes, dtype=torch.bool)
    sees[:, :, 0] = True
    current = node.expand(num_reqs, -1).clone()
    node_depth = torch.zeros(num_reqs, num_nodes, dtype=torch.int64)
    for _ in range(depth):
        is_walking = current > 0
        node_depth += is_walking
        sees.scatter_(2, current.clamp(min=0)[:, :, None], True)
        current = torch.where(is_walking, parents.gather(1, current.clamp(min=0)), current)
    positions.view(-1)[: num_reqs * num_nodes] = (seq_len[:, None] + node_depth).reshape(-1).to(positions.dtype)

    if mode == _FULL_MASK:
        row_width = seq_len + num_nodes
        request_start = torch.cumsum(row_width * num_nodes, 0) - row_width * num_nodes
        row_start = request_start[:, None] + row_width[:, None] * node + seq_len[:, None]
    else:
        row_start = (torch.arange(num_reqs)[:, None] * num_nodes + node) * num_nodes
    tree_mask.view(-1)[row_start[:, :, None] + node] = sees.to(tree_mask.dtype)


def verify_tree_greedy_cpu(
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    target_predict: torch.Tensor,
) -> None:
    """Walk each tree along the target's own tokens; stop where no child carries the target's token.

    Args (D nodes, S = columns of `accept_index`; the misspelt names are those of the CUDA op's schema):
        predicts: int32 [B * D], target's token at every accepted node; other entries are left as they are.
        accept_index: int32 [B, S], flat indices root..last accepted; entries behind are left as they are.
        accept_token_num: int32 [B], accepted drafts without the bonus.
        candidates: int64 [B, D], token of each node, root first.
        retrive_index, retrive_next_token, retrive_next_sibling: int64 [B, D], see the builder above.
        target_predict: int64 [B, D], target's token after each node.

    Source: `verify_tree_greedy_kernel_triton`, sglang 0.5.23 `kernels/ops/speculative/spec_tree.py`.
    """
    num_reqs = candidates.shape[0]
    if num_reqs == 0:
        return
    row = torch.arange(num_reqs)
    target = target_predict.reshape(-1)
    predicts_flat = predicts.view(-1)
    last = retrive_index[:, 0].to(torch.int64, copy=True)  # written below: a view would rewrite the tree itself
    accept_index[:, 0] = last.to(accept_index.dtype)
    num_correct_drafts = torch.zeros(num_reqs, dtype=torch.int64)
    node = torch.zeros(num_reqs, dtype=torch.int64)
    is_walking = torch.ones(num_reqs, dtype=torch.bool)
    for _ in range(1, accept_index.shape[1]):
        node = torch.where(is_walking, retrive_next_token[row, node].long(), -1)
        wanted = target[last]
        is_searching = node >= 0
        is_walking = torch.zeros_like(is_walking)
        while bool(is_searching.any()):
            is_hit = is_searching & (candidates[row, node.clamp(min=0)] == wanted)
            is_walking |= is_hit
            is_searching &= ~is_hit
            node = torch.where(is_searching, retrive_next_sibling[row, node.clamp(min=0)].long(), node)
            is_searching &= node >= 0
        if not bool(is_walking.any()):
            break
        hit = row[is_walking]
        predicts_flat[last[hit]] = wanted[hit].to(predicts.dtype)
        num_correct_drafts[hit] += 1
        last[hit] = retrive_index[hit, node[hit]].long()
        accept_index[hit, num_correct_drafts[hit]] = last[hit].to(accept_index.dtype)
        node = node.clamp(min=0)
    accept_token_num[:num_reqs] = num_correct_drafts.to(accept_token_num.dtype)
    predicts_flat[last] = target[last].to(predicts.dtype)
