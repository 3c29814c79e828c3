"""Carry out the actions that alarms ask for."""

from collections import defaultdict

import torch
from torch import Tensor

from moebius.errors import NumericError, StorageError
from moebius.model.transformer import RoutedLayer, routed_layers
from moebius.moe.load import dead_share, is_enough
from moebius.observe.alarm import Alarm
from moebius.train.checkpoint_writer import CheckpointWriter
from moebius.train.log import AnsweredAlarm, StepLog
from moebius.train.rollback import roll_back
from moebius.train.state import TrainState, aux_coefficients, is_finite

HIGHEST_LEVEL = 5  # most doublings by raise_aux: 2**5 = 32 times the balance loss
NUDGE = 0.1  # largest shift of a bias, as a probability: that of an expert without any tokens
NUDGE_OF_EVEN = 0.4  # of a softmax's even probability, 1 / E, which is less with many experts
NOISE = 0.1  # added to a revived expert's weights, in standard deviations of the copied ones


def answer(
    alarms: list[Alarm],
    state: TrainState,
    writer: CheckpointWriter,
    log: StepLog,
    max_rollbacks: int,
) -> None:
    """Carry out the action of each alarm's rule, and record it.

    Raises NumericError if an alarm stops the run, after its state is saved if its weights are
    finite, or if the run would be rolled back more than max_rollbacks times.
    """
    revived: defaultdict[int, list[int]] = defaultdict(list)
    answered: list[AnsweredAlarm] = []
    for alarm in alarms:
        if alarm.action == "stop" and not alarm.over:
            answered.append(AnsweredAlarm(alarm, _saved(state, writer)))
            resume = f"`moebius resume {writer.checkpoints.parent}`"
            error = NumericError(f"{alarm}; stopped as observe.{alarm.rule}.action says; {resume}")
            log.last_events(answered, error)
        if alarm.action == "roll_back" and not alarm.over:
            log.events(answered)
            return roll_back(alarm, state, writer, log, max_rollbacks)
        answered.append(AnsweredAlarm(alarm, carry_out(alarm, state, revived[alarm.layer])))
    log.events(answered)


def carry_out(alarm: Alarm, state: TrainState, revived: list[int]) -> str:
    """Carry out the alarm's action, and return what was done, in words.

    revived: the layer's experts that were already revived in this step, to which this alarm's are
    added. None is revived twice, and each is copied from a different expert.
    """
    index = _routed_index(state, alarm.layer)
    if alarm.action == "raise_aux":
        return _raise_or_relax(alarm, state, index)
    if alarm.over:
        return ""
    layer = routed_layers(state.model)[index]
    if alarm.action == "nudge_bias":
        nudge_bias(layer, alarm.counts)
        return "choice shifted towards the experts with little load"
    if alarm.action == "revive":
        return _revive_dead(alarm, layer, state, revived)
    return ""


@torch.no_grad()
def nudge_bias(layer: RoutedLayer, counts: list[int]) -> None:
    """Shift the choice towards experts below the mean load, in proportion to their difference.

    A bias stays between -1 and 1, because two probabilities cannot differ by more. Softmax scores
    of many experts are small, and so are the shifts: 0.1 would outweigh 50 times the even
    probability of one of 512 experts, and all tokens would move at once.
    """
    bias_E = layer.router.bias_E
    largest = NUDGE
    if not layer.router.config.has_sigmoid_scores:
        largest = min(NUDGE, NUDGE_OF_EVEN / len(counts))
    load_E = torch.tensor(counts, dtype=bias_E.dtype, device=bias_E.device)
    load_E *= len(counts) / max(1, sum(counts))
    bias_E += largest * (1 - load_E).clamp(min=-1)
    bias_E -= bias_E.mean()
    bias_E.clamp_(-1, 1)


@torch.no_grad()
def revive(
    layer: RoutedLayer, weak: int, busy: int, optimizers: list[torch.optim.Optimizer], seed: int
) -> None:
    """Make expert `weak` a copy of expert `busy`: weights, router row, bias, optimizer state.

    Noise on the copied weights lets the two experts share the tokens and then diverge, as in
    sparse upcycling (Komatsuzaki et al. 2022, arXiv 2212.05055).
    """
    generator = torch.Generator().manual_seed(seed)  # leaves the run's own generators alone
    layer.router.bias_E[weak] = layer.router.bias_E[busy]
    for parameter in (layer.router.weight_ED, *layer.experts.parameters()):
        source = parameter[busy]
        noise = torch.randn(source.shape, generator=generator).to(source)
        parameter[weak] = source + NOISE * source.std() * noise
        for value in _optimizer_state(optimizers, parameter):
            value[weak] = value[busy]


def _revive_dead(alarm: Alarm, layer: RoutedLayer, state: TrainState, revived: list[int]) -> str:
    """Replace the alarm's experts or, without any, the layer's weakest with copies of busy ones.

    Only a dead expert is replaced. The weakest expert of an uneven layer may be healthy, and so
    may one whose load was too small on average over the rule's window.
    """
    counts, total = alarm.counts, sum(alarm.counts)
    by_load = sorted(range(len(counts)), key=lambda expert: -counts[expert])
    names_expert = alarm.rule == "dead_expert"
    share = alarm.threshold if names_expert else dead_share(len(counts))
    alive = [expert for expert in by_load if not total or counts[expert] / total >= share]
    suspects = sorted(alarm.experts) if names_expert else by_load[::-1]
    safe = {*alive, *revived}
    dead = [expert for expert in suspects if expert not in safe]
    # The alarm of single experts only fires if there are enough tokens.
    if not dead or not (names_expert or is_enough(counts)):
        return "no dead expert to replace"
    if not alive:
        return "no busier expert to copy"
    copied: list[int] = []
    for weak in dead if names_expert else dead[:1]:
        copied.append(alive[len(revived) % len(alive)])
        revived.append(weak)
        seed = hash((alarm.step, alarm.layer, weak)) % 2**63
        revive(layer, weak, copied[-1], state.optimizers, seed)
    if len(copied) == 1:
        return f"expert {dead[0]} is now a copy of expert {copied[0]}, with noise"
    replaced, sources = (", ".join(map(str, experts)) for experts in (dead, copied))
    return f"experts {replaced} are now copies of experts {sources}, with noise"


def _optimizer_state(optimizers: list[torch.optim.Optimizer], parameter: Tensor) -> list[Tensor]:
    """Return the parameter's state tensors that have the parameter's shape."""
    states = [
        optimizer.state[parameter] for optimizer in optimizers if parameter in optimizer.state
    ]
    return [
        value for state in states for value in state.values() if value.shape == parameter.shape
    ]


def _raise_or_relax(alarm: Alarm, state: TrainState, index: int) -> str:
    """Double the layer's balance loss or, if the alarm is over, halve it again."""
    if alarm.over and alarm.remaining:
        return ""  # the layer is not even yet
    before = aux_coefficients(state)[index]
    level = state.aux_levels[index] + (-1 if alarm.over else 1)
    if level > HIGHEST_LEVEL:
        return f"balance loss of the layer stays at {before:g}, its highest"
    state.aux_levels[index] = max(0, level)
    if alarm.over and state.aux_levels[index]:
        state.alarms.keep_watching(alarm)
    return f"balance loss of the layer {before:g} -> {aux_coefficients(state)[index]:g}"


def _routed_index(state: TrainState, layer: int) -> int:
    """Return the layer's index among the layers that have experts."""
    return sum(count > 0 for count in state.model.config.experts_per_layer[:layer])


def _saved(state: TrainState, writer: CheckpointWriter) -> str:
    """Save the state, wait until it is written, and return what was done, in words."""
    is_sound = is_finite(state.model)
    try:
        if is_sound:
            writer.save(state)
        writer.wait()
    except StorageError as error:  # the alarm ends the run, and the writer adds this to its line
        return f"{error}; {writer.last_good()}"
    if not is_sound:
        return f"not saved: weights are not finite; {writer.last_good()}"
    return "state saved"
