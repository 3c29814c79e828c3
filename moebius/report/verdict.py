"""The verdict on a run, in one sentence: whether it is healthy, why, and what to do."""

import math
import shlex
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moebius.config import Config, ObserveConfig
from moebius.config.in_phases import mixture_in_phase
from moebius.moe.load import dead_share, variation
from moebius.observe.alarm import WORDS, Alarm
from moebius.observe.glance import LEAST_RISE, RISE
from moebius.report.curves import mean_between, number
from moebius.report.run import Run

Level = Literal["good", "warn", "bad", "calm"]

ROUTING = (
    "cv",
    "dead_expert",
    "dominant_expert",
    "routing_entropy",
    "router_gradient",
    "unrouted_tokens",
    "dropped_tokens",
    "vanishing_scores",
    "router_logits",
)
"""Alarms about the routing, the one that says most about a collapse first."""
OVERFIT = 0.02
"""Share by which the held-out loss may end above its best before the run counts as overfitted."""
SMOOTHED = 0.1
"""Share of a curve's points of which a moving mean is taken, before losses are compared."""
LAST = 0.1
"""Share of a run at its end over which the load of the experts is judged."""


@dataclass(frozen=True)
class Verdict:
    """A judgment of a run, in words."""

    level: Level
    word: str
    """Healthy, diverged, and so on."""
    why: str
    todo: str

    def __str__(self) -> str:
        return f"{self.word}: {self.why}; {self.todo}."


def verdict(run: Run) -> Verdict:
    """Return the verdict. The worst thing that is true of a run decides it."""
    curves = run.curves
    if not curves.num_lines:
        todo = "it logs every train.log_every steps" if run.is_owned else f"{_resume(run)} it"
        return Verdict("calm", "Nothing to judge", "no step was logged", todo)
    judged = _diverged(run) or _stopped(run) or _collapsed(run) or _overfitted(run)
    if judged:
        return judged
    progress, todo = _progress(run)
    loss = _loss_words(run)
    num_dead, _, uneven = _last_load(run)
    if num_dead or uneven:  # not for as long as an alarm would take to fire
        loss += "; the experts are not used evenly yet, as in the first steps of any run"
    if num_dead or uneven or curves.num_lines < 3:
        return Verdict("calm", "Too early to judge", f"{loss}{progress}", todo)
    balance = _balance_words(run)
    word = "Healthy" if not progress else "Healthy so far"
    return Verdict("good" if not progress else "calm", word, f"{loss}{balance}{progress}", todo)


def _diverged(run: Run) -> Verdict | None:
    """Return that the loss is not finite, or has risen for good, if that is so."""
    curves, happenings = run.curves, run.happenings
    step, last = curves.last_step, number(curves.last.get("loss"))
    train = run.config.train if run.config else None
    rate = f" (it was {number(curves.last.get('lr')):.3g})"
    longer = "the first phase" if train and train.phases else "train.warmup_steps"
    todo = f"lower train.lr{rate} or lengthen {longer}, and start again"
    if run.checkpoints:
        todo = f"lower train.lr{rate} and resume from a checkpoint before ({_resume(run)} --step)"
    if happenings.last_skipped >= step and happenings.num_skipped_at_end > 2:
        number_ = happenings.num_skipped_at_end
        why = (
            f"the last {number_} updates, up to step {happenings.last_skipped:,}, were skipped "
            "because a loss or gradient was not finite"
        )
        if curves.num_lines > 1:
            why += f"; the loss went from {_first_loss(run):.3g} to {last:.3g}"
        return Verdict("bad", "Diverged", why, todo)
    if not math.isfinite(last):
        return Verdict("bad", "Diverged", f"the loss of step {step:,} is not finite", todo)
    places, begin = curves.places(curves.model_points), _start_of_mixture(run)
    is_comparable = places["tokens"] > begin
    smooth = _smoothed(curves.figure("loss")[0][is_comparable])
    steps = places["step"][is_comparable]
    if len(smooth) < 3 or not np.isfinite(smooth).any():
        return None
    best = int(np.nanargmin(smooth))
    is_warming = train is not None and step <= train.warmup_steps
    if smooth[-1] > smooth[best] + max(LEAST_RISE, RISE * smooth[best]) or (
        not begin and not is_warming and smooth[-1] > _first_loss(run) + LEAST_RISE
    ):
        why = (
            f"the loss rose from {smooth[best]:.3g} at step {steps[best]:,.0f} to "
            f"{smooth[-1]:.3g} at step {step:,}"
        )
        return Verdict("bad", "Diverged", why, todo)
    return None


def _start_of_mixture(run: Run) -> int:
    """Return the tokens after which the sources have been mixed as they are at the end.

    They are those of the last step that was mixed otherwise, which may have more than its phase
    asks for. It is 0 unless a phase has another mixture, which has another loss.
    """
    config, tokens = run.config, number(run.curves.last.get("tokens"))
    if config is None or not config.train.phases or not math.isfinite(tokens):
        return 0
    last = config.train.phase_at(max(0, int(tokens) - 1))
    mixtures = [mixture_in_phase(config, phase) for phase in range(last + 1)]
    while last and mixtures[last - 1] == mixtures[last]:
        last -= 1
    return config.train.phase_ends(0, 0)[last - 1][1] if last else 0


def _stopped(run: Run) -> Verdict | None:
    """Return that an alarm ended the run, if one did."""
    alarm = run.happenings.stopped
    if alarm is None:
        return None
    why = f"the alarm {alarm.rule} ended the run at step {alarm.step:,} ({_figure(alarm)})"
    return Verdict("bad", "Stopped by an alarm", why, _cure(run.config, alarm.rule))


def _collapsed(run: Run) -> Verdict | None:
    """Return what is wrong with the routing, by the alarms that are open or by the last load."""
    is_open: dict[str, list[Alarm]] = {rule: [] for rule in ROUTING}
    for (rule, _), alarm in run.happenings.open.items():
        if rule in is_open:
            is_open[rule].append(alarm)
    num_routed = sum(map(bool, run.shares.experts)) or run.curves.num_layers
    num_dead, num_experts, uneven = _last_load(run)
    step, watched = run.curves.last_step, _watched(run)
    if step < watched.dead_expert.patience:
        num_dead = 0
    if step < watched.cv.patience:
        uneven = {}
    # Batches of few documents are uneven one by one, although their sum is even.
    is_uneven = bool(uneven) or not num_experts
    rules = [rule for rule in ROUTING if is_open[rule] and (is_uneven or rule != "cv")]
    of_end = f" at step {run.curves.last_step:,}"
    if num_dead or "dead_expert" in rules or "dominant_expert" in rules:
        are = "are" if num_dead > 1 else "is"
        parts = [f"{num_dead} of {num_experts} experts {are} dead{of_end}"] if num_dead else []
        if uneven:
            worst = max(uneven, key=lambda layer: uneven[layer])
            count = f"{len(uneven)} of {num_routed} layers {'are' if len(uneven) > 1 else 'is'}"
            parts.append(
                f"{count} uneven, the worst with a CV of {uneven[worst]:.2f} (layer {worst})"
            )
        for rule in ("dead_expert", "dominant_expert"):
            if not parts and rule in rules:
                parts.append(_since(is_open[rule]))
        word = "Collapsed" if 0 < num_experts <= 4 * num_dead else "Experts are dying"
        return Verdict("bad", word, ", and ".join(parts), _cure(run.config, "dead_expert"))
    if rules:
        return Verdict(
            "warn", "Unbalanced", _since(is_open[rules[0]]), _cure(run.config, rules[0])
        )
    if uneven:
        worst = max(uneven, key=lambda layer: uneven[layer])
        why = (
            f"{len(uneven)} of {num_routed} layers {'have' if len(uneven) > 1 else 'has'} a CV "
            f"above {watched.cv.threshold:g}, the worst {uneven[worst]:.2f} (layer {worst})"
        )
        return Verdict("warn", "Unbalanced", why, _cure(run.config, "cv"))
    return None


def _overfitted(run: Run) -> Verdict | None:
    """Return that the held-out loss has risen again, if it has.

    Another mixture of the sources is another aim, and the held-out text stays mixed as before. So
    it is only compared since the mixture last changed, and a loss that has done nothing but rise
    since then says that the mixture has moved away from the held-out text.
    """
    held_out, places = run.curves.evaluated("val_loss"), run.curves.places(run.curves.evaluations)
    is_known = np.isfinite(held_out)
    is_comparable = is_known & (places["tokens"] > _start_of_mixture(run))
    before = held_out[is_known & ~is_comparable]
    held_out, steps = held_out[is_comparable], places["step"][is_comparable]
    if len(held_out) < 3:
        return None
    best = int(np.argmin(held_out))
    if held_out[-1] <= held_out[best] * (1 + OVERFIT):
        return None
    if best == 0 and len(before) and before[-1] < held_out[0]:
        return None
    why = (
        f"the held-out loss was best at step {steps[best]:,.0f} ({held_out[best]:.3f}) and is "
        f"{held_out[-1]:.3f} at step {steps[-1]:,.0f}"
    )
    return Verdict("warn", "Overfitted", why, "train on more text, or for fewer steps")


def _progress(run: Run) -> tuple[str, str]:
    """Return what is left of a run, in words, and what to do; "" if it is finished."""
    step = max([run.curves.last_step, *run.checkpoints[:1]])
    total = run.config.train.steps if run.config else 0
    if run.is_owned:
        return f"; it is at step {step:,} of {total:,}", "it is still being trained"
    if not total:
        return "", "restore config.toml, without which the run cannot be resumed"
    if step >= total:
        return "", "nothing has to be done"
    left = f"; it ended at step {step:,} of {total:,}"
    return left, f"{_resume(run)} trains the rest"


def _resume(run: Run) -> str:
    return f"`moebius resume {shlex.quote(str(run.root))}`"


def _first_loss(run: Run) -> float:
    return number((run.curves.first or {}).get("loss"))


def _loss_words(run: Run) -> str:
    """Return how far the loss has come, in words."""
    curves = run.curves
    smooth = _smoothed(curves.figure("loss")[0])
    words = f"the loss fell from {_first_loss(run):.2f} to {smooth[-1]:.2f}"
    if not smooth[-1] < _first_loss(run):
        words = f"the loss is {smooth[-1]:.2f}"
    held_out, bits = curves.evaluated("val_loss"), curves.evaluated("val_bpb")
    if len(held_out) and math.isfinite(held_out[-1]):
        words += f" (held-out {held_out[-1]:.2f}"
        words += f", {bits[-1]:.2f} bits per byte)" if math.isfinite(bits[-1]) else ")"
    return words


def _balance_words(run: Run) -> str:
    """Return how even the load of the experts is at the end, in words."""
    loads = _loads(run)
    if not loads or run.curves.last_step < _watched(run).dead_expert.patience:
        return ""
    cv = max(variation(load) for load in loads.values())
    words = f", and the experts are used evenly (CV at most {cv:.2f}, none is dead)"
    if any(rule == "cv" for rule, _ in run.happenings.open):
        words += ", although single batches are so small that the alarm cv is still on"
    return words


def _last_load(run: Run) -> tuple[int, int, dict[int, float]]:
    """Return the number of dead experts, that of all experts, and the CV of each uneven layer."""
    num_dead, uneven = 0, dict[int, float]()
    loads = _loads(run)
    limit = _watched(run).cv.threshold
    for layer, load in loads.items():
        total = sum(load)
        num_dead += sum(tokens < dead_share(len(load)) * total for tokens in load)
        if (cv := variation(load)) > limit:
            uneven[layer] = cv
    return num_dead, sum(map(len, loads.values())), uneven


def _loads(run: Run) -> dict[int, list[int]]:
    """Return the load of each layer's experts in the last tenth of the run, as parts of a million.

    Single steps have too few tokens to tell an uneven load from chance. In a short run, it is the
    load in as many steps as an alarm takes to fire.
    """
    steps, patience = run.shares.steps, _watched(run).dead_expert.patience
    if not len(steps):
        return {}
    is_late = steps > min(steps[-1] - max(patience, LAST * steps[-1]), steps[-1] - 1)
    return {
        layer: np.rint(run.shares.of_layer(layer)[is_late].mean(axis=0) * 1e6).astype(int).tolist()
        for layer, count in enumerate(run.shares.experts)
        if count > 1
    }


def _watched(run: Run) -> ObserveConfig:
    """Return the limits of the run's alarms, which are the defaults if they are not known."""
    return (run.config or Config()).observe


def _since(alarms: list[Alarm]) -> str:
    """Return what open alarms of one rule say, in words."""
    worst = (max if WORDS[alarms[0].rule].is_above else min)(alarms, key=lambda alarm: alarm.value)
    where = f"layer {worst.layer}"
    if len(alarms) > 1:
        where = f"{len(alarms)} layers, the worst is {worst.layer}"
    return f"{where}: {_figure(worst)} since step {worst.since:,}"


def _figure(alarm: Alarm) -> str:
    words = WORDS[alarm.rule]
    side = "above" if words.is_above else "below"
    return f"{words.figure} {words.number(alarm.value)}, {side} {words.number(alarm.threshold)}"


def _cure(config: Config | None, rule: str) -> str:
    """Return what to do against an uneven routing, given what balances it now."""
    if rule == "loss_spike":
        return "lower train.lr, or set observe.loss_spike.action=roll_back"
    if rule in ("router_logits", "vanishing_scores"):
        return "set model.router_z_loss_coeff=0.001, which keeps the router's logits small"
    if rule == "unrouted_tokens":
        return "lower model.router_threshold"
    if rule == "dropped_tokens":
        return "raise model.capacity_factor, or model.aux_loss_coeff"
    if config is None:
        return "raise model.aux_loss_coeff"
    model = config.model
    if not model.aux_loss_coeff and not model.router_bias_rate:
        return (
            "nothing balances the experts of this run: set model.aux_loss_coeff=0.1 or "
            "model.router_bias_rate=0.001"
        )
    if not model.aux_loss_coeff:
        return f"raise model.router_bias_rate ({model.router_bias_rate:g}) or add a balance loss"
    return (
        f"raise model.aux_loss_coeff ({model.aux_loss_coeff:g}), or let the run do it: "
        "observe.cv.action=raise_aux"
    )


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Return the mean of each value and those shortly before it, without those not finite."""
    size = max(1, round(SMOOTHED * len(values)))
    at = np.arange(len(values))
    return mean_between(values, np.maximum(at + 1 - size, 0), at + 1)
