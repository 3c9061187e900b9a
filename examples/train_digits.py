"""Train the zoo's digits classifier (well under a minute on one core) and write its weights and card.

python examples/train_digits.py --out src/bitwright/zoo/digits
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from bitwright.zoo import digits_data
from bitwright.zoo.digits.network import DigitsNet

log = logging.getLogger("train_digits")


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images moved by up to one pixel in each direction, one shift for the whole batch."""
    dy, dx = torch.randint(0, 3, (2,), generator=generator).tolist()
    return F.pad(images, (1, 1, 1, 1))[:, :, dy : dy + 8, dx : dx + 8]


def train(epochs: int, seed: int) -> DigitsNet:
    """A trained network in evaluation mode."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, labels = digits_data("train")
    net = DigitsNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-3)
    batch = 64
    steps = epochs * (len(labels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for rows in order[: len(order) // batch * batch].split(batch):
            loss = F.cross_entropy(net(shifted(images[rows], generator)), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


@torch.no_grad()
def unbalance(net: DigitsNet, octaves: float, seed: int) -> None:
    """Scale channels unequally without changing the network's function.

    Depthwise networks trained on large image sets have channel ranges that differ by orders of magnitude, which is
    what makes them hard for one scale per tensor; a network this small does not develop them. So the output of each of
    the first two stages is multiplied by a power of two per channel, and the weights that read it are divided by it.
    ReLU commutes with positive factors and powers of two are exact, so the logits stay the same.
    """
    generator = torch.Generator().manual_seed(seed)
    for bn, reader, dim in ((net.bn1, net.depthwise, 0), (net.bn2, net.pointwise, 1)):
        factor = 2.0 ** ((torch.rand(16, generator=generator) * 2 - 1) * octaves).round()
        bn.weight.mul_(factor)
        bn.bias.mul_(factor)
        shape = [-1 if d == dim else 1 for d in range(4)]
        reader.weight.div_(factor.view(shape))


@torch.no_grad()
def accuracy(net: nn.Module, split: str) -> float:
    """Share of the split's images whose largest logit is the label's."""
    images, labels = digits_data("test" if split == "test" else "train")
    return (net(images).argmax(-1) == labels).float().mean().item()


@torch.no_grad()
def rounded_per_tensor(net: DigitsNet, bits: int) -> DigitsNet:
    """A copy whose batch norms are folded and whose weights are rounded to `bits` bits, one symmetric scale each."""
    net = copy.deepcopy(net)
    for conv, bn in (
        (net.conv1, net.bn1),
        (net.depthwise, net.bn2),
        (net.pointwise, net.bn3),
        (net.conv2, net.bn4),
    ):
        gain = bn.weight / (bn.running_var + bn.eps).sqrt()
        folded = conv.weight * gain.view(-1, 1, 1, 1)
        # Rounding the folded weight and dividing the gain out again leaves the batch norm in place.
        conv.weight.copy_(_nearest(folded, bits) / gain.view(-1, 1, 1, 1))
    net.fc.weight.copy_(_nearest(net.fc.weight, bits))
    return net


def _nearest(weight: Tensor, bits: int) -> Tensor:
    top = 2 ** (bits - 1) - 1
    scale = weight.abs().max() / top
    return (weight / scale).round().clamp(-top - 1, top) * scale


def main() -> None:
    """Train, check that the rescaling keeps the logits, write the files."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="folder for model.safetensors and zoo.json")
    p.add_argument("--epochs", type=int, default=60)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--octaves", type=float, default=4.0, help="channel factors from 2**-octaves to 2**octaves")
    given = p.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)

    net = train(given.epochs, given.seed)
    images, _ = digits_data("test")
    before = net(images)
    balanced = {bits: accuracy(rounded_per_tensor(net, bits), "test") for bits in (8, 4)}
    unbalance(net, given.octaves, given.seed)
    change = (net(images) - before).abs().max().item()
    if change > 1e-4:
        raise SystemExit(f"the channel rescaling changed a logit by {change:.2g}")

    given.out.mkdir(parents=True, exist_ok=True)
    weights = given.out / "model.safetensors"
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, weights, metadata={"format": "pt"})
    card = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "seed": given.seed,
        "epochs": given.epochs,
        "channel_octaves": given.octaves,
        "largest_logit_change_by_rescaling": change,
        "accuracy": {"train": accuracy(net, "train"), "test": accuracy(net, "test")},
        "rounded_per_tensor_test_accuracy": {
            "before_rescaling": {f"{b} bits": a for b, a in balanced.items()},
            "as_published": {f"{b} bits": accuracy(rounded_per_tensor(net, b), "test") for b in (8, 4)},
        },
        "protocol": "450 test images, argmax of the logits, fp32; rounding: batch norm folded, one symmetric scale "
        "per weight tensor, activations float",
        "model_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "torch": torch.__version__.split("+")[0],
    }
    (given.out / "zoo.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    log.info("%s", json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
