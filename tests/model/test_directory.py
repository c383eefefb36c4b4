"""Model directories: what is written is read back bit by bit. What must be refused: tests/security."""

from __future__ import annotations

import errno
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from seq2seq.config.schema import Config, DataConfig, ModelConfig, RecurrentConfig, TokenizerConfig
from seq2seq.config.schema import TransformerConfig as Transformer
from seq2seq.data.tokenizer import Tokenizer, train_tokenizer
from seq2seq.model.directory import FORMAT_VERSION, load_model_directory, save_model_directory
from seq2seq.model.encoder import TransformerEncoder
from seq2seq.model.translation import DECODERS, ENCODERS, build_model
from seq2seq.model.weights import fill, own_weights, save_weights
from seq2seq.ops.packing import Layout
from seq2seq.support.errors import UserError
from seq2seq.support.files import sha256_of


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    lines = [f"{one} {other}" for one in "abcdefgh" for other in "ijklmnop"]
    return train_tokenizer(lines, TokenizerConfig(vocab_size=300))


def config_of(encoder: str = "transformer", decoder: str = "transformer", tie: str = "all") -> Config:
    kinds = {"transformer": Transformer(num_layers=1, num_heads=2, d_ff=16), "recurrent": RecurrentConfig()}
    model = ModelConfig(d_model=8, tie_embeddings=tie, encoder=kinds[encoder], decoder=kinds[decoder])
    return Config(run_dir="runs/x", seed=5, data=DataConfig(prepared_dir="runs/x/data"), model=model)


@pytest.fixture(scope="module")
def template(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("template") / "model"
    config = config_of()
    model = build_model(config.model, tokenizer.vocab_size, 1)
    save_model_directory(directory, config, tokenizer, own_weights(model), steps=70, data_sha256="ab")
    return directory


@pytest.fixture
def saved(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "moved" / "elsewhere")


def refusal(directory: Path) -> str:
    with pytest.raises(UserError) as refused:
        load_model_directory(directory)
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("tie", ["all", "target", "none"])
@pytest.mark.parametrize(("encoder", "decoder"), [*itertools.product(ENCODERS, DECODERS)])
def test_every_model_comes_back_bit_by_bit(
    tokenizer: Tokenizer, tmp_path: Path, encoder: str, decoder: str, tie: str
) -> None:
    config = config_of(encoder, decoder, tie)
    model = build_model(config.model, tokenizer.vocab_size, 1)
    save_model_directory(tmp_path / "model", config, tokenizer, own_weights(model))
    shutil.move(tmp_path / "model", tmp_path / "moved")
    found_config, found_tokenizer, found, _ = load_model_directory(tmp_path / "moved")
    assert found_config == config
    assert found_tokenizer.model == tokenizer.model
    assert own_weights(found).keys() == own_weights(model).keys()
    for name, weight in own_weights(model).items():
        assert torch.equal(own_weights(found)[name], weight), name
        assert own_weights(found)[name].dtype == torch.float32
    source, layout = torch.tensor([4, 5, 6]), Layout.of([3])
    with torch.inference_mode():
        before, after = (some.eval().encode(source, layout).rows for some in (model, found))
    assert torch.equal(before, after)


def test_the_directory_holds_what_it_says(saved: Path) -> None:
    names = {path.name for path in saved.iterdir()}
    assert names == {"model.safetensors", "config.yaml", "tokenizer.model", "manifest.json"}
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["format_version"] == FORMAT_VERSION
    assert manifest["sha256"] == {name: sha256_of(saved / name) for name in names - {"manifest.json"}}
    assert (manifest["seed"], manifest["steps"], manifest["data_sha256"]) == (5, 70, "ab")
    assert manifest["versions"].keys() >= {"seq2seq", "torch", "sentencepiece"}


def test_saving_again_replaces_the_directory(saved: Path, tokenizer: Tokenizer) -> None:
    config = config_of()
    model = build_model(config.model, tokenizer.vocab_size, 2)
    save_model_directory(saved, config, tokenizer, own_weights(model), steps=80)
    assert torch.equal(load_model_directory(saved).model.output_weight, model.output_weight)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_save_that_fails_leaves_the_old_directory(saved: Path, tokenizer: Tokenizer) -> None:
    before = (saved / "manifest.json").read_bytes()
    with pytest.raises(TypeError):
        save_model_directory(saved, config_of(), tokenizer, {"a": torch.zeros(1)}, steps=object())
    assert (saved / "manifest.json").read_bytes() == before
    load_model_directory(saved)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_no_model_says_what_to_type(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nowhere")
    assert "nowhere" in message
    assert "seq2seq-train +recipe=quickstart" in message


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "tokenizer.model"])
def test_a_changed_byte_is_found(saved: Path, name: str) -> None:
    content = bytearray((saved / name).read_bytes())
    content[len(content) // 2] ^= 1
    (saved / name).write_bytes(content)
    message = refusal(saved)
    assert name in message
    assert "sha256" in message


def test_a_run_directory_points_to_its_model(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(saved)
    assert f"no model there, but in {tmp_path}/run/model; give that" in refusal(tmp_path / "run")


def test_filling_copies_or_changes_nothing(tokenizer: Tokenizer) -> None:
    config = config_of()
    one, other = (build_model(config.model, tokenizer.vocab_size, seed) for seed in (1, 2))
    wrong = own_weights(other)
    wrong[next(reversed(wrong))] = torch.zeros(1)
    before = {name: weight.clone() for name, weight in own_weights(one).items()}
    with pytest.raises(UserError):
        fill(one, wrong, Path("x"))
    assert all(torch.equal(weight, before[name]) for name, weight in own_weights(one).items())
    fill(one, own_weights(other), Path("x"))
    assert all(torch.equal(weight, own_weights(other)[name]) for name, weight in own_weights(one).items())


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="os error 28") as caught:
        save_weights(tmp_path / "model.safetensors", {"a": torch.zeros(2)})
    assert caught.value.errno == errno.ENOSPC


def test_loading_imports_nothing_slow(tiny_model: Path) -> None:
    code = f"import sys; from seq2seq import Translator; Translator.load({str(tiny_model)!r}, device='cpu'); "
    code += "sys.exit(' '.join(sys.modules.keys() & {'sympy', 'torch._dynamo', 'datasets', 'pandas'}) or 0)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_buffer_is_what_it_was_set_to(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, tokenizer, _, _ = load_model_directory(tiny_model)
    build = TransformerEncoder.__init__
    is_saved = False

    def with_buffer(self: TransformerEncoder, *given: Any) -> None:
        build(self, *given)
        self.register_buffer("quarters", torch.empty(3).fill_(0.25), persistent=is_saved)

    monkeypatch.setattr(TransformerEncoder, "__init__", with_buffer)
    encoder = load_model_directory(tiny_model)[2].get_submodule("encoder")
    assert encoder.get_buffer("quarters").tolist() == [0.25] * 3
    is_saved = True
    with pytest.raises(AssertionError, match=r"'encoder.quarters'.* only parameters are saved"):
        build_model(config.model, tokenizer.vocab_size, 1)
