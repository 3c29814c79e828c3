"""The decoder with a KV cache writes what the reference writes."""

import copy
import itertools
from typing import Any

import pytest
import torch

from moebius.config import DataConfig, ModelConfig
from moebius.data import Tokenizer
from moebius.data.tokenizer import prepare_tokenizer
from moebius.errors import ConfigError, NumericError
from moebius.infer import cached
from moebius.infer.cached import Cached
from moebius.infer.decoder import Recomputing, Writing
from moebius.infer.generate import Request, write
from moebius.infer.language_model import convert_products
from moebius.infer.sampling import Sampling, probabilities
from moebius.model.transformer import Transformer, seeded
from tests.model.tiny import ROUTERS

CPU = torch.device("cpu")
PROMPTS = ["ab", "", "a prompt that does not fit into the context", "xyz"]
SAMPLINGS: dict[str, Sampling] = {
    "greedy": Sampling(temperature=0),
    "all": Sampling(temperature=1.0),
    "filtered": Sampling(temperature=0.8, top_k=50, top_p=0.9, min_p=0.05),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return prepare_tokenizer(DataConfig(tokenizer="bytes"), 257, [])


def model_of(router: str = "softmax_top3", **changes: Any) -> Transformer:
    """Return a model in float64 with weights so large that its texts are no repetitions."""
    shape: dict[str, Any] = {"dim": 24, "num_layers": 2, "num_heads": 6, "num_kv_heads": 3}
    options = {"num_experts": 5, "vocab_size": 300, "eval_capacity_factor": 5.0, "use_mtp": True}
    model = seeded(3, ModelConfig(**{**shape, **options, **ROUTERS[router], **changes}))
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.5 if "embedding" in name else 0.25)
    return model.double().eval()


def texts(decoder: Any, tokenizer: Tokenizer, request: Request, at_once: int) -> list[str]:
    result = [""] * (len(PROMPTS) * request.num)
    ids = [tokenizer.encode(prompt) for prompt in PROMPTS]
    for piece in write(decoder, tokenizer, ids, request, at_once):
        result[piece.number] += piece.text
    return result


CORE = [("softmax_top3", "greedy"), ("switch", "filtered")]
CASES = [
    pytest.param(*case, marks=() if case in CORE else pytest.mark.heavy)
    for case in itertools.product(ROUTERS, SAMPLINGS)
]


@pytest.mark.parametrize(("router", "kind"), CASES)
def test_texts_in_batches_equal_the_reference(router, kind, tokenizer):
    """Texts grow beyond the context of 16, at different times."""
    model, sampling = model_of(router), SAMPLINGS[kind]
    request = Request(max_tokens=40, sampling=sampling, num=2, seed=7)
    reference = Recomputing(model, CPU, tokenizer.size, 16, sampling)
    expected = texts(reference, tokenizer, request, 1)
    assert len(set(expected)) > 3
    for at_once in (1, 3, 8):
        decoder = Cached(model, tokenizer.size, 16, sampling, num_texts=at_once)
        assert texts(decoder, tokenizer, request, at_once) == expected


@pytest.mark.heavy
def test_greedy_speculation_is_identical(tokenizer):
    """Over 200 prompts in float32, for models of several seeds whose drafts are often right."""
    sampling = Sampling(temperature=0)
    request = Request(max_tokens=24, sampling=sampling)
    prompts = [
        f"{number * 7919}: {chr(97 + number % 26) * (number % 19)}" for number in range(200)
    ]
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    for weight in (0.02, 0.25):
        model = model_of().float()
        torch.nn.init.normal_(model.lm_head.weight, std=weight)
        written = []
        for speculates in (False, True):
            decoder = Cached(
                model, tokenizer.size, 32, sampling, num_texts=50, speculates=speculates
            )
            result = [""] * 200
            for piece in write(decoder, tokenizer, ids, request, 50):
                result[piece.number] += piece.text
            written.append(result)
        assert written[0] == written[1]
        assert decoder.num_passes > 200


@pytest.mark.heavy
def test_sampled_speculation_has_the_distribution_of_plain_decoding(tokenizer):
    """Count pairs of tokens of a vocabulary of three, which both ways of decoding write."""
    model = model_of(vocab_size=3, num_layers=1).float()
    sampling = Sampling(temperature=1.0)
    counts = []
    for speculates in (False, True):
        decoder = Cached(model, 3, 8, sampling, num_texts=500, speculates=speculates)
        found = torch.zeros(27)
        for turn in range(16):
            decoder.begin()
            writing = [Writing([0, 1], (turn, row, speculates)) for row in range(500)]
            while not all(text.is_done for text in writing):
                for text, tokens in zip(writing, decoder.advance(writing), strict=True):
                    text.tokens += tokens
                    text.is_done = len(text.tokens) >= 5
            for text in writing:
                found[text.tokens[2] * 9 + text.tokens[3] * 3 + text.tokens[4]] += 1
        counts.append(found)
    assert decoder.num_accepted > 1000
    plain, drafted = counts
    chi2 = ((plain - drafted).square() / (plain + drafted).clamp(min=1)).sum()
    assert chi2 < 26 + 5 * (2 * 26) ** 0.5  # five standard deviations


@pytest.mark.parametrize("router", ROUTERS)
def test_greedy_speculation_writes_the_same_texts(router, tokenizer):
    model, sampling = model_of(router).float(), Sampling(temperature=0)
    torch.nn.init.normal_(model.lm_head.weight, std=0.02)  # drafts are sometimes right
    request = Request(max_tokens=30, sampling=sampling)
    plain, drafting = (
        Cached(model, tokenizer.size, 16, sampling, num_texts=3, speculates=speculates)
        for speculates in (False, True)
    )
    assert texts(plain, tokenizer, request, 3) == texts(drafting, tokenizer, request, 3)


def test_a_text_does_not_depend_on_those_beside_it_or_on_earlier_ones(tokenizer):
    model, sampling = model_of("switch"), Sampling(temperature=1.0)
    request = Request(max_tokens=20, sampling=sampling)
    decoder = Cached(model, tokenizer.size, 16, sampling, num_texts=3)
    together = texts(decoder, tokenizer, request, 3)
    again = texts(decoder, tokenizer, request, 3)
    alone = Cached(model, tokenizer.size, 16, sampling)
    assert together == again == texts(alone, tokenizer, request, 1)


@pytest.mark.parametrize("router", ["softmax_top3", "switch"])
def test_in_bfloat16_tokens_are_drawn_as_by_the_reference(router, tokenizer, monkeypatch):
    """Probabilities differ from those in float32 no more than the reference's do in bfloat16."""
    exact = model_of(router, dim=64, num_heads=4, num_kv_heads=2).float()
    torch.nn.init.normal_(exact.lm_head.weight, std=0.1)
    model = copy.deepcopy(exact)
    convert_products(model, torch.bfloat16)
    drawn: list[torch.Tensor] = []

    def recorded(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
        drawn.append(probabilities(logits, sampling))
        return drawn[-1]

    monkeypatch.setattr(cached, "probabilities", recorded)
    sampling = Sampling(temperature=1.0)
    num_texts, length = 16, 14
    decoder = Cached(model, 257, 16, sampling, num_texts, dtype=torch.bfloat16)
    writing = [Writing([0, row + 1], (row,)) for row in range(num_texts)]
    while len(writing[0].tokens) < length:
        for text, tokens in zip(writing, decoder.advance(writing), strict=True):
            text.tokens += tokens
    own = torch.cat(drawn, dim=1)
    tokens_BS = torch.tensor([text.tokens[:-1] for text in writing])
    with torch.no_grad():
        in_float32 = exact(tokens_BS).logits_BSV[:, 1:, :257].softmax(dim=-1)
        with torch.autocast("cpu", torch.bfloat16):
            logits_BSV = model(tokens_BS).logits_BSV[:, 1:, :257]
    reference = logits_BSV.float().softmax(dim=-1)

    def distance(p_BSV: torch.Tensor) -> float:
        """Return the mean total variation distance from the probabilities in float32."""
        return float((p_BSV - in_float32).abs().sum(dim=-1).mean() / 2)

    assert own.shape == in_float32.shape
    assert 1e-4 < distance(own) < 1.2 * distance(reference) < 0.1


def test_the_cache_never_grows(tokenizer, monkeypatch):
    model, sampling = model_of(), Sampling(temperature=1.0)
    decoder = Cached(model, tokenizer.size, 16, sampling, longest=1000)
    before = [layer[0].data_ptr() for layer in decoder._cache._layers]
    shapes = set()
    plain = torch.nn.functional.scaled_dot_product_attention

    def recorded(q, k, v, attn_mask=None, **options):
        if attn_mask is not None:
            shapes.add((q.shape, k.shape, attn_mask.shape))
        return plain(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", recorded)
    list(write(decoder, tokenizer, [[1, 2]], Request(max_tokens=60, sampling=sampling)))
    assert [layer[0].data_ptr() for layer in decoder._cache._layers] == before
    assert len(shapes) == 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_one_line(value, tokenizer):
    model = model_of()
    torch.nn.init.constant_(model.lm_head.weight, value)
    for speculates in (False, True):
        decoder = Cached(model, 257, 16, Sampling(), speculates=speculates)
        with pytest.raises(NumericError, match="highest logit is"):
            list(write(decoder, tokenizer, [[1, 2]], Request()))


def test_models_that_cannot_be_decoded_token_by_token():
    sampling = Sampling()
    with pytest.raises(ConfigError, match="training mode"):
        Cached(model_of().train(), 257, 16, sampling)
    with pytest.raises(ConfigError, match=r"eval_capacity_factor=0\.0: the switch router"):
        Cached(model_of("switch", eval_capacity_factor=0.0), 257, 16, sampling)
    with pytest.raises(ConfigError, match="speculate=True: needs a model with multi-token"):
        Cached(model_of(use_mtp=False), 257, 16, sampling, speculates=True)


@pytest.mark.gpu
@pytest.mark.parametrize("speculates", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("router", ROUTERS)
def test_a_captured_step_gives_what_its_kernels_give(router, dtype, speculates, tokenizer):
    """Replayed as a CUDA graph, the step gives the same results as without one."""
    from moebius.hardware.backends import choose_backends
    from moebius.moe.few_tokens import use_few_or_many

    options = {"dim": 64, "num_heads": 4, "num_kv_heads": 2, "num_experts": 5}
    device = torch.device("cuda")
    plain = model_of(router, **options).float()
    backends = choose_backends(None, device, dtype, document_masking=False, dim=64)
    model = Transformer(plain.config, backends).to(device).eval()
    model.load_state_dict(plain.state_dict())
    use_few_or_many(model, is_on_gpu=True)
    convert_products(model, dtype)
    sampling = Sampling(temperature=0)
    request = Request(max_tokens=40, sampling=sampling)
    written = []
    for is_captured in (True, False):
        decoder = Cached(model, 257, 16, sampling, num_texts=3, dtype=dtype, speculates=speculates)
        if not is_captured:
            decoder._run = decoder._step
        written.append(texts(decoder, tokenizer, request, 3))
    assert written[0] == written[1]
