"""Small random batches that a model may accept, in the order in which they are worth a try.

What a model reads follows from the names of its forward's arguments and from sizes in its config; how many places an
image takes among the tokens is tried.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Any]
ROWS, TOKENS = 2, 12
MAX_PLACES = 600


@dataclass
class Trials:
    """Batches for one module; ``said`` is told why one failed, which may suggest the next."""

    module: nn.Module
    seed: int = 0
    tokens: int = TOKENS
    _wanted: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names = set(inspect.signature(self.module.forward).parameters)
        self.config: Any = self.module.config
        self.generator = torch.Generator().manual_seed(self.seed)
        self.main = str(getattr(self.module, "main_input_name", "input_ids"))

    def said(self, message: str) -> None:
        """Take the number of places that an image needs from a refusal."""
        found = re.search(r"tokens:? (\d+),? ?(?:vs |and )?(?:image )?features:? (\d+)", message)
        if found is not None:
            self._wanted.append(int(found[2]))

    def __iter__(self) -> Iterator[Batch]:
        if "pixel_values" in self.names and self.main == "input_ids" and self._token("image") is not None:
            yield from self._images_and_text()
        if "pixel_values" in self.names and self.main == "input_ids" and self._token("image") is None:
            yield from ({**batch, **image} for image in self._image_arguments() for batch in self._text())
        if "input_ids" in self.names and self._vocabulary():
            yield from self._text()
        if "pixel_values" in self.names and self.main != "input_ids":
            if "spatial_shapes" in self.names:
                yield from self._image_arguments()
            yield from self._with_decoder({"pixel_values": image} for image in self._images())
            if "input_ids" in self.names and self._vocabulary():
                yield from ({"input_ids": self._ids(), "pixel_values": image} for image in self._images())
        for name in ("input_features", "input_values"):
            if name in self.names and self.main in (name, "input_ids"):
                yield from self._with_decoder({name: sound} for sound in self._sounds(name))
        yield from self._together()

    def _together(self) -> Iterator[Batch]:
        """Text with images or sounds, for models that refuse one without the other."""
        if "input_ids" not in self.names or not self._vocabulary():
            return
        parts: list[Batch] = []
        if "pixel_values" in self.names:
            parts += self._image_arguments()
        for name in ("input_features", "input_values"):
            if name in self.names:
                parts += ({name: sound} for sound in self._sounds(name))
        for text in self._text():
            yield from ({**text, **part} for part in parts)

    def _text(self) -> Iterator[Batch]:
        batch: Batch = {"input_ids": self._ids()}
        if "qformer_input_ids" in self.names:
            batch["qformer_input_ids"] = self._ids()
        if "image_attention_mask" in self.names:
            batch["image_attention_mask"] = torch.ones(ROWS, self.tokens, 1).long()
        if "decoder_input_ids" in self.names:
            yield {**batch, "decoder_input_ids": self._ids()}
        yield batch
        if "bbox" in self.names:
            boxes = torch.rand(ROWS, self.tokens, 4, generator=self.generator).sort(-1).values
            if "decoder_input_ids" in self.names:
                yield {**batch, "bbox": boxes, "decoder_input_ids": self._ids()}
            yield {**batch, "bbox": boxes}
        books = next((n for c in (self.config, self._part("decoder")) if (n := getattr(c, "num_codebooks", 0))), 0)
        if books:  # several tokens at a time: as rows, or side by side with the one of the text
            yield {"input_ids": self._ids().repeat(books, 1)}
            yield {"input_ids": self._ids().unsqueeze(-1).repeat(1, 1, books + 1)}
        if "attention_mask" in self.names:
            yield {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}

    def _with_decoder(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if "decoder_input_ids" in self.names and self._vocabulary():
                yield {**batch, "decoder_input_ids": self._ids()}
            else:
                yield batch

    def _images_and_text(self) -> Iterator[Batch]:
        token = self._token("image")
        assert token is not None
        for extra in self._image_arguments():
            self._wanted = [4]
            tried: set[int] = set()
            while self._wanted and len(tried) < 3:
                count = self._wanted.pop()
                if count in tried or count > MAX_PLACES:
                    continue
                tried.add(count)
                # A refusal counts all images of the batch together; each row holds one.
                places = max(1, count // ROWS) if tried != {4} else count
                ids = torch.cat([self._ids(2), torch.full((ROWS, places), token), self._ids(6)], 1)
                batch = {"input_ids": ids, **extra}
                if "qformer_input_ids" in self.names:
                    batch["qformer_input_ids"] = self._ids()
                if "mm_token_type_ids" in self.names:
                    batch["mm_token_type_ids"] = (ids == token).long()
                if "token_type_ids" in self.names:
                    batch["token_type_ids"] = (ids == token).long()
                yield batch

    def _image_arguments(self) -> Iterator[Batch]:
        vision = self._part("vision_config")
        if "image_grid_thw" in self.names:
            size = int(getattr(vision, "patch_size", 8))
            width = self._channels(vision) * int(getattr(vision, "temporal_patch_size", 1)) * size * size
            grid = torch.tensor([[1, 4, 4]] * ROWS)
            yield {"pixel_values": self._random(ROWS * 16, width), "image_grid_thw": grid}
            return
        if "spatial_shapes" in self.names:
            width = self._channels(vision) * int(getattr(vision, "patch_size", 8)) ** 2
            mask = torch.ones(ROWS, 16).long()
            shapes = torch.tensor([[4, 4]] * ROWS)
            yield {
                "pixel_values": self._random(ROWS, 16, width),
                "pixel_attention_mask": mask,
                "spatial_shapes": shapes,
            }
        sizes = {"image_sizes": torch.tensor([[self._side(vision)] * 2] * ROWS)} if "image_sizes" in self.names else {}
        for image in self._images():
            yield {"pixel_values": image, **sizes}

    def _images(self) -> Iterator[Tensor]:
        part = self._part("vision_config")
        channels = self._channels(part)
        for side in dict.fromkeys((self._side(part), 32, 64, 224)):
            yield self._random(ROWS, channels, side, side)
            yield self._random(ROWS, 1, channels, side, side)
        frames = int(getattr(self.config, "num_frames", 2) or 2)
        yield self._random(ROWS, frames, channels, self._side(part), self._side(part))

    def _sounds(self, name: str) -> Iterator[Tensor]:
        part = self._part("audio_config", "encoder_config", "encoder")
        named = ("num_mel_bins", "input_feat_per_channel", "feature_size", "n_mels", "input_channels", "mel_bins",
                 "feature_projection_input_dim")  # fmt: skip
        bins = next((v for key in named if isinstance(v := getattr(part, key, None), int)), 80)
        length = int(getattr(part, "max_source_positions", 0) or 0)
        frames = 2 * length if 0 < length <= 256 else 64
        if name == "input_values":
            yield self._random(ROWS, 2000)
            yield self._random(ROWS, 1, 2000)
            frames = int(getattr(self.config, "max_length", frames) or frames)
        yield self._random(ROWS, bins, frames)
        yield self._random(ROWS, frames, bins)

    def _ids(self, tokens: int = 0) -> Tensor:
        most = max(4, min(self._vocabulary(), 100))
        return torch.randint(3, most, (ROWS, tokens or self.tokens), generator=self.generator)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def _part(self, *names: str) -> Any:
        return next((part for n in names if (part := getattr(self.config, n, None)) is not None), self.config)

    def _side(self, part: Any) -> int:
        size = getattr(part, "image_size", None) or getattr(self.config, "image_size", None) or 32
        return int(size[0] if isinstance(size, list | tuple) else size)

    def _channels(self, part: Any) -> int:
        for name in ("num_channels", "in_channels", "in_chans"):
            if isinstance(value := getattr(part, name, None), int):
                return value
        return 3

    def _token(self, kind: str) -> int | None:
        for name in (f"{kind}_token_id", f"{kind}_token_index"):
            if isinstance(value := getattr(self.config, name, None), int):
                return value
        return None

    def _vocabulary(self) -> int:
        parts = [getattr(self.config, name, None) for name in ("text_config", "decoder", "decoder_config")]
        for part in (self.config, *parts):
            if isinstance(value := getattr(part, "vocab_size", None), int):
                return value
        return 0
