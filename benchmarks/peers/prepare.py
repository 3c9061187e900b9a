"""Write the token ids that every tool reads, so that no tool tokenizes anything itself.

Calibration: `train_head.txt` as one text (newlines kept) is tokenized without special tokens; the stream is cut into
pieces of 511 ids, BOS goes in front of each, and the first 128 pieces are taken: [128, 512].
Evaluation: the first 200 stories of `valid.txt` (parts between `<|endoftext|>` lines, outer white space removed), each
alone: BOS, then the story's ids, cut at 512.
"""

from __future__ import annotations

from pathlib import Path

import torch
from exchange import CALIBRATION, EVALUATION, LENGTH, MODEL, SEQUENCES, STORIES, TEXT, arguments
from safetensors.torch import save_file
from transformers import AutoTokenizer


def calibration(tokenizer: object, folder: Path) -> torch.Tensor:
    """The calibration ids [SEQUENCES, LENGTH]."""
    text = (folder / "train_head.txt").read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    pieces = ids[: SEQUENCES * (LENGTH - 1)].view(SEQUENCES, LENGTH - 1)
    return torch.cat([torch.full((SEQUENCES, 1), tokenizer.bos_token_id), pieces], dim=1)


def evaluation(tokenizer: object, folder: Path) -> list[torch.Tensor]:
    """The evaluation ids, one tensor a story."""
    stories = (folder / "valid.txt").read_text(encoding="utf-8").split("<|endoftext|>")[:STORIES]
    encoded = (tokenizer(story.strip(), add_special_tokens=False)["input_ids"] for story in stories)
    return [torch.tensor([tokenizer.bos_token_id, *ids])[:LENGTH] for ids in encoded]


def main() -> None:
    """Tokenize both texts and write one file for each: `ids` and, where rows are shorter, `mask`."""
    options = arguments(__doc__ or "")
    tokenizer = AutoTokenizer.from_pretrained(options.assets / MODEL)
    stories = evaluation(tokenizer, options.assets / TEXT)
    ids = torch.nn.utils.rnn.pad_sequence(stories, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(story) for story in stories], batch_first=True)
    options.work.mkdir(parents=True, exist_ok=True)
    save_file({"ids": calibration(tokenizer, options.assets / TEXT)}, options.work / CALIBRATION)
    save_file({"ids": ids, "mask": mask}, options.work / EVALUATION)
    scored = int(mask.sum()) - len(stories)
    print(f"calibration {SEQUENCES} x {LENGTH}, evaluation {len(stories)} stories, {scored} scored tokens")


if __name__ == "__main__":
    main()
