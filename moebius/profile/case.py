"""What a rule examines: a profile and the model that ran, with answers to common questions."""

from dataclasses import dataclass

from moebius.config import Config, ModelConfig
from moebius.config.files import override
from moebius.config.flags import parse_flags
from moebius.cost.memory import memory
from moebius.profile import trials
from moebius.profile.finding import Finding
from moebius.profile.predict import predicted_seconds
from moebius.profile.result import Profile
from moebius.profile.steps import Steps

ROUTED = ("dispatch", "expert_gemms", "activation", "combine")
"""Components of the routed experts."""


@dataclass(frozen=True)
class Case:
    """A profiled step and the model that ran it."""

    profile: Profile
    steps: Steps

    @property
    def config(self) -> Config:
        """The profiled configuration."""
        return self.profile.config

    @property
    def model(self) -> ModelConfig:
        """The profiled configuration's model."""
        return self.profile.config.model

    def share(self, *components: str) -> float:
        """Return the components' time as a share of the step."""
        measured = self.profile.measured
        return sum(measured.of(name) for name in components) / measured.seconds

    @property
    def routed(self) -> list[float]:
        """Mean number of experts per token, for each block with experts."""
        layers = self.profile.measured.experts_per_token[: self.model.num_layers]
        counts = self.model.experts_per_layer
        return [used for used, count in zip(layers, counts, strict=True) if count]

    @property
    def experts_per_token(self) -> float:
        """Mean number of experts per token, averaged over the blocks with experts."""
        return sum(self.routed) / len(self.routed) if self.routed else 0.0

    def without_recomputation(self, component: str) -> float:
        """Return the share of a component's time that remains without recomputation."""
        measured = self.profile.measured
        busy = measured.of(component) - measured.of(component, "waiting")
        return 1 - measured.of(component, "forward") / busy if busy else 1.0

    def memory(self, config: Config) -> float:
        """Return the estimated bytes that a step of a configuration needs at its peak."""
        steps = self.steps
        return memory(
            config,
            self.profile.item,
            steps.is_compiled,
            experts=steps.backends.experts,
            attention=steps.backends.attention,
        ).peak

    def ratio_of_widths(self, other: int, present: int) -> float:
        """Measure a linear layer from `dim` inputs to `other` outputs, and one to `present`
        outputs.

        Returns the time of the first layer divided by that of the second.
        """
        other_product, present_product = (
            trials.product(self.steps, self.model.dim, width) for width in (other, present)
        )
        return trials.ratio(other_product, present_product, self.steps.device)

    def finding(self, title: str, evidence: str, *flags: str, **factors: float) -> Finding:
        """Return a finding of kind `waste` that proposes `flags`, with a prediction of the time.

        factors: for components whose efficiency changes, the ratio of the new time to the old.
        Raises ConfigError if the flags do not fit the rest of the configuration.
        """
        config = override(self.config, parse_flags(list(flags)))
        return Finding(title, evidence, flags, predicted_seconds(self.profile, config, factors))
