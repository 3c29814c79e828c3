"""Measure how often the confidence intervals of `moebius evaluate` contain the truth.

    python bench/intervals.py                 all rows; a few minutes on two cores
    python bench/intervals.py --experiments 200

Each experiment draws documents whose true loss is 3 nats per token: their lengths are lognormal,
and the tokens of a document share a part of their loss. An interval at 95% should contain the
truth in 95% of the experiments. Other methods are measured beside ours:

- tokens independent: the standard error of a mean over all tokens, times 1.96;
- documents, normal: the linearized variance of a ratio over documents, times 1.96;
- bootstrap: the 2.5% and 97.5% quantiles over 500 draws of documents with replacement.
"""

import argparse
from collections.abc import Iterator

import numpy as np
from markdown_tables import table

from moebius.infer.interval import interval

TRUTH = 3.0
ALIKE, OWN = 0.5, 3.0
"""Standard deviation of what a document's tokens share, and of what each has of its own."""
NORMAL = 1.96
DRAWS = 500
COUNTS = (5, 10, 24, 100, 1000)
SPREADS = (0.3, 1.0, 1.5)
"""Standard deviations of the logarithm of a document's length."""


def documents(rng: np.random.Generator, count: int, spread: float) -> np.ndarray:
    """Return tokens and nats of each document (count, 2)."""
    length = np.maximum(1, np.round(np.exp(rng.normal(5, spread, count))))
    mean = TRUTH + ALIKE * rng.normal(size=count)
    nats = length * mean + OWN * np.sqrt(length) * rng.normal(size=count)
    return np.stack([length, nats], axis=1)


def intervals(rng: np.random.Generator, sums: np.ndarray) -> Iterator[tuple[float, float]]:
    """Yield the interval of each method."""
    tokens, nats = sums[:, 0], sums[:, 1]
    count, total = len(sums), tokens.sum()
    loss = nats.sum() / total
    errors = [np.hypot(ALIKE, OWN) / np.sqrt(total)]
    residuals = nats - loss * tokens
    errors.append(np.sqrt(count / (count - 1) * (residuals**2).sum()) / total)
    for error in errors:
        yield loss - NORMAL * error, loss + NORMAL * error
    drawn = sums[rng.integers(count, size=(DRAWS, count))].sum(axis=1)
    low, high = np.quantile(drawn[:, 1] / drawn[:, 0], [0.025, 0.975])
    yield low, high
    found = interval([sums], lambda totals: totals[..., 0, 1] / totals[..., 0, 0])
    assert found is not None  # there are at least two documents
    yield found


def main() -> None:
    """Print a table with a row for each number of documents and spread of their lengths."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--experiments", type=int, default=2000)
    experiments = parser.parse_args().experiments
    rng = np.random.default_rng(0)
    rows = []
    for count in COUNTS:
        for spread in SPREADS:
            hits, effective = np.zeros(4), 0.0
            for _ in range(experiments):
                sums = documents(rng, count, spread)
                effective += sums[:, 0].sum() ** 2 / (sums[:, 0] ** 2).sum() / experiments
                hits += [low <= TRUTH <= high for low, high in intervals(rng, sums)]
            shares = [f"{share:.1%}" for share in hits / experiments]
            rows.append([str(count), f"{spread}", f"{effective:.0f}", *shares])
    heads = ["documents", "spread of lengths", "effective", "tokens independent"]
    print("\n".join(table([*heads, "documents, normal", "bootstrap", "ours"], rows)))


if __name__ == "__main__":
    main()
