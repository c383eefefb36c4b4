"""Ranges are checked where a dataclass is made; the message holds key, value and limit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from seq2seq.config.schema import (
    KINDS,
    CleaningConfig,
    Config,
    CorpusConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RecurrentConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainerConfig,
    TransformerConfig,
)
from seq2seq.config.search import SearchConfig
from seq2seq.support.errors import UserError


def test_the_defaults_are_allowed_and_are_the_papers() -> None:
    config = Config()
    assert (config.model.d_model, config.model.encoder.num_layers, config.model.decoder.d_ff) == (512, 6, 2048)
    assert (config.optimizer.beta2, config.optimizer.epsilon, config.schedule.warmup_steps) == (0.98, 1e-9, 4000)
    assert (config.search.beam_size, config.search.length_penalty, config.trainer.label_smoothing) == (4, 0.6, 0.1)
    assert (config.data.batch_tokens, config.model.tie_embeddings, config.model.encoder.norm) == (25000, "all", "post")


def test_a_kind_is_registered_under_its_own_name() -> None:
    assert {name: made().kind for name, made in KINDS.items()} == {name: name for name in KINDS}


@pytest.mark.parametrize(
    ("make", "key", "value"),
    [
        (Config, "seed", -1),
        (CleaningConfig, "data.cleaning.max_length_ratio", 0.5),
        (CleaningConfig, "data.cleaning.max_pieces", 0),
        (DataConfig, "data.batch_tokens", 0),
        (DataConfig, "data.batch_tokens", (1 << 30) + 1),
        (TrainerConfig, "trainer.device", "gpu"),
        (Config, "init_from", ""),
        (DataConfig, "data.micro_batches", 0),
        (DataConfig, "data.micro_batches", 100_000),
        (DataConfig, "data.workers", 0),
        (TokenizerConfig, "tokenizer.kind", "wordpiece"),
        (TokenizerConfig, "tokenizer.vocab_size", 299),
        (TokenizerConfig, "tokenizer.max_lines", 0),
        (ModelConfig, "model.d_model", 0),
        (ModelConfig, "model.d_model", 511),
        (ModelConfig, "model.dropout", 1.0),
        (ModelConfig, "model.norm", "both"),
        (ModelConfig, "model.tie_embeddings", "some"),
        (SearchConfig, "search.beam_size", 0),
        (SearchConfig, "search.length_penalty", -0.1),
        (SearchConfig, "search.length_penalty", math.nan),
        (SearchConfig, "search.max_length_ratio", -1.0),
        (SearchConfig, "search.max_length_offset", 0),
        (SearchConfig, "search.n_best", 0),
        (SearchConfig, "search.n_best", 5),
        (OptimizerConfig, "optimizer.kind", "sgd"),
        (OptimizerConfig, "optimizer.beta1", 1.0),
        (OptimizerConfig, "optimizer.momentum", 1.0),
        (OptimizerConfig, "optimizer.beta2", -0.5),
        (OptimizerConfig, "optimizer.epsilon", 0.0),
        (OptimizerConfig, "optimizer.weight_decay", -1.0),
        (OptimizerConfig, "optimizer.clip_norm", 0.0),
        (ScheduleConfig, "schedule.kind", "none"),
        (ScheduleConfig, "schedule.warmup_steps", 0),
        (ScheduleConfig, "schedule.peak", 0.0),
        (TrainerConfig, "trainer.max_steps", 0),
        (TrainerConfig, "trainer.max_minutes", 0.0),
        (TrainerConfig, "trainer.save_every", 0),
        (TrainerConfig, "trainer.validate_every", 0),
        (TrainerConfig, "trainer.keep_checkpoints", 0),
        (TrainerConfig, "trainer.average_last", -1),
        (TrainerConfig, "trainer.average_last", 6),
        (TrainerConfig, "trainer.patience", 0),
        (TrainerConfig, "trainer.label_smoothing", 1.0),
        (TrainerConfig, "trainer.precision", "float16"),
        (TrainerConfig, "trainer.compile", "yes"),
        (TrainerConfig, "trainer.devices", 0),
        (TrainerConfig, "trainer.timeout_minutes", 0),
        (TrainerConfig, "trainer.average_decay", 1),
        (TrainerConfig, "trainer.samples", -1),
        (TrainerConfig, "trainer.on_full_disk", "wait"),
        (TrainerConfig, "trainer.on_loss_spike", "stop"),
        (TrainerConfig, "trainer.max_skipped", 0),
        (TrainerConfig, "trainer.log_seconds", -1.0),
        (SearchConfig, "search.seed", 1 << 63),
        (Config, "seed", -1),
        (Config, "seed", 1 << 64),
        (Config, "run_dir", ""),
        (ModelConfig, "model.encoder", None),
        (ModelConfig, "model.decoder", "transformer"),
    ],
)
def test_out_of_range(make: Callable[..., Any], key: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        make(**{key.rpartition(".")[2]: value})
    assert str(caught.value).startswith(f"{key}={value}: ")


@pytest.mark.parametrize(
    ("make", "key", "value"),
    [
        (TransformerConfig, "num_layers", 0),
        (TransformerConfig, "num_heads", 0),
        (TransformerConfig, "d_ff", 0),
        (TransformerConfig, "norm", "both"),
        (TransformerConfig, "dropout", -0.1),
        (TransformerConfig, "d_k", 0),
        (TransformerConfig, "positions", "relative"),
        (TransformerConfig, "max_positions", 15),
        (RecurrentConfig, "num_layers", 0),
        (RecurrentConfig, "dropout", 1.0),
    ],
)
def test_a_side_out_of_range_is_named(make: Callable[..., Any], key: str, value: Any) -> None:
    for side in ("encoder", "decoder"):
        with pytest.raises(UserError) as caught:
            ModelConfig(**{side: make(**{key: value})})
        assert str(caught.value).startswith(f"model.{side}.{key}={value}: ")


def test_a_corpus_out_of_range_is_named() -> None:
    for split in ("train", "valid", "test"):
        with pytest.raises(UserError, match=rf"^data\.{split}\.phrases=-1: must be at least 0"):
            DataConfig(**{split: CorpusConfig(phrases=-1)})  # type: ignore[arg-type]
        with pytest.raises(UserError, match=rf"^data\.{split}\.target=2016: must be a path"):
            DataConfig(**{split: CorpusConfig(source="a", target=2016)})  # type: ignore[arg-type]
        for value in ("", ["a", ""]):
            with pytest.raises(
                UserError, match=rf"^data\.{split}\.source=.*: empty \(a shell variable that is not set\?"
            ):
                DataConfig(**{split: CorpusConfig(source=value)})  # type: ignore[arg-type]
        for value in ("1" * 63, "A" * 64, ""):
            with pytest.raises(
                UserError, match=rf"^data\.{split}\.sha256={value}: must be 64 digits of 0-9a-f, or null"
            ):
                DataConfig(**{split: CorpusConfig(source="a", sha256=value)})  # type: ignore[arg-type]
        with pytest.raises(UserError, match=rf"without a corpus: type data\.{split}\.sha256=null"):
            DataConfig(**{split: CorpusConfig(sha256="0" * 64)})  # type: ignore[arg-type]
    DataConfig(train=CorpusConfig(source=["a", "b"], target="c", sha256="0f" * 32))


def test_heads_must_divide_the_model() -> None:
    with pytest.raises(UserError, match=r"model\.encoder\.num_heads=8: must divide model\.d_model=100"):
        ModelConfig(d_model=100, encoder=TransformerConfig(), decoder=RecurrentConfig())
    with pytest.raises(UserError, match=r"model\.decoder\.num_heads=8: must divide model\.d_model=100"):
        ModelConfig(d_model=100, encoder=RecurrentConfig(), decoder=TransformerConfig())
    ModelConfig(d_model=100, encoder=RecurrentConfig(), decoder=TransformerConfig(num_heads=5))


def test_the_longest_sentence_must_fit_in_a_batch() -> None:
    with pytest.raises(UserError, match=r"data\.batch_tokens=250: .*max_pieces=249 or data\.batch_tokens=251$"):
        DataConfig(batch_tokens=250)
    DataConfig(batch_tokens=251)
    DataConfig(batch_tokens=250, cleaning=CleaningConfig(max_pieces=249))
    DataConfig(batch_tokens=2, cleaning=CleaningConfig(max_pieces=None))


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_the_longest_sentence_must_have_learned_positions(side: str) -> None:
    learned = ModelConfig(**{side: TransformerConfig(positions="learned", max_positions=251)})  # type: ignore[arg-type]

    def config(pieces: int | None) -> Config:
        return Config(model=learned, data=DataConfig(cleaning=CleaningConfig(max_pieces=pieces)))

    assert (getattr(config(250).model, side).max_length, Config().model.encoder.max_length) == (251, None)
    for pieces, shown in ((251, "251"), (None, "null")):
        with pytest.raises(UserError) as caught:
            config(pieces)
        assert str(caught.value) == (
            f"data.cleaning.max_pieces={shown}: too long, eos counted, for model.{side}.max_positions=251; "
            "set data.cleaning.max_pieces=250 or more positions"
        )
    Config(data=DataConfig(cleaning=CleaningConfig(max_pieces=None)))


def test_an_unquoted_no_is_refused() -> None:
    # YAML reads it as false, and OmegaConf makes the string "False" of that.
    with pytest.raises(UserError, match=r"data\.target_language=False: quote the code"):
        DataConfig(target_language="False")
    assert DataConfig(target_language="no").target_language == "no"


def test_a_folder_without_a_name_and_half_a_corpus_are_refused() -> None:
    with pytest.raises(UserError, match=r"^data\.prepared_dir=: empty"):
        Config(data=DataConfig(prepared_dir=""))
    with pytest.raises(UserError, match=r"^data\.valid\.target=v\.de without data\.valid\.source: give both"):
        DataConfig(valid=CorpusConfig(target="v.de"))
