"""Going on from a finished model on other data, with its vocabulary."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from seq2seq.cli.rank import train_as_rank
from seq2seq.config.compose import compose
from seq2seq.data.prepare import prepare
from seq2seq.model.directory import load_model_directory
from seq2seq.model.weights import own_weights
from seq2seq.support.errors import UserError
from seq2seq.train.trainer import Trainer
from seq2seq.train.warm_start import require_same_model
from tests.train.runs import TINY, draw, log, write_copies


def trained(folder: Path, seed: int, *overrides: str) -> Trainer:
    """A trainer of a corpus and a run directory of its own in `folder`."""
    folder.mkdir()
    config = compose([*write_copies(folder, draw(300, seed), draw(10, 9)), f"run_dir={folder}/run", *TINY, *overrides])
    return Trainer(config, prepare(config))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("warm") / "first"
    trained(folder, 1).run()
    return folder / "run" / "model"


def test_weights_and_vocabulary_are_the_models(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, tokenizer, model, _ = load_model_directory(finished)
    trainer = trained(tmp_path / "second", 2, f"init_from={finished}", "model.dropout=0.3", "trainer.max_steps=20")
    assert trainer.data.tokenizer.model == tokenizer.model
    assert f"the vocabulary is that of init_from={finished}, whatever" in capsys.readouterr().err
    for name, weight in own_weights(model).items():
        assert torch.equal(own_weights(trainer.model)[name], weight), name
    trainer.config.schedule.warmup_steps = 100
    trainer.run()
    assert "still rising" not in capsys.readouterr().err, "it translated before"
    assert log(tmp_path / "second" / "run", "train")[-1]["step"] == 20
    # Typed again, the run goes on from its own weights.
    again = Trainer(trainer.config, trainer.data)
    again.run()
    assert torch.equal(own_weights(again.model)["target_embedding.weight"], trainer.model.target_embedding.weight)


def test_a_run_goes_on_without_the_model_that_it_began_with(finished: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(finished, tmp_path / "model")
    overrides = [*write_copies(tmp_path, draw(300, 2), draw(10, 9)), f"run_dir={tmp_path}/run", *TINY]
    config = compose([*overrides, f"init_from={copied}", "trainer.max_steps=3", "trainer.save_every=1"])
    train_as_rank(config)
    copied.rename(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "run" / "model")
    train_as_rank(config)
    assert (tmp_path / "run" / "model" / "manifest.json").is_file()


def test_a_model_of_other_settings_is_refused_with_what_to_type(finished: Path) -> None:
    start = ["+recipe=files", f"init_from={finished}", *TINY]
    config = compose([*start, "model.norm=post", "model.d_model=32", "model.encoder.num_layers=2"])
    with pytest.raises(UserError, match=r"add model\.d_model=16 model\.encoder\.num_layers=1$"):
        require_same_model(config)
    typed = [*start, "model.norm=post", "model.encoder.d_k=4", "model/decoder=recurrent"]
    typed.remove("model.decoder.num_heads=2")
    typed.remove("model.decoder.d_ff=32")
    with pytest.raises(UserError, match=r"add model/decoder=transformer model\.encoder\.d_k=null$"):
        require_same_model(compose(typed))
    with pytest.raises(UserError, match=r"add model\.norm=post$"):
        require_same_model(compose(start))
    sides = ["model.encoder.norm=post", "model.decoder.norm=post", "model.encoder.dropout=0.5"]
    require_same_model(compose([*start, *sides]))
    require_same_model(compose(["+recipe=files", *TINY]))


def test_no_model_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"init_from=.*/nothing: no model directory"):
        require_same_model(compose(["+recipe=files", f"init_from={tmp_path}/nothing"]))
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.yaml").touch()
    with pytest.raises(UserError, match=r"no config.yaml in it\); type init_from=.*/run/model$"):
        require_same_model(compose(["+recipe=files", f"init_from={tmp_path}/run"]))
