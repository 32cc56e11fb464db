"""Experts in one parameter: pruned one by one, computed as the model routes, stored and given back."""

import copy
import pickle

import pytest
import torch
import transformers as hf
from host import needs_device
from tiny import COMMON, WITH_HEADS
from torch import nn

import tamis
from tamis import rewrite
from tamis.calibrate import Collector
from tamis.errors import TamisFileError, TamisUnsupported, TamisValueError
from tamis.nn import SparseExperts, SparseLinear
from tamis.nn import experts as experts_module
from tamis.train import MaskGuard

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LATENT = {
    **COMMON,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 48,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
KINDS = {
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**WITH_HEADS, num_local_experts=4)),
    "qwen3_moe": lambda: hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**WITH_HEADS, **MOE)),
    "gpt_oss": lambda: hf.GptOssForCausalLM(
        hf.GptOssConfig(**WITH_HEADS, num_local_experts=4, num_experts_per_tok=2)
    ),
    "deepseek_v3": lambda: hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**LATENT)),
}
IDS = torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(1))
DATA = [{"input_ids": IDS}]


@pytest.fixture(autouse=True)
def _no_bars():
    hf.utils.logging.disable_progress_bar()
    yield
    hf.utils.logging.enable_progress_bar()


def make(kind):
    torch.manual_seed(0)
    model = KINDS[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def near(model, wanted):
    return float((logits(model) - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


def experts_of(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, SparseExperts)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "alps", "gqsa"])
def test_experts_are_pruned_one_by_one(kind, method, tmp_path):
    dense, model = make(kind), make(kind)
    stacks = [m for m in dense.modules() if SparseExperts.takes(m)]
    options = {} if method == "gqsa" else {"format": "bitmap", "sparsity": 0.75}
    report = tamis.sparsify_(model, method, data=DATA, **options)
    experts = experts_of(model)
    assert len(experts) == len(stacks) == (2 if kind == "deepseek_v3" else 3)
    rows = [row for row in report.layers if ".experts.each." in row.name]
    assert len(rows) == len(stacks) * 4 * 2
    assert all(row.sparsity == pytest.approx(0.5 if options == {} else 0.75) for row in rows)
    assert "Experts" not in str(report.metrics.get("left_dense"))
    wanted = logits(model)
    for module, stack in zip(experts.values(), stacks, strict=True):
        for e in range(4):
            for name in module.names:
                kept = module.each[e][name].weight.to_dense().detach()
                own = getattr(stack, f"{name}_proj").detach()[e]
                own = own.t() if stack.is_transposed else own
                assert kept.shape == own.shape
                if method in ("magnitude", "wanda"):
                    assert torch.equal(kept[kept != 0], own[kept != 0])
    tamis.save(model, tmp_path / "sparse")
    loaded = tamis.load(tmp_path / "sparse")
    assert torch.equal(logits(loaded), wanted)
    if method != "gqsa":  # whose kernels round inputs to 8 bits
        tamis.export(model, tmp_path / "dense")
        assert near(type(model).from_pretrained(tmp_path / "dense").eval(), wanted)
        assert near(tamis.dense_(model), wanted)
    else:
        tamis.dense_(model)
    assert not experts_of(model)
    assert model.state_dict().keys() == dense.state_dict().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_the_linears_compute_what_the_stack_does(kind):
    model, wanted = make(kind), logits(make(kind))
    tamis.sparsify_(model, "magnitude", sparsity=0, format="bitmap")
    assert experts_of(model)
    assert near(model, wanted)
    ids = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(model.generate(**ids, **options), make(kind).generate(**ids, **options))


@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_layer_asks_nothing_and_gives_the_same(kind, monkeypatch):
    model = make(kind)
    tamis.sparsify_(model, "magnitude", format="bitmap")
    wanted = logits(model)
    monkeypatch.setattr(experts_module, "_captured", lambda _: True)
    monkeypatch.setattr(torch, "unique", None)
    assert near(model, wanted)
    layer = next(iter(experts_of(model).values()))
    x = torch.randn(3, WITH_HEADS["hidden_size"])
    x[1] = torch.inf  # of no token but its own
    index, weights = torch.tensor([[0, 1], [2, 4], [1, 3]]), torch.rand(3, 2)  # 4: elsewhere
    out = layer(x, index, weights)
    monkeypatch.undo()
    assert torch.isfinite(out[[0, 2]]).all()
    torch.testing.assert_close(out[[0, 2]], layer(x[[0, 2]], index[[0, 2]], weights[[0, 2]]))


@needs_device
def test_layers_replay_in_cuda_graphs():
    model = make("mixtral").bfloat16()
    tamis.sparsify_(model, "magnitude", format="bitmap")
    tamis.prepack_(model, device="cuda")
    layer = next(iter(experts_of(model).values()))
    x = torch.randn(2, WITH_HEADS["hidden_size"], device="cuda").bfloat16()
    index = torch.tensor([[0, 1], [2, 3]], device="cuda")
    weights = torch.rand(2, 2, device="cuda")
    with torch.no_grad():
        layer(x, index, weights)  # loads what torch has for it
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer(x, index, weights)
        for _ in range(3):
            index.copy_(torch.stack([torch.randperm(4)[:2] for _ in range(2)]))
            graph.replay()
            torch.testing.assert_close(out, layer(x, index, weights), rtol=2e-2, atol=2e-2)


def test_masked_stacks_stay_stacks_and_keep_their_zeros():
    model = make("qwen3_moe")
    before = {name: id(module) for name, module in model.named_modules()}
    tamis.sparsify_(model, "wanda", data=DATA, format="dense")
    assert {name: id(module) for name, module in model.named_modules()} == before
    stack = model.model.layers[1].mlp.experts.gate_up_proj
    zeros = stack == 0
    assert float(zeros.float().mean()) == pytest.approx(0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    guard = MaskGuard(model, optimizer)
    assert "model.layers.1.mlp.experts.gate_up_proj" in guard.masks
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    assert torch.equal(stack == 0, zeros)
    wanted = logits(model)
    tamis.optimize_(model, "bytes")
    assert len(experts_of(model)) == 3
    assert near(model, wanted)


def test_some_experts_alone(tmp_path):
    model = make("gpt_oss")
    name = "model.layers.1.mlp.experts"
    report = tamis.sparsify_(
        model, "magnitude", sparsity=0.9, targets=[f"re:{name}.each.[12].down"], format="csr"
    )
    assert [row.name for row in report.layers] == [f"{name}.each.{e}.down" for e in (1, 2)]
    experts = experts_of(model)
    assert experts.keys() == {name}
    dense = experts[name].each[0]["down"]
    assert type(dense) is nn.Linear
    assert dense.weight.untyped_storage().nbytes() == dense.weight.nbytes  # the stack is gone
    wanted = logits(model)
    tamis.save(model, tmp_path / "some")
    assert torch.equal(logits(tamis.load(tmp_path / "some")), wanted)
    into = tamis.load(tmp_path / "some", model=make("gpt_oss"))
    assert torch.equal(logits(into), wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", [["re:.*experts.*"], ["re:.*layers.1.*"], ["re:.*o_proj"]])
def test_a_model_takes_files_whose_names_transformers_changes(kind, targets, tmp_path):
    model = make(kind)
    tamis.sparsify_(model, "magnitude", format="bitmap", targets=targets)
    wanted = logits(model)
    tamis.save(model, tmp_path / "saved")
    into = KINDS[kind]()
    assert tamis.load(tmp_path / "saved", model=into) is into
    into.save_pretrained(tmp_path / "again")
    for found in (into, tamis.load(tmp_path / "again")):
        state = found.state_dict()
        assert all(torch.equal(v, state.pop(k)) for k, v in model.state_dict().items())
        assert not state
        assert near(found, wanted)  # stacks lie otherwise in mapped files
    other = hf.MixtralForCausalLM(
        hf.MixtralConfig(**{**WITH_HEADS, "hidden_size": 16}, num_local_experts=4)
    )
    state = copy.deepcopy(other.state_dict())
    with pytest.raises((TamisValueError, TamisFileError), match="load: "):
        tamis.load(tmp_path / "saved", model=other)
    assert all(torch.equal(a, state[n]) for n, a in other.state_dict().items())


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_an_expert_without_tokens_goes_by_the_others(method):
    """By their statistics together: as if all their tokens had gone to it."""
    names = [f"model.layers.2.mlp.experts.each.{e}.gate_up" for e in range(4)]
    models = [make("qwen3_moe"), make("qwen3_moe")]
    for model, hit in zip(models, ([1, 2, 3], [0, 1, 2, 3]), strict=True):
        gate = model.model.layers[2].mlp.gate

        def routed(module, args, out, hit=hit):
            return *out[:2], torch.tensor(hit).expand(IDS.numel(), len(hit))

        gate.register_forward_hook(routed)
    weights = torch.full((IDS.numel(), 4), 0.25)
    for model in models:
        experts = model.model.layers[2].mlp.experts
        experts.register_forward_pre_hook(
            lambda _, args: (*args[:2], weights[:, : args[1].shape[1]])
        )
    reports = [
        tamis.sparsify_(m, method, data=DATA, targets=names, format="bitmap") for m in models
    ]
    assert reports[0].metrics["experts_without_tokens"] == 1
    assert "experts_without_tokens" not in reports[1].metrics
    kept = [m.get_submodule(names[0]).weight.to_dense() for m in models]
    assert float(kept[0].count_nonzero()) > 0
    assert torch.equal(kept[0] != 0, kept[1] != 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["wanda", "gqsa"])
def test_padding_counts_for_no_expert(kind, method):
    """Whatever the padding holds, and as if the shorter row were a sample of its own."""
    mask = torch.ones_like(IDS)
    mask[1, 25:] = 0
    padded = [IDS.masked_fill(mask == 0, i) for i in (5, 50)]
    samples = [[{"input_ids": ids, "attention_mask": mask}] for ids in padded]
    samples.append([{"input_ids": IDS[:1]}, {"input_ids": IDS[1:, :25]}])
    models = [make(kind) for _ in samples]
    options = {} if method == "gqsa" else {"format": "bitmap", "sparsity": 0.75}
    for model, data in zip(models, samples, strict=True):
        report = tamis.sparsify_(model, method, data=data, **options)
        assert report.metrics["calibration_tokens"] == 65
    one, same, alone = (dict(model.named_modules()) for model in models)
    for name, layer in one.items():
        if isinstance(layer, SparseLinear):
            kept = [x[name].weight.to_dense() for x in (one, same, alone)]
            torch.testing.assert_close(kept[0], kept[1], msg=name)
            if method == "wanda":
                assert float(((kept[0] != 0) != (kept[2] != 0)).float().mean()) < 0.01, name


def test_statistics_of_the_others_are_the_mean_over_all_their_tokens():
    names = [f"m.each.{e}.up" for e in range(3)]
    linears = {name: nn.Linear(4, 4) for name in (*names, "other")}
    collector = Collector(nn.Module(), linears, frozenset({"hessian"}))
    x = torch.randn(7, 4)
    with collector.watching():
        linears[names[0]](x[:2])
        linears[names[2]](x[2:])
        linears["other"](100 * x)
    stats = collector.stats()
    assert [stats[name].tokens for name in names] == [2, 0, 5]
    torch.testing.assert_close(stats[names[1]].hessian, (x.T @ x / 7).double())


def test_what_fails_leaves_the_stacks(tmp_path, monkeypatch):
    model = make("mixtral")
    modules, state = list(model.modules()), copy.deepcopy(model.state_dict())
    monkeypatch.setattr(rewrite, "_commit", lambda *_: {}["full disk"])
    with pytest.raises(KeyError, match="full disk"):
        tamis.sparsify_(model, "wanda", data=DATA)
    monkeypatch.undo()
    assert list(model.modules()) == modules
    assert all(torch.equal(a, state[n]) for n, a in model.state_dict().items())
    tamis.sparsify_(model, "magnitude", format="bitmap")
    tamis.save(model, tmp_path / "saved")
    with pytest.raises(TamisUnsupported, match=r"experts stored one by one.*tamis\.export"):
        tamis.convert(tmp_path / "saved", tmp_path / "dense", format="dense")
    tamis.convert(tmp_path / "saved", tmp_path / "csr", format="csr")
    assert near(tamis.load(tmp_path / "csr"), logits(model))


def test_layers_live_like_others():
    model = make("mixtral")
    called = []
    model.model.layers[0].mlp.experts.register_forward_hook(lambda *_: called.append(1))
    tamis.sparsify_(model, "magnitude", format="bitmap")
    wanted = logits(model)
    assert called == [1]
    assert "4 experts of MixtralExperts" in repr(model)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), wanted)
    experts = experts_of(model)["model.layers.1.mlp.experts"]
    assert repr(pickle.loads(pickle.dumps(experts))) == repr(experts)
    model.train()
    model(IDS, labels=IDS).loss.backward()
    kept = [m.weight_values for m in experts.modules() if isinstance(m, SparseLinear)]
    assert len(kept) == 8
    assert all(values.grad is not None and bool((values.grad != 0).any()) for values in kept)
    rows = [row for row in tamis.explain(make("mixtral")).layers if ".each." in row.name]
    assert len(rows) == 3 * 4 * 2
