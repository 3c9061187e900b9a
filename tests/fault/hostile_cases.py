"""The cases of hostile files: what is done to a copy of the tiny model, and a word of the sentence that refuses it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from tests.fault.hostile import (
    CONFIG,
    GIB,
    INDEX,
    SHARD,
    Change,
    config,
    disguised,
    entry,
    ids,
    link,
    manifest,
    module,
    nested,
    only_pickle,
    pipe,
    raw_header,
    shard_named,
    sparse,
    term,
    text_file,
    with_code,
    write_bomb,
    write_gguf,
    write_lying_npz,
    write_objects,
    write_pickle,
    write_zip,
)

HEADERS: Mapping[str, tuple[Change, str]] = {
    "length beyond the file": (lambda f: (f / SHARD).write_bytes(b"\xff" * 7 + b"\x7f{}"), "claims"),
    "cut inside the header": (lambda f: os.truncate(f / SHARD, 40), "claims"),
    "cut inside the data": (lambda f: os.truncate(f / SHARD, (f / SHARD).stat().st_size - 9), "cut off"),
    "empty": (lambda f: os.truncate(f / SHARD, 0), "only 0 bytes"),
    "nested 100,000 deep": (raw_header(b'{"a":' + b"[" * 100_000), "not valid JSON"),
    "nested 300 deep": (raw_header(nested(300).encode()), "deep"),
    "the same key twice": (raw_header(b'{"a":1,"a":2}'), "twice"),
    "not UTF-8": (raw_header(b'{"\xff\xfe":1}'), "not valid JSON"),
    "NaN": (raw_header(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}'), "NaN"),
    "a number of 10,000 digits": (raw_header(b'{"a":' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "a name without meaning": (raw_header(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'), "Unicode"),
    "a name of a megabyte": (
        raw_header(b'{"' + b"a" * 2**20 + b'":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'), "too long"
    ),
    "a header of 100 MB": (sparse(SHARD, 10**8 + 64, (10**8).to_bytes(8, "little") + b"{"), "at most"),
    "a header of 25 MB of brackets": (raw_header(b'{"a":[' + b"[]," * 8_000_000 + b"[]]}"), "values"),
    "a header of blanks": (sparse(SHARD, 20_000_064, (20_000_000).to_bytes(8, "little") + b"{"), "not valid JSON"),
    "an unknown dtype": (entry(lambda e: e.update(dtype="F31")), "F31"),
    "a dtype that is no word": (entry(lambda e: e.update(dtype=["F32"])), "malformed"),
    "a shape of 2^62 squared": (entry(lambda e: e.update(shape=[2**62, 2**62])), "offsets give"),
    "a shape with zeros and 2^62": (
        raw_header(b'{"a":{"dtype":"F32","shape":[0,%d,%d],"data_offsets":[0,0]}}' % (2**62, 2**62)), "absurd"
    ),
    "a negative shape": (entry(lambda e: e.update(shape=[-1, -8])), "malformed"),
    "a negative offset": (entry(lambda e: e.update(data_offsets=[-8, 0])), "malformed"),
    "an offset beyond 64 bits": (entry(lambda e: e.update(data_offsets=[0, 2**64 + 8])), "malformed"),
    "offsets that overlap": (
        entry(lambda e: e.update(data_offsets=[o + 4 for o in e["data_offsets"]])), "cut off|overlaps|hole|ends"
    ),
    "a pickle in disguise": (disguised(write_pickle), "pickle"),
    "a zip in disguise": (disguised(write_zip), "zip archive"),
    "a GGUF in disguise": (disguised(write_gguf), "GGUF"),
    "a pointer of Git LFS": (text_file(SHARD, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "LFS"),
    "only a pickle": (only_pickle, "pickled"),
}  # fmt: skip

PLACES: Mapping[str, tuple[Change, str]] = {
    "a shard above the folder": (shard_named("../model.safetensors"), "leaves the folder"),
    "an absolute shard": (shard_named("/etc/passwd"), "leaves the folder"),
    "a shard with a long name": (shard_named("x" * 5000), "leaves the folder"),
    "a shard that is a device": (link(SHARD, "/dev/zero"), "leaves the folder"),
    "a shard that is a link out": (link(SHARD, SHARD), "leaves the folder"),
    "a shard that is a pipe": (pipe(SHARD), "regular file"),
    "a shard that is a folder": (lambda f: ((f / SHARD).unlink(), (f / SHARD).mkdir()), "regular file"),
    "a shard that is a circle": (lambda f: ((f / SHARD).unlink(), (f / SHARD).symlink_to(f / SHARD)), "missing"),
    "an index that is a pipe": (pipe(INDEX), "regular file"),
    "an index of 1 GB": (sparse(INDEX, GIB), "larger than"),
    "an index of other types": (text_file(INDEX, '{"weight_map": {"a": 5}}'), "weight_map"),
    "an index nested too deeply": (text_file(INDEX, nested(400)), "deep"),
    "an index nested far too deeply": (text_file(INDEX, nested(50_000)), "deep"),
    "a config that is a link out": (link(CONFIG, CONFIG), "leaves the folder"),
    "a config that is a pipe": (pipe(CONFIG), "regular file"),
    "a config of 1 GB": (sparse(CONFIG, GIB), "larger than"),
    "a tokenizer that is a pipe": (pipe("tokenizer.json"), "regular file"),
    "a tokenizer that is a link out": (link("tokenizer.json", "/etc/passwd"), "leaves the folder"),
}

CONFIGS: Mapping[str, tuple[Change, str]] = {
    "hidden 10^12": (config(hidden_size=10**12), "hidden_size"),
    "hidden 10^12 as a float": (config(hidden_size=1e12), "hidden_size"),
    "hidden 10^4000": (config(hidden_size=10**4000), "hidden_size"),
    "hidden zero": (config(hidden_size=0), ""),
    "hidden negative": (config(hidden_size=-32), ""),
    "hidden a word": (config(hidden_size="32"), ""),
    "hidden a list": (config(hidden_size=[32]), ""),
    "hidden nothing": (config(hidden_size=None), ""),
    "layers 10^9": (config(num_hidden_layers=10**9), "num_hidden_layers"),
    "layers 10^9 inside": (config(text_config={"num_hidden_layers": 10**9}), "num_hidden_layers"),
    "depths 10^9": (config(depths=[2, 10**9]), "depths"),
    "heads 10^9": (config(num_attention_heads=10**9), "num_attention_heads"),
    "heads that do not divide": (config(num_attention_heads=5), ""),
    "vocabulary 10^12": (config(vocab_size=10**12), "vocab_size"),
    "head dimension 10^10": (config(head_dim=10**10), "head_dim"),
    "positions 10^18": (config(max_position_embeddings=10**18), "max_position_embeddings"),
    "architectures a number": (config(architectures=5), "architectures"),
    "architectures an object": (config(architectures=[{"a": 1}]), "architectures"),
    "an unknown architecture": (config(model_type="nothing-like-it"), "config"),
    "a type that is a number": (config(model_type=7), "config"),
    "nested 300 deep": (text_file(CONFIG, nested(300)), "deep"),
    "nested 900 deep": (text_file(CONFIG, nested(900)), "deep"),
    "nested 100,000 deep": (text_file(CONFIG, nested(100_000)), "deep"),
    "a list": (text_file(CONFIG, "[]"), "object"),
    "not UTF-8": (text_file(CONFIG, b'{"model_type": "\xff"}'), "not readable JSON"),
    "empty": (text_file(CONFIG, ""), "not readable JSON"),
    "three million values": (text_file(CONFIG, '{"a":[' + "0," * 3_000_000 + "0]}"), "values"),
    "code of the folder": (with_code, "remote code"),
    "code of the hub": (config(attn_implementation="someone/kernel"), "hub"),
    "other weights": (config(transformers_weights="other.safetensors"), "transformers_weights"),
    "an adapter": (text_file("adapter_config.json", '{"base_model_name_or_path": "/"}'), "adapter"),
}


MANIFESTS: Mapping[str, tuple[Change, str]] = {
    "another method": (manifest(lambda m: m.update(quant_method="gptq")), ""),
    "another version": (manifest(lambda m: m.update(format_version=10**9)), "format_version"),
    "an unknown key": (manifest(lambda m: m.update(moduls={})), "moduls"),
    "modules a list": (manifest(lambda m: m.update(modules=[1])), "modules"),
    "a module that is a number": (manifest(lambda m: m["modules"].update({min(m["modules"]): 5})), "no object"),
    "a module that is not there": (manifest(lambda m: m["modules"].update(a=m["modules"][min(m["modules"])])), "a"),
    "the whole network": (manifest(lambda m: m["modules"].update({"": m["modules"][min(m["modules"])]})), ""),
    "removed a number": (manifest(lambda m: m.update(removed=5)), "removed"),
    "removed the model": (manifest(lambda m: m.update(removed=["model"])), ""),
    "experts a number": (manifest(lambda m: m.update(experts=5)), "experts"),
    "experts 10^12": (
        manifest(lambda m: m.update(experts={"model": {"experts": 10**12, "shape": [1, 1], "transposed": False}})), ""
    ),
    "a cache that is a number": (manifest(lambda m: m.update(kv_cache=5)), "kv_cache"),
    "a window of 10^30": (manifest(lambda m: m.update(kv_cache={"window": 10**30})), "window"),
    "an unknown kind": (module(lambda m: m.update(kind="lineer")), "lineer"),
    "an input that is a number": (module(lambda m: m.update(input=5)), "input"),
    "an online operation that is a number": (module(lambda m: m.update(online=[5])), "online"),
    "online operations that are a number": (module(lambda m: m.update(online=5)), "online"),
    "an online operation of 10^12": (
        module(lambda m: m.update(online=[{"kind": "hadamard", "options": {"size": 10**12, "seed": 0}}])), ""
    ),
    "an online operation of a word": (
        module(lambda m: m.update(online=[{"kind": "hadamard", "options": {"size": "x", "seed": 0}}])), "size"
    ),
    "a weight that is a number": (module(lambda m: m.update(weight=5)), "weight"),
    "a shape of 10^12": (module(lambda m: m["weight"].update(shape=[10**12, 10**12])), ""),
    "a shape of words": (module(lambda m: m["weight"].update(shape="ab")), ""),
    "terms a number": (module(lambda m: m["weight"].update(terms=5)), "terms"),
    "a term that is a number": (module(lambda m: m["weight"].update(terms=[5])), "terms"),
    "no terms": (module(lambda m: m["weight"].update(terms=[])), ""),
    "a term of another kind": (term(kind="spares"), ""),
    "a prefix that leads elsewhere": (term(prefix="../../"), ""),
    "a format of 10^9 bits": (term(format="int999999999 g1"), ""),
    "a learned table of 2^30": (term(format="lut30 channel"), ""),
    "powers of two of 60 bits": (term(format="pot60 channel"), ""),
    "another format": (term(format="int8 g16 asym"), ""),
    "another group": (term(format="int4 g8 asym"), ""),
    "a low-rank term of 10^12": (
        module(lambda m: m["weight"]["terms"].append(
            {"kind": "lowrank", "prefix": "lowrank.", "rank": 10**12, "left": "float", "right": "float"})), ""
    ),
    "a sparse term that is not there": (
        module(lambda m: m["weight"]["terms"].append({"kind": "sparse", "prefix": "sparse."})), ""
    ),
    "hidden 10^12": (config(hidden_size=10**12), "hidden_size"),
    "layers 10^9": (config(num_hidden_layers=10**9), "num_hidden_layers"),
    "nested 900 deep": (text_file(CONFIG, nested(900)), "deep"),
    "code of the folder": (with_code, ""),
}  # fmt: skip

# File name, how it is written, and a word of the sentence.
DATA: Mapping[str, tuple[str, Callable[[Path], object], str]] = {
    "lines nested too deeply": ("x.jsonl", lambda p: p.write_text('{"text":' + "[" * 100_000), "line 1"),
    "a line that is a number": ("x.jsonl", lambda p: p.write_text("9" * 10_000 + "\n"), "line 1"),
    "a line without text": ("x.jsonl", lambda p: p.write_text('{"text": 5}\n'), "line 1"),
    "a text of 4 GB": ("x.txt", lambda p: sparse(p.name, 4 * GIB)(p.parent), "at most"),
    "lines of 4 GB": ("x.jsonl", lambda p: sparse(p.name, 4 * GIB)(p.parent), "at most"),
    "a text that is a pipe": ("x.txt", lambda p: pipe(p.name)(p.parent), "regular file"),
    "a text that never ends": ("x.txt", lambda p: p.symlink_to("/dev/zero"), "regular file"),
    "a text that is not UTF-8": ("x.txt", lambda p: p.write_bytes(b"\xff\xfe\x00" * 100), "UTF-8"),
    "ids outside the vocabulary": ("x.safetensors", ids(ids=torch.full((4, 16), 64)), "vocabulary"),
    "negative ids": ("x.safetensors", ids(ids=torch.full((4, 16), -1)), "vocabulary"),
    "ids as floats": ("x.safetensors", ids(ids=torch.zeros(4, 16)), "integers"),
    "ids as truth values": ("x.safetensors", ids(ids=torch.zeros(4, 16, dtype=torch.bool)), "integers"),
    "no ids": ("x.safetensors", ids(ids=torch.zeros(4, 0, dtype=torch.int64)), "integers"),
    "another name": ("x.safetensors", ids(tokens=torch.zeros(4, 16, dtype=torch.int64)), "'ids'"),
    "a mask that does not fit": (
        "x.safetensors", ids(ids=torch.ones(4, 16, dtype=torch.int64), mask=torch.ones(3, 16)), "mask"
    ),
    "a lying header": ("x.safetensors", lambda p: p.write_bytes((2**62).to_bytes(8, "little") + b"{}"), "be read"),
    "ids that are a pipe": ("x.safetensors", lambda p: pipe(p.name)(p.parent), "x.safetensors"),
    "ids of 4 GB": ("x.safetensors", lambda p: sparse(p.name, 4 * GIB)(p.parent), "at most"),
    "objects": ("x.npz", write_objects, "objects"),
    "floats": ("x.npz", lambda p: np.savez(p, ids=np.zeros((4, 16))), "integers"),
    "words": ("x.npz", lambda p: np.savez(p, ids=np.array([["a"]])), ""),
    "an array that lies": ("x.npz", write_lying_npz, "shape"),
    "a bomb": ("x.npz", write_bomb, "unpacks"),
    "no archive": ("x.npz", lambda p: p.write_bytes(b"PK\x03\x04" + bytes(40)), "cannot be read"),
}  # fmt: skip
