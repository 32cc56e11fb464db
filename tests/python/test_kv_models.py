"""Caches under models whose attention is more than scores, softmax and values."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from transformers import DynamicCache  # noqa: E402

from tamis import kv  # noqa: E402
from tamis.errors import TamisUnsupported  # noqa: E402
from tamis.kv.attention import STORE, attention_forward  # noqa: E402
from tamis.kv.identity import layer_mark  # noqa: E402

COMMON = {
    "vocab_size": 257,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "eos_token_id": None,
}
GROUPED = COMMON | {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 16}


def gemma2():
    config = transformers.Gemma2Config(**GROUPED, attn_logit_softcapping=2.0)
    return transformers.Gemma2ForCausalLM(config)


def gpt_oss():
    config = transformers.GptOssConfig(**GROUPED, num_local_experts=2, num_experts_per_tok=1)
    model = transformers.GptOssForCausalLM(config)
    for name, sinks in model.named_parameters():
        if name.endswith("sinks"):
            sinks.data = torch.tensor([3.0, -1.0, 6.0, 4.0])
    return model


def latent():
    config = transformers.DeepseekV3Config(
        **COMMON,
        num_key_value_heads=4,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        first_k_dense_replace=2,
    )
    return transformers.DeepseekV3ForCausalLM(config)


def sharp(make):
    torch.manual_seed(7)
    model = make().eval()
    for name, p in model.named_parameters():
        if "_proj" in name and p.dim() == 2:
            p.data *= 10  # so that what attention sees matters, caps and sinks too
    return model


def ids(n, b=1):
    return torch.randint(1, 250, (b, n), generator=torch.Generator().manual_seed(n + b))


@pytest.mark.parametrize("make", [gemma2, gpt_oss])
def test_scores_are_capped_and_sinks_count(make):
    model, mask = sharp(make), torch.ones(2, 60, dtype=torch.long)
    mask[0, :11] = 0  # padded on the left
    plain, turn = DynamicCache(config=model.config), torch.ones(2, 65, dtype=torch.long)
    turn[0, :11] = 0
    steps = [(ids(60, 2), mask), (ids(4, 2), turn[:, :64]), (ids(1, 2), turn)]
    with torch.no_grad():
        wanted = [model(x, attention_mask=m, cache=plain).logits for x, m in steps]
        with kv.attach(model):
            for cache in (kv.Cache(model.config, "full"), DynamicCache(config=model.config)):
                for (x, m), logits in zip(steps, wanted, strict=True):
                    y = model(x, attention_mask=m, cache=cache).logits
                    real = m[:, -x.shape[1] :].bool()
                    torch.testing.assert_close(y[real], logits[real], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("make", [gemma2, gpt_oss])
def test_calibration_runs_the_model_as_it_is(make):
    model = sharp(make)
    plan = kv.calibrate(model, [ids(80)], "channels")
    with kv.attach(model):
        cache = kv.Cache(model.config, "double_sparsity", plan=plan, budget=16, fallback=False)
        out = model.generate(ids(80), cache=cache, max_new_tokens=4, do_sample=False)
    assert out.shape == (1, 84)


def test_keys_that_never_reach_attention_are_noticed():
    # Latent attention makes keys of what the cache hands back, which then is the latest token alone.
    model = sharp(latent)
    with kv.attach(model), torch.no_grad():
        cache = kv.Cache(model.config, "full")
        logits = model(ids(20), cache=cache).logits
        with pytest.raises(TamisUnsupported, match=r"layer 0: got a model that changes keys"):
            model(ids(1), cache=cache)
    torch.testing.assert_close(logits, model(ids(20)).logits)


def test_a_bias_of_positions_is_refused():
    q, k, v = torch.randn(3, 1, 2, 5, 16)
    setattr(k, STORE, kv.KvStore("full"))
    with pytest.raises(TamisUnsupported, match="got a bias of positions in Module"):
        attention_forward(torch.nn.Module(), q, k, v, None, position_bias=torch.zeros(1, 2, 5, 5))


def test_a_decoder_beside_an_encoder_has_a_cache_for_its_own_tokens():
    torch.manual_seed(0)
    each = {"layers": 2, "attention_heads": 2, "ffn_dim": 64}
    sizes = {f"{p}_{name}": n for p in ("encoder", "decoder") for name, n in each.items()}
    config = transformers.BartConfig(d_model=32, vocab_size=257, forced_eos_token_id=None, **sizes)
    model = transformers.BartForConditionalGeneration(config).eval()
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    wanted = model.generate(ids(20), **options)
    with kv.attach(model):
        own = kv.Cache(config, "full", fallback=False)
        cache = transformers.EncoderDecoderCache(own, DynamicCache(config=config))
        assert torch.equal(model.generate(ids(20), cache=cache, **options), wanted)
        assert own.report()["held"] == [12, 12]
        with pytest.raises(TamisUnsupported, match=r"EncoderDecoderCache\(kv.Cache"):
            model.generate(ids(20), cache=kv.Cache(config, "full"), **options)


def test_a_mark_leaves_storages_as_they_are():
    linear = torch.nn.Linear(4, 4)
    assert layer_mark(linear)
    linear.weight.untyped_storage().resize_(0)  # as FSDP does with what it gathered
