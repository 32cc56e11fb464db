"""Bad input to the public functions: one sentence that says what was wanted, and nothing changed."""

import copy
import multiprocessing

import numpy as np
import pytest

import tamis

torch = pytest.importorskip("torch")
from sentences import refuses  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

from tamis.errors import (  # noqa: E402
    TamisFileError,
    TamisTypeError,
    TamisUnsupported,
    TamisValueError,
)
from tamis.train import MaskGuard  # noqa: E402

W = np.where(np.arange(32 * 64).reshape(32, 64) % 3, 1.5, 0).astype(np.float32)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))


# compress and SparseMatrix


def test_scipy_indices_outside_the_matrix_are_refused():
    sparse = pytest.importorskip("scipy.sparse")
    for name, value in (("indices", 1000), ("indptr", 10**6), ("indptr", -5)):
        a = sparse.csr_matrix(W)
        setattr(a, name, getattr(a, name).copy())
        getattr(a, name)[1] = value
        refuses(lambda a=a: tamis.compress(a), TamisValueError, "W: got a damaged csr matrix")


def test_torch_indices_outside_the_matrix_are_refused():
    values = torch.ones(2)
    for offsets, columns in (([0, 1, 2], [0, 9]), ([0, 9, 2], [0, 1]), ([0, 1, 2], [0, -1])):
        a = torch.sparse_csr_tensor(offsets, columns, values, (2, 4), check_invariants=False)
        refuses(lambda a=a: tamis.compress(a), TamisValueError, "W: got a damaged csr matrix")


def test_tensors_that_compress_cannot_read_are_named():
    hybrid = torch.sparse_coo_tensor([[0, 1]], torch.ones(2, 3), (2, 3))
    for w in (hybrid, torch.ones(4, 4).to_sparse_bsc((2, 2)), torch.ones(4, 4, device="meta")):
        refuses(lambda w=w: tamis.compress(w), TamisTypeError, "compress: W: got", "to_dense()")


def test_masked_arrays_are_refused_and_byte_orders_read():
    masked = np.ma.masked_array(W, W > 1)
    refuses(lambda: tamis.compress(masked), TamisTypeError, "masked array")
    np.testing.assert_array_equal(tamis.compress(W.astype(">f4")).to_dense(), W)


def test_patterns_of_compress():
    for n_m in ((-2, 4), (0, 4), (5, 4), (2, 64)):
        refuses(lambda n_m=n_m: tamis.compress(W, n_m=n_m), TamisValueError, "compress: n_m")
    refuses(lambda: tamis.compress(W, block=(0, 4)), TamisValueError, "compress: block")
    assert tamis.compress(W, "block", block=(np.int64(4), 4)).layout.block == (4, 4)


def test_what_no_matrix_multiplies_or_holds():
    a = tamis.compress(torch.from_numpy(W))
    refuses(lambda: a @ torch.ones(64, 2).to_sparse(), TamisTypeError, "A @ X: X: got layout")
    refuses(lambda: tamis.SparseMatrix(None, a.arrays), TamisTypeError, "SparseMatrix: got None")
    refuses(lambda: tamis.SparseMatrix(a.layout, [1]), TamisTypeError, "SparseMatrix: got")
    refuses(lambda: tamis.nn.SparseLinear.from_matrix(None), TamisTypeError, "from_matrix: a")
    bias = torch.ones(32, dtype=torch.float64)
    refuses(lambda: tamis.nn.SparseLinear.from_matrix(a, bias), TamisTypeError, "float64")


# sparsify_ and the like


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"targets": [0]}, TamisTypeError, "targets"),
        ({"targets": 5}, TamisTypeError, "targets"),
        ({"ignore": None}, TamisTypeError, "ignore"),
        ({"filter_fn": 3}, TamisTypeError, "filter_fn"),
        ({"allocate": [0.5]}, TamisValueError, "allocate"),
        ({"allocate": {"0": "a"}}, TamisValueError, "'0'"),
        ({"sparsity": "0.5"}, TamisValueError, "sparsity"),
    ],
)
def test_sparsify_refuses_and_changes_nothing(options, kind, words):
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    refuses(lambda: tamis.sparsify_(model, "magnitude", **options), kind, words)
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert type(model[0]) is nn.Linear


def test_sparsify_takes_numbers_of_numpy():
    assert tamis.sparsify_(mlp(), "magnitude", sparsity=np.float32(0.5)).metrics["sparsity"] == 0.5


def test_layers_that_cannot_be_pruned_are_named():
    class Adapted(nn.Linear):
        pass

    refuses(
        lambda: tamis.sparsify_(nn.Sequential(Adapted(4, 4)), "magnitude"),
        TamisValueError,
        "its weights are in Adapted, which may do more than nn.Linear",
    )
    refuses(lambda: tamis.sparsify_(nn.ReLU(), "magnitude"), TamisValueError, "pass a model")
    refuses(
        lambda: tamis.sparsify_(nn.Sequential(nn.Linear(0, 4)), "magnitude"),
        TamisValueError,
        "sparsify_: weight: got shape [4, 0] for 0, wanted",
    )


def test_samples_that_the_model_fails_on():
    for sample in (torch.ones(3, 63), [1, 2, 3]):
        model = mlp()
        refuses(
            lambda model=model, s=sample: tamis.sparsify_(model, "wanda", data=[s]),
            TamisValueError,
            "calibrate: data: got a sample on which Sequential fails",
        )
        assert type(model[0]) is nn.Linear


def test_layers_that_a_model_does_not_call_are_named():
    class Half(nn.Sequential):
        def forward(self, x):
            return self[0](x)

    refuses(
        lambda: tamis.sparsify_(Half(*mlp()), "wanda", data=[torch.ones(3, 64)]),
        TamisValueError,
        "calibrate: 2: got no tokens, wanted some: the model did not call it; pass more data or "
        "ignore=['2'].",
    )


def test_hooks_stay_with_the_layer():
    model = mlp()
    x = torch.ones(2, 64)
    handle = model[0].register_forward_hook(lambda module, args, out: out + 1)
    model[2].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    wanted = model(x)
    tamis.sparsify_(model, "magnitude", sparsity=0, format="bitmap")
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)
    tamis.dense_(model)
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)
    handle.remove()
    assert not torch.allclose(model(x), wanted, rtol=1e-3)


def test_weights_that_torch_prunes_are_what_is_stored():
    model = nn.Sequential(nn.Linear(64, 64))
    prune.l1_unstructured(model[0], "weight", 0.5)
    x = torch.ones(2, 64)
    wanted = model(x)
    tamis.sparsify_(model, "magnitude_layer", sparsity=0.5)
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("format", ["bitmap", "dense"])
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm, None])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_hooks_make_are_those_of_the_loaded_state(norm, format):
    """A state was loaded and no forward followed; what is pruned stays so in the next ones."""

    def made():
        model = nn.Sequential(nn.Linear(64, 64)).eval()
        if norm is None:
            prune.l1_unstructured(model[0], "weight", 0.3)
        else:
            norm(model[0])
        return model

    source, model, x = made(), made(), torch.randn(3, 64)
    name = "weight_g" if norm is nn.utils.weight_norm else "weight_orig"
    getattr(source[0], name).data.mul_(3)
    wanted = source(x)
    weight = source[0].weight.detach()
    keep = weight.abs() > weight.abs().flatten().kthvalue(64 * 32).values
    model.load_state_dict(source.state_dict())
    tamis.sparsify_(model, "magnitude_layer", sparsity=0.5, format=format)
    pruned = nn.functional.linear(x, weight * keep, source[0].bias)
    assert not torch.allclose(pruned, wanted, atol=1e-2)
    for _ in range(2):
        torch.testing.assert_close(model(x), pruned, rtol=1e-4, atol=1e-4)
    if format == "dense":
        assert type(model[0]) is nn.Linear
        assert isinstance(model[0].weight, nn.Parameter)
        model(x).sum().backward()
        assert model[0].weight.grad is not None


def test_weights_of_other_dtypes_are_refused():
    linear = nn.Linear(64, 64).requires_grad_(False)
    linear.weight = nn.Parameter(linear.weight.to(torch.float8_e4m3fn), requires_grad=False)
    model = nn.Sequential(linear)
    refuses(
        lambda: tamis.sparsify_(model, "magnitude"),
        TamisTypeError,
        "sparsify_: 0: got a weight on cpu of torch.float8_e4m3fn",
    )


def test_optimize_explain_permute_and_guard():
    model = mlp()
    refuses(lambda: tamis.optimize_(model, tokens=True), TamisValueError, "optimize_: tokens")
    refuses(lambda: tamis.optimize_(model, ignore="0"), TamisTypeError, "optimize_: ignore")
    refuses(lambda: tamis.explain(None), TamisTypeError, "explain: model")
    meta = mlp().to("meta")
    refuses(lambda: tamis.explain(meta, measure=True), TamisValueError, "explain: measure")
    for group in ("4", 4.5, 1):
        refuses(lambda g=group: tamis.permute_for_groups(model, g), TamisValueError, "group: got")
    refuses(
        lambda: tamis.permute_for_groups(model, 4, sparsity="a"), TamisValueError, "sparsity: got"
    )
    masks = {"0": torch.ones(128, 64, dtype=torch.bool)}
    refuses(lambda: MaskGuard(model, 3, masks=masks), TamisTypeError, "MaskGuard: optimizer")
    refuses(lambda: MaskGuard(model, masks={"0": [1]}), TamisValueError, "MaskGuard: 0")


# Files


def test_paths_that_are_none(tmp_path):
    for call in (
        lambda: tamis.save(mlp(), None),
        lambda: tamis.load(5),
        lambda: tamis.convert(None, tmp_path / "to"),
    ):
        refuses(call, TamisTypeError, "dir: got", "wanted a path")
    refuses(lambda: tamis.save(mlp(), tmp_path / ("x" * 300)), TamisFileError, "save: dir")


def test_a_device_that_is_not_there_fills_nothing(tmp_path):
    saved = mlp()
    tamis.sparsify_(saved, "magnitude")
    tamis.save(saved, tmp_path / "model")
    model = mlp()
    for device in ("nowhere", "cuda:77"):
        refuses(
            lambda d=device: tamis.load(tmp_path / "model", model=model, device=d),
            TamisValueError,
            "load: device",
        )
    assert type(model[0]) is nn.Linear


def _save_often(folder: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = mlp()
    tamis.sparsify_(model, "magnitude")
    for _ in range(8):
        tamis.save(model, folder, overwrite=True)


def test_two_processes_that_save_leave_one_whole_model(tmp_path):
    folder = tmp_path / "model"
    _save_often(str(folder), 0)
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_save_often, args=(str(folder), seed)) for seed in (1, 2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    tamis.load(folder, model=mlp())  # compares checksums
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_forwards_of_one_s_own_are_not_lost():
    model = mlp()
    own = model[0].forward
    model[0].forward = lambda x: own(x) * 2
    refuses(
        lambda: tamis.sparsify_(model, "magnitude"),
        TamisUnsupported,
        "sparsify_: 0: got a layer whose forward was replaced",
        "ignore=['0']",
    )
    tamis.sparsify_(model, "magnitude", format="bitmap", ignore=["0"])
    assert type(model[0]) is nn.Linear


def test_hooks_of_accelerate_go_along():
    hooks = pytest.importorskip("accelerate.hooks")

    class Twice(hooks.ModelHook):
        def pre_forward(self, module, x):
            return (x * 2,), {}

    model, x = mlp(), torch.ones(2, 64)
    wanted = model[2](model[1](model[0](x * 2)))
    hooks.add_hook_to_module(model[0], Twice())
    tamis.sparsify_(model, "magnitude", sparsity=0, format="bitmap")
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)
    tamis.dense_(model)
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)
    hooks.remove_hook_from_module(model, recurse=True)
    tamis.sparsify_(model, "magnitude", sparsity=0, format="bitmap")
    torch.testing.assert_close(model(x * 2), wanted, rtol=1e-4, atol=1e-4)


def test_offloaded_weights_are_refused():
    pytest.importorskip("accelerate")
    from accelerate import cpu_offload

    model, x = mlp(), torch.ones(2, 64)
    tamis.sparsify_(model, "magnitude", format="bitmap")
    wanted = model(x)
    cpu_offload(model, execution_device="cpu")
    for function in (tamis.dense_, tamis.optimize_):
        refuses(lambda f=function: f(model), TamisValueError, "on the meta device, wanted weights")
    torch.testing.assert_close(model(x), wanted)


def test_what_is_quoted_stays_on_one_line():
    refuses(
        lambda: tamis.sparsify_(mlp(), "magnitude", pattern=torch.ones(2, 2)),
        TamisValueError,
        "sparsify_: pattern: got tensor([[1., 1.], [1., 1.]]), wanted",
    )


def test_arguments_of_other_types_are_named():
    from tamis import kv

    model = mlp()
    tamis.sparsify_(model, "magnitude", format="dense")
    k = torch.ones(2, 1, 2, 64, 16)
    for call, sentence in (
        (lambda: tamis.optimize_(model, min_gain=None), "optimize_: min_gain: got None"),
        (lambda: tamis.optimize_(model, ignore=None), "optimize_: ignore: got None"),
        (lambda: tamis.optimize_(model, ignore=[None]), "optimize_: ignore: got [None]"),
        (lambda: MaskGuard(model, masks=0), "MaskGuard: masks: got int"),
        (lambda: kv.Tiers(folder=0, memory=1), "kv.Tiers: folder: got int"),
        (lambda: kv.store("kivi4", *k, plan=0), "kv: plan: got int"),
        (
            lambda: tamis.sparsify_(mlp(), "wanda", data=[5, 7]),
            "calibrate: data[0]: got one int, wanted a sequence of token ids",
        ),
    ):
        refuses(call, (TamisTypeError, TamisValueError), sentence)


def test_what_stands_on_the_wrong_side_or_in_a_wrong_dict():
    a = tamis.compress(W)
    for x in (W.T, torch.from_numpy(W.T.copy())):
        refuses(lambda x=x: x @ a, TamisTypeError, "X @ A: X: got", "(tamis.compress(W.T) @ X.T).T")
    wanted = "calibrate: data[0]['text']: got str, wanted a tensor or numbers"
    refuses(lambda: tamis.sparsify_(mlp(), "wanda", data=[{"text": "hi"}]), TamisTypeError, wanted)
