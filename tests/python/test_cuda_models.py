"""What takes a whole model, of one that lies on a CUDA device, beside the same one in host memory."""

import copy

import pytest
import torch
import transformers
from host import needs_device

from tamis import activation, evaluate, kv, kv_eval, kv_tasks

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 97,
    "max_position_embeddings": 256,
}
TEXTS = [list(range(3, 67)), list(range(70, 6, -1))]


class Letters:
    """A tokenizer: each letter a token."""

    eos_token_id = 2

    def __call__(self, text: str, return_tensors: str = "", **_: object) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([[ord(letter) % 90 + 3 for letter in text]])}

    def decode(self, ids: torch.Tensor, **_: object) -> str:
        return " ".join(map(str, ids.tolist()))


@pytest.fixture(scope="module")
def both() -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    return model, copy.deepcopy(model).cuda()


@needs_device
@pytest.mark.parametrize(
    ("kind", "options"), [("channels", {}), ("ranks", {}), ("spans", {"block": 8})]
)
def test_plans_of_caches(both, kind, options):
    here, there = (kv.calibrate(m, TEXTS, kind, max_length=64, **options) for m in both)
    assert here.layers.keys() == there.layers.keys()
    if kind != "channels":  # whose order hangs on the last bit
        assert here.layers == there.layers


@needs_device
@pytest.mark.parametrize("method", ["cats", "chess", "teal", "wina"])
def test_thresholds(both, method):
    here, there = (
        activation.calibrate(m, method, sparsity=0.5, data=TEXTS).thresholds for m in both
    )
    assert here.keys() == there.keys()
    for name, threshold in here.items():
        assert threshold.bound == pytest.approx(there[name].bound, rel=0.02)


@needs_device
def test_evaluations(both):
    here, there = (evaluate.perplexity(m, TEXTS[0], window=32, windows=2) for m in both)
    assert here == pytest.approx(there, rel=1e-3)
    speeds = evaluate.decode_speed({"there": both[1]}, TEXTS[0][:9], new_tokens=4, burst=2)
    assert len(speeds["there"].ids) >= 4
    here, there = (evaluate.generate_text(m, Letters(), "sieve", 6) for m in both)
    assert here == there
    session = kv_tasks.Session("x", "ab cd " * 5, (kv_tasks.Turn("q1", "abc"),))
    half = copy.deepcopy(both[1]).bfloat16()
    assert kv_eval.evaluate(half, Letters(), [session], [kv_eval.parse_case("full")])
