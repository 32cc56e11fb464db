"""The command line on a tiny random model: what it prints, writes and refuses, and its exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tamis  # noqa: E402
from tamis import cli, demo, evaluate, source  # noqa: E402


@pytest.fixture(scope="session")
def tiny(tiny_model: Path) -> Path:
    return tiny_model


@pytest.fixture(scope="session")
def pruned(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "pruned"
    assert cli.main(["prune", str(tiny), "--out", str(out), *SMALL, "--dtype", "f32"]) == 0
    return out


SMALL = ["--samples", "2", "--max-length", "64"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def test_prune_saves_what_it_reports(tiny, tmp_path, capsys):
    out, page = tmp_path / "out", tmp_path / "r.html"
    status, text, _ = run(
        capsys, "prune", str(tiny), "--out", str(out), "--pattern", "2:4", "--method", "sparsegpt",
        "--report", str(page), "--json", *SMALL,
    )  # fmt: skip
    assert status == 0
    report = json.loads(text)
    assert len(report["layers"]) == 14
    model = tamis.load(out)
    sparse = {n: m for n, m in model.named_modules() if isinstance(m, tamis.nn.SparseLinear)}
    assert set(sparse) == {layer["name"] for layer in report["layers"]}
    for layer in report["layers"]:
        weight = sparse[layer["name"]].weight.to_dense()
        assert layer["shape"] == list(weight.shape)
        groups = (weight != 0).reshape(-1, 4).sum(1)
        assert int(groups.max()) == 2
        assert layer["sparsity"] == pytest.approx(0.5)
    assert "<svg" in page.read_text()
    assert (out / "tokenizer.json").is_file()


def test_prune_refuses_a_folder_in_use_before_any_work(tiny, tmp_path, capsys):
    (tmp_path / "note.txt").write_text("mine")
    status, out, err = run(capsys, "prune", str(tiny), "--out", str(tmp_path), *SMALL)
    assert (status, out) == (1, "")
    assert "--force" in err
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


def test_force_replaces_a_model_and_nothing_else(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "note.txt").write_text("mine")
    again = ["prune", str(tiny), "--out", str(out), "--force", "--method", "magnitude", *SMALL]
    assert run(capsys, *again)[0] == 1
    assert (out / "note.txt").read_text() == "mine"
    (out / "config.json").write_text("{}")
    assert run(capsys, *again)[0] == 0
    assert not (out / "note.txt").exists()
    assert tamis.load(out) is not None


def test_optimize_adds_the_measured_report(tiny, tmp_path, capsys):
    status, out, _ = run(
        capsys, "prune", str(tiny), "--out", str(tmp_path / "out"), "--method", "magnitude",
        "--optimize", "bytes", "--json", *SMALL,
    )  # fmt: skip
    assert status == 0
    first, second = json.loads(out)["parts"]
    assert len(first["layers"]) == 14
    now = {layer["name"]: layer["nbytes"] for layer in second["layers"]}
    assert all(now[layer["name"]] <= layer["nbytes"] for layer in first["layers"])


def test_eval_equals_the_library(pruned, tmp_path, capsys):
    text = tmp_path / "t.txt"
    text.write_text("the quick brown fox jumps over the lazy dog; " * 20)
    status, out, _ = run(
        capsys, "eval", str(pruned), "--text", str(text), "--window", "32", "--windows", "3",
        "--generate", "the", "--tokens", "4", "--json",
    )  # fmt: skip
    assert status == 0
    metrics = json.loads(out)["metrics"]
    opened = source.open_model(str(pruned))
    ids = opened.tokenizer(text.read_text())["input_ids"][: 3 * 32]
    want = reference_perplexity(opened.model, ids, 32)
    assert metrics["perplexity"] == pytest.approx(want, rel=1e-6)
    assert 1e7 < metrics["peak_rss_bytes"] < 1e11
    assert len(metrics["text"]) <= 4


def reference_perplexity(model, ids, window):
    """exp of the mean over predicted tokens, in float64, one window at a time."""
    losses = []
    for start in range(0, len(ids) - window + 1, window):
        row = torch.tensor([ids[start : start + window]])
        with torch.no_grad():
            logits = model(row).logits[0].double()
        logp = logits - torch.logsumexp(logits, -1, keepdim=True)
        losses += [-logp[t, row[0, t + 1]].item() for t in range(window - 1)]
    return float(torch.tensor(losses, dtype=torch.float64).mean().exp())


def test_explain_lists_every_linear(pruned, capsys):
    status, out, _ = run(capsys, "explain", str(pruned), "--json")
    assert status == 0
    layers = {layer["name"]: layer for layer in json.loads(out)["layers"]}
    assert set(layers) >= {f"model.layers.{i}.mlp.up_proj" for i in (0, 1)} | {"lm_head"}
    up = layers["model.layers.0.mlp.up_proj"]
    assert up["format"] == "bitmap f32"
    assert up["nbytes"] < up["dense_nbytes"]
    assert up["kernel"].startswith("spmm_bitmap_f32_f32_")
    assert up["measured_ms"] > 0
    assert up["dense_ms"] > 0
    assert up["memory_limit"] > 0


def test_bench_takes_the_first_as_reference(tiny, pruned, capsys):
    status, out, _ = run(
        capsys, "bench", str(pruned), "--dense", str(tiny), "--tokens", "8", "--prompt", "the",
        "--json",
    )  # fmt: skip
    assert status == 0
    dense, sparse = json.loads(out)["variants"]
    fused = json.loads(out)["metrics"][f"{pruned}: fused for decoding"]
    assert fused == "2 of 2 layers, one call a token"
    assert (dense["name"], dense["speed"]) == (str(tiny), 1.0)
    assert sparse["speed"] == pytest.approx(sparse["tokens_per_s"] / dense["tokens_per_s"])


def test_convert_makes_a_stock_dense_folder(pruned, tmp_path, capsys):
    status, _, _ = run(capsys, "convert", str(pruned), str(tmp_path / "d"), "--format", "dense")
    assert status == 0
    dense = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "d")
    want = tamis.load(pruned).get_submodule("model.layers.1.mlp.down_proj").weight.to_dense()
    assert torch.equal(dense.get_submodule("model.layers.1.mlp.down_proj").weight, want)


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", "x", "--out", "y", "--sparsity", "1.0"],
        ["prune", "x", "--out", "y", "--sparsity", "-0.1"],
        ["prune", "x", "--out", "y", "--pattern", "2-4"],
        ["prune", "x", "--out", "y", "--pattern", "3:2"],
        ["prune", "x", "--out", "y", "--pattern", "vector:0"],
        ["prune", "x", "--out", "y", "--pattern", "block:0x4"],
        ["prune", "x", "--out", "y", "--method", "nosuch"],
        ["prune", "x"],
        ["bench", "x", "--tokens", "0"],
        ["frobnicate"],
        [],
    ],
)
def test_wrong_usage_is_status_2(arguments, capsys):
    try:
        status = cli.main(arguments)
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert "usage: tamis" in err


@pytest.mark.parametrize(
    ("option", "wanted"),
    [("--sparsity", "0 up to but not 1"), ("--samples", "at least 1"), ("--windows", "0 or more")],
)
def test_what_is_no_number_is_told_as_one_out_of_range(option, wanted, capsys):
    command = "demo" if option == "--windows" else "prune"
    with pytest.raises(SystemExit):
        cli.main([command, option, "half"])
    assert f"argument {option}: got half, wanted {wanted}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prune", "nowhere", "--out", "y"], ["nowhere", "smollm2"]),
        (["eval", "nowhere"], ["nowhere"]),
        (["explain", "."], ["config.json"]),
        (["eval", "{tiny}", "--text", "nowhere.txt"], ["nowhere.txt"]),
        (["prune", "{tiny}", "--out", "y", "--targets", "nosuch", *SMALL], ["targets", "nosuch"]),
        (["prune", "{tiny}", "--out", "y", "--data", "{short}", *SMALL], ["tokens", "64"]),
        (["eval", "{tiny}", "--text", "{short}"], ["window", "512"]),
        (["convert", "{tiny}", "{short}"], ["folder"]),
        (["convert", "{tiny}", "{tiny}"], ["DST", "not empty", "--force"]),
        (["convert", "smollm2", "y"], ["GGUF", "tamis prune"]),
        (["bench", "{tiny}", "nowhere"], ["nowhere"]),
        (["eval-kv", "{tiny}", "--caches", "snapkv"], ["snapkv:0.25"]),
    ],
)
def test_failures_are_status_1_and_one_sentence(arguments, words, tiny, tmp_path, capsys):
    short = tmp_path / "short.txt"
    short.write_text("few words")
    arguments = [a.format(tiny=tiny, short=short) for a in arguments]
    if "y" in arguments:
        arguments[arguments.index("y")] = str(tmp_path / "y")
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("tamis: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    for word in words:
        assert word in err
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize("family", ["Llama", "GPTNeoX"])
def test_a_folder_without_tokenizer_says_so_once(family, tmp_path, capsys):
    # transformers makes a GPT-NeoX tokenizer of no tokens of the model's name alone.
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    config = getattr(transformers, f"{family}Config")(**small, intermediate_size=32)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(tmp_path / "bare")
    status, _, err = run(capsys, "prune", str(tmp_path / "bare"), "--out", str(tmp_path / "out"))
    assert status == 1
    assert "whose tokenizer cannot be read (" in err
    assert err.count("open_model") == 1


def test_log_level_debug_shows_the_traceback():
    run_ = subprocess.run(
        [sys.executable, "-m", "tamis", "eval", "nowhere"],
        env={**os.environ, "TAMIS_LOG": "debug"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run_.returncode == 1
    assert "Traceback" in run_.stderr


def test_help_and_refusals_import_nothing_heavy():
    code = (
        "import sys; from tamis import cli\n"
        "try: cli.main(['prune', '--help'])\n"
        "except SystemExit: pass\n"
        "cli.main(['prune', 'nowhere', '--out', 'y'])\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    run_ = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run_.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments", [["eval-kv", "{tiny}", "--caches", "snapkv"], ["bench", "{tiny}", "--tokens", "1"]]
)
def test_bars_of_libraries_stay_away_where_nobody_watches(arguments, tiny):
    code = "import sys; from tamis import cli; cli.main(sys.argv[1:]); from tqdm.auto import tqdm"
    code += "; sys.exit(not tqdm(range(1)).disable)"
    arguments = [a.format(tiny=tiny) for a in arguments]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, check=False
    )
    assert done.returncode == 0


def test_measuring_asks_for_its_folder_first(tmp_path, monkeypatch, capsys):
    (tmp_path / "tamis").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("tamis.ops.machine._measured", lambda say: pytest.fail("measured"))
    status, _, err = run(capsys, "info", "--measure")
    assert status == 1
    assert "set XDG_CACHE_HOME" in err
    assert err.count("\n") == 1


def test_an_interrupted_measurement_changes_no_figure(tmp_path, monkeypatch, capsys):
    from tamis import _C
    from tamis.ops import machine

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ours = {**_C.machine(), "read_one": 3.25}
    machine.write(machine.file(), json.dumps({"key": machine.key(), "figures": ours}))
    machine.load.cache_clear()
    machine.load()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(machine, "_measure_kernels", stop)
    monkeypatch.setattr(machine, "cold_bytes", lambda: 1 << 20)
    try:
        assert run(capsys, "info", "--measure")[0] == 130
        assert _C.machine()["read_one"] == 3.25
    finally:
        _C.set_machine(None)
        machine.load.cache_clear()


def test_info_lists_every_kernel_level(capsys):
    status, out, _ = run(capsys, "info", "--json")
    assert status == 0
    names = {kernel["name"] for kernel in json.loads(out)["kernels"]}
    assert names == {kernel["name"] for kernel in tamis.kernels()}
    status, out, _ = run(capsys, "info")
    assert status == 0
    assert "bitmap" in out
    assert "scalar" in out


def test_decode_speed_writes_what_generate_writes(tiny):
    opened = source.open_model(str(tiny), dtype="f32")
    ids = opened.tokenizer("some words")["input_ids"]
    both = evaluate.decode_speed({"a": opened.model, "b": opened.model}, ids, new_tokens=6, burst=3)
    want = opened.model.generate(
        torch.tensor([ids]), max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=256
    )[0, len(ids) :]
    assert both["a"].ids == both["b"].ids == tuple(want.tolist())
    assert both["a"].tokens_per_s > 0


def test_demo_compares_dense_with_each_run(tiny, tmp_path):
    lines: list[str] = []
    settings = demo.Settings(
        model=str(tiny), out=tmp_path / "out", samples=2, max_length=64, window=32, windows=2,
        new_tokens=4, log=lines.append,
    )  # fmt: skip
    runs = (demo.Run("magnitude 50 %", "magnitude", 0.5, "unstructured"),)
    report = demo.demo(settings, runs)
    dense, sparse = report.variants
    assert (dense.name, sparse.name) == ("dense", "magnitude 50 %")
    assert dense.speed == 1.0
    assert sparse.linear_nbytes < dense.linear_nbytes
    assert sparse.peak_rss > 0
    assert dense.perplexity > 1
    assert len(report.parts[0].layers) == 14
    assert "magnitude 50 %" in (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["variants"][1]["text"]
    assert sum("done in" in line for line in lines) == 5


@pytest.mark.parametrize("folder", ["dense", "wanda-50"])
def test_demo_leaves_folders_alone_that_hold_no_model(folder, tiny, tmp_path, capsys):
    mine = tmp_path / folder / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    status, _, err = run(capsys, "demo", str(tiny), "--out", str(tmp_path))
    assert status == 1
    assert "which holds no model" in err
    assert err.count("\n") == 1
    assert mine.read_text() == "years of work"
