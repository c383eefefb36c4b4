"""Learning rates as functions of the step, counted from 1."""

from __future__ import annotations

from seq2seq.config.schema import ScheduleConfig


def learning_rate(step: int, config: ScheduleConfig, d_model: int, max_steps: int) -> float:
    """The rate of update `step`.

    `inverse_sqrt` is equation 3 of the paper, d_model^-0.5 · min(step^-0.5, step · warmup_steps^-1.5), scaled to
    `peak` if one is given; `linear`, after the same warm-up, falls from `peak` to reach 0 just after `max_steps`.
    """
    peak = config.peak or d_model**-0.5 * config.warmup_steps**-0.5
    if step <= config.warmup_steps:
        return peak * step / config.warmup_steps
    if config.kind == "linear":
        return peak * max(0.0, (max_steps - step + 1) / (max_steps - config.warmup_steps + 1))
    assert config.kind == "inverse_sqrt"
    return peak * (config.warmup_steps / step) ** 0.5
