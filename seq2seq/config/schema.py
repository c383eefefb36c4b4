"""Every key that a configuration may hold, with its type, default and range.

`conf/` gives the values; composing them fills these dataclasses (`seq2seq.config.compose`), so that an unknown key, a
wrong type or a value out of range is found before anything starts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from seq2seq.config.checks import at_least, fraction, one_of, positive, valid_seed
from seq2seq.config.search import SearchConfig
from seq2seq.support.errors import UserError

MOST_TOKENS = 1 << 30
"""Tokens of an update or a batch: far more than any device computes, and few enough to count in 32 bits."""
SCHEDULES = ("inverse_sqrt", "linear")
"""What the learning rate may do after the warm-up; `train.schedule` has a function for each."""
MINUTES_OF_A_YEAR = 525_600
MOST_PARTS = 1 << 16
"""Parts of an update: more than would ever be useful, and few enough to be listed."""
NORMS = ("post", "pre")
UNSET = "empty (a shell variable that is not set?)"


@dataclass
class CorpusConfig:
    """Where the sentence pairs of one split come from: the first of `source`, `dataset`, `phrases` that is set.

    `source` and `target` are paths or lists of paths, line-aligned text; without `target`, `source` names TSV or
    JSONL files. `dataset` is a name on the Hugging Face Hub or a local directory. `sha256`, if given, must be that of
    the pairs as read, `source\\ttarget\\n` for each; its actual value is in the cleaning report (not for the test set).
    """

    source: Any = None
    target: Any = None
    dataset: str | None = None
    subset: str | None = None
    split: str | None = None
    phrases: int = 0
    sha256: str | None = None

    @property
    def is_given(self) -> bool:
        """Whether this names a corpus at all."""
        return bool(self.source or self.dataset or self.phrases)

    def check(self, key: str) -> None:
        """Refuse values out of range; `key` is where this stands, such as `data.train`."""
        for side in ("source", "target"):
            value = getattr(self, side)
            if "" in (value if isinstance(value, list) else [value]):
                raise UserError(f"{key}.{side}={value}: {UNSET}; give a file, or type {key}.{side}=null")
            if not all(isinstance(path, str) for path in (value if isinstance(value, list) else [value or ""])):
                raise UserError(f"{key}.{side}={value}: must be a path or a list of paths; put quotes around a number")
        if self.target and not self.source:
            raise UserError(f"{key}.target={self.target} without {key}.source: give both")
        at_least(f"{key}.phrases", self.phrases, 0)
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise UserError(f"{key}.sha256={self.sha256}: must be 64 digits of 0-9a-f, or null")
        if self.sha256 and not self.is_given:
            raise UserError(f"{key}.sha256={self.sha256} without a corpus: type {key}.sha256=null")


@dataclass
class CleaningConfig:
    """Which pairs are left out of training; false, or null for a number, turns a rule off.

    Lengths are in pieces, without eos.
    """

    empty: bool = True
    duplicate: bool = True
    same: bool = True
    max_length_ratio: float | None = 3.0
    max_pieces: int | None = 250

    def __post_init__(self) -> None:
        at_least("data.cleaning.max_length_ratio", self.max_length_ratio, 1)
        at_least("data.cleaning.max_pieces", self.max_pieces, 1)


@dataclass
class DataConfig:
    """The corpora and the batches made of them.

    `batch_tokens` limits source tokens and target tokens, each, per update over all ranks, eos counted;
    an update is computed in `micro_batches` parts, which the ranks share (null: on GPUs as few as fit in memory,
    on CPUs parts of 4,096 tokens).
    """

    source_language: str = "en"
    target_language: str = "de"
    train: CorpusConfig = field(default_factory=CorpusConfig)
    valid: CorpusConfig = field(default_factory=CorpusConfig)
    test: CorpusConfig = field(default_factory=CorpusConfig)
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    batch_tokens: int = 25000
    micro_batches: int | None = None
    prepared_dir: str = "???"
    workers: int | None = None

    def __post_init__(self) -> None:
        at_least("data.batch_tokens", self.batch_tokens, 1, MOST_TOKENS)
        at_least("data.micro_batches", self.micro_batches, 1, MOST_PARTS)
        at_least("data.workers", self.workers, 1)
        for split in ("train", "valid", "test"):
            getattr(self, split).check(f"data.{split}")
        for side in ("source_language", "target_language"):
            if getattr(self, side) in ("True", "False"):
                raise UserError(f"data.{side}={getattr(self, side)}: quote the code; YAML reads a bare no as false")
        longest = self.cleaning.max_pieces
        if longest is not None and longest + 1 > self.batch_tokens:
            raise UserError(
                f"data.batch_tokens={self.batch_tokens}: too small for a sentence of {longest} pieces and eos; "
                f"set data.cleaning.max_pieces={self.batch_tokens - 1} or data.batch_tokens={longest + 1}"
            )


@dataclass
class TokenizerConfig:
    """The joint SentencePiece vocabulary, trained on at most `max_lines` sampled lines.

    With `split_digits` each digit is a piece of its own.
    """

    kind: str = "bpe"
    vocab_size: int = 8000
    max_lines: int = 5_000_000
    split_digits: bool = False

    def __post_init__(self) -> None:
        one_of("tokenizer.kind", self.kind, ("bpe", "unigram"))
        at_least("tokenizer.vocab_size", self.vocab_size, 300)
        at_least("tokenizer.max_lines", self.max_lines, 1)


@dataclass
class TransformerConfig:
    """A Transformer encoder or decoder (Vaswani et al., 2017, section 3).

    `d_k` is the width of a head's queries and keys; by default that of its values, d_model / num_heads. `norm` comes
    after each sublayer (`post`, section 3.1) or before (`pre`: Xiong et al., 2020, which learns sooner). With
    `learned` positions (table 3, row E) a sequence has at most `max_positions` pieces, eos counted.
    """

    kind: str = "transformer"
    num_layers: int = 6
    num_heads: int = 8
    d_k: int | None = None
    d_ff: int = 2048
    norm: str = "post"
    dropout: float = 0.1
    positions: str = "sinusoidal"
    max_positions: int = 1024

    @property
    def max_length(self) -> int | None:
        """The longest sequence that this can take, in pieces, eos counted; None: any."""
        return self.max_positions if self.positions == "learned" else None

    def check(self, key: str) -> None:
        """Refuse values out of range; `key` is where this stands, such as `model.encoder`."""
        for name in ("num_layers", "num_heads", "d_k", "d_ff"):
            at_least(f"{key}.{name}", getattr(self, name), 1)
        one_of(f"{key}.norm", self.norm, NORMS)
        fraction(f"{key}.dropout", self.dropout)
        one_of(f"{key}.positions", self.positions, ("sinusoidal", "learned"))
        # Half of that holds any one character (up to five pieces), so that a text can always be cut to fit.
        at_least(f"{key}.max_positions", self.max_positions, 16)


@dataclass
class RecurrentConfig:
    """A bidirectional LSTM encoder, or an LSTM decoder with additive attention (Bahdanau et al., 2015)."""

    kind: str = "recurrent"
    num_layers: int = 1
    dropout: float = 0.1

    @property
    def max_length(self) -> int | None:
        """None: it takes sequences of any length."""
        return None

    def check(self, key: str) -> None:
        """Refuse values out of range; `key` is where this stands, such as `model.encoder`."""
        at_least(f"{key}.num_layers", self.num_layers, 1)
        fraction(f"{key}.dropout", self.dropout)


KINDS: dict[str, type[TransformerConfig] | type[RecurrentConfig]] = {
    "transformer": TransformerConfig,
    "recurrent": RecurrentConfig,
}
"""The settings of each kind of encoder and decoder, by the exact name that `kind` holds."""


@dataclass
class ModelConfig:
    """The model: one encoder and one decoder of any kinds, and the embeddings they share.

    `tie_embeddings` is `all` (source, target and output share one matrix: section 3.4 of the paper), `target`
    (target and output) or `none`. `dropout` and `norm` are what both sides take unless one has its own.
    """

    d_model: int = 512
    tie_embeddings: str = "all"
    dropout: float = 0.1
    norm: str = "post"
    encoder: Any = field(default_factory=TransformerConfig)
    decoder: Any = field(default_factory=TransformerConfig)

    def __post_init__(self) -> None:
        at_least("model.d_model", self.d_model, 2)
        if self.d_model % 2:
            raise UserError(f"model.d_model={self.d_model}: must be even")
        one_of("model.tie_embeddings", self.tie_embeddings, ("all", "target", "none"))
        fraction("model.dropout", self.dropout)
        one_of("model.norm", self.norm, NORMS)
        for side in ("encoder", "decoder"):
            if not hasattr(getattr(self, side), "check"):
                raise UserError(f"model.{side}={getattr(self, side)}: no {side}; type model/{side}=transformer")
            getattr(self, side).check(f"model.{side}")
            heads = getattr(getattr(self, side), "num_heads", 1)
            if self.d_model % heads:
                raise UserError(f"model.{side}.num_heads={heads}: must divide model.d_model={self.d_model}")


@dataclass
class OptimizerConfig:
    """AdamW (decoupled weight decay) with the paper's values (section 5.3), where decay and `clip_norm` are off.

    `muon` uses `momentum` for the matrices of linear layers, and AdamW for all else.
    """

    kind: str = "adam"
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-9
    momentum: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        one_of("optimizer.kind", self.kind, ("adam", "muon"))
        fraction("optimizer.momentum", self.momentum)
        fraction("optimizer.beta1", self.beta1)
        fraction("optimizer.beta2", self.beta2)
        positive("optimizer.epsilon", self.epsilon)
        at_least("optimizer.weight_decay", self.weight_decay, 0)
        positive("optimizer.clip_norm", self.clip_norm)


@dataclass
class ScheduleConfig:
    """Learning rate: linear warm-up, then `inverse_sqrt` (the paper's equation 3) or `linear` to 0 after `max_steps`.

    `peak` is the rate at the end of the warm-up; without it the paper's d_model^-0.5 · warmup_steps^-0.5.
    """

    kind: str = "inverse_sqrt"
    warmup_steps: int = 4000
    peak: float | None = None

    def __post_init__(self) -> None:
        one_of("schedule.kind", self.kind, SCHEDULES)
        at_least("schedule.warmup_steps", self.warmup_steps, 1)
        positive("schedule.peak", self.peak)


@dataclass
class TrainerConfig:
    """How long and where to train, what to keep and what to show. Steps are updates of the weights.

    `compile` fuses the layers of Transformers with PyTorch's compiler and, on GPUs in bfloat16, replays forward and
    backward passes as CUDA graphs; `auto` does so on GPUs. With `deterministic`, GPUs too compute the same bits each
    time, more slowly; CPUs always do.

    `devices` is the number of ranks on this machine, one per device; a rank that does not answer the others within
    `timeout_minutes` ends the run.

    Checkpoints are written while training goes on, from a copy in the CPU's memory. `average_last` averages the weights
    in that many of the last checkpoints at multiples of `save_every`, at the end; the final model is the average where
    its BLEU is at least that of the best one seen. `average_decay` keeps an exponential moving average of the weights,
    which is then what is validated and kept as the best model. `patience` stops after that many validations without a
    better BLEU. An update whose gradient is not finite changes no weights; `max_skipped` of them in a row end the run.
    `on_full_disk` goes on with the updates and tries again at the next save (`retry`) or ends the run (`stop`). When
    the loss rises suddenly and stays up, `on_loss_spike` says so (`warn`), or also goes back to the last checkpoint
    before the rise and leaves out the pairs since (`rollback`); `off` does not check.
    """

    max_steps: int = 100_000
    max_minutes: float | None = None
    save_every: int = 1000
    validate_every: int = 1000
    keep_checkpoints: int = 5
    average_last: int = 5
    average_decay: float | None = None
    patience: int | None = None
    max_skipped: int = 3
    on_full_disk: str = "retry"
    on_loss_spike: str = "warn"
    label_smoothing: float = 0.1
    precision: str = "auto"
    compile: bool | str = "auto"
    deterministic: bool = False
    device: str = "auto"
    devices: int = 1
    timeout_minutes: float = 10.0
    log_seconds: float = 5.0
    samples: int = 3

    def __post_init__(self) -> None:
        at_least("trainer.max_steps", self.max_steps, 1)
        positive("trainer.max_minutes", self.max_minutes)
        positive("trainer.timeout_minutes", self.timeout_minutes)
        at_least("trainer.timeout_minutes", self.timeout_minutes, 0, MINUTES_OF_A_YEAR)
        at_least("trainer.log_seconds", self.log_seconds, 0)
        for key in ("save_every", "validate_every", "keep_checkpoints", "devices", "max_skipped"):
            at_least(f"trainer.{key}", getattr(self, key), 1)
        at_least("trainer.average_last", self.average_last, 0)
        fraction("trainer.average_decay", self.average_decay)
        at_least("trainer.patience", self.patience, 1)
        at_least("trainer.samples", self.samples, 0)
        fraction("trainer.label_smoothing", self.label_smoothing)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UserError(f"trainer.device={self.device}: no such device; type auto, cpu, cuda or cuda:0")
        one_of("trainer.precision", self.precision, ("auto", "float32", "tf32", "bfloat16"))
        one_of("trainer.on_full_disk", self.on_full_disk, ("retry", "stop"))
        one_of("trainer.on_loss_spike", self.on_loss_spike, ("warn", "rollback", "off"))
        if self.compile not in ("auto", True, False):
            raise UserError(f"trainer.compile={self.compile}: must be one of auto, true, false")
        if self.average_last > self.keep_checkpoints:
            raise UserError(
                f"trainer.average_last={self.average_last}: cannot be above "
                f"trainer.keep_checkpoints={self.keep_checkpoints}"
            )


@dataclass
class Config:
    """The whole configuration of a run; `init_from` names a model directory to take weights and vocabulary from."""

    run_dir: str = "???"
    seed: int = 1
    init_from: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        valid_seed("seed", self.seed)
        folders = {"run_dir": self.run_dir, "data.prepared_dir": self.data.prepared_dir, "init_from": self.init_from}
        for key, folder in folders.items():
            if folder == "":
                raise UserError(f"{key}=: {UNSET}; give a folder: {key}=DIR")
        pieces = self.data.cleaning.max_pieces
        for side in ("encoder", "decoder"):
            limit = getattr(self.model, side).max_length
            if limit is not None and (pieces is None or pieces >= limit):
                raise UserError(
                    f"data.cleaning.max_pieces={'null' if pieces is None else pieces}: too long, eos counted, for "
                    f"model.{side}.max_positions={limit}; set data.cleaning.max_pieces={limit - 1} or more positions"
                )
