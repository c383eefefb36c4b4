"""Put a finished run's figures into its recipe: RECIPE/results.json, and from it the tables of RECIPE/README.md.

    python -m tools.figures collect RECIPE_DIR RUN_DIR NAME=SCORES.json ... --command '...' [--machine '...']
    python -m tools.figures rows RECIPE_DIR RUNS_DIR --command '...'
    python -m tools.figures render RECIPE_DIR
    python -m tools.figures projection PAGE.md BENCH.json
    python -m tools.figures table NAME=SCORES.json ... [--published KEY=FIGURE]

`collect` reads RUN_DIR/log.jsonl, RUN_DIR/model/manifest.json and the JSON that seq2seq-evaluate printed, then renders;
for a run on another machine, name that machine with --machine.
`rows` does the same for the runs of table 3 in RUNS_DIR: RUNS_DIR/ROW, with the scores in RUNS_DIR/ROW/scores.json.
`render` rewrites the text between `<!-- figures -->` and `<!-- end -->` in the README, and draws curve.svg where the
README shows one; a test checks both. `projection` writes into a page what the paper's base run would cost, from the
JSON of tools/bench_train.py.
`table` prints the scores alone; the recipes' scripts end with it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from tools.origin import machine
from tools.pages import fill, head, picture, row


def collect(run_dir: Path, scores: dict[str, Path], command: str, where: str | None = None) -> dict[str, Any]:
    """All figures of a run here, or on machine `where`, from the files that it and seq2seq-evaluate wrote."""
    log = [json.loads(line) for line in (run_dir / "log.jsonl").read_text(encoding="utf-8").split("\n") if line]
    manifest = json.loads((run_dir / "model" / "manifest.json").read_text(encoding="utf-8"))
    keys = ("step", "epoch", "target_tokens", "minutes_trained", "perplexity", "bleu")
    validations = [{key: line[key] for key in keys if key in line} for line in log if line["kind"] == "valid"]
    averages = [{key: line[key] for key in ("checkpoints", "bleu")} for line in log if line["kind"] == "average"]
    return {
        "date": date.today().isoformat(),
        "machine": where or machine(),
        "command": command,
        "versions": manifest["versions"],
        "seed": manifest["seed"],
        "validations": validations,
        "averages": averages,
        "model": {"steps": manifest["steps"], "valid_bleu": manifest["valid"]["bleu"]},
        "scores": read_scores(scores),
    }


def read_scores(files: dict[str, Path]) -> dict[str, Any]:
    """The scores by name; from a file of several test sets, each under its own name."""
    scores: dict[str, Any] = {}
    for name, path in files.items():
        found = json.loads(path.read_text(encoding="utf-8"))
        scores |= {name: found} if "bleu" in found else found
    return scores


def rendered(results: dict[str, Any]) -> str:
    """The tables, in Markdown."""
    return rendered_rows(results) if "rows" in results else rendered_run(results)


def rendered_rows(results: dict[str, Any]) -> str:
    """The rows of table 3 with the paper's figures, and the figures of those that were run."""
    lines = head("row", "parameters", "the paper's, ×10⁶", "the paper's perplexity", "the paper's BLEU")
    for name, found in results["rows"].items():
        paper = found["paper"]
        millions, perplexity, bleu = paper["parameters_millions"] or "", paper["perplexity"], paper["bleu"]
        lines.append(row(f"`{name}`", f"{found['parameters']:,}", millions, f"{perplexity:.2f}", f"{bleu:.1f}"))
    if "measured" not in results:
        return "\n".join(lines) + "\n"
    first = next(iter(results["measured"].values()))
    lines += [
        "",
        f"Measured on {first['date']}: {first['machine']}, torch {first['versions']['torch']}, seed {first['seed']}.",
        "",
        *("```sh", first["command"], "```"),
        "",
        *head(
            *("row", "minutes of training", "validation perplexity", "validation BLEU"),
            *("test BLEU", "test, exactly right"),
        ),
    ]
    for name, run in results["measured"].items():
        last, scores = run["validations"][-1], run["scores"]["test"]
        validation = f"{last['minutes_trained']:.1f}", f"{last['perplexity']:.4f}", f"{last['bleu']:.2f}"
        test = f"{scores['bleu']['score']:.2f}", f"{scores['exact']:.1f} % of {scores['sentences']:,}"
        lines.append(row(f"`{name}`", *validation, *test))
    lines += ["", f"BLEU: `{first['scores']['test']['bleu']['signature']}`."]
    return "\n".join(lines) + "\n"


def rendered_run(results: dict[str, Any]) -> str:
    """The scores and validations of one run."""
    last = results["validations"][-1]
    lines = [
        f"Measured on {results['date']}: {results['machine']}, torch {results['versions']['torch']}, "
        f"seed {results['seed']}; {last['minutes_trained']:.1f} minutes of training "
        "(validations not counted).",
        "",
        "```sh",
        results["command"],
        "```",
        "",
        *score_table(results["scores"], results.get("published")),
    ]
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "step": lambda found: f"{found['step']:,}",
        "epoch": lambda found: str(found["epoch"]),
        "million target tokens": lambda found: f"{found['target_tokens'] / 1e6:.1f}",
        "minutes": lambda found: f"{found['minutes_trained']:.1f}",
        "validation perplexity": lambda found: f"{found['perplexity']:.2f}",
        "validation BLEU": lambda found: f"{found['bleu']:.2f}",
    }
    if "target_tokens" not in last:
        del columns["million target tokens"]
    lines += ["", *head(*columns)]
    lines += [row(*(cell(found) for cell in columns.values())) for found in results["validations"]]
    for found in results["averages"]:
        empty = "|" + " |" * (len(columns) - 2)
        lines += [f"| average of the last {found['checkpoints']} checkpoints {empty} {found['bleu']:.2f} |"]
    return "\n".join(lines) + "\n"


def score_table(scores: dict[str, Any], published: dict[str, str] | None = None) -> list[str]:
    """The lines of a table of all scores, each beside the `published` figure of its kind where there is one."""
    rows = []
    for name, of_set in scores.items():
        for key, score, signature in _score_rows(of_set):
            rows.append([name, score, *([published.get(key, "")] if published else []), signature])
    return [
        *head("test set", "score", *(["published"] if published else []), "signature"),
        *(row(*cells) for cells in rows),
    ]


def _score_rows(scores: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Key, score and signature of each score of a test set."""
    named = {
        "bleu": "BLEU",
        "chrf": "chrF",
        "ter": "TER",
        "tokenised_bleu": "tokenised BLEU",
        "paper_bleu": "the paper's BLEU",
    }
    rows = []
    for key, title in named.items():
        if key in scores:
            # A vertical bar would end the cell, even between backquotes.
            signature = scores[key]["signature"].replace("|", "\\|")
            rows.append((key, f"{title} {scores[key]['score']:.2f}", f"`{signature}`"))
    if "exact_each" in scores:
        each = ", ".join(f"{label} {share:.1f}" for label, share in scores["exact_each"].items())
        rows.append(("exact", f"exactly right {scores['exact']:.1f} %", f"of {scores['sentences']:,}; {each}"))
    return rows


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the learning curve: validation BLEU by million target tokens, with minutes on the upper axis."""
    rows = results["validations"]
    tokens, minutes = (
        [row[key] / scale for row in rows] for key, scale in (("target_tokens", 1e6), ("minutes_trained", 1))
    )
    with picture(path, figsize=(6.4, 3.6)) as axes:
        axes.plot(tokens, [row["bleu"] for row in rows], marker="o")
        axes.set(xlabel="million target tokens", ylabel="validation BLEU", xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
        above = axes.twiny()
        above.set(xlabel="minutes of training", xlim=axes.get_xlim(), xticks=tokens)
        above.set_xticklabels([f"{minute:.0f}" for minute in minutes])


def rendered_projection(bench: dict[str, Any]) -> str:
    """What the paper's base run would take at the measured rate, in Markdown."""
    precision, found = max(
        bench["formats"].items(), key=lambda item: item[1]["contestants"]["ours"]["target_tokens_per_second"]["median"]
    )
    ours = found["contestants"]["ours"]
    rate = ours["target_tokens_per_second"]["median"]
    tokens = 25_000 * 100_000
    hours = tokens / rate / 3600
    return (
        f"Measured on {bench['date']} with `{bench['command']}`: {bench['machine']}, {found['device']}, "
        f"torch {bench['versions']['torch']}: {rate:,.0f} target tokens/s (training in {precision}, median of "
        f"{bench['rounds']} rounds; {bench['model']}, {ours['parameters']:,} weights, {bench['vocab_size']:,} pieces, "
        f"{bench['batch_tokens']:,} tokens a side at once, {bench['corpus']}).\n\n"
        f"**A projection, not a measurement:** 25,000 tokens × 100,000 updates / {rate:,.0f} tokens/s = "
        f"{tokens / rate:,.0f} s = {hours:,.0f} hours = {hours / 24:,.1f} days on that machine, without validation.\n"
    )


def write(recipe: Path, results: dict[str, Any]) -> None:
    """Write a recipe's results.json."""
    text = json.dumps(results, indent=1, ensure_ascii=False)
    (recipe / "results.json").write_text(text + "\n", encoding="utf-8")


def render(recipe: Path) -> None:
    """Rewrite the figures in a recipe's README."""
    results = json.loads((recipe / "results.json").read_text(encoding="utf-8"))
    fill(recipe / "README.md", lambda _: rendered(results))
    if "curve.svg" in (recipe / "README.md").read_text(encoding="utf-8"):
        draw(results, recipe / "curve.svg")


def _files(items: list[str]) -> dict[str, Path]:
    return {name: Path(path) for name, _, path in (item.partition("=") for item in items)}


def _published(text: str) -> dict[str, str]:
    key, _, figure = text.partition("=")
    return {key: figure} if figure else {}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    collecting = actions.add_parser("collect")
    collecting.add_argument("recipe", type=Path)
    collecting.add_argument("run_dir", type=Path)
    collecting.add_argument("scores", nargs="+", metavar="NAME=FILE")
    collecting.add_argument("--command", required=True)
    collecting.add_argument("--machine", help="of the run; default: this one")
    several = actions.add_parser("rows")
    several.add_argument("recipe", type=Path)
    several.add_argument("runs_dir", type=Path)
    several.add_argument("--command", required=True)
    actions.add_parser("render").add_argument("recipe", type=Path)
    projecting = actions.add_parser("projection")
    projecting.add_argument("page", type=Path)
    projecting.add_argument("bench", type=Path)
    tabling = actions.add_parser("table")
    tabling.add_argument("scores", nargs="+", metavar="NAME=FILE")
    for action in (collecting, tabling):
        action.add_argument(
            "--published", type=_published, default={}, metavar="KEY=FIGURE", help="such as paper_bleu=27.3"
        )
    arguments = parser.parse_args()
    if arguments.action == "table":
        print("\n".join(score_table(read_scores(_files(arguments.scores)), arguments.published)))
        return
    if arguments.action == "projection":
        bench = json.loads(arguments.bench.read_text(encoding="utf-8"))
        fill(arguments.page, lambda _: rendered_projection(bench))
        return
    if arguments.action == "collect":
        results = collect(arguments.run_dir, _files(arguments.scores), arguments.command, arguments.machine)
        write(arguments.recipe, results | ({"published": arguments.published} if arguments.published else {}))
    if arguments.action == "rows":
        results = json.loads((arguments.recipe / "results.json").read_text(encoding="utf-8"))
        folders = [arguments.runs_dir / row for row in results["rows"]]
        results["measured"] = {
            folder.name: collect(folder, {"test": folder / "scores.json"}, arguments.command)
            for folder in folders
            if folder.is_dir()
        }
        write(arguments.recipe, results)
    render(arguments.recipe)


if __name__ == "__main__":
    main()
