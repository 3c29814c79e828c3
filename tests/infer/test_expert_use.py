"""How experts are used, compared with routing all tokens at once."""

from dataclasses import replace

import pytest
import torch

from moebius.data import prepare
from moebius.infer.expert_use import TOP_TOKENS, watching
from moebius.model.transformer import routed_layers, seeded
from moebius.train.evaluate import evaluate

CPU = torch.device("cpu")
ROUTERS = {
    "softmax_topk": {"router_top_k": 2},
    "sigmoid": {"base_expansion": 1.0, "router_threshold": 0.5},
    "switch": {"router_top_k": 1, "capacity_factor": 0.8, "base_expansion": 1.0},
}


@pytest.mark.parametrize("router_type", ROUTERS)
def test_tokens_are_counted_once_and_padding_never(small, router_type):
    settings = {"num_experts": (3, 0, 4), "num_layers": 3, "base_expansion": 1.0}
    settings |= {"router_type": router_type, **ROUTERS[router_type]}
    model = seeded(0, replace(small.model, **settings)).eval()
    data = replace(small.data, document_masking=False)
    # One batch, most of which is padding.
    train = replace(small.train, batch_size=500, eval_tokens=10**6)
    config = replace(small, data=data, train=train, model=model.config)
    corpus = prepare(data, 257)
    with watching(model, 1) as use:
        result = evaluate(model, corpus, config, CPU, observe=use.add)
    assert result is not None
    layers = use.layers()
    assert [layer.layer for layer in layers] == [0, 2]
    tokens = torch.from_numpy(corpus.val.read(0, len(corpus.val)))[:-1]

    routings = []
    hooks = [
        layer.router.register_forward_hook(lambda r, i, routing: routings.append(routing))
        for layer in routed_layers(model)
    ]
    windows = torch.zeros(500, 32, dtype=torch.long)
    windows.view(-1)[: len(tokens)] = tokens
    model(windows)
    for layer, routing, num_experts in zip(layers, routings, (3, 4), strict=True):
        (metrics,) = layer.by_source
        experts_TK = routing.expert_TK[: len(tokens)]
        for expert in range(num_experts):
            taken = tokens[(experts_TK == expert).any(dim=1)]
            assert metrics.tokens_per_expert[expert] == len(taken)
            counts = torch.bincount(taken, minlength=257)
            top = layer.top_tokens[expert]
            assert [one.count for one in top] == [
                count
                for count in counts.sort(descending=True).values.tolist()[:TOP_TOKENS]
                if count
            ]
            for one in top:
                assert one.count == counts[one.id]
                assert one.share == pytest.approx(one.count / int((tokens == one.id).sum()))
        unrouted = (experts_TK == num_experts).all(dim=1).double().mean().item()
        assert metrics.unrouted_share == pytest.approx(unrouted)
    assert len(hooks) == 2 and len(routed_layers(model)[0].router._forward_hooks) == 1


def test_each_source_has_its_own_counts(small, tmp_path):
    for name, letter in (("a", "a"), ("b", "b")):
        lines = [f'{{"text": "{letter * (20 + n)}"}}\n' for n in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    source = f"{tmp_path / 'a.jsonl'},{tmp_path / 'b.jsonl'}"
    data = replace(small.data, source=source, val_fraction=0.5)
    config = replace(small, data=data, model=replace(small.model, use_mtp=True))
    corpus = prepare(data, 257)
    model = seeded(0, config.model).eval()
    with watching(model, 2) as use:
        result = evaluate(model, corpus, config, CPU, observe=use.add)
    assert result is not None
    for layer in use.layers():
        for metrics, figures in zip(layer.by_source, result.by_source.values(), strict=True):
            assert sum(metrics.tokens_per_expert) == figures.tokens * config.model.router_top_k
        assert {one.id for expert in layer.top_tokens for one in expert} == {
            *corpus.tokenizer.encode("ab"), corpus.tokenizer.end_of_text,
        }  # fmt: skip


def test_a_dense_model_has_no_use(small):
    dense = replace(small.model, num_experts=0, base_expansion=2.0)
    with watching(seeded(0, dense), 1) as use:
        assert use.layers() == []
