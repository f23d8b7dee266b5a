"""A server without models around the prompt reader: SGLang's own pools and media, and a draft that only writes down.

`World.forward` stands where the draft's model stands: it notes for every draft slot which token was written there, at
which positions, and that the row before it was there to be seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.managers import mm_schedule
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalInputs
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool

from sgl_lvspec.config import LVSpecConfig
from sgl_lvspec.context.batch import compact_media
from sgl_lvspec.context.pool import DraftPool
from sgl_lvspec.context.prompt import note_prefill
from sgl_lvspec.context.reader import Piece, PromptReader

REQUESTS, CONTEXT, TARGETS, WIDTH = 5, 120, 400, 3
STAND_IN = 198
FEATURE_WIDTH = 2
DELTA = -7  # of M-RoPE: text behind a video lies closer than its index


@dataclass(frozen=True)
class Clip:
    """A video of `num_tokens` in a prompt."""

    number: int
    num_tokens: int
    has_pixels: bool = True
    is_precomputed: bool = False
    modality: Modality = Modality.VIDEO

    def item(self, first: int) -> MultimodalDataItem:
        item = MultimodalDataItem(modality=self.modality, offsets=[(first, first + self.num_tokens - 1)])
        item.set_hash(1000 + self.number)
        item.feature = torch.tensor([self.number]) if self.has_pixels else None
        item.precomputed_embeddings = torch.ones(self.num_tokens, 9) if self.is_precomputed else None
        return item


class Features:
    """Feature i of a clip is [its number, i]; `asked` counts how often each was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def of(self, item: MultimodalDataItem, num_tokens: int) -> torch.Tensor | None:
        assert item.hash is not None
        self.asked.append(item.hash - 1000)
        if item.feature is None:
            return None
        return torch.stack([torch.full((num_tokens,), item.hash - 1000), torch.arange(num_tokens)], dim=1).float()


class World:
    """Requests come, share what is cached, are read and leave."""

    def __init__(self, context: str = "full", size: int = 300, max_tokens: int = 1000, **changes: Any) -> None:
        blind = changes.pop("blind", False)
        config = LVSpecConfig(context=context, **{"keep": 0.25, "keep_min": 0, **changes})
        self.rows = ReqToTokenPool(REQUESTS, CONTEXT, "cpu", enable_memory_saver=False)
        kv = MHATokenToKVPool(TARGETS, 1, torch.float32, 1, 4, 1, "cpu", enable_memory_saver=False)
        self.allocator = TokenToKVPoolAllocator(TARGETS, torch.float32, "cpu", kv, need_sort=False)
        self.pool = DraftPool(self.rows, self.allocator, size, WIDTH)
        self.features = Features()
        self.reader = PromptReader(
            config,
            self.pool.slots,
            self.rows.req_to_token,
            None if blind else self.features,  # type: ignore[arg-type]
            STAND_IN,
            max_tokens,
        )
        self.tally = self.reader.tally
        self.forwards: list[list[Piece]] = []
        self.written: dict[int, tuple[Any, int]] = {}  # draft slot: (id or feature, position in the context)

    def prompt(
        self, *parts: int | Clip, row: int = 1, like: Any = None, num_cached: int = 0, output: tuple[int, ...] = ()
    ) -> Any:
        """A request that the target has read; its first `num_cached` tokens are those of request `like`."""
        ids: list[int] = []
        items = []
        for part in parts:
            if isinstance(part, Clip):
                items.append(part.item(len(ids)))
                ids += items[-1].padding_sequence(part.num_tokens)
            else:
                ids.append(part)
        positions = torch.arange(len(ids)) * torch.tensor([[1], [2], [3]])
        media = MultimodalInputs(
            mm_items=items, mrope_positions=positions, mrope_position_delta=torch.tensor([[DELTA]])
        )
        req = SimpleNamespace(
            origin_input_ids=ids,
            output_ids=list(output),
            multimodal_inputs=media if items else None,
            kv=SimpleNamespace(req_pool_idx=row),
        )
        length = len(ids) + len(output)
        new = self.allocator.alloc(length - num_cached)
        assert new is not None
        table = self.rows.req_to_token
        table[row, num_cached:length] = new.int()
        if num_cached:
            table[row, :num_cached] = table[like.kv.req_pool_idx, :num_cached]
        note_prefill(req, num_cached, length)  # type: ignore[arg-type]
        req.length = length
        return req

    def read(self, *reqs: Any, running: tuple[Any, ...] = ()) -> int:
        """How many forwards it took."""
        before = len(self.forwards)
        every = [*reqs, *running]
        self.reader.read(list(reqs), lambda: self.in_use(*every), self.forward)
        self.pool.slots.check()
        return len(self.forwards) - before

    def in_use(self, *reqs: Any) -> torch.Tensor:
        return torch.cat([self.target_slots(req) for req in reqs])

    def target_slots(self, req: Any) -> torch.Tensor:
        return self.rows.req_to_token[req.kv.req_pool_idx, : req.length].long()

    def forward(self, pieces: list[Piece]) -> None:
        self.forwards.append(pieces)
        for piece in pieces:
            reading = piece.reading
            count = self._rebuild(reading.req)
            begin, new = reading.num_held + piece.first, piece.last - piece.first
            assert begin + new <= count
            row = self.pool.rows.req_to_token[reading.row]
            for slot in row[:begin].tolist():
                assert slot in self.written, "the draft would look at what nobody wrote"
            positions = reading.kept[piece.first : piece.last].tolist()
            for slot, said, position in zip(
                row[begin : begin + new].tolist(), self.shown(piece), positions, strict=True
            ):
                self.written[slot] = (said, position)

    def shown(self, piece: Piece) -> list[Any]:
        """Per token of a piece what SGLang's embedding makes of it: an id, or a feature (clip, index)."""
        reading = piece.reading
        ids = reading.ids[piece.first : piece.last]
        view = compact_media(piece)
        found: list[Any] = ids.tolist()
        for modality in Modality.all():
            items = [item for item in ([] if view is None else view.mm_items) if item.modality == modality]
            if not items:
                continue
            embeddings, mask, _ = mm_schedule.get_embedding_and_mask(
                data_embedding_func=None,  # type: ignore[arg-type]
                embedding_items=items,
                placeholder_tensor=torch.tensor(sorted(value for item in items for value in item.padding_values())),
                input_ids=ids,
                items_size=[0, len(items)],
                prefix_length=[reading.num_held + piece.first],
                extend_length=[len(ids)],
                items_offset_list=[[offset for item in items for offset in item.offsets]],
            )
            assert embeddings is not None
            assert mask is not None
            places = torch.nonzero(mask.flatten()).flatten().tolist()
            for place, (number, index) in zip(places, embeddings.int().tolist(), strict=True):
                found[place] = (number, index)
        return found

    def _rebuild(self, req: Any) -> int:
        return int(self.pool.rebuild(torch.tensor([req.kv.req_pool_idx]), torch.tensor([req.length])))

    def held(self, req: Any) -> list[tuple[Any, int]]:
        """What the draft sees of a request: (id or feature, position) of each token in its row."""
        count = self._rebuild(req)
        return [self.written[slot] for slot in self.pool.rows.req_to_token[req.kv.req_pool_idx, :count].tolist()]

    def kept(self, req: Any) -> list[int]:
        return [position for _, position in self.held(req)]

    def whole(self, req: Any) -> list[tuple[Any, int]]:
        """What a draft that reads everything would see."""
        said: list[Any] = [*req.origin_input_ids, *req.output_ids]
        media = req.multimodal_inputs
        for item in [] if media is None else media.mm_items:
            first, last = item.offsets[0]
            for place in range(first, last + 1):
                said[place] = (item.hash - 1000, place - first)
        return list(zip(said, range(len(said)), strict=True))
