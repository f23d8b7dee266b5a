"""Bonus tokens and the shift by one against loops over requests."""

from __future__ import annotations

import pytest
import torch

from sgl_kernel import fill_bonus_tokens_cpu, rotate_input_ids_cpu


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (4, 3), (9, 6)])
@pytest.mark.parametrize("is_flat", [False, True])
def test_the_bonus_is_the_last_accepted_token(shape: tuple[int, int], is_flat: bool, rng: torch.Generator) -> None:
    batch, stride = shape
    tokens = torch.randint(0, 10_000, shape, generator=rng, dtype=torch.int32)
    accept_lens = torch.randint(1, stride + 1, (batch,), generator=rng, dtype=torch.int32)
    bonus = torch.full((batch + 1,), -7, dtype=torch.int32)

    fill_bonus_tokens_cpu(tokens.flatten() if is_flat else tokens, accept_lens, bonus, stride)
    assert bonus.tolist() == [int(tokens[i, accept_lens[i] - 1]) for i in range(batch)] + [-7]


@pytest.mark.parametrize("lengths", [[], [1], [4], [3, 1, 5], [0, 2, 0, 6, 0]])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("has_select_index", [False, True])
@pytest.mark.parametrize("is_column", [False, True])
def test_ids_move_left_and_the_new_token_enters(
    lengths: list[int], dtype: torch.dtype, has_select_index: bool, is_column: bool, rng: torch.Generator
) -> None:
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    input_ids = torch.randint(0, 10_000, (sum(lengths),), generator=rng)
    new_tokens = torch.randint(10_000, 20_000, (len(lengths),), generator=rng)
    # Not the last row, so that the two modes differ.
    selected = [start + max(length - 2, 0) for start, length in zip(starts, lengths, strict=True)]

    expected = input_ids.tolist()
    for i, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        if length == 0:
            continue
        expected[start : start + length - 1] = expected[start + 1 : start + length]
        expected[selected[i] if has_select_index else start + length - 1] = int(new_tokens[i])

    rotate_input_ids_cpu(
        input_ids,
        torch.tensor(starts, dtype=dtype),
        torch.tensor(lengths, dtype=dtype),
        new_tokens[:, None] if is_column else new_tokens,
        torch.tensor(selected, dtype=torch.int64) if has_select_index else None,
    )
    assert input_ids.tolist() == expected
