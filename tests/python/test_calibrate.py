"""Calibration against plain hooks on whole forward passes, in NumPy float64."""

import gc
import weakref

import numpy as np
import pytest
import torch
import transformers as hf
from tiny import FAMILIES, GROUPED, LINEARS, VIT, inputs, tiny
from torch import nn

from tamis import calibrate
from tamis.errors import TamisTypeError, TamisUnsupported, TamisValueError
from tamis.samples import read_samples
from tamis.scope import find_linears

NEEDS = frozenset({"x_sq", "hessian"})


def whole_pass(model, data, names):
    """What hooks on whole forward passes see at each linear: real tokens, f64 [t, k]."""
    seen = {name: [] for name in names}
    real = [None]

    def hook(name):
        def note(module, args):
            x = args[0].detach().double().reshape(-1, args[0].shape[-1])
            seen[name].append(x if real[0] is None else x[real[0].reshape(-1).bool()])

        return note

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    with torch.no_grad():
        for sample in data:
            real[0] = sample.get("attention_mask")
            model(**sample)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts).numpy() for name, parts in seen.items()}


def collect(model, data, sequential=False, visit=None, needs=NEEDS):
    linears = find_linears(model)
    stats = {}

    def note(seen):
        stats.update(seen)
        return visit(seen) if visit else {name: linears[name].weight.data for name in seen}

    samples = read_samples(data, model)
    calibrate.run_blocks(model, samples, linears, needs, note, sequential)
    return stats


def check(stats, wanted):
    assert set(stats) == set(wanted)
    for name, x in wanted.items():
        assert stats[name].tokens == len(x)
        scale = (x**2).mean()
        np.testing.assert_allclose(stats[name].x_sq.numpy(), (x**2).mean(0), 1e-4, 1e-5 * scale)
        if stats[name].hessian is not None:
            np.testing.assert_allclose(stats[name].hessian, x.T @ x / len(x), 1e-4, 1e-5 * scale)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_are_those_of_whole_passes(family, sequential):
    """Every family, padded batches: blocks called one by one see what they see in the model."""
    model, data = tiny(family), inputs(family)
    stats = collect(model, data, sequential)
    assert len(stats) == 3 * LINEARS.get(family, 7)
    check(stats, whole_pass(model, data, list(stats)))
    q_and_v = [n for n in stats if n.rpartition(".")[2] in ("q_proj", "v_proj", "query", "value")]
    if family != "gpt2":  # whose q, k and v are one layer
        assert stats[q_and_v[0]] is stats[q_and_v[1]]  # one Hessian for what reads the same input


def test_sequential_sees_pruned_blocks():
    model, data = tiny("llama"), inputs("llama")
    linears = find_linears(model)

    def halve(seen):
        return {name: linears[name].weight.data * 0.5 for name in seen}

    before = {name: linear.weight.clone() for name, linear in linears.items()}
    stats = collect(model, data, True, halve)
    for name, linear in linears.items():
        assert torch.equal(linear.weight, before[name])
    blocks = [[n for n in linears if f"layers.{i}." in n] for i in range(3)]
    for names in blocks:
        check({n: stats[n] for n in names}, whole_pass(model, data, names))
        for name in names:  # only now is this block pruned
            linears[name].weight.data.mul_(0.5)


def test_dense_statistics_ignore_what_visit_returns():
    model, data = tiny("llama"), inputs("llama")
    wanted = whole_pass(model, data, list(find_linears(model)))
    stats = collect(model, data, False, lambda seen: {})
    check(stats, wanted)


def test_only_what_is_needed_is_collected():
    stats = collect(tiny("llama"), inputs("llama"), needs=frozenset({"x_sq"}))
    assert all(item.hessian is None for item in stats.values())
    check(stats, whole_pass(tiny("llama"), inputs("llama"), list(stats)))


def test_model_of_no_family_is_one_block():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(40, 6)
    stats = {}
    linears = {"0": model[0], "2": model[2]}
    samples = read_samples([x[:20], x[20:]], model)
    calibrate.run_blocks(model, samples, linears, NEEDS, lambda s: stats.update(s) or {})
    check(stats, {"0": x.double().numpy(), "2": model[:2](x).detach().double().numpy()})


def test_leaves_modes_hooks_and_weights_on_failure():
    model, data = tiny("llama").train(), inputs("llama")
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count = 0

    def fail(seen):
        nonlocal count
        count += 1
        if count == 2:
            raise RuntimeError("stop")
        return {name: torch.zeros_like(model.get_submodule(name).weight) for name in seen}

    with pytest.raises(RuntimeError, match="stop"):
        collect(model, data, True, fail)
    assert [module.training for module in model.modules()] == modes
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert "forward" not in module.__dict__
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_activations_of_earlier_blocks_are_freed():
    """Inputs are replaced in place: when block 2 is visited, no output of block 0 is alive."""
    model, data = tiny("llama"), inputs("llama")
    alive = []
    handle = model.model.layers[0].register_forward_hook(
        lambda m, args, out: alive.append(weakref.ref(out))
    )
    counts = []

    def visit(seen):
        gc.collect()
        counts.append(sum(ref() is not None for ref in alive))
        return {}

    collect(model, data, False, visit)
    handle.remove()
    assert counts == [3, 0, 0]


def test_strings_ids_and_dicts_agree():
    class Tokenizer:
        def __call__(self, text, truncation, max_length, return_tensors):
            assert truncation
            ids = [ord(c) - 30 for c in text][:max_length]
            return {"input_ids": torch.tensor([ids])}

    model, text = tiny("llama"), "some text"
    ids = [ord(c) - 30 for c in text]
    forms = [text, ids, torch.tensor(ids), torch.tensor([ids]), {"input_ids": torch.tensor(ids)}]
    for form in forms:
        (sample,) = read_samples([form], model, Tokenizer())
        assert sample.inputs["input_ids"].tolist() == [ids]
        assert sample.real is None
    (cut,) = read_samples([text], model, Tokenizer(), max_length=4)
    assert cut.inputs["input_ids"].tolist() == [ids[:4]]
    generator = (item for item in [ids, ids])
    assert len(read_samples(generator, model)) == 2


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ([], {}, TamisValueError, "data: got no samples"),
        (["text"], {}, TamisValueError, r"data\[0\]: got text without tokenizer.*tokenizer="),
        ("text", {}, TamisTypeError, "got one str.*wrap it in a list"),
        (7, {}, TamisTypeError, "got one int"),
        ([[]], {}, TamisValueError, r"data\[0\]: got no tokens"),
        ([[5] * 20], {"max_length": 8}, TamisValueError, "got 20 tokens, wanted at most 8"),
        ([[5] * 65], {"max_length": 512}, TamisValueError, "got 65 tokens, wanted at most 64"),
        ([[5]], {"max_length": 0}, TamisValueError, "max_length: got 0"),
        ([[5], object()], {}, TamisTypeError, r"data\[1\]: got object"),
        ([{"input_ids": [5, 6], "attention_mask": [0, 0]}], {}, TamisValueError, "all zeros"),
    ],
)
def test_bad_data_gets_a_sentence(data, options, error, message):
    options = {"max_length": 32, **options}
    with pytest.raises(error, match=message):
        read_samples(data, tiny("llama"), **options)


def test_infinite_activations_get_a_sentence():
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[3] = float("inf")
    with pytest.raises(TamisValueError, match=r"layers\.1\.self_attn\.q_proj.*NaN or infinite"):
        collect(model, inputs("llama"))


def test_unseen_linear_gets_a_sentence():
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "unused": nn.Linear(4, 4)})
    model.forward = lambda x: model["used"](x)
    samples = read_samples([torch.ones(2, 4)], model)
    with pytest.raises(TamisValueError, match="unused: got no tokens"):
        calibrate.run_blocks(model, samples, dict(model.items()), NEEDS, lambda s: {})


def test_mask_that_does_not_fit_the_tokens_gets_a_sentence():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, input_ids, attention_mask):
            return self.linear(torch.ones(rows, 4))

    model, rows = Pooled(), 3
    data = [{"input_ids": [[1, 2]], "attention_mask": [[0, 1]]}]
    samples = read_samples(data, model)
    with pytest.raises(TamisUnsupported, match="without padding"):
        calibrate.run_blocks(model, samples, {"linear": model.linear}, NEEDS, lambda s: {})
    rows = 1  # the first token of each sequence, as heads of classifiers take
    assert collect(model, data)["linear"].tokens == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_no_cache_is_kept(family):
    """A cache filled in the first run of a block would double its keys in the second."""
    from tamis.model import family_of

    model, known = tiny(family), family_of(tiny(family))
    samples = read_samples(inputs(family), model)
    with torch.no_grad():
        _, calls = calibrate._record(model, known, known.find_blocks(model), samples)
    assert [len(per_block) for per_block in calls] == [3, 3, 3]
    for call in (call for per_block in calls for call in per_block):
        assert call.kwargs.get("cache", call.kwargs.get("past_key_values")) is None


def test_blocks_of_a_language_model_in_another_see_no_cache():
    """Llava takes no use_cache, and hands its language model one by default."""
    from tamis.model import family_of

    vision = hf.CLIPVisionConfig(**VIT)
    text = hf.LlamaConfig(**{**GROUPED, "num_attention_heads": 4})
    torch.manual_seed(0)
    model = hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(text_config=text, vision_config=vision, image_token_index=96)
    ).eval()
    samples = read_samples(inputs("llama"), model)
    known = family_of(model)
    with torch.no_grad():
        _, calls = calibrate._record(model, known, known.find_blocks(model), samples)
    for call in calls[0]:
        assert not any(hasattr(x, "get_seq_length") for x in (*call.args, *call.kwargs.values()))
    check(collect(model, inputs("llama")), whole_pass(model, inputs("llama"), find_linears(model)))


def test_a_decoder_s_tokens_go_by_its_own_mask():
    """Though both sequences are as long; what it reads of the encoder goes by the encoder's."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    model = hf.T5ForConditionalGeneration(
        hf.T5Config(**sizes, vocab_size=97, decoder_start_token_id=0)
    ).eval()
    ids, other = torch.randint(3, 97, (2, 2, 10), generator=torch.Generator().manual_seed(1))
    masks = torch.ones(2, 2, 10, dtype=torch.long)
    masks[0, 1, 6:] = 0
    masks[1, 0, 7:] = 0
    names = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
    stats = collect(model, [dict(zip(names, (ids, masks[0], other, masks[1]), strict=True))])
    alone = [
        dict(zip(names[::2], (ids[i, None, :a], other[i, None, :b]), strict=True))
        for i, (a, b) in enumerate([(10, 7), (6, 10)])
    ]
    check(stats, whole_pass(model, alone, stats))
    tokens = {name: item.tokens for name, item in stats.items()}
    assert tokens["encoder.block.0.layer.0.SelfAttention.q"] == 16
    assert tokens["decoder.block.0.layer.0.SelfAttention.q"] == 17
    assert tokens["decoder.block.0.layer.1.EncDecAttention.k"] == 16
    free = collect(model, [dict(zip(names[:3], (ids, masks[0], other), strict=True))])
    assert free["decoder.block.1.layer.2.DenseReluDense.wo"].tokens == 20


def test_a_decoder_reads_the_labels_where_it_is_given_no_more():
    """As in training; without them T5 could not run, and BART's decoder would read the encoder's text."""
    torch.manual_seed(0)
    model = hf.BartForConditionalGeneration(
        hf.BartConfig(
            **{"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 97},
            **{"encoder_layers": 1, "decoder_layers": 1},
            **{"encoder_attention_heads": 4, "decoder_attention_heads": 4},
        )
    ).eval()
    ids, labels = torch.randint(3, 97, (2, 2, 10), generator=torch.Generator().manual_seed(1))
    read = model.prepare_decoder_input_ids_from_labels(labels=labels)
    stats = collect(model, [{"input_ids": ids, "labels": labels}])
    check(stats, whole_pass(model, [{"input_ids": ids, "decoder_input_ids": read}], stats))
    labels[0, 6:] = -100
    padded = collect(model, [{"input_ids": ids.tolist(), "labels": labels.tolist()}])
    assert padded["model.decoder.layers.0.fc1"].tokens == 16


def test_images_beside_a_padded_text_count_in_full():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text = {**sizes, "num_attention_heads": 4, "vocab_size": 97, "max_position_embeddings": 64}
    model = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=VIT)).eval()
    stats = collect(model, [{**inputs("llama")[0], **inputs("vit")[0]}])
    assert stats["text_model.encoder.layers.0.self_attn.q_proj"].tokens == 20
    assert stats["vision_model.encoder.layers.0.self_attn.q_proj"].tokens == 2 * 17


def test_a_model_without_a_longest_sequence_takes_any():
    config = hf.XLNetConfig(d_model=32, n_layer=1, n_head=4, d_inner=64, vocab_size=97)
    model = hf.XLNetLMHeadModel(config)
    assert model.config.max_position_embeddings == -1
    assert read_samples([[5] * 20], model)[0].inputs["input_ids"].shape == (1, 20)


def test_unseen_layers_of_one_name_are_one_sentence():
    model = hf.MambaForCausalLM(
        hf.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=97, state_size=4)
    )
    with pytest.raises(TamisValueError, match=r"dt_proj: got no tokens.*ignore=\['re:.*dt_proj'\]"):
        collect(model, inputs("llama"))
