"""Graphs captured on one stream of a CUDA device, replayed beside each other and beside its calls."""

import copy
import time
import warnings
from collections.abc import Callable

import pytest
import torch
from host import needs_device
from torch import Tensor

import tamis
from tamis.ops import cuda_memory, cuda_packed
from tamis.ops.prefill import prefill_attention
from tamis.ops.sparse_mlp import sparse_mlp

Call = Callable[[], Tensor]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").bfloat16()


def product(tokens: int) -> Call:
    """Few rows and many columns, whose parts meet in the workspace."""
    w, x = normal(64, 16384), normal(tokens, 16384)
    w[torch.rand(w.shape, device="cuda") < 0.5] = 0
    a = tamis.compress(w, format="bitmap")
    return lambda: tamis.ops.spmm.spmm(x, a)


def attention(method: str, budget: int | None) -> Call:
    k, v, q = normal(1, 2, 8000, 64), normal(1, 2, 8000, 64), normal(1, 8, 1, 64)
    store = tamis.kv.store(method, k, v, budget=budget)
    return lambda: store.attend(q)


def neurons() -> Call:
    x, gate, up, down = normal(1, 512), normal(1536, 512), normal(1536, 512), normal(1536, 512).t()
    threshold = torch.full((1536,), 0.5, device="cuda")
    return lambda: sparse_mlp(x, gate, up, down, threshold, "silu")


def prompt() -> Call:
    q, k, v = normal(1, 8, 4000, 64), normal(1, 2, 4000, 64), normal(1, 2, 4000, 64)
    return lambda: prefill_attention(q, k, v)[0]


CALLS: dict[str, Callable[[], Call]] = {
    "one token": lambda: product(1),
    "16 tokens": lambda: product(16),
    "64 tokens": lambda: product(64),
    "pages": lambda: attention("kivi4", None),
    "quest": lambda: attention("quest", 512),
    "neurons": neurons,
    "prompt": prompt,
}


def captured(
    call: Call, stream: torch.cuda.Stream, times: int
) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        outs = torch.stack([call() for _ in range(times)])
    return graph, outs


@needs_device
@pytest.mark.parametrize("kind", CALLS)
def test_graphs_of_one_stream_run_beside_each_other(kind: str) -> None:
    torch.manual_seed(1)
    stream = torch.cuda.Stream()
    calls = [CALLS[kind]() for _ in range(3)]
    with torch.cuda.stream(stream):
        want = [call() for call in calls]
    torch.cuda.synchronize()
    graphs = [captured(call, stream, 8) for call in calls[:2]]
    sides = [(torch.cuda.Stream(), *graph) for graph in graphs]
    wrong = torch.zeros(3, dtype=torch.int64, device="cuda")
    torch.cuda.synchronize()
    for _ in range(200):
        for i, (side, graph, outs) in enumerate(sides):
            with torch.cuda.stream(side):
                graph.replay()
                wrong[i] += (outs != want[i]).sum()
        with torch.cuda.stream(stream):
            wrong[2] += (calls[2]() != want[2]).sum()
    torch.cuda.synchronize()
    assert wrong.tolist() == [0, 0, 0]


@needs_device
def test_streams_that_a_capture_joins_have_workspaces_of_their_own() -> None:
    torch.manual_seed(2)
    calls = [attention("kivi4", None) for _ in range(2)]
    want = [call() for call in calls]
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=first):
        second.wait_stream(first)
        with torch.cuda.stream(second):
            beside = torch.stack([calls[1]() for _ in range(8)])
        outs = torch.stack([calls[0]() for _ in range(8)])
        first.wait_stream(second)
    for _ in range(50):
        graph.replay()
        assert bool((outs == want[0]).all())
        assert bool((beside == want[1]).all())


@needs_device
def test_a_graph_may_be_a_streams_first_call() -> None:
    call = attention("kivi4", None)
    want = call()
    torch.cuda.synchronize()
    graph, outs = captured(call, torch.cuda.Stream(), 3)
    graph.replay()
    assert bool((outs == want).all())


@needs_device
def test_graphs_that_are_gone_leave_their_workspaces_to_others() -> None:
    stream, nbytes = torch.cuda.Stream(), 64 << 20
    x = torch.zeros(8, device="cuda")

    def capture() -> tuple[torch.cuda.CUDAGraph, cuda_memory.Workspace]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            x.add_(1)
            memory = cuda_memory.workspace(x.device.index, stream.cuda_stream, nbytes)
        graph.replay()
        return graph, memory

    kept = [capture() for _ in range(2)]
    taken = set()
    for _ in range(30):
        graph, memory = capture()
        assert memory.nbytes >= nbytes
        taken.add(memory.pointer)
        torch.cuda.synchronize()
        del graph
        time.sleep(0.02)  # the driver says so by a thread of its own
    pointers = {memory.pointer for _, memory in kept}
    assert len(pointers) == 2
    assert not pointers & taken
    assert len(taken) <= 5


@needs_device
@pytest.mark.parametrize("tokens", [1, 16, 64])
def test_nothing_that_lasts_lies_in_a_pool_lent_to_the_thread(tokens: int) -> None:
    """As torch.compile lends one while it warms up its graphs, and later gives away anew."""
    torch.manual_seed(3)
    call, stream, pool = product(tokens), torch.cuda.Stream(), torch.cuda.MemPool()
    before = set(cuda_memory.workspaces)
    with torch.cuda.stream(stream), torch.cuda.use_mem_pool(pool):
        want = call()
    torch.cuda.synchronize()
    spans = [(s["address"], s["address"] + s["total_size"]) for s in pool.snapshot()]
    assert any(first <= want.data_ptr() < last for first, last in spans)
    lasting = [cuda_memory.workspaces[key].pointer for key in set(cuda_memory.workspaces) - before]
    for packed in [packed for held in cuda_packed.forms_held.values() for packed in held]:
        parts = packed.records, packed.offsets, packed.scales
        lasting += [part.data_ptr() for part in parts if part is not None]
    assert lasting
    assert not any(first <= at < last for at in lasting for first, last in spans)


@needs_device
def test_a_capture_of_an_unpacked_weight_says_what_to_do() -> None:
    call, graph = product(1), torch.cuda.CUDAGraph()
    with (
        pytest.raises(tamis.TamisError, match="before capturing"),
        torch.cuda.graph(graph, stream=torch.cuda.Stream()),
    ):
        call()
    want = call()
    graph, outs = captured(call, torch.cuda.Stream(), 2)
    graph.replay()
    assert bool((outs == want).all())


@needs_device
def test_compiled_graphs_of_layers_nobody_called_before() -> None:
    """Frozen weights are packed while torch.compile warms up, trainable ones expanded with a word."""
    torch.manual_seed(4)
    for frozen in (True, False):
        net = torch.nn.Sequential(torch.nn.Linear(1024, 512), torch.nn.Linear(512, 64))
        tamis.sparsify_(net.cuda().bfloat16().requires_grad_(not frozen), "random", format="bitmap")
        twin = tamis.dense_(copy.deepcopy(net))
        run = torch.compile(net, mode="reduce-overhead", fullgraph=True, dynamic=False)
        inputs = [normal(tokens, 1024) for tokens in (1, 16)]
        with torch.no_grad(), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(4):
                for x in inputs:
                    torch.compiler.cudagraph_mark_step_begin()
                    torch.testing.assert_close(run(x), twin(x), rtol=2e-2, atol=2e-2)
        assert any("not packed yet" in str(each.message) for each in said) == (not frozen)
