"""Composing: everything in conf/ fits the schema, and a mistake is answered with the nearest name."""

from __future__ import annotations

import copy
import itertools
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from seq2seq.config import compose as composing
from seq2seq.config.compose import (
    ADDED,
    compose,
    conf_dir,
    differences,
    from_plain,
    known_keys,
    load,
    options_of,
    to_type,
    to_yaml,
)
from seq2seq.config.schema import KINDS, Config, ModelConfig, TransformerConfig
from seq2seq.model.translation import DECODERS, ENCODERS, build_model
from seq2seq.support.errors import UserError

GROUPS = sorted(
    path.relative_to(conf_dir()).as_posix()
    for path in conf_dir().rglob("*")
    if path.is_dir() and any(path.glob("*.yaml"))
)


def instantiated(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = build_model(config, 300, 1)
    assert model.output_weight.shape == (300, config.d_model)
    assert sum(parameter.numel() for parameter in model.get_submodule("encoder").parameters()) > 0


def test_the_groups_are_the_ones_of_the_plan() -> None:
    plan = "ablation data model model/decoder model/encoder optimizer recipe schedule search tokenizer trainer"
    assert " ".join(GROUPS) == plan


def test_a_kind_has_settings_an_encoder_a_decoder_and_a_file() -> None:
    assert KINDS.keys() == ENCODERS.keys() == DECODERS.keys()
    for side in ("encoder", "decoder"):
        composed = [compose([f"model/{side}={name}", "run_dir=r"]).model for name in options_of(f"model/{side}")]
        assert {getattr(model, side).kind for model in composed} == KINDS.keys()


def test_a_key_that_only_the_schema_has(monkeypatch: pytest.MonkeyPatch) -> None:
    # As while a setting is being added.
    monkeypatch.setattr(composing, "known_keys", lambda: ["search.new"])
    with pytest.raises(
        UserError, match=r"search\.new: in no file of .*conf, as every key of the schema must be; add it there"
    ):
        compose([QUICK, "search.new=1"])


def test_the_defaults_of_the_schema_are_those_of_the_files() -> None:
    composed = compose(["run_dir=r"])
    assert differences(asdict(Config()), asdict(composed)) == [
        ("data.prepared_dir", Config().data.prepared_dir, composed.data.prepared_dir),
        ("run_dir", Config().run_dir, "r"),
    ]


@pytest.mark.parametrize("recipe", options_of("recipe"))
def test_every_recipe_composes_and_instantiates(recipe: str) -> None:
    config = compose([f"+recipe={recipe}"])
    assert config.run_dir == f"runs/{recipe}"
    assert config.data.prepared_dir == f"runs/{recipe}/data"
    instantiated(config.model)


@pytest.mark.parametrize(
    ("group", "option"), [(group, option) for group in GROUPS if group not in ADDED for option in options_of(group)]
)
def test_every_option_of_every_group_composes_and_instantiates(group: str, option: str) -> None:
    config = compose(["run_dir=r", f"{group}={option}"])
    instantiated(config.model)
    if group.startswith("model/"):
        assert getattr(config.model, group.removeprefix("model/")).kind in option


@pytest.mark.parametrize("kind", ["transformer", "recurrent"])
def test_every_key_can_be_set_without_a_plus(kind: str) -> None:
    overrides = ["+recipe=quickstart", f"model/encoder={kind}", f"model/decoder={kind}"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = cast(dict[str, Any], OmegaConf.to_container(hydra_compose("config", overrides=overrides)))
    assert set(composing._dotted(asdict(compose(overrides)), "")) == set(composing._dotted(composed, ""))


def test_any_encoder_goes_with_any_decoder() -> None:
    for encoder, decoder in itertools.product(KINDS, KINDS):
        config = compose(["run_dir=r", "model=small", f"model/encoder={encoder}", f"model/decoder={decoder}"])
        assert (config.model.encoder.kind, config.model.decoder.kind) == (encoder, decoder)
        instantiated(config.model)


@pytest.mark.parametrize(
    ("recipe", "pieces", "steps", "save_every", "average_last", "d_model", "heads", "d_ff", "dropout"),
    [
        ("wmt14_en_de", 37_000, 100_000, 1500, 5, 512, 8, 2048, 0.1),
        ("wmt14_en_fr", 32_000, 100_000, 1500, 5, 512, 8, 2048, 0.1),
        ("wmt14_en_de_big", 37_000, 300_000, 600, 20, 1024, 16, 4096, 0.3),
        ("wmt14_en_fr_big", 32_000, 300_000, 600, 20, 1024, 16, 4096, 0.1),
    ],
)
def test_the_papers_recipes_are_the_papers(
    recipe: str,
    pieces: int,
    steps: int,
    save_every: int,
    average_last: int,
    d_model: int,
    heads: int,
    d_ff: int,
    dropout: float,
) -> None:
    config = compose([f"+recipe={recipe}"])
    for side in (config.model.encoder, config.model.decoder):
        assert (side.num_layers, side.num_heads, side.d_ff, side.dropout) == (6, heads, d_ff, dropout)
        assert side.norm == "post"
    assert (config.model.d_model, config.model.tie_embeddings) == (d_model, "all")
    assert (config.tokenizer.kind, config.tokenizer.vocab_size) == ("bpe", pieces)
    trainer, data, schedule, search = config.trainer, config.data, config.schedule, config.search
    assert (trainer.max_steps, trainer.save_every, trainer.average_last) == (steps, save_every, average_last)
    assert (trainer.keep_checkpoints, trainer.label_smoothing) == (average_last, 0.1)
    assert (data.batch_tokens, data.micro_batches) == (25_000, 8)
    assert (data.source_language, data.target_language) == ("en", recipe.split("_")[2])
    assert (schedule.kind, schedule.warmup_steps, schedule.peak) == ("inverse_sqrt", 4000, None)
    assert (search.beam_size, search.length_penalty) == (4, 0.6)


@pytest.mark.parametrize("recipe", ["files", "quickstart", "multi30k_en_de", "multi30k_de_en", "multi30k_en_de_gpu"])
def test_the_recipes_for_little_text_normalise_first(recipe: str) -> None:
    for chosen in ([], ["model=base"]):
        model = compose([f"+recipe={recipe}", *chosen]).model
        assert model.encoder.norm == model.decoder.norm == "pre"
    model = compose(["+recipe=files", "model=recurrent", "model/encoder=transformer"]).model
    assert (model.encoder.norm, model.decoder.kind) == ("pre", "recurrent")


def test_the_iwslt_recipe_is_fairseqs() -> None:
    config = compose(["+recipe=iwslt14_de_en"])
    for side in (config.model.encoder, config.model.decoder):
        assert (side.num_layers, side.num_heads, side.d_ff, side.dropout) == (6, 4, 1024, 0.3)
    assert (config.model.d_model, config.model.tie_embeddings) == (512, "target")
    assert (config.data.source_language, config.data.target_language) == ("de", "en")
    assert (config.tokenizer.vocab_size, config.data.batch_tokens) == (10_000, 4096)
    optimizer, schedule = config.optimizer, config.schedule
    assert (optimizer.beta2, optimizer.epsilon, optimizer.weight_decay) == (0.98, 1e-8, 1e-4)
    assert (schedule.kind, schedule.warmup_steps, schedule.peak) == ("inverse_sqrt", 4000, 5e-4)
    assert (config.trainer.max_steps, config.search.beam_size) == (50_000, 5)


def test_the_other_direction_differs_in_its_languages_alone() -> None:
    there = compose(["+recipe=multi30k_en_de"])
    back = compose(["+recipe=multi30k_de_en", f"run_dir={there.run_dir}"])
    assert (back.data.source_language, back.data.target_language) == ("de", "en")
    back.data.source_language, back.data.target_language = "en", "de"
    assert back == there


def test_dropout_and_norm_are_set_once_or_side_by_side() -> None:
    model = compose(["run_dir=r", "model.dropout=0.25", "model.decoder.dropout=0.5"]).model
    assert (model.dropout, model.encoder.dropout, model.decoder.dropout) == (0.25, 0.25, 0.5)
    model = compose(["run_dir=r", "model.norm=pre", "model.decoder.norm=post"]).model
    assert (model.norm, model.encoder.norm, model.decoder.norm) == ("pre", "pre", "post")
    assert (
        compose(["run_dir=r", "model=recurrent", "model/encoder=transformer", "model.norm=pre"]).model.encoder.norm
        == "pre"
    )


@pytest.mark.parametrize("recipe", options_of("recipe"))
def test_any_recipe_can_be_pointed_at_local_files(recipe: str) -> None:
    config = compose(
        [
            *(f"+recipe={recipe}", "data.train.source=[a.en,b.en]", "data.train.target=[a.de,b.de]"),
            *("data.valid.source=v.en", "data.valid.target=v.de", "data.test.source=/x/t.tsv"),
        ]
    )
    assert (config.data.train.source, config.data.train.target) == (["a.en", "b.en"], ["a.de", "b.de"])
    assert (config.data.valid.source, config.data.valid.target) == ("v.en", "v.de")
    assert (config.data.test.source, config.data.test.target) == ("/x/t.tsv", None)


QUICK = "+recipe=quickstart"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+recipe=quickstrat"], "recipe=quickstrat: no such recipe; did you mean quickstart?"),
        (["+recipe=xyz"], "recipe=xyz: no such recipe; known: files, iwslt14_de_en"),
        (["recipe=quickstart"], "type +recipe=quickstart"),
        ([QUICK, "ablation=base"], "ablation=base: type +ablation=base"),
        ([QUICK, "+ablation=A_head_1"], "ablation=A_head_1: no such ablation; did you mean A_heads_1?"),
        (
            ["model=recurrent", "run_dir=r", "+ablation=E_learned_positions"],
            "model.encoder.positions: not for the chosen kind, but for transformer; a kind is chosen by model/",
        ),
        (
            ["model=recurrent", "run_dir=r", "model.decoder.d_k=8"],
            "model.decoder.d_k: not for the chosen kind, but for",
        ),
        (
            ["model=recurrent", "run_dir=r", "+model.decoder.d_k=8"],
            "model.decoder.d_k: not for the chosen kind, but for",
        ),
        (["model.decoder.kind=recurrent", QUICK], "is chosen by model/decoder=transformer|recurrent"),
        (["encoder.num_layers=5", QUICK], "encoder.num_layers: no such key; did you mean model.encoder.num_layers?"),
        (["model.positions=learned", QUICK], "did you mean model.decoder.positions or model.encoder.positions?"),
        (["+recpie=quickstart"], "recpie: no such key; did you mean recipe?"),
        (["modle=small", QUICK], "modle: no such key; did you mean model?"),
        (["+model=small", "run_dir=r"], "+model=small: type model=small"),
        (["model=smal", QUICK], "model=smal: no such model; did you mean small?"),
        (["model/encoder=transfomer", QUICK], "no such model/encoder; did you mean transformer?"),
        (["model=5", QUICK], "model=5: no such model; known: base, big"),
        (["model.encoder=5", QUICK], "model.encoder=5: must hold keys"),
        (["optimizer=adma", QUICK], "optimizer=adma: no such optimizer; did you mean adam?"),
        (["trainer.max_stpes=5", QUICK], "trainer.max_stpes: no such key in trainer; did you mean max_steps?"),
        (["max_steps=5", QUICK], "max_steps: no such key; did you mean trainer.max_steps?"),
        (["trainer.seed=5", QUICK], "trainer.seed: no such key; did you mean search.seed or seed?"),
        (["trainer.batch_tokens=5", QUICK], "trainer.batch_tokens: no such key; did you mean data.batch_tokens?"),
        (["num_layers=5", QUICK], "did you mean model.decoder.num_layers or model.encoder.num_layers?"),
        (["model.encoder.num_layer=2", QUICK], "no such key in model.encoder; did you mean num_layers?"),
        (["+optimizer.lrr=1", QUICK], "optimizer.lrr: no such key in optimizer; known: beta1, beta2"),
        (["+trainer.max_step=1", QUICK], "trainer.max_step: no such key in trainer; did you mean max_steps?"),
        (["+data.train.sorce=a", QUICK], "data.train.sorce: no such key in data.train; did you mean source?"),
        (["+nonsense.key=1", QUICK], "nonsense: no such key"),
        (["+optimizer._target_=os.system", QUICK], "optimizer._target_: no such key in optimizer"),
        (["+model.encoder._target_=os.system", QUICK], "model.encoder._target_: no such key in model.encoder"),
        (
            ["model/encoder=recurrent", "+model.encoder.num_head=4", "run_dir=r"],
            "no such key in model.encoder; known: dr",
        ),
        (["model.encoder.kind=transformr", QUICK], "no such kind; did you mean transformer?"),
        (["trainer.max_steps=many", QUICK], "trainer.max_steps: Value 'many'"),
        (["trainer.max_steps=1.5", QUICK], "trainer.max_steps: Value '1.5'"),
        (["seed=null", QUICK], "seed: "),
        (["model.d_model=130", "model.encoder.num_heads=4", QUICK], "num_heads=4: must divide model.d_model=130"),
        (["trainer.max_steps=0", QUICK], "trainer.max_steps=0: must be at least 1"),
        (["search.max_length_ratio=1e18", QUICK], "search.max_length_ratio=1e+18: must be at most 1000"),
        (["search.length_penalty=500", QUICK], "search.length_penalty=500.0: must be at most 10"),
        (["search.min_length=1000001", QUICK], "search.min_length=1000001: must be at most 1000000"),
        (["search.max_length_offset=1000001", QUICK], "search.max_length_offset=1000001: must be at most 1000000"),
        (["model.decoder.num_layers=0", QUICK], "model.decoder.num_layers=0: must be at least 1"),
        (["data.train.source=2016", QUICK], "data.train.source=2016: must be a path"),
        (["data.train.source=a=b", QUICK], "data.train.source=a=b: mismatched input"),
        (["quickstart", QUICK], "quickstart: not a setting; type key=value"),
        (["trainer.max_steps=${nope}", QUICK], "'nope' not found"),
        (["hydra.run.dir=x", "seed=[", QUICK], "seed=[: "),
        ([], "run_dir is not set; type +recipe=NAME (one of files, iwslt14_de_en"),
        (["seed=2"], "run_dir is not set"),
    ],
)
def test_a_mistake_is_named_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        compose(overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_language_code_stays_text() -> None:
    assert compose([QUICK, "data.target_language=no"]).data.target_language == "no"
    written = to_yaml(compose([QUICK, "data.target_language=no", "data.source_language=on"]))
    assert yaml.safe_load(written)["data"]["target_language"] == "no"
    for name in options_of("data"):
        text = (conf_dir() / "data" / f"{name}.yaml").read_text(encoding="utf-8")
        assert "language: e" not in text and "language: d" not in text, "quote it, for whoever copies the file"


def test_known_keys_are_those_that_others_rely_on() -> None:
    relied = "run_dir seed data.train.source data.train.target data.batch_tokens tokenizer.vocab_size model.d_model"
    relied += " model.encoder.num_layers model.decoder.num_layers trainer.max_steps trainer.max_minutes"
    relied += " trainer.save_every trainer.devices trainer.precision search.beam_size search.length_penalty"
    assert set(relied.split()) <= set(known_keys())


def test_a_wheel_finds_its_own_conf_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composing, "PACKAGE", tmp_path / "seq2seq")
    with pytest.raises(UserError, match="install the wheel"):
        conf_dir()
    for place in (tmp_path / "conf", tmp_path / "seq2seq" / "conf"):
        place.mkdir(parents=True)
        (place / "config.yaml").touch()
        assert conf_dir() == place
    assert conf_dir().is_absolute()


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    overrides = ["+recipe=multi30k_en_de", "data.target_language=no", "data.train.source=['ä b.en',c.en]"]
    path.write_text(to_yaml(compose([*overrides, "data.train.target=[d,e]"])), encoding="utf-8")
    return path


def test_what_is_stored_is_read_back(stored: Path) -> None:
    config = load(stored)
    assert config.data.train.source == ["ä b.en", "c.en"]
    assert config.model.encoder.dropout == config.model.dropout == 0.3
    assert to_yaml(config) == stored.read_text(encoding="utf-8")
    assert "${" not in to_yaml(config)
    for recipe in options_of("recipe"):
        config = compose([f"+recipe={recipe}", "model=recurrent"] if recipe != "quickstart" else [QUICK])
        stored.write_text(to_yaml(config), encoding="utf-8")
        assert load(stored) == config


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed: 1", "seed: ${oc.env:HOME}", "holds an interpolation"),
        ("seed: 1", "seed: 1\n'${x}': 1", "holds an interpolation"),
        ("- c.en", "- ${oc.env:HOME}", "holds an interpolation"),
        ("seed: 1", "seed: 1\n_target_: os.system", "_target_: no such key"),
        ("  d_model: 256", "  d_model: 256\n  _target_: os.system", "model._target_: no such key in model"),
        ("    kind: transformer", "    kind: transformer\n    _target_: x", "model.encoder._target_: no such key"),
        ("    kind: transformer", "    kind: os.system", "model.encoder.kind=os.system: no such kind"),
        ("    kind: transformer", "    kind: [transformer]", "no such kind"),
        ("    kind: transformer", "    kind: {_target_: x}", "no such kind"),
        ("  beam_size: 4", "  beam_size: {_target_: os.getpid}", "search.beam_size"),
        ("  beam_size: 4", "  beam_size: four", "search.beam_size"),
        ("  beam_size: 4", "  beam_size: 0", "search.beam_size=0: must be at least 1"),
        ("  beam_size: 4", "  beam: 4", "search.beam: no such key in search"),
        ("search:\n", "search: 5\nrest:\n", "search=5: must hold keys"),
        ("seed: 1", "seed: &a [*a]", "holds an alias"),
        ("seed: 1", "seed: !!python/object/apply:os.getpid []", "cannot be read as a configuration"),
        ("seed: 1", "seed: [1", "cannot be read as a configuration"),
    ],
)
def test_a_stored_configuration_is_data_only(stored: Path, old: str, new: str, message: str) -> None:
    text = stored.read_text(encoding="utf-8")
    assert old in text
    stored.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(stored)
    assert message in str(caught.value)


def test_what_is_no_configuration_at_all(tmp_path: Path) -> None:
    contents = {"list": b"- 1", "empty": b"", "text": b"hello", "latin": b"a: \xe4", "nul": b"a: \0"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            load(tmp_path / name)
    with pytest.raises(UserError, match="missing"):
        load(tmp_path / "missing")


PLAIN = asdict(Config(run_dir="r"))


def places(plain: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in plain.items():
        found.append((*path, key))
        if isinstance(value, dict):
            found += places(value, (*path, key))
    return found


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("???")
KEYS = st.text(max_size=5) | st.sampled_from(["kind", "_target_", "source"])
JSON = st.recursive(LEAVES, lambda part: st.lists(part, max_size=3) | st.dictionaries(KEYS, part, max_size=3))


@given(place=st.sampled_from(places(PLAIN)), value=JSON)
def test_any_value_at_any_place_is_taken_or_refused(place: tuple[str, ...], value: Any) -> None:
    plain = copy.deepcopy(PLAIN)
    inner = plain
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    try:
        config = from_plain(plain)
    except UserError as error:
        assert str(error)
        return
    assert from_plain(asdict(config)) == config or "nan" in repr(config)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 1, 0.5, "a.en", "/data/a,b.en", "~/x.en", "/d/ä.en", "a(1).en", "it's.en", "a=b", "a#b", "a[b]"),
        *("null", "1e3", "12", "true", "two words", "${x}"[1:], ["a,b", "c"]),
        *(r"x\'y", "a'\\", r"a\\'b", "a b\\", r"a\b c"),
    ],
)
def test_what_is_to_be_typed_is_read_back(value: Any) -> None:
    (argument,) = shlex.split(to_type({"data.train.source": value}))
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = hydra_compose("config", overrides=[argument])
    assert cast("dict[str, Any]", OmegaConf.to_container(composed.data.train))["source"] == value


def test_a_side_of_another_kind_is_chosen_without_its_other_keys() -> None:
    settings = {"model.encoder.kind": "recurrent", "model.encoder.d_ff": None, "model.d_model": 16, "seed": 2}
    assert to_type(settings) == "model/encoder=recurrent model.d_model=16 seed=2"


def test_what_both_sides_share_is_typed_once() -> None:
    settings = {"model.encoder.norm": "post", "model.decoder.norm": "post", "model.encoder.dropout": 0.3, "seed": 2}
    assert to_type(settings) == "model.encoder.dropout=0.3 seed=2 model.norm=post"
    config = compose(["+recipe=quickstart", "model.norm=post"])
    sides = [side for side in (config.model.encoder, config.model.decoder) if isinstance(side, TransformerConfig)]
    assert [side.norm for side in sides] == ["post", "post"]
