"""What tests of several rooms share: no network, a toy language, a tiny model directory."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    # Kernels for GPUs run on the processor; Triton reads this once, when it is imported.
    os.environ["TRITON_INTERPRET"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
for _name in ("SEQ2SEQ_MODEL", "SACREBLEU_SEED"):
    os.environ.pop(_name, None)
# sacreBLEU reads its folder once, when it is imported; a download ends at a closed port.
SACREBLEU = tempfile.TemporaryDirectory(prefix="sacrebleu-")
os.environ["SACREBLEU"] = SACREBLEU.name
os.environ["http_proxy"] = os.environ["https_proxy"] = "http://127.0.0.1:9"

# The same inputs in each run: others, which a change has nothing to do with, are for `make soak` to find.
settings.register_profile("seq2seq", deadline=None, max_examples=60, print_blob=True, derandomize=True)
settings.register_profile("soak", settings.get_profile("seq2seq"), max_examples=10_000, derandomize=False)
settings.load_profile("seq2seq")

WORDS = {
    **{"dog": "Hund", "man": "Mann", "tree": "Baum", "table": "Tisch", "river": "Fluss", "apple": "Apfel"},
    **{"old": "alte", "small": "kleine", "red": "rote", "cold": "kalte", "quiet": "ruhige", "strange": "seltsame"},
    **{"sees": "sieht", "finds": "findet", "forgets": "vergisst", "draws": "malt", "follows": "verfolgt"},
}


def toy(count: int, seed: int) -> list[tuple[str, str]]:
    """Sentences of a toy English and their toy German, from 4 to 25 words."""
    rng = random.Random(seed)
    nouns, adjectives, verbs = list(WORDS)[:6], list(WORDS)[6:12], list(WORDS)[12:]
    pairs = []
    for _ in range(count):
        english = ["the", rng.choice(nouns), rng.choice(verbs)]
        for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 7))):
            english += ["the", *rng.sample(adjectives, rng.randint(0, 2)), rng.choice(nouns)]
        german = ["das" if word == "the" else WORDS[word] for word in english]
        pairs.append((" ".join(english) + ".", " ".join(german) + "."))
    return pairs


@pytest.fixture(scope="session", autouse=True)
def library() -> None:
    """Compiles the C++ functions first: whichever test needed them first would find a line about it on stderr."""
    from seq2seq.ops import native

    native.library()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real text; skips where there is none."""
    given = os.environ.get("SEQ2SEQ_SHARED_DATA")
    if not given:
        pytest.skip("SEQ2SEQ_SHARED_DATA is not set: no real text here")
    return Path(given)


@pytest.fixture(scope="session")
def toy_pairs() -> list[tuple[str, str]]:
    """Four hundred sentence pairs, most of them different."""
    return toy(400, 1)


@pytest.fixture(scope="session")
def toy_corpus(tmp_path_factory: pytest.TempPathFactory, toy_pairs: list[tuple[str, str]]) -> tuple[Path, Path]:
    """The toy pairs as two files, source and target."""
    folder = tmp_path_factory.mktemp("toy")
    files = folder / "toy.en", folder / "toy.de"
    for side, path in enumerate(files):
        path.write_bytes("".join(f"{pair[side]}\n" for pair in toy_pairs).encode())
    return files


@pytest.fixture(scope="session")
def stand_ins(toy_pairs: list[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Toy pairs where sacreBLEU looks for `wmt14` and `wmt14/full` in en-de, the first a part of the second."""
    test_sets = {"wmt14/full": toy_pairs[:20] + toy_pairs[:2], "wmt14": toy_pairs[3:17]}
    for name, pairs in test_sets.items():
        folder = Path(SACREBLEU.name) / name
        folder.mkdir(parents=True, exist_ok=True)
        fields = {"src": [pair[0] for pair in pairs], "ref": [pair[1] for pair in pairs]}
        for field in ("docid", "genre", "origlang"):
            fields[field] = ["x"] * len(pairs)
        for field, lines in fields.items():
            path = folder / f"{name.replace('/', '_')}.en-de.{field}"
            path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return test_sets


TINY = [
    *("model.d_model=16", "model.encoder.num_layers=1", "model.decoder.num_layers=1"),
    *("model.encoder.num_heads=2", "model.decoder.num_heads=2", "model.encoder.d_ff=32", "model.decoder.d_ff=32"),
    *("search.max_length_ratio=0", "search.max_length_offset=5"),
]


@pytest.fixture
def native_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions in C++ that are called from now on."""
    from seq2seq.ops import native

    calls: list[str] = []
    call = native.call

    def noted(name: str, *arguments: torch.Tensor | float) -> None:
        calls.append(name)
        call(name, *arguments)

    monkeypatch.setattr(native, "call", noted)
    return calls


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Overrides that make a recipe's Transformer tiny and its outputs at most five pieces long."""
    return TINY


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, toy_pairs: list[tuple[str, str]]) -> Path:
    """A model directory with random weights."""
    from seq2seq.config.compose import compose
    from seq2seq.data.tokenizer import train_tokenizer
    from seq2seq.model.directory import save_model_directory
    from seq2seq.model.translation import build_model
    from seq2seq.model.weights import own_weights

    directory = tmp_path_factory.mktemp("tiny") / "model"
    config = compose(
        ["+recipe=quickstart", "model.norm=post", f"run_dir={directory.parent}", "data.test.phrases=30", *TINY]
    )
    config.tokenizer.vocab_size = 340
    tokenizer = train_tokenizer([text for pair in toy_pairs for text in pair], config.tokenizer)
    model = build_model(config.model, tokenizer.vocab_size, seed=1)
    save_model_directory(directory, config, tokenizer, own_weights(model), data_sha256="none", steps=0)
    return directory
