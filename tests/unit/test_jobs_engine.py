"""The engine: streams, sweeps, rules, ties, determinism, memory."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import parse
from bitwright.jobs import Job, JobResult, run
from bitwright.jobs.engine import Engine
from bitwright.jobs.hidden import HiddenStates
from bitwright.jobs.opening import open_job
from bitwright.jobs.request import build_recipe
from bitwright.models import open_model
from bitwright.recipes import Recipe
from bitwright.runtime import QuantModule
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.rounding import SecondOrder
from bitwright.stages.site import rule
from bitwright.statistics import Hessian
from tests.unit.jobs_toys import digests, save_model, tiny_llama, token_ids

BATCHES = [{"input_ids": token_ids()[:2]}, {"input_ids": token_ids()[2:]}]
LINEARS = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
           "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "toy", tiny_llama())


def _recipe(name: str = "gptq", *settings: tuple[str, str], weights: str = "int4 g16 asym") -> Recipe:
    return build_recipe(name, settings, weights)


def _codes(result: JobResult) -> dict[str, Tensor]:
    """Values of the coded weights: of a job in memory from its result, else from the folder that it wrote."""
    if result.job.out is None:
        return {path: q.dequantize() for path, q in result.coded.items()}
    from bitwright.runtime.load import load

    modules = load(result.job.out).named_modules()
    return {path: module.dequantized() for path, module in modules if isinstance(module, QuantModule)}


@pytest.mark.parametrize("name", ["rtn", "gptq", "awq", "smoothquant"])
def test_streamed_folder_and_module_in_memory_give_equal_codes(name: str, checkpoint: Path, tmp_path: Path) -> None:
    weights = "" if name == "smoothquant" else "int4 g16 asym"
    streamed = run(Job(checkpoint, _recipe(name, weights=weights), BATCHES, out=tmp_path / "out"))
    held = run(Job(open_model(checkpoint).module, _recipe(name, weights=weights), BATCHES))
    assert streamed.opened.model.streamed
    expected = _codes(held)
    assert set(expected) == {f"model.layers.{n}.{p}" for n in range(2) for p in LINEARS}
    for path, w in _codes(streamed).items():
        assert torch.equal(w, expected[path]), path


def test_a_module_in_memory_answers_as_the_saved_folder(checkpoint: Path, tmp_path: Path) -> None:
    from bitwright.runtime.load import load

    run(Job(checkpoint, _recipe(), BATCHES, out=tmp_path / "out"))
    module = open_model(checkpoint).module
    run(Job(module, _recipe(), BATCHES))
    ids = token_ids()
    with torch.no_grad():
        torch.testing.assert_close(module(ids).logits, load(tmp_path / "out")(ids).logits, rtol=1e-4, atol=1e-5)


class _Watched(Engine):
    """Counts sweeps and notes which layers were coded while a sweep ran."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sweeps: list[tuple[str, str, tuple[str, ...], frozenset[str]]] = []

    def sweep(self, unit: Any, requests: Any, stream: str, **options: Any) -> Any:
        wanted = tuple(path for path, found in requests.items() if found)
        if wanted:
            root = self.model.module if stream != "float" else self.float_runner.model.module
            coded = frozenset(path for path, module in root.named_modules() if isinstance(module, QuantModule))
            self.sweeps.append((unit.name, stream, wanted, coded))
        return super().sweep(unit, requests, stream, **options)


def _watched(recipe: Recipe) -> _Watched:
    job = Job(tiny_llama(), recipe, BATCHES)
    opened = open_job(job)
    engine = _Watched(recipe, opened.model, opened.structure, opened.batches, twin=opened.twin)
    for unit in engine.units:
        engine.work(unit)
    return engine


def _prefix_recipe(prefix: Any) -> Recipe:
    quantizer = Quantizer(parse("int4 g16 asym"), rounding=SecondOrder(prefix=prefix))
    return Recipe(weights=(rule("linear", quantizer),), name="test")


def test_layer_prefix_sees_the_layers_before_coded() -> None:
    sweeps = [s for s in _watched(_prefix_recipe("layer")).sweeps if s[0] == "model.layers.1"]
    inside = [sorted(p.removeprefix("model.layers.1.") for p in s[3] if ".1." in p) for s in sweeps]
    qkv = ["self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj"]
    assert inside == [
        [],
        qkv,
        sorted([*qkv, "self_attn.o_proj"]),
        sorted([*qkv, "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"]),
    ]
    for _, stream, wanted, coded in sweeps:
        assert stream == "quantized"
        assert len(wanted) == 1, "layers that read one tensor share one Hessian"
        assert {p for p in coded if ".0." in p} == {f"model.layers.0.{p}" for p in LINEARS}


def test_block_prefix_takes_one_sweep_with_float_layers_inside() -> None:
    sweeps = [s for s in _watched(_prefix_recipe("block")).sweeps if s[0] == "model.layers.1"]
    assert len(sweeps) == 1
    _, stream, wanted, coded = sweeps[0]
    assert stream == "quantized"
    assert len(wanted) == 4
    assert not any(".1." in p for p in coded)
    assert any(".0." in p for p in coded)


def test_float_prefix_takes_one_sweep_of_the_float_model() -> None:
    sweeps = _watched(_prefix_recipe("float")).sweeps
    assert [s[0] for s in sweeps] == ["model.layers.0", "model.layers.1"]
    for _, stream, wanted, _ in sweeps:
        assert stream == "float"
        assert len(wanted) == 4


@pytest.mark.parametrize("prefix", ["float", "block", "layer"])
def test_hessians_are_those_of_their_stream(prefix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hessian that reaches the solver is X'X of the inputs that a plain forward pass of that stream sees."""
    import bitwright.jobs.solving as solving_module

    seen: dict[str, Any] = {}
    original = solving_module.quantize_weight

    def spy(w: Tensor, quantizer: Quantizer, context: Any) -> Any:
        seen[context.where] = context.statistics[Hessian(prefix)]
        return original(w, quantizer, context)

    monkeypatch.setattr(solving_module, "quantize_weight", spy)
    recipe = _prefix_recipe(prefix)
    module = tiny_llama()
    run(Job(module, recipe, BATCHES))

    probe = "model.layers.1.mlp.down_proj"
    reference = tiny_llama()
    for path in [n for n, m in module.named_modules() if isinstance(m, QuantModule)]:
        earlier = ".0." in path and prefix != "float"
        if earlier or (prefix == "layer" and path != probe):
            parent, _, leaf = path.rpartition(".")
            setattr(reference.get_submodule(parent), leaf, module.get_submodule(path))
    inputs: list[Tensor] = []
    reference.get_submodule(probe).register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        for batch in BATCHES:
            reference(**batch)
    x = torch.cat(inputs)
    collector = Hessian(prefix).open(x.shape[1])
    collector.update(x)
    torch.testing.assert_close(seen[probe].matrix, collector.result().matrix, rtol=1e-4, atol=1e-5)


def test_the_order_of_columns_changes_codes_and_keeps_the_groups() -> None:
    path = "model.layers.0.mlp.down_proj"
    first, second = (
        run(Job(tiny_llama(), _recipe("gptq", ("order", order)), BATCHES)).coded[path].codes
        for order in ("natural", "activation")
    )
    assert first is not None
    assert second is not None
    assert not torch.equal(first.codes, second.codes)
    assert first.scale.effective.shape == second.scale.effective.shape == (32, 3)


def test_head_and_embedding_follow_the_rules() -> None:
    assert not any(p in run(Job(tiny_llama(), _recipe("rtn"))).coded for p in ("lm_head", "model.embed_tokens"))
    everything = Recipe(weights=(rule("linear", Quantizer(parse("int4 g16"))), rule("head", Quantizer(parse("int8"))),
                                 rule("embedding", Quantizer(parse("int8")))), name="all")  # fmt: skip
    found = run(Job(tiny_llama(), everything)).coded
    assert str(found["lm_head"].codes.format) == str(parse("int8"))
    assert str(found["model.embed_tokens"].codes.format) == str(parse("int8"))
    assert str(found["model.layers.0.mlp.up_proj"].codes.format) == str(parse("int4 g16"))


def test_the_last_rule_that_matches_wins() -> None:
    recipe = Recipe(weights=(rule("linear", Quantizer(parse("int4 g16"))), rule("*.down_proj", None)), name="last")
    result = run(Job(tiny_llama(), recipe))
    assert not any(p.endswith("down_proj") for p in result.coded)
    assert len(result.coded) == 12
    reason = result.opened.choices["model.layers.0.mlp.down_proj"].reason
    assert "down_proj" in reason


def test_tied_head_stays_float_with_its_reason(tmp_path: Path) -> None:
    model = save_model(tmp_path / "tied", tiny_llama(tied=True))
    rules = (rule("linear", Quantizer(parse("int4 g16"))), rule("head", Quantizer(parse("int8"))))
    head = Recipe(weights=rules, name="head")
    result = run(Job(model, head, out=tmp_path / "out"))
    assert "lm_head" not in result.coded
    assert result.opened.choices["lm_head"].reason == "tied to model.embed_tokens.weight, which stays float"
    assert [(e.kind, e.where) for e in result.events] == [("tied", "lm_head")]


def test_an_embedding_whose_tied_head_stays_float_is_not_coded_either() -> None:
    both = Recipe(weights=tuple(rule(word, Quantizer(parse("int8"))) for word in ("linear", "embedding")), name="both")
    result = run(Job(tiny_llama(tied=True), both))
    assert "model.embed_tokens" not in result.coded
    assert [(e.kind, e.where) for e in result.events] == [("tied", "model.embed_tokens")]
    assert "tied to lm_head.weight" in result.events[0].message
    alone = Recipe(weights=both.weights[1:], name="alone")
    with pytest.raises(InputError, match=r"selects no layer .*tied to lm_head.weight, which stays float: select both"):
        run(Job(tiny_llama(tied=True), alone))


@pytest.mark.parametrize("streamed", [True, False])
def test_a_tied_pair_is_coded_where_both_ends_are_selected(streamed: bool, tmp_path: Path) -> None:
    """Each end in its own format, and the report says that the file holds two tensors now."""
    from transformers import AutoModelForCausalLM

    import bitwright.transformers  # noqa: F401
    from bitwright.runtime.load import load

    rules = (rule("embedding", Quantizer(parse("int8 channel"))), rule("head", Quantizer(parse("int6 g16"))))
    source = save_model(tmp_path / "tied", tiny_llama(tied=True)) if streamed else tiny_llama(tied=True)
    out = tmp_path / "out" if streamed else None
    result = run(Job(source, Recipe(weights=rules, name="both"), out=out))
    assert [(e.kind, e.where) for e in result.events] == [("untied", "lm_head.weight")]
    formats = {
        path: str(facts.format if hasattr(facts, "format") else facts.codes.format)
        for path, facts in result.coded.items()
    }
    assert formats == {"model.embed_tokens": "int8 channel", "lm_head": "int6 g16"}
    expected = tiny_llama(tied=True)(token_ids()).logits.detach()
    models = [load(out), AutoModelForCausalLM.from_pretrained(out)] if out is not None else [source]
    answers = [model(token_ids()).logits.detach() for model in models]
    assert torch.equal(answers[0], answers[-1])
    for model, found in zip(models, answers, strict=True):
        assert 1e-4 < float((found - expected).norm() / expected.norm()) < 0.05
        assert isinstance(model.get_submodule("lm_head"), QuantModule)
        assert isinstance(model.get_submodule("model.embed_tokens"), QuantModule)


def test_rotation_unties_the_head_and_says_so(tmp_path: Path) -> None:
    from bitwright.runtime.load import load

    model = save_model(tmp_path / "tied", tiny_llama(tied=True))
    settings = (("transforms", "quarot"),)
    result = run(Job(model, build_recipe("rtn", settings, "int8 g16"), BATCHES, out=tmp_path / "out"))
    assert "untied" in {e.kind for e in result.events}
    loaded = load(tmp_path / "out")
    assert loaded.lm_head.weight is not loaded.model.embed_tokens.weight
    with torch.no_grad():
        expected = tiny_llama(tied=True)(token_ids()).logits
        found = loaded(token_ids()).logits
    assert float((found - expected).norm() / expected.norm()) < 0.05


@pytest.mark.parametrize("name", ["rtn", "rtn-mse", "hqq", "lorc"])
def test_recipes_without_data_run_without_data(name: str) -> None:
    weights = "int4 g16 asym zero=fp16" if name == "hqq" else "int4 g16 asym"
    assert len(run(Job(tiny_llama(), _recipe(name, weights=weights))).coded) == 14


def test_recipes_that_read_data_ask_for_them() -> None:
    with pytest.raises(InputError, match="reads activations; give it calibration data"):
        run(Job(tiny_llama(), _recipe("gptq")))


def test_a_recipe_that_selects_nothing_is_refused() -> None:
    recipe = Recipe(weights=(rule("*.nothing", Quantizer(parse("int4"))),), name="nothing")
    with pytest.raises(InputError, match="selects no layer"):
        run(Job(tiny_llama(), recipe))


def test_padding_tokens_are_not_calibrated_on() -> None:
    ids = token_ids()
    mask = torch.ones_like(ids)
    plain = run(Job(tiny_llama(), _recipe(), [{"input_ids": ids, "attention_mask": mask}]))
    padded_ids = torch.cat([ids, torch.full((4, 5), 7)], 1)
    padded_mask = torch.cat([mask, torch.zeros(4, 5, dtype=mask.dtype)], 1)
    padded = run(Job(tiny_llama(), _recipe(), [{"input_ids": padded_ids, "attention_mask": padded_mask}]))
    assert sum(not torch.equal(plain.coded[p].dequantize(), q.dequantize()) for p, q in padded.coded.items()) <= 1


def test_same_seed_same_bytes_and_float_tensors_are_copied(checkpoint: Path, tmp_path: Path) -> None:
    from bitwright.models import Checkpoint

    for name in ("one", "two"):
        run(Job(checkpoint, _recipe("rtn"), BATCHES, out=tmp_path / name))
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    source, written = Checkpoint.open(checkpoint), Checkpoint.open(tmp_path / "one")
    for key in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert bytes(source.raw(key)) == bytes(written.raw(key))


def test_hidden_states_beyond_the_window_are_files_and_equal(tmp_path: Path) -> None:
    states = HiddenStates(3, 100, tmp_path / "hidden")
    rows = [torch.arange(20.0) + n for n in range(3)]
    for n, x in enumerate(rows):
        states[n] = x
    assert len(list((tmp_path / "hidden").iterdir())) == 2
    for n, x in enumerate(rows):
        assert torch.equal(states[n], x)  # type: ignore[arg-type]
        states[n] = states[n]  # type: ignore[assignment]  # a unit may hand its input on: the file is then its own source
        assert torch.equal(states[n], x)  # type: ignore[arg-type]
    states.clear()
    assert list((tmp_path / "hidden").iterdir()) == []


def test_a_small_window_changes_no_byte(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_module = import_module("bitwright.jobs.run")  # the package has a function of that name
    run(Job(checkpoint, _recipe("awq"), BATCHES, out=tmp_path / "held"))
    original = run_module._engine

    def tight(*arguments: Any) -> Engine:
        engine = original(*arguments)
        engine.window_bytes = 0
        engine.quantized = HiddenStates(2, 0, engine.spill)
        engine.float = HiddenStates(2, 0, engine.spill)
        return engine

    monkeypatch.setattr(run_module, "_engine", tight)
    run(Job(checkpoint, _recipe("awq"), BATCHES, out=tmp_path / "spilled"))
    assert digests(tmp_path / "spilled") == digests(tmp_path / "held")


def test_peak_memory_stays_under_the_cap(tmp_path: Path) -> None:
    """A checkpoint of more than four times the cap: 32 blocks of hidden 512."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256, hidden_size=512, intermediate_size=512, num_hidden_layers=32, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    weights = sum(p.nbytes for p in model.parameters())
    folder = save_model(tmp_path / "model", model)
    del model
    cap = 48_000_000
    assert weights > 4 * cap
    batches = [{"input_ids": torch.randint(0, 256, (4, 32))}]
    small = Job(
        folder, _recipe("gptq", weights="int4 g128 asym"), batches, out=tmp_path / "small", max_memory=4_000_000
    )
    with pytest.raises(InputError, match=r"needs about .* MB and --max-memory allows 4 MB"):
        run(small)
    assert not list(tmp_path.glob("small*")), "an impossible cap is refused before any work"
    # In a process of its own: what earlier tests freed and the allocator kept would hide or swell the figure.
    tiny = save_model(tmp_path / "tiny", tiny_llama())
    command = [sys.executable, "-c", _CAPPED, str(folder), str(tiny), str(tmp_path / "out"), str(cap)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.splitlines()[-1])
    assert 0 < peak < cap, f"{peak / 1e6:.0f} MB"


_CAPPED = """
import sys
from pathlib import Path

import torch

from bitwright.jobs import Job, run
from bitwright.jobs.request import build_recipe

folder, tiny, out, cap = sys.argv[1:]
torch.set_num_threads(1)
batches = [{"input_ids": torch.randint(0, 64, (4, 32))}]
recipe = build_recipe("gptq", (), "int4 g128 asym")
run(Job(Path(tiny), recipe, batches, out=Path(out + "-tiny")))  # the libraries' own memory is not the job's
print(run(Job(Path(folder), recipe, batches, out=Path(out), max_memory=int(cap))).peak_memory_bytes)
"""


def test_the_callers_float_module_is_not_shared_with_the_twin() -> None:
    module = tiny_llama()
    before = copy.deepcopy(module)
    run(Job(module, _recipe("awq"), BATCHES))
    assert torch.equal(module.get_parameter("lm_head.weight"), before.get_parameter("lm_head.weight"))
    kinds = Counter(type(m).__name__ for m in module.modules() if isinstance(m, QuantModule))
    assert sum(kinds.values()) == 14
