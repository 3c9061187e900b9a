"""Exports read by the compressed-tensors package and by plain transformers: the same weights, the same logits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.cli.main import run as bitwright
from bitwright.errors import InputError
from bitwright.formats import Codes, Format, QuantizedTensor, parse
from bitwright.interop import Network, planner
from bitwright.interop.compressed_tensors import Scheme, pack, quantization_config, scheme_of, unpack
from bitwright.interop.compressed_tensors.config import targets
from bitwright.interop.compressed_tensors.tensors import global_scale, pack_words
from bitwright.jobs.exporting import export
from bitwright.jobs.opening import Job
from bitwright.jobs.request import build_recipe
from bitwright.jobs.run import run
from bitwright.models import Checkpoint
from bitwright.recipes import Recipe
from bitwright.runtime import REFERENCE, read_manifest
from bitwright.runtime.install import packed_tensors
from bitwright.runtime.load import load, read_native
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.ranges.activation import InputMinMax
from bitwright.stages.site import rule

compressors = pytest.importorskip("compressed_tensors.compressors")
quantization = pytest.importorskip("compressed_tensors.quantization")
transformers = pytest.importorskip("transformers")

IDS = torch.arange(3, 51).view(2, 24)


def their_weight(tensors: dict[str, torch.Tensor], scheme: Any) -> torch.Tensor:
    """The weight as the package decompresses it."""
    compressor = compressors.BaseCompressor.get_value_from_registry(scheme.format)
    weight: torch.Tensor = compressor.decompress(dict(tensors), scheme)["weight"]
    return weight


def their_scheme(scheme: Scheme) -> Any:
    group = quantization_config({"layer": scheme}, ["layer"])["config_groups"]["group_0"]
    return quantization.QuantizationScheme.model_validate(group)


def random_codes(fmt: Format, shape: tuple[int, int] = (48, 64)) -> Codes:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(shape[1]))
    # Rows of very different size: many patterns of scales and, without symmetry, of zero points.
    return fmt.quantize(w * torch.logspace(-4, 1, shape[0]).unsqueeze(1) + torch.linspace(-1, 1, shape[0]).unsqueeze(1))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("rest", ["g16", "g32 asym scale=bf16", "channel", "channel asym", "narrow", "tensor asym"])
def test_packed_integers_are_read_bit_for_bit(bits: int, rest: str) -> None:
    fmt = parse(f"int{bits} {rest}")
    codes = random_codes(fmt)
    scheme = scheme_of("layer", fmt, codes.shape)
    tensors = pack(codes, scheme)
    assert scheme.container == "pack-quantized"
    theirs = their_weight(tensors, their_scheme(scheme))
    assert theirs.dtype == codes.scale.stored.dtype
    assert torch.equal(theirs, codes.dequantize(theirs.dtype))
    back = unpack(tensors, scheme, codes.shape)
    assert torch.equal(back.codes, codes.codes)
    assert torch.equal(back.dequantize(), codes.dequantize())


@pytest.mark.parametrize(
    ("weight", "given", "container"),
    [
        ("int8 channel", "int8 token dynamic", "int-quantized"),
        ("int8 g16 asym", "int8 token asym dynamic", "int-quantized"),
        ("uint4 g16", "int8 token dynamic", "pack-quantized"),
        ("e4m3 tensor", "e4m3 tensor static", "float-quantized"),
        ("e4m3 channel scale=bf16", "e4m3 token dynamic", "float-quantized"),
        ("e4m3 block32x32 scale=fp32", "e4m3 g32 dynamic", "float-quantized"),
        ("e4m3 block32x48", None, "float-quantized"),
        ("mxfp4", "e2m1 g32 scale=e8m0-ct dynamic", "mxfp4-pack-quantized"),
        ("e2m1 g32 scale=e8m0-ct", None, "mxfp4-pack-quantized"),
        ("nvfp4", None, "nvfp4-pack-quantized"),
    ],
)
def test_other_containers_are_read_bit_for_bit(weight: str, given: str | None, container: str) -> None:
    fmt = parse(weight)
    codes = random_codes(fmt)
    scheme = scheme_of("layer", fmt, codes.shape, None if given is None else parse(given))
    tensors = pack(codes, scheme)
    assert scheme.container == container
    theirs = their_weight(tensors, their_scheme(scheme))
    assert torch.equal(theirs, codes.dequantize(theirs.dtype))
    back = unpack(tensors, scheme, codes.shape)
    assert torch.equal(back.codes, codes.codes)
    assert torch.equal(back.dequantize(theirs.dtype), codes.dequantize(theirs.dtype))


def test_words_hold_codes_in_little_endian_order() -> None:
    row = torch.arange(8, dtype=torch.uint8).view(1, 8)
    assert int(pack_words(row, 4)) == 0x76543210
    assert pack_words(row, 3).tolist() == [[sum(k << 3 * k for k in range(8))]]


def test_global_scales_give_equal_products_for_any_outer_scale() -> None:
    levels = torch.tensor([0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    every = torch.arange(1, 127, dtype=torch.uint8)
    for outer in torch.rand(100, generator=torch.Generator().manual_seed(0)).exp2() * 1e-5:
        found = global_scale(outer.view(1), every)
        scales = every.view(torch.float8_e4m3fn).float().unsqueeze(1)
        ours, theirs = levels * (scales * outer), levels * (scales / found)
        assert torch.equal(ours.bfloat16(), theirs.bfloat16())


# -- whole models ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, toy_llama: Any) -> dict[str, Path]:
    """A random Llama whose rows are 64 and 96 long, in float32 and bfloat16."""
    import copy

    made = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        made[name] = tmp_path_factory.mktemp(name)
        copy.deepcopy(toy_llama).to(dtype).save_pretrained(made[name])
    return made


def quantized(model: Path, out: Path, recipe: str, settings: tuple[tuple[str, str], ...], weights: str) -> Path:
    run(Job(model=model, recipe=build_recipe(recipe, settings, weights), out=out, verify=False))
    return out


W8A8 = (("weights", "int8 channel"), ("activations", "int8 token"))
W4A4 = (("weights", "mxfp4"), ("activations", "e2m1 g32 scale=e8m0-ct"))


@pytest.mark.parametrize(
    ("dtype", "recipe", "settings", "weights", "container"),
    [
        ("float32", "rtn", (), "int4 g32 asym", "pack-quantized"),
        ("float32", "rtn", (), "int3 g32", "pack-quantized"),
        ("float32", "mx", W8A8, "", "int-quantized"),
        ("bfloat16", "mx", W4A4, "", "mxfp4-pack-quantized"),
        ("float32", "rtn", (), "e4m3 channel", "float-quantized"),
        ("float32", "rtn", (), "mxfp4", "mxfp4-pack-quantized"),
        ("bfloat16", "rtn", (), "nvfp4", "nvfp4-pack-quantized"),
    ],
)
def test_transformers_gives_our_logits(
    dtype: str, recipe: str, settings: tuple[tuple[str, str], ...], weights: str, container: str,
    folders: dict[str, Path], tmp_path: Path,
) -> None:  # fmt: skip
    native = quantized(folders[dtype], tmp_path / "native", recipe, settings, weights)
    result = export(native, "compressed-tensors", tmp_path / "out")
    assert result["format"] == container
    assert result["bytes"] == sum(p.stat().st_size for p in (tmp_path / "out").glob("*.safetensors"))
    assert any("global scales" in note for note in result["notes"]) == (weights == "nvfp4")
    check_tensors(native, tmp_path / "out")
    ours = load(native, dtype=getattr(torch, dtype), table=REFERENCE)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        expected, found = ours(IDS).logits.float(), theirs(IDS).logits.float()
    # Inputs are rounded by two implementations: a value on a tie may fall to the other side (none does here).
    tolerance = 1e-3 if recipe == "mx" else 1e-5
    assert float((found - expected).abs().max() / expected.abs().max()) <= tolerance


def check_tensors(native: Path, out: Path) -> None:
    """Their decompression equals our weights; everything else is there byte for byte; the config is theirs."""
    manifest, source = read_native(native)
    exported = Checkpoint.open(out)
    raw = exported.config["quantization_config"]
    config = quantization.QuantizationConfig.model_validate(raw)
    assert config.quantization_status == quantization.QuantizationStatus.COMPRESSED
    assert raw["ignore"] == ["lm_head"]
    (scheme,) = config.config_groups.values()
    for path, entry in manifest.modules.items():
        own = {n.rpartition(".")[2]: exported.load(n) for n in exported.tensors if n.startswith(f"{path}.")}
        theirs = their_weight(own, scheme)
        stored = {name: source.load(name) for name in source.tensors}
        assert entry.weight is not None
        weight = QuantizedTensor.from_tensors(packed_tensors(path, entry.weight, stored), dict(entry.weight))
        assert torch.equal(theirs, weight.dequantize(theirs.dtype))
    kept = [name for name in source.tensors if not name.startswith(tuple(f"{path}." for path in manifest.modules))]
    assert len(kept) == 7  # embedding, head, five norms
    assert all(source.raw(name) == exported.raw(name) for name in kept)
    assert (out / "generation_config.json").read_bytes() == (native / "generation_config.json").read_bytes()
    assert not (out / "bitwright-report.json").exists()


def test_mixed_schemes_and_static_inputs_give_our_logits(folders: dict[str, Path], tmp_path: Path) -> None:
    fp8 = Quantizer(parse("e4m3 tensor static"), range=InputMinMax())
    recipe = Recipe(
        name="mixed",
        weights=(rule("linear", Quantizer(parse("int4 g32"))), rule("*down_proj", Quantizer(parse("e4m3 channel")))),
        activations=(rule("*down_proj", fp8),),
    )
    native, out = tmp_path / "native", tmp_path / "out"
    run(Job(model=folders["float32"], recipe=recipe, data=[{"input_ids": IDS}], out=native, verify=False))
    assert export(native, "compressed-tensors", out)["format"] == "mixed-precision"
    with torch.no_grad():
        expected = load(native)(IDS).logits
        found = transformers.AutoModelForCausalLM.from_pretrained(out)(IDS).logits
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-3


READER = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    logits = model(torch.arange(3, 51).view(2, 24)).logits
assert not any(name.split(".")[0] == "bitwright" for name in sys.modules)
torch.save(logits, sys.argv[2])
"""


def test_the_command_writes_a_folder_that_needs_no_bitwright(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    native = quantized(folders["bfloat16"], tmp_path / "native", "rtn", (), "int4 g32 asym")
    out = tmp_path / "new" / "out"
    arguments = ["export", str(native), "--to", "compressed-tensors", "--out", str(out), "--json"]
    assert bitwright(arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    assert {"out", "format", "bytes", "notes"} <= set(summary)
    assert bitwright(arguments) == 2  # the folder exists now
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]
    subprocess.run([sys.executable, "-c", READER, str(out), str(tmp_path / "logits.pt")], check=True, timeout=120)
    with torch.no_grad():
        expected = load(native, dtype=torch.bfloat16, table=REFERENCE)(IDS).logits
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


# -- what cannot be said ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "given", "words"),
    [
        ("int4 g48", None, "do not divide its rows of 64; nearest legal: groups of 32"),
        ("int4 g64 asym zero=fp16", None, "zero points are integers of 4 bits"),
        ("int4 b64", None, "nearest legal: int4 g64"),
        ("int4 g16 axis=0", None, "share a scale along a row"),
        ("int1 channel", None, "nearest legal: int2 channel"),
        ("nf4 b64", None, "nearest legal: int4 g64"),
        ("mxint8", None, "integers have scales in fp16"),
        ("mxfp8_e4m3", None, "nearest legal: e4m3 channel"),
        ("e5m2 channel", None, "not integers of 2 to 8 bits, e4m3 or e2m1"),
        ("e2m1 g16", None, "nearest legal: nvfp4"),
        ("lut4 channel", None, "nearest legal: int4 channel"),
        ("int8 channel", "int8 channel static", "nearest legal: int8 tensor static"),
        ("int8 channel", "int8 token narrow dynamic", "full range"),
        ("int8 channel", "int8 token dynamic clip=0.9", "whole range that they measure; nearest legal: int8 token"),
        ("mxfp4", "mxfp4 dynamic", "nearest legal: e2m1 g32 scale=e8m0-ct dynamic"),
        ("nvfp4", "nvfp4 dynamic", "calibrated scale per tensor"),
    ],
)
def test_formats_that_cannot_be_said_name_the_nearest(weight: str, given: str | None, words: str) -> None:
    with pytest.raises(InputError, match=r"not representable because .*; nearest legal: ") as error:
        scheme_of("layer", parse(weight), (48, 64), None if given is None else parse(given))
    assert words in str(error.value)


def test_groups_longer_than_a_row_are_channels() -> None:
    assert scheme_of("layer", parse("int4 g128"), (48, 64)).strategy == "channel"
    with pytest.raises(InputError, match="groups of 32 do not divide its rows of 48; nearest legal: nvfp4"):
        scheme_of("layer", parse("mxfp4"), (64, 48))


def entry(**changes: Any) -> dict[str, Any]:
    term = {"kind": "codes", "prefix": "", "format": "int4 g32"}
    weight = {"format_version": 1, "shape": [64, 64], "terms": [term]}
    base = {"kind": "linear", "transposed": False, "weight": weight, "input": None, "online": [], "bias": False}
    return {**base, **changes}


def network(**changes: Any) -> Network:
    raw = {"quant_method": "bitwright", "format_version": 1, "recipe": "rtn", "bitwright_version": "0.1.0"}
    raw |= {"modules": {"block.0.up": entry()}, "removed": [], "kv_cache": None, **changes}
    return Network(read_manifest(raw), {"model_type": "toy"}, ("block.0.up", "block.1.up", "head"))


HADAMARD = [{"kind": "hadamard", "options": {"size": 64, "seed": 0}}]
SPARSE = {"format_version": 1, "shape": [64, 64], "terms": [
    {"kind": "codes", "prefix": "", "format": "int4 g32"}, {"kind": "sparse", "prefix": "sparse."}]}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kv_cache": {"key": {"format": "int8 token dynamic", "online": []}, "value": None, "window": 0}}, "kv_cache"),
        ({"removed": ["norm"]}, "readers build every module"),
        ({"modules": {"block.0.up": entry(weight=SPARSE)}}, "a sum of terms (codes + sparse)"),
        ({"modules": {"block.0.up": entry(online=HADAMARD)}}, "passes online operations (hadamard)"),
        ({"modules": {"block.0.up": entry(bias=True)}}, "a bias that the architecture lacks"),
        ({"modules": {"block.0.up": entry(weight=None, input={"format": "int8 token dynamic"})}}, "weight is float"),
        ({"modules": {"embedding": entry(kind="embedding")}}, "of the kind embedding"),
        ({"modules": {}}, "no weight of it is quantized"),
    ],
)
def test_models_that_cannot_be_said_are_refused_by_the_plan(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match="not representable because") as error:
        planner("compressed-tensors")(network(**changes))
    assert words in str(error.value)


def test_a_refused_export_writes_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    native = quantized(folders["float32"], tmp_path / "native", "rtn", (), "int4 g40")
    with pytest.raises(InputError, match="nearest legal: groups of 32"):  # divides rows of 64 and of 96
        export(native, "compressed-tensors", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["native"]
    with pytest.raises(InputError, match="did you mean 'compressed-tensors'"):
        export(native, "compressed-tensor", tmp_path / "out")
    with pytest.raises(InputError, match="no quantization_config"):
        export(folders["float32"], "compressed-tensors", tmp_path / "out")


# -- config ----------------------------------------------------------------------------------------------------


def test_several_schemes_have_targets_of_their_own() -> None:
    shape = (64, 64)
    linears = [f"layers.{n}.{leaf}" for n in range(2) for leaf in ("up", "down")] + ["head"]
    four, eight = scheme_of("a", parse("int4 g32"), shape), scheme_of("a", parse("e4m3 channel"), shape)
    schemes = {path: eight if path.endswith("down") else four for path in linears[:4]}
    config = quantization.QuantizationConfig.model_validate(quantization_config(schemes, linears))
    assert config.format == "mixed-precision"
    assert config.ignore == ["head"]
    groups = list(config.config_groups.values())
    assert [group.targets for group in groups] == [[r"re:layers\.\d+\.up$"], [r"re:layers\.\d+\.down$"]]
    assert [group.format for group in groups] == ["pack-quantized", "float-quantized"]
    assert targets(["layers.0.up"], linears) == ["layers.0.up"]


def test_a_coded_head_is_no_longer_tied() -> None:
    free = network(modules={"head": entry()})
    config = {"model_type": "toy", "tie_word_embeddings": True}
    tied = Network(free.manifest, config, free.linears, tied=frozenset({"head"}))
    assert planner("compressed-tensors")(tied).config["tie_word_embeddings"] is False
