"""BLEU, chrF and TER by sacreBLEU, each with its signature; and the paper's own tokenised BLEU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sacrebleu.metrics import BLEU, CHRF, TER

from seq2seq.support.unspaced import UNSPACED_LETTER

CHINESE, JAPANESE = ("zh", "zho", "chi", "cmn", "yue"), ("ja", "jpn")
TOKENIZERS = dict.fromkeys(CHINESE, "zh") | dict.fromkeys(
    (*JAPANESE, "th", "tha", "lo", "lao", "km", "khm", "my", "mya"), "char"
)
"""sacreBLEU's for languages that put no spaces between words: `char` where its own, if any, needs another package."""


def _code(language: str) -> str:
    """Without what follows it, German in two letters: `zh` for `zh-TW` or `ZH_Hant`, `de` for `deu` or `de-AT`."""
    code = re.split("[-_]", language.lower())[0]
    return "de" if code in ("deu", "ger") else code


def bleu_tokenizer(language: str) -> str:
    """sacreBLEU's tokenizer for a target language such as `zh` or `zh-TW`; `13a` for most, and for an unknown one."""
    return TOKENIZERS.get(_code(language), "13a")


def language_mismatch(references: Sequence[str], language: str) -> str:
    """What to set if these references cannot be of that language, for BLEU would find no words in them; else empty."""
    text = "".join("".join(references).split())
    if bleu_tokenizer(language) != "13a" or 2 * len(UNSPACED_LETTER.findall(text)) <= len(text):
        return ""
    known = ", ".join(code for code in TOKENIZERS if len(code) == 2)
    return f"BLEU counts words between spaces, of which these references have few; languages without: {known}"


def has_no_ngram(texts: Sequence[str], language: str) -> bool:
    """Whether no text has the four words that BLEU's longest n-grams have; BLEU is 0 for such hypotheses."""
    tokenize = BLEU(tokenize=bleu_tokenizer(language)).tokenizer
    return all(len(tokenize(text).split()) < 4 for text in texts)


def scores(
    hypotheses: Sequence[str],
    references: Sequence[str],
    labels: Sequence[str] = (),
    *,
    language: str = "",
    lowercase: bool = False,
) -> dict[str, Any]:
    """BLEU, chrF and TER (0 to 100) with their sacreBLEU signatures, and the share of exact matches in percent.

    `language` is that of the references. Where pairs have `labels`, also the share of exact matches for each label.
    """
    asian = _code(language) in (*CHINESE, *JAPANESE)
    metrics = {
        "bleu": BLEU(lowercase=lowercase, tokenize=bleu_tokenizer(language)),
        "chrf": CHRF(lowercase=lowercase),
        "ter": TER(case_sensitive=not lowercase, normalized=asian, asian_support=asian),
    }
    result: dict[str, Any] = {"sentences": len(references)}
    for name, metric in metrics.items():
        score = metric.corpus_score(list(hypotheses), [list(references)]).score
        result[name] = {"score": round(score, 2), "signature": str(metric.get_signature())}
    pairs = [
        (one.lower(), other.lower()) if lowercase else (one, other)
        for one, other in zip(hypotheses, references, strict=True)
    ]
    result["exact"] = exact(pairs)
    if any(labels):
        by_label: dict[str, list[tuple[str, str]]] = {}
        for label, pair in sorted(zip(labels, pairs, strict=True)):
            by_label.setdefault(label, []).append(pair)
        result["exact_each"] = {label: exact(chosen) for label, chosen in by_label.items()}
    return result


def below_minimums(
    result: dict[str, Any], min_bleu: float | None, min_exact: float | None, min_exact_each: float | None
) -> list[str]:
    """Messages on those of the `scores` that are below their minimum; None sets none."""
    found = [
        ("BLEU", result["bleu"]["score"], "--min-bleu", min_bleu),
        ("exact", result["exact"], "--min-exact", min_exact),
        *(
            (f"exact ({label})", share, "--min-exact-each", min_exact_each)
            for label, share in result.get("exact_each", {}).items()
        ),
    ]
    return [
        f"{name} {value} is below {flag} {bar}" for name, value, flag, bar in found if bar is not None and value < bar
    ]


def bleu(hypotheses: Sequence[str], references: Sequence[str], language: str = "") -> tuple[float, str]:
    """BLEU alone and its signature, by sacreBLEU with words split by `bleu_tokenizer` of the references' language."""
    metric = BLEU(tokenize=bleu_tokenizer(language))
    score = metric.corpus_score(list(hypotheses), [list(references)]).score
    return float(score), str(metric.get_signature())


def exact(pairs: Sequence[tuple[str, str]]) -> float:
    """The share of pairs of hypothesis and reference that are equal, in percent, rounded down: 100 means all."""
    return 10_000 * sum(one == other for one, other in pairs) // max(1, len(pairs)) / 100


def paper_bleu(
    hypotheses: Sequence[str], references: Sequence[str], language: str, *, lowercase: bool = False
) -> dict[str, Any]:
    """The paper's column: `tokenised_bleu` with compounds whole, and `paper_bleu`, which splits them in German only."""
    return {
        key: tokenised_bleu(hypotheses, references, language, lowercase=lowercase, split_compounds=split)
        for key, split in (("tokenised_bleu", False), ("paper_bleu", _code(language) == "de"))
    }


def tokenised_bleu(
    hypotheses: Sequence[str],
    references: Sequence[str],
    language: str,
    *,
    lowercase: bool = False,
    split_compounds: bool = False,
) -> dict[str, Any]:
    """BLEU on Moses tokens without smoothing, as multi-bleu.perl computes it.

    With compounds split as for the paper's figures (tensor2tensor's get_ende_bleu.sh), `a-b` is `a ##AT##-##AT## b`.
    """
    import sacremoses

    tokenizer = sacremoses.MosesTokenizer(_code(language))

    def prepare(text: str) -> str:
        tokens = str(tokenizer.tokenize(text, return_str=True, escape=False))
        if not split_compounds:
            return tokens
        # On bytes as in Perl: in `a-b-c` the second hyphen stays, in `a-ü-c` it does not.
        return re.sub(rb"(\S)-(\S)", rb"\1 ##AT##-##AT## \2", tokens.encode()).decode()

    metric = BLEU(tokenize="none", force=True, lowercase=lowercase, smooth_method="none")
    score = metric.corpus_score([prepare(text) for text in hypotheses], [[prepare(text) for text in references]]).score
    tokens = f"moses:sacremoses-{sacremoses.__version__}|compounds:{'split' if split_compounds else 'whole'}"
    return {"score": round(score, 2), "signature": f"{metric.get_signature()}|{tokens}"}


def compare(
    systems: Sequence[tuple[str, Sequence[str]]],
    references: Sequence[str],
    *,
    language: str = "",
    lowercase: bool = False,
) -> dict[str, Any]:
    """Paired bootstrap resampling (Koehn, 2004) of the first system against the others, by sacreBLEU."""
    from sacrebleu.significance import PairedTest

    tokenizer = bleu_tokenizer(language)
    metrics = {"BLEU": BLEU(lowercase=lowercase, tokenize=tokenizer, references=[list(references)])}
    test = PairedTest([(name, list(lines)) for name, lines in systems], metrics, references=None, test_type="bs")
    signatures, results = test()
    # sacreBLEU gives identical outputs the smallest possible p: none of its samples differs by more than zero.
    p_values = [
        1.0 if list(lines) == list(systems[0][1]) else result.p_value
        for (_, lines), result in zip(systems, results["BLEU"], strict=True)
    ]
    return {
        "signature": str(signatures["BLEU"]),
        "systems": [
            {
                "name": name,
                "bleu": round(result.score, 2),
                "mean": round(result.mean, 2),
                "confidence_95": round(result.ci, 2),
                "p_value": None if result.p_value is None else round(p_value, 4),
            }
            for name, result, p_value in zip(results["System"], results["BLEU"], p_values, strict=True)
        ],
    }
