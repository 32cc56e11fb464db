"""tamis eval-kv: tasks whose answers are in their contexts, scores, files and the command."""

import json
import warnings

import pytest
import torch

transformers = pytest.importorskip("transformers")

from tamis import cli, kv, kv_eval, kv_scores, kv_tasks  # noqa: E402
from tamis.errors import TamisFileError, TamisUnsupported, TamisValueError  # noqa: E402
from tamis.evaluate import cache_argument, decode_speed  # noqa: E402
from tamis.kv_tasks import Session, Turn  # noqa: E402

PROSE = "The quick brown fox jumps over the lazy dog near the river bank today. " * 30


def words(text):
    return len(text.split())


def sessions(task, **options):
    return kv_tasks.make_sessions(task, words, tokens=300, text=PROSE, **options)


@pytest.mark.parametrize("task", kv_tasks.TASKS)
def test_sessions_repeat_and_have_their_length(task):
    found = sessions(task)
    assert found == sessions(task)
    assert found != sessions(task, seed=1)
    assert len(found) == 2
    for session in found:
        assert 300 <= words(session.context) < 330
        assert len(session.turns) == 3


@pytest.mark.parametrize("task", ["needle", "kv"])
def test_each_answer_stands_in_the_context_once(task):
    for session in sessions(task):
        for turn in session.turns:
            line = turn.question.splitlines()[-1].split(": ")[-1] + turn.answer
            assert session.context.count(line) == 1


def test_numbers_and_variables_follow_from_the_context():
    for session in sessions("numbers", sessions=5):
        numbers = sorted(int(x) for x in session.context.split("\n")[1:-1])
        assert int(session.turns[0].answer) == numbers[-1]
        assert int(session.turns[1].answer) == numbers[len(numbers) // 2]
    for session in sessions("variables", sessions=5):
        held = {}
        for line in session.context.splitlines()[1:]:
            name, _, value = line.removeprefix("Set ").rstrip(".").partition(" = ")
            held[name] = held.get(value, value)
        for turn in session.turns:
            assert held[turn.question.split()[-2]] == turn.answer.strip()


def test_lines_and_labels_follow_from_the_context():
    for session in sessions("prefix_suffix", sessions=5):
        for turn in session.turns:
            begin = turn.question.split(": ")[-1]
            assert session.context.count(f"\n{begin}{turn.answer}\n") == 1
    for session in sessions("many_shot", sessions=5):
        labels = dict(zip(*[iter(session.context.split("\n")[1:-1])] * 2, strict=True))
        assert len(set(labels.values())) == 3
        for turn in session.turns:
            assert f"Label:{turn.answer}" in labels.values()
            assert turn.question.split("\n")[1] not in labels


def test_bad_tasks_and_files_get_one_sentence(tmp_path):
    with pytest.raises(TamisValueError, match="got 'nothing', wanted one of needle"):
        sessions("nothing")
    with pytest.raises(TamisValueError, match="got 5, wanted at least"):
        kv_tasks.make_sessions("kv", words, tokens=5)
    file = tmp_path / "kv.jsonl"
    for text, message in (
        ("", "without a session"),
        ("{", "line 1"),
        ("[]", "line 1"),
        ('{"context": "a", "multi_turns": []}', "no context or no turns"),
        ('{"context": 3, "multi_turns": [{"input": "a", "answer": "b"}]}', "no context"),
        ('{"context": "a", "multi_turns": [{"input": "a"}]}', "'answer'"),
        ('{"context": "a", "multi_turns": [{"input": "a", "answer": {}}]}', "is no text"),
        ("[" * 100000, "line 1"),
    ):
        file.write_text(text)
        with pytest.raises(TamisFileError, match=message) as found:
            kv_tasks.read_sessions(file)
        assert "\n" not in str(found.value)
    with pytest.raises(TamisFileError, match="none.jsonl"):
        kv_tasks.read_sessions(tmp_path / "none.jsonl")


def test_scbench_files_are_read(tmp_path):
    item = {
        "id": 0,
        "context": "It was in Rome.",
        "multi_turns": [{"input": "Where?", "answer": ["Rome", "x"]}, {"input": "n?", "answer": 4}],
    }
    file = tmp_path / "scbench_kv.jsonl"
    file.write_text(json.dumps(item) + "\n\n" + json.dumps(item) + "\n")
    turns = (Turn("\nWhere?\n", " Rome"), Turn("\nn?\n", " 4"))
    assert kv_tasks.read_sessions(file) == [Session("scbench_kv", "It was in Rome.\n", turns)] * 2
    assert len(kv_tasks.read_sessions(file, limit=1)) == 1


class Letters:
    """A tokenizer of bytes."""

    def __call__(self, text, return_tensors=None, add_special_tokens=True):
        return {"input_ids": torch.tensor([[b % 250 + 1 for b in text.encode()]])}


@pytest.fixture(scope="module")
def model(tiny_model):
    torch.manual_seed(3)
    found = transformers.AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    for p in found.parameters():
        p.data *= 3
    return found


def test_caches_that_lose_nothing_score_alike(model):
    session = Session("x", "ab cd " * 20, (Turn("q1", "abc"), Turn("q2", "d"), Turn("q1", "abc")))
    cases = [kv_eval.parse_case(c) for c in ("full", "h2o:240", "quest:240", "kivi4", "snapkv:0.5")]
    seen = []
    scores = kv_eval.evaluate(
        model, Letters(), [session], cases, progress=lambda *a: seen.append(a)
    )
    assert seen == [(1, 1)]
    assert len(scores) == 5 * 2 * 3
    held = {}
    for s in scores:
        held.setdefault(s.case, []).append((s.mode, s.turn, s.right, s.share))
    assert held["full"] == held["h2o:240"] == held["quest:240"]
    shared = [x for x in held["full"] if x[0] == "shared"]
    assert shared[0][2:] == shared[2][2:]  # the same question from the same context
    share = {s.case: s.bytes_share for s in scores}
    assert share["full"] == 2.0  # f32
    assert share["kivi4"] < 1.3 < share["h2o:240"]
    assert abs(share["snapkv:0.5"] - 2 * 64 / 120) < 0.1
    rows = kv_scores.summary(scores)
    assert [row["cache"] for row in rows] == [str(c) for c in cases]
    assert len(kv_scores.table_rows(rows)) == 6
    assert kv_scores.plot(rows).count("<circle") == 5
    json.dumps(kv_scores.to_dict(scores))


def test_every_attention_meets_every_cache(model, tmp_path):
    """A window over everything is dense attention; narrow ones and subsets are other answers."""
    spans = kv.calibrate(
        model, ["a b c d " * 40], "spans", tokenizer=Letters(), lengths=(64, 128), block=16
    )
    spans.save(tmp_path / "spans.json")
    names = ["dense", "a_shape:256", "a_shape:64", "tri_shape:64", "zipvl_sparse", "s2"]
    names.append(f"moa:{tmp_path}/spans.json")
    attentions = [kv_eval.parse_attention(name) for name in names]
    session = Session("x", "ab cd ef gh " * 20, (Turn("q1", "abc"), Turn("q2", "d")))
    cases = [kv_eval.parse_case(c) for c in ("full", "kivi4")]
    ticks = []
    scores = kv_eval.evaluate(
        model, Letters(), [session], cases, modes=("shared",), attentions=attentions,
        progress=lambda *a: ticks.append(a),
    )  # fmt: skip
    assert ticks[-1] == (7, 7)
    rows = kv_scores.summary(scores)
    assert len(rows) == 14
    assert [row["attention"] for row in rows[::2]] == [*names[:-1], "moa"]
    held = {(s.attention, s.case, s.turn): (s.right, s.share) for s in scores}
    for turn in (1, 2):
        assert held["dense", "full", turn] == held["a_shape:256", "full", turn]
    svg = kv_scores.plot(rows)
    assert svg.count("<circle") == 14
    assert len({part.split('"')[0] for part in svg.split('r="5" fill="')[1:]}) > 4


@pytest.mark.parametrize("name", ["zipvl_sparse", "s2", "a_shape:64", "tri_shape:64"])
def test_a_sparse_prompt_has_other_keys_than_a_dense_one(model, name):
    ids = torch.randint(1, 250, (1, 220))
    with kv.attach(model), torch.no_grad():
        dense, sparse, again = (
            kv_eval._Context(model, ids, kv_eval.parse_attention(n)).layers
            for n in ("dense", name, name)
        )
    keys = [[x.store.rows["keys"].view for x in layers] for layers in (dense, sparse, again)]
    assert torch.equal(keys[0][0], keys[1][0])  # the first layer's come before any attention
    assert name == "s2" or not torch.equal(keys[0][1], keys[1][1])
    assert torch.equal(keys[1][1], keys[2][1])
    assert keys[1][1].shape == keys[0][1].shape  # nothing was evicted


def test_a_filled_cache_is_one_that_saw_the_prompt(model):
    ids = torch.randint(1, 250, (1, 90))
    with kv.attach(model), torch.no_grad():
        context = kv_eval._Context(model, ids)
        for method, budget in (("kivi4", None), ("h2o", 48), ("double_sparsity", 32)):
            mine, other = (kv.Cache(model.config, method, budget=budget) for _ in range(2))
            context.fill(mine)
            model(ids, cache=other)
            a, b = (model(ids[:, :1], cache=c).logits for c in (mine, other))
            assert torch.equal(a, b)
            assert mine.report() == other.report()


@pytest.mark.parametrize("sparse", [False, True])
def test_caches_together_are_caches_alone(model, sparse):
    """Row i of a batch is what cache i alone would be, prompt, question and steps."""
    methods = [("full", None), ("kivi4", None), ("h2o", 48), ("quest", 32), ("ems", 48)]
    methods += [("zipvl_sparse", None), ("s2", None)] if sparse else []
    prompt = torch.randint(1, 250, (1, 100))
    parts = [prompt, *(torch.randint(1, 250, (1, n)) for n in (1, 7, 1))]
    made = [[kv.Cache(model.config, m, budget=b) for m, b in methods] for _ in range(2)]
    with kv.attach(model), torch.no_grad():
        both = kv.Together(model.config, made[0])
        for ids in parts:
            rows = model(ids.expand(len(methods), -1), cache=both).logits
            for i, cache in enumerate(made[1]):
                alone = model(ids, cache=cache).logits[0]
                torch.testing.assert_close(rows[i], alone, rtol=1e-3, atol=1e-3)
        for cache, other in zip(*made, strict=True):
            assert cache.report() == other.report()
            assert cache.get_seq_length() == 109
        with pytest.raises(TamisValueError, match="got 1 sequences, wanted"):
            model(parts[1], cache=both)
        made[0][0].crop(-1)
        with pytest.raises(TamisValueError, match=r"got lengths \[108, 109\]"):
            kv.Together(model.config, made[0])
    kinds = ["sliding_attention", "full_attention"]
    gemma = transformers.Gemma3TextConfig(num_hidden_layers=2, layer_types=kinds)
    with pytest.raises(TamisUnsupported, match="one after another"):
        kv.Together(gemma, [kv.Cache(gemma, "full")])


def test_a_cache_is_passed_by_the_name_that_the_model_takes(model):
    """No warning of transformers' about the other one."""

    class Older(torch.nn.Module):
        def forward(self, input_ids, past_key_values=None):
            return input_ids

    assert cache_argument(Older()) == "past_key_values"
    assert cache_argument(model) in ("cache", "past_key_values")
    session = Session("x", "ab cd " * 20, (Turn("q1", "abc"),))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        kv_eval.evaluate(model, Letters(), [session], [kv_eval.parse_case("kivi4")])
        decode_speed({"a": model}, [1, 2, 3], new_tokens=2, burst=1)


def test_bad_cases_get_one_sentence(model):
    for text in ("full:0", "full:x", "quest:-1", "quest:1.5"):
        with pytest.raises(TamisValueError, match="METHOD:TOKENS"):
            kv_eval.parse_case(text)
    with pytest.raises(TamisValueError, match="wanted one of"):
        kv_eval.parse_case("nothing")
    for text, words in {
        "snapkv": "wanted a budget, as in snapkv:0.25",
        "moa": "wanted none that wants a plan",
        "kivi4:64": "wanted none: this method keeps and reads every token",
        "h2o:0.5": None,
        "quest": None,
    }.items():
        if words is None:
            kv_eval.parse_case(text)
            continue
        with pytest.raises(TamisValueError, match=words):
            kv_eval.parse_case(text)
    for text in ("a_shape", "a_shape:0", "a_shape:65", "a_shape:x", "kivi4", "moa", "s2:x", ""):
        with pytest.raises(TamisValueError, match="wanted") as found:
            kv_eval.parse_attention(text)
        assert "\n" not in str(found.value)
    with pytest.raises(TamisFileError, match="nowhere"):
        kv_eval.parse_attention("moa:nowhere.json")
    case, turn = kv_eval.parse_case("full"), Turn("a", "b")
    for session, modes, message in (
        (Session("x", "a", (turn,)), ("none",), "modes: got"),
        (Session("x", "a" * 300, (turn,)), ("turns",), "got 300 tokens, wanted at most the 256"),
    ):
        with pytest.raises(TamisValueError, match=message):
            kv_eval.evaluate(model, Letters(), [session], [case], modes=modes)


def test_the_command(tiny_model, tmp_path, capsys):
    plot = tmp_path / "plot.svg"
    line = ["eval-kv", str(tiny_model), "--tasks", "kv", "--tokens", "80", "--sessions", "1"]
    line += ["--turns", "1", "--caches", "full", "kivi4", "--plot", str(plot)]
    line += ["--attention", "dense", "a_shape:64"]
    assert cli.main(line) == 0
    out = capsys.readouterr().out
    assert "shared/kv" in out
    assert "kivi4" in out
    assert plot.read_text().count("<circle") == 4
    file = tmp_path / "mine.jsonl"
    item = {"context": "a b", "multi_turns": [{"input": "c", "answer": "d"}]}
    file.write_text(json.dumps(item))
    assert cli.main([*line[:2], "--data", str(file), "--caches", "full", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scores"][0]["task"] == "mine"
    assert cli.main([*line[:2], "--caches", "full:x"]) == 1
    assert "METHOD:TOKENS" in capsys.readouterr().err
    assert cli.main([*line[:2], "--data", str(tmp_path / "none")]) == 1
    assert "wanted a UTF-8 file" in capsys.readouterr().err
