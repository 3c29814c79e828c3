"""The founding document's two recommended configurations, exactly as written there."""

from moebius.config import ModelConfig

MAXIMUM_SPEED = ModelConfig(
    # Remove base MLP entirely
    base_expansion=0.0,  # No base MLP
    # Larger experts (since no base overhead)
    moe_min_expansion=3.0,  # Was 1.25
    moe_max_expansion=4.0,  # Was 1.75
    # Better routing
    router_type="softmax_topk",  # Guaranteed activation
    router_top_k=1,  # Exactly 1 expert
    # Strong load balancing
    aux_loss_coeff=0.1,  # 10x stronger than default
    # Optional: Disable MTP for max speed
    use_mtp=False,  # Saves 31% compute
)
STABILITY = ModelConfig(
    # Small base MLP
    base_expansion=0.5,  # Minimal safety net
    # Standard experts
    moe_min_expansion=2.0,
    moe_max_expansion=3.0,
    # Hybrid approach
    router_type="sigmoid",
    router_threshold=0.1,
)
