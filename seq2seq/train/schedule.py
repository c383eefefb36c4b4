"""Learning rates as functions of the step, counted from 1."""

from __future__ import annotations

from seq2seq.config.schema import ScheduleConfig


def _inverse_sqrt(step: int, warmup: int, _: int) -> float:
    return (warmup / step) ** 0.5


def _linear(step: int, warmup: int, last: int) -> float:
    return max(0.0, (last - step + 1) / (last - warmup + 1))


DECAYS = {"inverse_sqrt": _inverse_sqrt, "linear": _linear}
"""What share of the peak is left at a step after so many of warm-up, in a run of so many."""


def learning_rate(step: int, config: ScheduleConfig, d_model: int, max_steps: int) -> float:
    """The rate of update `step`.

    `inverse_sqrt` is equation 3 of the paper, d_model^-0.5 · min(step^-0.5, step · warmup_steps^-1.5), scaled to
    `peak` if one is given; `linear`, after the same warm-up, falls from `peak` to reach 0 just after `max_steps`.
    """
    peak = config.peak or d_model**-0.5 * config.warmup_steps**-0.5
    decay = DECAYS[config.kind]
    if step <= config.warmup_steps:
        return peak * step / config.warmup_steps
    return peak * decay(step, config.warmup_steps, max_steps)
