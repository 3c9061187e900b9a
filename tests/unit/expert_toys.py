"""Tiny random mixture-of-experts models, one per way in which transformers keeps experts."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

_SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64,
    "num_experts": 4, "num_experts_per_tok": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_OWN: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {"shared_expert_intermediate_size": 32, "decoder_sparse_step": 1},
    "Qwen3Moe": {"decoder_sparse_step": 1},
    "Olmoe": {},
    "GptOss": {"num_local_experts": 4},
    "DeepseekV3": {
        "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 0, "q_lora_rank": 16,
        "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "n_shared_experts": 1,
    },
    "GraniteMoe": {"num_local_experts": 4},
    "Llama4": {"num_local_experts": 4, "interleave_moe_layer_step": 1, "intermediate_size_mlp": 32},
    "Dbrx": {
        "d_model": 32, "n_heads": 2, "n_layers": 1, "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32, "hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
}  # fmt: skip
NAMES = tuple(_OWN)


def expert_model(name: str, seed: int = 0, **more: Any) -> nn.Module:
    """A model of the family ``name`` with random weights, and no two experts or norms alike."""
    config_name = {"Llama4": "Llama4TextConfig"}.get(name, f"{name}Config")
    config = getattr(transformers, config_name)(**{**_SMALL, **_OWN[name], **more})
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


class SeparateExperts(nn.Module):
    """A mixture of the older kind: experts in a list, a plain linear layer as router, one expert per token."""

    def __init__(self, experts: int = 3) -> None:
        super().__init__()
        self.gate = nn.Linear(16, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16)) for _ in range(experts)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Each token's expert, weighted by its probability."""
        rows = x.reshape(-1, x.shape[-1])
        weight, chosen = self.gate(rows).softmax(-1).topk(1, dim=-1)
        y = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            index = torch.where(chosen[:, 0] == number)[0]
            if len(index):
                y = y.index_add(0, index, expert(rows[index]) * weight[index])
        return y.reshape(x.shape)


class SeparateBlock(nn.Module):
    """A norm and a mixture, added to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mixture = nn.LayerNorm(16), SeparateExperts()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The stream after the block."""
        return x + self.mixture(self.norm(x))


class SeparateModel(nn.Module):
    """Two such blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.blocks = nn.ModuleList(SeparateBlock() for _ in range(2))
        self.head = nn.Linear(16, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores ``[rows, tokens, 7]``."""
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def token_batches(count: int = 2, rows: int = 4, tokens: int = 16, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(3, 64, (rows, tokens), generator=generator)} for _ in range(count)]
