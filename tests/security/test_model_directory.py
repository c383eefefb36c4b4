"""Model directories made to do harm: each is refused in one line, runs nothing, and takes neither memory nor hours.

Whoever makes one can compute hashes, so the manifest fits the files unless the manifest itself is the payload.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
import yaml

from seq2seq.model.directory import FILES, LARGEST_TEXT, load_model_directory
from seq2seq.support.errors import UserError
from seq2seq.support.files import sha256_of
from tests.security.canary import Touch

WEIGHTS, CONFIG, TOKENIZER, MANIFEST = *FILES, "manifest.json"
EMBEDDING, LAST = "target_embedding.weight", torch.tensor([339])
MUCH = 400 << 20
"""Bytes that no refusal needs; what the payloads ask for starts at gigabytes."""

Change = Callable[[Path], object]


class Payload(NamedTuple):
    """What is done to a sound directory, what the refusal must say, and whether the manifest is made to fit after."""

    change: Change
    says: str
    fits: bool


PAYLOADS: dict[str, Payload] = {}


def payload(name: str, says: str, change: Change, *, fits: bool = True) -> None:
    assert name not in PAYLOADS
    PAYLOADS[name] = Payload(change, says, fits)


def canary_of(folder: Path) -> Path:
    return folder.parent / "canary"


# What is done to a directory.


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    found = json.loads((folder / MANIFEST).read_text())
    change(found)
    (folder / MANIFEST).write_text(json.dumps(found))


def content(name: str, written: bytes | str) -> Change:
    made = written.encode() if isinstance(written, str) else written
    return lambda folder: (folder / name).write_bytes(made.replace(b"CANARY", bytes(canary_of(folder))))


def pickled(name: str) -> Change:
    return lambda folder: (folder / name).write_bytes(pickle.dumps(Touch(canary_of(folder))))


def saved_by_torch(name: str) -> Change:
    return lambda folder: torch.save(Touch(canary_of(folder)), folder / name)


def missing(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def sparse(name: str, size: int) -> Change:
    return lambda folder: os.truncate(folder / name, size)


def link(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        shutil.move(folder / name, folder.parent / "outside")
        (folder / name).symlink_to(target)

    return change


def setting(*keys: str | int, value: Any) -> Change:
    """One value of the configuration, at any depth."""

    def change(folder: Path) -> None:
        plain = place = yaml.safe_load((folder / CONFIG).read_text())
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (folder / CONFIG).write_text(yaml.safe_dump(plain))

    return change


def manifest(**values: Any) -> Change:
    return lambda folder: change_manifest(folder, lambda found: found.update(values))


def listed(name: str, sha256: Any) -> Change:
    return lambda folder: change_manifest(folder, lambda found: found["sha256"].update({name: sha256}))


def weights(change: Callable[[torch.Tensor], torch.Tensor | None], name: str = EMBEDDING) -> Change:
    """One tensor, or none where `change` returns none."""

    def changed(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
        made = change(tensors.pop(name, torch.zeros(1)))
        safetensors.torch.save_file(tensors if made is None else {**tensors, name: made}, folder / WEIGHTS)

    return changed


def header(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Change:
    """What the header of the weights says of the first and the last tensor in the file."""

    def changed(folder: Path) -> None:
        written = (folder / WEIGHTS).read_bytes()
        end = 8 + struct.unpack("<Q", written[:8])[0]
        found = json.loads(written[8:end])
        tensors = sorted((found[name] for name in found if name != "__metadata__"), key=lambda one: one["data_offsets"])
        change(tensors[0], tensors[-1])
        raw = json.dumps(found).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(raw)) + raw + written[end:])

    return changed


def raw_header(raw: bytes, size: int | None = None) -> Change:
    return content(WEIGHTS, struct.pack("<Q", len(raw) if size is None else size) + raw)


def shift(by: int) -> Callable[[dict[str, Any]], None]:
    return lambda tensor: tensor.update(data_offsets=[offset + by for offset in tensor["data_offsets"]])


# The payloads.

for file in (*FILES, MANIFEST):
    ours = file == MANIFEST
    payload(f"{file} a pickle", file, pickled(file), fits=not ours)
    payload(f"{file} by torch.save", file, saved_by_torch(file), fits=not ours)
    payload(f"{file} empty", file, content(file, b""), fits=not ours)
    payload(f"{file} missing", file, missing(file), fits=False)
    payload(f"{file} a link out", "a link out of the model directory", link(file, "../outside"), fits=not ours)
    payload(f"{file} a link to a device", f"no {file}" if ours else "missing", link(file, "/dev/zero"), fits=False)

TAGS = [
    "!!python/object/apply:os.open ['CANARY', 64]",
    "!!python/object/new:os.open [['CANARY', 64]]",
    "!<tag:yaml.org,2002:python/object/apply:os.open> ['CANARY', 64]",
    *("!!python/name:os.open ''", "!!python/module:antigravity ''", "!!python/tuple [1]", "!unknown x"),
]
for tag in TAGS:
    for where in ("{}", "seed: {}", "model: {{encoder: {{kind: {}}}}}", "data: {{train: {{source: [{}]}}}}"):
        written = where.format(tag)
        payload(f"YAML: {written}", "cannot be read as a configuration", content(CONFIG, written))

for keys in (
    ["_target_"],
    ["model", "_target_"],
    ["model", "encoder", "_target_"],
    ["data", "train", "_target_"],
    ["data", "cleaning", "_args_"],
    ["optimizer", "_partial_"],
    ["search", "_recursive_"],
    ["model", "d_modle"],
):
    payload(".".join(keys), keys[-1], setting(*keys, value="os.system"))
CODE = [{"_target_": "os.system", "_args_": ["touch CANARY"]}]
payload("_target_ in a free value", "data.train.source", setting("data", "train", "source", value=CODE))
for resolver in ("${oc.env:SECRET}", "${oc.env:X,${oc.decode:x}}", "${custom:x}", "${..seed}", "${hydra:runtime.cwd}"):
    payload(f"resolver {resolver}", "interpolation", setting("run_dir", value=resolver))
payload("resolver in a list", "interpolation", setting("data", "train", "source", value=["a", "${oc.env:HOME}"]))
payload("resolver in a key", "interpolation", setting("model", "${oc.env:HOME}", value=1))
for kind in ("os.system", "seq2seq.train.os.link", "__import__", "transfomer", "", None, ["transformer"], {"a": 1}):
    for side in ("encoder", "decoder"):
        payload(f"{side}.kind {kind}", f"model.{side}.kind", setting("model", side, "kind", value=kind))

D_MODEL, ENCODER = ["model", "d_model"], ["model", "encoder"]
for keys, value, says in (
    (D_MODEL, 10**9, "model.d_model=1000000000, but model.safetensors has no more than"),
    (D_MODEL, 10**30, "model.d_model"),
    (D_MODEL, float("inf"), "model.d_model"),
    (D_MODEL, -2, "model.d_model"),
    (D_MODEL, "16; import os", "model.d_model"),
    (D_MODEL, 32, "has shape"),
    ([*ENCODER, "d_ff"], 10**18, "model.encoder.d_ff"),
    ([*ENCODER, "d_k"], 10**12, "model.encoder.d_k"),
    ([*ENCODER, "num_layers"], 10**7, "model.encoder.num_layers"),
    ([*ENCODER, "num_heads"], 0, "model.encoder.num_heads"),
    ([*ENCODER, "num_heads"], 3, "model.encoder.num_heads"),
    (ENCODER, {"kind": "transformer", "positions": "learned", "max_positions": 10**12}, "model.encoder.max_positions"),
    (["model", "\x1b[2J\nx"], 1, "no such key"),
):
    payload(f"{'.'.join(keys)!r}: {value}", says, setting(*keys, value=value))


def empty_but_wide(folder: Path) -> None:
    weights(lambda _: torch.zeros(0, 2**62), "x")(folder)
    setting("model", "d_model", value=2**62)(folder)


payload("a width that only an empty tensor has", "model.d_model", empty_but_wide)

for name, written, says in (
    ("aliases that multiply", "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n", "holds an alias"),
    ("a merge", "a: &a {seed: 1}\nmodel: {<<: *a}\n", "holds an alias"),
    ("deep lists", "[" * 500_000, "nested more than"),
    ("deep keys", "model: " + "{a: " * 5000 + "}" * 5000, "nested more than"),
    ("deep blocks", "".join(" " * depth + "a:\n" for depth in range(900)), "nested more than"),
    ("very long", f"a: [{'1,' * LARGEST_TEXT}]", f"more than {LARGEST_TEXT:,} are not read"),
    ("a number of 5,000 digits", "seed: " + "9" * 5000, "cannot be read as a configuration"),
    ("no such date", "seed: 2020-99-99", "cannot be read as a configuration"),
    ("two documents", "seed: 1\n---\nseed: 2\n", "cannot be read as a configuration"),
    ("cut short", "a: [1, 2", "cannot be read as a configuration"),
    ("a list", "[1, 2]", "not a configuration"),
):
    payload(f"YAML: {name}", says, content(CONFIG, written))
payload("YAML: 64 MiB of nothing", "are not read", sparse(CONFIG, 1 << 26))

for name, change in (
    ("longer than the file", raw_header(b"{}", size=1 << 62)),
    ("of the largest size", raw_header(b"{}", size=(1 << 64) - 1)),
    ("longer by one", raw_header(b"{}", size=3)),
    ("of 101 MB", raw_header(b"{" + b" " * 101_000_000 + b"}")),
    ("deep", raw_header(b'{"a":' * 100_000)),
    ("no JSON", raw_header(b"\xff" * 16)),
    ("of seven bytes", content(WEIGHTS, b"1234567")),
    ("with tensors that overlap", header(lambda _, last: shift(-64)(last))),
    ("with tensors over one another", header(lambda first, last: last.update(first))),
    ("with an offset outside the file", header(lambda _, last: shift(1 << 40)(last))),
    ("with an offset below zero", header(lambda first, _: shift(-64)(first))),
    ("with a hole", header(lambda first, _: shift(4)(first))),
    ("with a shape too large to count", header(lambda first, _: first.update(shape=[1 << 40] * 2))),
    ("with no such number format", header(lambda first, _: first.update(dtype="object"))),
    ("and 64 MiB of nothing behind the weights", sparse(WEIGHTS, 1 << 26)),
):
    payload(f"header {name}", "cannot be read", change)
payload("weights larger than all memory", "are not read", sparse(WEIGHTS, 1 << 43), fits=False)

payload("a tensor too many", "tensor os.system has shape (1,)", weights(lambda zeros: zeros, "os.system"))
payload("a tensor too few", "has shape none", weights(lambda _: None))
payload("a tensor of no side", "has shape ()", weights(lambda _: torch.ones(())))
payload(
    "a tensor turned round",
    f"{EMBEDDING} has shape (16, 340) in float32; the configuration needs (340, 16)",
    weights(lambda tensor: tensor.T.contiguous()),
)
for dtype in (torch.float64, torch.bfloat16, torch.bool, torch.int64, torch.complex64, torch.float8_e4m3fn):
    says = f"in {str(dtype).removeprefix('torch.')}; the configuration needs"
    payload(f"weights in {dtype}", says, weights(partial(torch.Tensor.to, dtype=dtype)))
for number in (float("nan"), float("inf"), float("-inf")):
    payload(
        f"a weight that is {number}", "not finite", weights(partial(torch.index_fill, dim=0, index=LAST, value=number))
    )

payload("a tokenizer cut short", TOKENIZER, lambda folder: os.truncate(folder / TOKENIZER, 900))
payload(
    *("a tokenizer with other specials", "must be at (0, 1, 2, 3)"),
    lambda folder: (folder / TOKENIZER).write_bytes((folder / TOKENIZER).read_bytes().replace(b"</s>", b"<|s>")),
)
payload(
    *("a tokenizer with a piece that is no text", "can't decode byte 0xff"),
    lambda folder: (folder / TOKENIZER).write_bytes((folder / TOKENIZER).read_bytes() + b"\n\x05\n\x03ab\xff"),
)
payload(
    *("a tokenizer with a piece more", "has shape"),
    # In the protobuf each piece is a field of its own, number 1, and fields may come in any order.
    lambda folder: (folder / TOKENIZER).write_bytes((folder / TOKENIZER).read_bytes() + b"\n\x05\n\x03abc"),
)

for name, written in (
    ("deep", "[" * 500_000),
    ("deep keys", '{"format_version": 1, "sha256": ' + '{"a":' * 150_000),
    ("a list", "[1]"),
    ("a number of 5,000 digits", f'{{"format_version": {"9" * 5000}}}'),
    ("cut short", '{"format_version": 1'),
    ("nothing", "null"),
    ("no hashes", '{"format_version": 1}'),
    ("no names", '{"format_version": 1, "sha256": []}'),
    ("names without hashes", json.dumps({"format_version": 1, "sha256": list(FILES)})),
):
    payload(f"JSON: {name}", "manifest.json: broken", content(MANIFEST, written), fits=False)
payload("JSON: not UTF-8", "manifest.json: broken", content(MANIFEST, b'\xff\xfe{"a": 1}'), fits=False)
payload("JSON: very long", "are not read", content(MANIFEST, " " * (LARGEST_TEXT + 1)), fits=False)
for version in (2, 10**30, 0, -1, 1.0, True, "1", None, [1], "\x1b[2J\n"):
    says = f"model format {version!r}; this version reads 1"
    payload(f"format {version!r}", says, manifest(format_version=version), fits=False)
for length in (0, -1, 1.5, "20", None, [1], float("nan"), True):
    says = f"longest_source={length!r}: must be a whole number"
    payload(f"longest_source {length!r}", says, manifest(longest_source=length), fits=False)
for name in ("../../../etc/passwd", "/etc/passwd", "model.safetensors/../x", "\x1b[2J"):
    payload(f"manifest lists {name!r}", "lists the files", listed(name, "0" * 64), fits=False)
for wrong in ("0" * 64, "", None, 5, ["x"]):
    payload(f"sha256 {str(wrong)[:5]}", "changed since it was written", listed(TOKENIZER, wrong), fits=False)


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def harm(folder: Path, name: str) -> str:
    """Make the payload of this name; returns what the refusal must say."""
    change, says, fits = PAYLOADS[name]
    change(folder)
    if fits:
        manifest(sha256={name: sha256_of(folder / name) for name in FILES})(folder)
    return says


@pytest.mark.parametrize("name", PAYLOADS)
def test_it_is_refused_and_runs_nothing(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    says = harm(folder, name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as refused:
        load_model_directory(folder)
    message = str(refused.value)
    assert says in message and "hunter2" not in message
    # Those of a key are escaped when they are printed.
    assert "\n" not in message.replace("[2J\nx", "")
    assert not canary_of(folder).exists()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < MUCH


def test_there_is_a_canary_to_be_seen(folder: Path) -> None:
    pickle.loads(pickle.dumps(Touch(canary_of(folder))))
    assert canary_of(folder).exists()


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors a pickle",
        "tokenizer.model empty",
        f"YAML: seed: {TAGS[0]}",
        "'model.d_model': 1000000000",
        r"'model.\x1b[2J\nx': 1",
        "JSON: deep",
    ],
)
def test_the_command_says_one_line_and_ends_with_2(name: str, folder: Path) -> None:
    says = harm(folder, name)
    command = [sys.executable, "-m", "seq2seq.cli.translate", "--model", str(folder), "--device", "cpu"]
    done = subprocess.run(command, input=b"the dog\n", capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b""), done.stderr.decode()
    line = done.stderr.decode()
    assert line.startswith("seq2seq-translate: ") and line.endswith("\n") and line[:-1].isprintable()
    assert says in line
    assert not canary_of(folder).exists()


def test_the_folder_itself_may_be_a_link_and_a_link_may_lead_inside(folder: Path) -> None:
    (folder.parent / "latest").symlink_to(folder)
    (folder / WEIGHTS).rename(folder / "weights")
    (folder / WEIGHTS).symlink_to("weights")
    load_model_directory(folder.parent / "latest")


def test_a_secret_behind_a_link_is_not_shown(folder: Path) -> None:
    for name in (CONFIG, MANIFEST):
        (folder.parent / "secret").write_text("token: hunter2\n")
        (folder / name).unlink()
        (folder / name).symlink_to("../secret")
        with pytest.raises(UserError) as refused:
            load_model_directory(folder)
        assert "hunter2" not in str(refused.value)
