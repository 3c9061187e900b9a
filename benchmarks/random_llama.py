"""Random Llama checkpoints of a given shape, written shard by shard without building the model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file


@dataclass(frozen=True)
class Shape:
    """Layers, hidden size, width of the MLP, vocabulary, query and key heads; ``tied``: the head is the embedding."""

    layers: int
    hidden: int
    mlp: int
    vocabulary: int
    heads: int
    key_heads: int
    tied: bool = False
    dtype: str = "bfloat16"

    def config(self) -> dict[str, object]:
        """The config.json."""
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.hidden,
            "intermediate_size": self.mlp, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads, "vocab_size": self.vocabulary, "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": self.tied, "torch_dtype": self.dtype,
        }  # fmt: skip

    def block(self) -> dict[str, tuple[int, int]]:
        """Shapes ``[out, in]`` of a block's weights by name."""
        hidden, mlp, keys = self.hidden, self.mlp, self.hidden // self.heads * self.key_heads
        return {
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (mlp, hidden), "mlp.up_proj": (mlp, hidden), "mlp.down_proj": (hidden, mlp),
        }  # fmt: skip


def write_checkpoint(folder: Path, shape: Shape) -> None:
    """Write random weights in a shard per block, with index and config."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    dtype: torch.dtype = getattr(torch, shape.dtype)
    weight_map: dict[str, str] = {}

    def random(out: int, columns: int) -> torch.Tensor:
        return (torch.randn(out, columns, generator=generator) * 0.02).to(dtype)

    def save(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))

    ones = torch.ones(shape.hidden, dtype=dtype)
    outer = {"model.embed_tokens.weight": random(shape.vocabulary, shape.hidden), "model.norm.weight": ones}
    if not shape.tied:
        outer["lm_head.weight"] = random(shape.vocabulary, shape.hidden)
    save("outer.safetensors", outer)
    for layer in range(shape.layers):
        p = f"model.layers.{layer}."
        tensors = {f"{p}{name}.weight": random(*size) for name, size in shape.block().items()}
        tensors |= {f"{p}{n}.weight": ones.clone() for n in ("input_layernorm", "post_attention_layernorm")}
        save(f"block-{layer:02d}.safetensors", tensors)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(shape.config()))
