"""Learning rates against the paper's equation 3, worked out by hand."""

from __future__ import annotations

import itertools

import pytest

from seq2seq.config.compose import options_of
from seq2seq.config.schema import SCHEDULES, ScheduleConfig
from seq2seq.train.schedule import DECAYS, learning_rate

PAPER = ScheduleConfig(kind="inverse_sqrt", warmup_steps=4000)


@pytest.mark.parametrize(
    ("d_model", "step", "expected"),
    [
        (512, 4000, 6.98771e-4),  # 512^-0.5 · 4000^-0.5 = 0.0441942 · 0.0158114
        (512, 1, 1.746928e-7),  # a 4000th of it
        (512, 1000, 1.746928e-4),
        (512, 16_000, 3.493856e-4),  # four times the steps, half the rate
        (512, 100_000, 1.397542e-4),  # 512^-0.5 · 100000^-0.5
        (1024, 4000, 4.941059e-4),  # 1/32 · 0.0158114
        (1024, 300_000, 5.705443e-5),
    ],
)
def test_the_papers_rates(d_model: int, step: int, expected: float) -> None:
    assert learning_rate(step, PAPER, d_model, max_steps=100_000) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("step", [1, 2, 77, 3999, 4000, 4001, 5000, 1_000_000])
def test_the_papers_equation(step: int) -> None:
    equation = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
    assert learning_rate(step, PAPER, 512, max_steps=10) == pytest.approx(equation, rel=1e-12)


def test_a_peak_scales_the_whole_curve() -> None:
    scaled = ScheduleConfig(kind="inverse_sqrt", warmup_steps=100, peak=0.002)
    assert learning_rate(100, scaled, 512, 1000) == pytest.approx(0.002)
    assert learning_rate(50, scaled, 512, 1000) == pytest.approx(0.001)
    assert learning_rate(400, scaled, 512, 1000) == pytest.approx(0.001)


def test_linear_falls_to_its_end() -> None:
    linear = ScheduleConfig(kind="linear", warmup_steps=10, peak=0.9)
    rates = [learning_rate(step, linear, 512, max_steps=99) for step in range(1, 101)]
    assert rates[:3] == pytest.approx([0.09, 0.18, 0.27])
    assert rates[9] == pytest.approx(0.9)
    # 90 steps from 0.9 to 0: a hundredth each
    assert rates[10:13] == pytest.approx([0.89, 0.88, 0.87])
    assert rates[98] == pytest.approx(0.01)
    assert rates[99] == 0


def test_inverse_sqrt_does_not_know_the_end() -> None:
    assert learning_rate(7000, PAPER, 512, 8000) == learning_rate(7000, PAPER, 512, 90_000)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_warmup_longer_than_the_run_is_never_left(kind: str) -> None:
    schedule = ScheduleConfig(kind=kind, warmup_steps=100, peak=0.1)
    assert learning_rate(40, schedule, 512, max_steps=40) == pytest.approx(0.04)


def test_every_kind_is_known_everywhere() -> None:
    assert set(SCHEDULES) == set(DECAYS) == set(options_of("schedule"))


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_kind_falls_after_its_warmup(kind: str) -> None:
    schedule = ScheduleConfig(kind=kind, warmup_steps=10, peak=0.1)
    rates = [learning_rate(step, schedule, 512, max_steps=40) for step in range(10, 41)]
    assert rates[0] == pytest.approx(0.1)
    assert all(later <= rate for rate, later in itertools.pairwise(rates)) and rates[-1] < rates[0]
