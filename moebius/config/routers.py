"""What estimators and validation need to know about each router, without torch.

`model.router_type` names a record here. The implementation registers under the same name in
moebius/moe/router.py, which is imported only when a model is built.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class RouterRecord:
    """The properties of one router that estimates and validation depend on."""

    chooses_by_threshold: bool = False
    """A token has every expert above `router_threshold`, from none to all of them; otherwise it
    has `router_top_k`. Such a router needs a base MLP for the tokens without an expert."""
    has_capacity: bool = False
    """A full expert refuses tokens, so the experts take fewer tokens than were chosen for them."""
    is_top_1: bool = False
    """The router is defined for one expert per token only."""

    def most_experts(self, num_experts: int, top_k: int) -> int:
        """Return the largest number of experts a token can have (K).

        Tensor shapes are static, so this is also the number of rows that are moved per token.
        """
        return num_experts if self.chooses_by_threshold else min(num_experts, top_k)

    def expected_experts(self, num_experts: int, top_k: int, threshold: float) -> float:
        """Return how many experts a token is assumed to have on average.

        A router with a threshold decides that by learning. An untrained one's probabilities lie
        close to one half: with a threshold below that a token has all experts, with 0.5 half of
        them. A higher threshold leaves almost none at first; half of them are assumed there too.
        """
        most = float(self.most_experts(num_experts, top_k))
        return most / 2 if self.chooses_by_threshold and threshold >= 0.5 else most


ROUTERS: dict[str, RouterRecord] = {
    "sigmoid": RouterRecord(chooses_by_threshold=True),
    "softmax_topk": RouterRecord(),
    "switch": RouterRecord(has_capacity=True, is_top_1=True),
}
