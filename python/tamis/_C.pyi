"""The C++ core: formats, spmm and machine facts over NumPy buffers and raw addresses.

Errors are ValueError (shapes, ranges, contradicting arrays), TypeError (dtypes) and
NotImplementedError (no kernel), each one sentence naming function, argument, got and wanted.
"""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

class KernelRow(TypedDict):
    """One row of kernels.def."""

    name: str
    op: str
    format: str
    w_dtype: str
    x_dtype: str
    isa: str
    tile_m: int
    tile_n: int
    from_m: int
    runs_here: bool

class Matrix:
    """A checked, borrowed view of a compressed matrix; keeps its arrays alive."""

    def __init__(
        self,
        format: str,
        arrays: dict[str, Array],
        rows: int,
        cols: int,
        dtype: str,
        *,
        keep: int = 0,
        of: int = 0,
        block_rows: int = 0,
        block_cols: int = 0,
        group_size: int = 0,
        check: bool = True,
    ) -> None:
        """Check sizes always, and contents unless `check` is false (arrays made by `pack`)."""

    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def nnz(self) -> int: ...
    @property
    def format(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    def unpack(self) -> Array:
        """Dense [rows, cols] of the values' dtype (bf16: uint16 bit patterns; i8: float32)."""

    def unpack_keep(self) -> NDArray[np.bool_]:
        """True where a value is stored, [rows, cols]; block: where its block is stored."""

    def kernel(self, m: int, x_dtype: str) -> str:
        """Name of the spmm kernel that dispatch runs here for m tokens."""
    def dense_above(self, x_dtype: str) -> int:
        """Tokens above which expanding to dense and multiplying densely is expected faster."""

def isa() -> dict[str, str]:
    """Highest ISA level of this `host`, and the `active` one after TAMIS_ISA."""

def num_threads() -> int: ...
def set_num_threads(n: int) -> None:
    """Use n threads per call; n <= 0 returns to TAMIS_NUM_THREADS or the OpenMP default."""

def pack(
    format: str,
    w: Array,
    w_dtype: str,
    keep: NDArray[np.bool_] | None,
    dtype: str,
    *,
    keep_n: int = 0,
    of: int = 0,
    block_rows: int = 0,
    block_cols: int = 0,
    group_size: int = 0,
    code_limit: int = 127,
) -> dict[str, Array]:
    """Arrays of w [rows, cols] where `keep` is true; None keeps every weight but +0 and -0."""

class DecoderLayer:
    """A decoder layer's weights, checked; keeps the matrices alive, not what the addresses are of."""

    def __init__(
        self,
        weights: Sequence[tuple[Matrix, int]],
        norms: Sequence[tuple[int, float]],
        scale: float,
    ) -> None:
        """(matrix, address of its bias or 0) of q, k, v, o, gate, up, down; (weight, eps) of two norms."""

def decoder(
    layers: Sequence[DecoderLayer],
    caches: Sequence[tuple[int, int, int]],
    dtype: int,
    m: int,
    head_dim: int,
    tokens: int,
    x_ptr: int,
    turns: tuple[int, int, int],
    last: tuple[int, float],
    y_ptr: int,
    workspace_ptr: int,
) -> None:
    """A new token of m sequences through layers: csrc/ops/decoder/decoder.h. Releases the GIL.

    caches: (keys, values, room) of each layer. turns: (cos, sin, positions). last: (weight, eps) or (0, 0).
    """

def decoder_workspace(layers: Sequence[DecoderLayer], m: int) -> int:
    """Elements that ``decoder`` wants at workspace_ptr; layers are alike, so the first will do."""

def unchanged(
    entries: tuple[Any, ...],
    empty: tuple[Any, ...],
    tensors: tuple[Any, ...],
    types: tuple[Any, ...],
    methods: tuple[Any, ...],
) -> bool:
    """Whether dictionaries hold what they held, others are empty, and tensors lie where they lay.

    entries: dictionary, key, value in turns, ``...`` for an absent key. tensors: tensor, version,
    address in turns, -1 for any. types: object, its class in turns. methods: class, name, function
    in turns.
    """

def spmm(
    matrix: Matrix,
    x_ptr: int,
    x_dtype: int,
    m: int,
    x_stride: int,
    bias_ptr: int,
    y_ptr: int,
    y_stride: int,
) -> None:
    """y[m, rows] = x[m, cols] @ w.T + bias at raw addresses; strides in elements.

    x, bias (0 = none) and y share x_dtype: 0 f32, 1 f16, 2 bf16. Releases the GIL.
    """

def spmm_activated(
    matrix: Matrix,
    x_ptr: int,
    x_dtype: int,
    m: int,
    x_stride: int,
    bias_ptr: int,
    y_ptr: int,
    y_stride: int,
    activation: int,
    multiplier_ptr: int,
    multiplier_stride: int,
) -> None:
    """``spmm``, then y = activation(y) * multiplier[m, rows] (0 = none) in f32, rounded once.

    activation: 0 none, 1 relu, 2 gelu, 3 gelu_tanh, 4 silu.
    """

def spmm_t(matrix: Matrix, dtype: int, m: int, dy_ptr: int, dx_ptr: int) -> None:
    """dx[m, cols] = dy[m, rows] @ w at raw addresses, contiguous, both of that dtype."""

def sddmm(matrix: Matrix, dtype: int, m: int, dy_ptr: int, x_ptr: int, dw_ptr: int) -> None:
    """dw[nnz], in w's dtype, of dy[m, rows] and x[m, cols] at raw addresses, contiguous."""

def spgemm(a: Matrix, b: Matrix) -> dict[str, Array]:
    """values, row_offsets, col_indices of the csr product of two csr matrices of f32."""

def spgemm_kernels() -> list[KernelRow]:
    """Every kernel of spgemm, best first."""

def spmm_grad_kernels() -> list[KernelRow]:
    """Every kernel of spmm_t and sddmm, best first."""

def kernels() -> list[KernelRow]:
    """Every kernel, best first within a format and dtype pair."""

def choose(
    format: str, w_dtype: str, x_dtype: str, m: int, n: int, k: int, nnz: int, isa: str
) -> str:
    """Name of the kernel that a machine of that ISA level would run."""

def conv2d(
    matrix: Matrix,
    x_ptr: int,
    size: tuple[int, int, int, int],
    window: tuple[int, int, int, int, int, int, int, int],
    strides: tuple[int, int, int, int],
    bias_ptr: int,
    y_ptr: int,
    low: float,
    high: float,
) -> None:
    """y[images, rows, out_h, out_w] = clamp(conv(x, matrix) + bias, low, high), f32; bias 0 = none.

    size: images, channels, height, width of x; strides: its elements between those. window: kernel,
    stride, padding and dilation, each as height, width.
    """

def depthwise_conv2d(
    taps_ptr: int,
    x_ptr: int,
    size: tuple[int, int, int, int],
    window: tuple[int, int, int, int, int, int, int, int],
    strides: tuple[int, int, int, int],
    bias_ptr: int,
    y_ptr: int,
    low: float,
    high: float,
) -> None:
    """The same with one row of taps [channels, kernel_h * kernel_w] for each channel."""

def plane_mean(x_ptr: int, planes: int, stride: int, pixels: int, y_ptr: int) -> None:
    """y[planes] = mean of `pixels` numbers, planes `stride` elements apart."""

def conv2d_kernels() -> list[KernelRow]:
    """Every kernel of conv2d and plane_mean, best first; tile_m counts the lanes of a vector."""

def choose_conv2d(weight: str, isa: str) -> str:
    """Name of the kernel for "csr", "block" or "depthwise" on a machine of that ISA level."""

def import_nvidia_24(meta: NDArray[np.uint32], rows: int, cols: int) -> NDArray[np.int64]:
    """Mask words of an nm 2:4 matrix from NVIDIA's 2-bit column ids, unreordered."""

class Figures(TypedDict):
    """What a machine needs to be predicted: rates in bytes per ns, times in ns.

    The dense tables are [one thread, all][k 576, k 4096][1, 2, 4, 8, 16, 64, 256 tokens], ns per
    weight; `kernels` are ns for one of the reference machine.
    """

    threads: int
    read_one: float
    read_all: float
    weights_one: float
    weights_all: float
    share: float
    fork: float
    call: float
    unpack: float
    dense_f32: list[list[list[float]]]
    dense_16: list[list[list[float]]]
    kernels: dict[str, float]

def machine() -> Figures:
    """The figures that predictions use now."""

def set_machine(figures: Figures | None) -> None:
    """Predict with these figures; None goes back to the built-in ones."""

def predict(
    format: str,
    w_dtype: str,
    x_dtype: str,
    m: int,
    n: int,
    k: int,
    nnz: int,
    threads: int,
    block: tuple[int, int] = (1, 1),
    kernel: str = "",
    group_size: int = 16,
) -> float:
    """Expected ns of a product with cold weights, by the chosen or a named kernel; -1: unknown."""

def predict_dense(x_dtype: str, m: int, n: int, k: int, threads: int) -> float:
    """Expected ns of torch's dense product with cold weights."""

def compute_ns(kernel: str, m: int, n: int, k: int, nnz: int) -> float:
    """Nanoseconds that a kernel computes on a thread of the reference machine; -1: unknown."""

def time_spmm(kernel: str, matrices: list[Matrix], m: int, calls: int) -> list[float]:
    """Measured ns of each call; calls take turns over the matrices."""

def fork_ns(threads: int) -> float:
    """Measured ns to start and end a parallel region."""

def stream_read(threads: int, bytes: int) -> float:
    """Measured GB/s of plain reads over a buffer of that size."""

class KvPageLayout:
    """Sizes of a kv_page record: keys and values of `tokens` tokens of one KV head, quantized."""

    def __init__(
        self, head_dim: int, tokens: int, key_bits: int, value_bits: int, group: int
    ) -> None: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def key_bits(self) -> int: ...
    @property
    def value_bits(self) -> int: ...
    @property
    def group(self) -> int: ...
    @property
    def nbytes(self) -> int:
        """Bytes of a record."""
    @property
    def key_scale(self) -> int:
        """Byte of a record where the f16 [d] scales of its keys start."""
    @property
    def key_min(self) -> int:
        """Byte of a record where the f16 [d] minima of its keys start."""

class KvLists:
    """Addresses of a segment's lists; 0 for none."""

    def __init__(
        self,
        index: int = 0,
        index_stride: int = 0,
        count: int = 0,
        begin: int = 0,
        end: int = 0,
        bias: int = 0,
    ) -> None: ...

class KvSegment:
    """Memory of tokens and which of them count; borrows all of it."""

    @property
    def tokens(self) -> int: ...

def kv_dense_segment(
    dtype: int,
    tokens: int,
    keys_ptr: int,
    key_strides: tuple[int, int, int],
    values_ptr: int,
    value_strides: tuple[int, int, int],
    lists: KvLists,
) -> KvSegment:
    """Keys and values [b, g, tokens, d]; strides in elements."""

def kv_lowrank_segment(
    dtype: int,
    tokens: int,
    coordinates_ptr: int,
    strides: tuple[int, int],
    rank: int,
    basis_ptr: int,
    pairs: int,
    turns_ptr: int,
    values_ptr: int,
    value_strides: tuple[int, int, int],
    lists: KvLists,
) -> KvSegment:
    """Keys as a product, [b, tokens, rank] times [b, g, rank, d]; strides in elements."""

def kv_page_segment(
    layout: KvPageLayout,
    pages: int,
    records_ptr: int,
    strides_bytes: tuple[int, int],
    lists: KvLists,
) -> KvSegment:
    """Records [b, g, pages]; strides of batches and heads."""

def kv_quantize(
    layout: KvPageLayout,
    dtype: int,
    heads: int,
    pages: int,
    keys_ptr: int,
    key_strides: tuple[int, int],
    values_ptr: int,
    value_strides: tuple[int, int],
    out_ptr: int,
    out_stride_bytes: int,
) -> None:
    """Records of keys and values [heads, pages * tokens, d]; strides of heads and tokens."""

def kv_unpack(
    layout: KvPageLayout, records_ptr: int, count: int, keys_ptr: int, values_ptr: int
) -> None:
    """Keys and values f32 [count, tokens, d] of consecutive records."""

def sparse_attention(
    dtype: int,
    shape: tuple[int, int, int, int],
    q_ptr: int,
    out_ptr: int,
    lse_ptr: int,
    scale: float,
    softcap: float,
    segments: list[KvSegment],
) -> None:
    """out, q [b, g, rows, d] of one dtype and lse [b, g, rows] f32 at raw addresses."""

def prefill_attention(
    dtypes: tuple[int, int],
    shape: tuple[int, int, int, int, int, int],
    q: tuple[int, int, int, int],
    keys: tuple[int, int, int, int],
    values: tuple[int, int, int, int],
    out: tuple[int, int, int, int],
    lse_ptr: int,
    scale: float,
    softcap: float,
    causal: bool,
    first: int,
    begin_ptr: int,
    pattern: tuple[int, int, int, int, int, int, int],
    rows: tuple[int, int, int],
    columns: tuple[int, int, int],
) -> None:
    """out, q [b, h, n, d], keys, values [b, g, s, d] as addresses and strides; shape b h g n s d.

    pattern: heads, addresses of sink and window, size of blocks, addresses of their offsets and
    columns, columns a head. rows, columns: address, width, address of counts.
    """

def kv_gather(
    shape: tuple[int, int, int],
    x: tuple[int, int, int],
    index: tuple[int, int, int],
    out: tuple[int, int, int],
) -> None:
    """Rows of x to out, addresses with strides in bytes; shape: heads, tokens, bytes of a row.

    index: address, width, address of counts.
    """

def kv_merge(
    dtype: int,
    shape: tuple[int, int, int],
    keys: tuple[int, int, int],
    values: tuple[int, int, int],
    weight_and_mass: tuple[int, int],
    kept: tuple[int, int, int],
    dropped: tuple[int, int, int],
    by_values: bool,
    tau: float,
    out: tuple[int, int, int, int],
) -> None:
    """keys, values [heads, tokens, d] as address and strides; shape: heads, tokens, d.

    out: addresses of keys (0: not merged), values, mass and joined.
    """

def kv_fetch(
    shape: tuple[int, int, int, int, int],
    lists: tuple[int, int, int, int],
    maps: tuple[int, ...],
    found: tuple[int, ...],
    rows: tuple[int, int, tuple[int, int, int], int, tuple[int, int, int], int, int],
) -> None:
    """What a pool lacks comes into it; shape: b, g, units, slots, tokens of a unit.

    lists: addresses of index, count and begin, the width of the index second. maps: slot_of, unit_in,
    stamp, clock and reads. found: near, its counts, todo, lacking. rows: bytes of one, far keys and
    values with strides in bytes (0: nothing is copied), the pool's keys and values.
    """

def kv_kernels() -> list[KernelRow]:
    """Every kernel of the KV operators, best first."""

class KvUnits:
    """What is stored of the units that kv_estimate scores; borrows all of it."""

    @property
    def units(self) -> int: ...

def kv_row_units(
    bounds: bool, dtype: int, units: int, data_ptr: int, strides: tuple[int, int, int]
) -> KvUnits:
    """Rows [b, g, units, d], or bounds [b, g, units, 2, d]; strides in elements."""

def kv_label_units(
    channels: int,
    units: int,
    records_ptr: int,
    strides_bytes: tuple[int, int],
    channels_ptr: int,
) -> KvUnits:
    """kv_label records of `units` tokens a head; channel ids [g, channels] int32."""

def kv_label_bytes(channels: int) -> int:
    """Bytes of a kv_label record."""

def kv_estimate(
    dtype: int,
    shape: tuple[int, int, int, int],
    q_ptr: int,
    scale: float,
    units: KvUnits,
    log_weight: bool,
    begin_ptr: int,
    out_ptr: int,
) -> None:
    """Scores `out` [b, g, units] f32 from q [b, g, rows, d]."""

def kv_mass(
    dtype: int,
    shape: tuple[int, int, int, int, int],
    q_ptr: int,
    scale: float,
    keys: KvUnits,
    positions_ptr: int,
    begin_ptr: int,
    out_ptr: int,
) -> None:
    """Adds to out [b, g, units] f32 from q [b, g, heads, queries, d]."""

def kv_select(
    heads: int,
    units: int,
    scores_ptr: int,
    k: int,
    budget_ptr: int,
    top_p: float,
    sink: int,
    recent: int,
    page: int,
    begin_ptr: int,
    index_ptr: int,
    index_stride: int,
    count_ptr: int,
) -> None:
    """Writes index [heads, index_stride] and count [heads] int32 from scores [heads, units] f32."""

def kv_choose(
    dtype: int,
    shape: tuple[int, int, int, int],
    q_ptr: int,
    scale: float,
    units: KvUnits,
    log_weight: bool,
    by_row: bool,
    k: int,
    budget_ptr: int,
    sink: int,
    recent: int,
    page: int,
    begin_ptr: int,
    index_ptr: int,
    index_stride: int,
    count_ptr: int,
) -> None:
    """``kv_estimate`` and ``kv_select`` in one; ``by_row``, the union of every row's own choice."""

def kv_summarize(
    bounds: bool,
    dtype: int,
    shape: tuple[int, int, int],
    page: int,
    pages: int,
    keys_ptr: int,
    key_strides: tuple[int, int, int],
    out_ptr: int,
    alike_ptr: int,
) -> None:
    """Summaries of whole pages of keys [b, g, pages * page, d]; shape: b, g, d."""

def kv_append_labels(
    channels: int,
    dtype: int,
    shape: tuple[int, int, int],
    keys_ptr: int,
    key_strides: tuple[int, int, int],
    channels_ptr: int,
    first: int,
    count: int,
    records_ptr: int,
    strides_bytes: tuple[int, int],
) -> None:
    """kv_label records of tokens [first, first + count) of keys [b, g, count, d]."""

def p24_most_tokens(rows: int, cols: int) -> int:
    """Most tokens that such a weight takes as "p24" on sm_90."""

def pack_for_cuda(matrix: Matrix, format: str) -> dict[str, Any]:
    """`records` uint8, `max_record_bytes` of one, and `offsets` where records differ in length.

    "t16", "p24", "r24", for few tokens "gap": bitmap or nm weights in 16 bits; "t16i8": in 8. "m24", "m24i8":
    the same of nm 2:4 or 1:4; "m24i4": of such i8 with codes of 4 bits. "g4", for few tokens
    "sell4": groupq of u4. "gap" and "sell4" take at most 65536 columns. Scales stay apart.
    NotImplementedError where a zero point is no code, or a code has more than 4 bits.
    """

def cuda_load(path: str) -> str:
    """Open the CUDA library; why it cannot be used, empty if it can."""

def cuda_devices() -> list[dict[str, Any]]:
    """`name`, `capability` (90 for 9.0) and `sms` of each device."""

def cuda_kernels(capability: int) -> list[KernelRow]:
    """Every CUDA kernel, best first; `runs_here` is the choice for that capability."""

def cuda_graph_workspace(device: int, stream: int, nbytes: int) -> tuple[int, int]:
    """Address and bytes of the workspace of what a stream captures: its own while graphs of it live."""

def cuda_kv_quantize(
    device: int,
    stream: int,
    layout: KvPageLayout,
    dtype: int,
    heads: int,
    pages: int,
    keys_ptr: int,
    key_strides: tuple[int, int],
    values_ptr: int,
    value_strides: tuple[int, int],
    out_ptr: int,
    out_stride_bytes: int,
) -> None:
    """``kv_quantize`` on a device and stream."""

def cuda_sparse_attention(
    device: int,
    stream: int,
    dtype: int,
    shape: tuple[int, int, int, int],
    q_ptr: int,
    out_ptr: int,
    lse_ptr: int,
    scale: float,
    softcap: float,
    segments: list[KvSegment],
    workspace_ptr: int,
    workspace_bytes: int,
) -> int:
    """``sparse_attention`` on a device and stream; 0, or the bytes of workspace that it wants."""

def cuda_kv_estimate(
    device: int,
    stream: int,
    dtype: int,
    shape: tuple[int, int, int, int],
    q_ptr: int,
    scale: float,
    units: KvUnits,
    log_weight: bool,
    begin_ptr: int,
    out_ptr: int,
    workspace_ptr: int,
    workspace_bytes: int,
) -> int:
    """``kv_estimate`` on a device and stream; 0, or the bytes of workspace that it wants."""

def cuda_kv_mass(
    device: int,
    stream: int,
    dtype: int,
    shape: tuple[int, int, int, int, int],
    q_ptr: int,
    scale: float,
    keys: KvUnits,
    positions_ptr: int,
    begin_ptr: int,
    out_ptr: int,
    workspace_ptr: int,
    workspace_bytes: int,
) -> int:
    """``kv_mass`` on a device and stream; 0, or the bytes of workspace that it wants."""

def cuda_kv_select(
    device: int,
    stream: int,
    heads: int,
    units: int,
    scores_ptr: int,
    k: int,
    budget_ptr: int,
    top_p: float,
    sink: int,
    recent: int,
    page: int,
    begin_ptr: int,
    index_ptr: int,
    index_stride: int,
    count_ptr: int,
) -> None:
    """``kv_select`` on a device and stream."""

def cuda_kv_choose(
    device: int,
    stream: int,
    dtype: int,
    shape: tuple[int, int, int, int],
    q_ptr: int,
    scale: float,
    units: KvUnits,
    by_row: bool,
    k: int,
    budget_ptr: int,
    sink: int,
    recent: int,
    page: int,
    begin_ptr: int,
    index_ptr: int,
    index_stride: int,
    count_ptr: int,
    workspace_ptr: int,
    workspace_bytes: int,
) -> int:
    """``kv_choose`` on a device and stream; 0, the bytes of workspace that it wants, or -1.

    Then nothing is done, as no kernel both estimates and selects.
    """

def cuda_chosen_attention(
    device: int,
    stream: int,
    dtype: int,
    shape: tuple[int, int, int, int],
    q_ptr: int,
    out_ptr: int,
    lse_ptr: int,
    scales: tuple[float, float],
    segment: KvSegment,
    units: KvUnits,
    k: int,
    budget_ptr: int,
    sink: int,
    recent: int,
    begin_ptr: int,
    new_label: bool,
) -> bool:
    """``kv_choose`` and attention to what it lists in one launch; scales: of scores, and softcap.

    new_label: The last token's is written first, from its key in the segment.

    False, and nothing is done, where no kernel does both.
    """

def cuda_kv_rebuild(
    device: int,
    stream: int,
    shape: tuple[int, int, int],
    segment: KvSegment,
    keys_ptr: int,
    values_ptr: int,
) -> None:
    """Listed tokens of a low-rank segment as dense keys and values; shape: b, g, d."""

def cuda_kv_gather(
    device: int,
    stream: int,
    shape: tuple[int, int, int],
    x: tuple[int, int, int],
    index: tuple[int, int, int],
    out: tuple[int, int, int],
) -> None:
    """``kv_gather`` on a device and stream."""

def cuda_kv_merge(
    device: int,
    stream: int,
    dtype: int,
    shape: tuple[int, int, int],
    keys: tuple[int, int, int],
    values: tuple[int, int, int],
    weight_and_mass: tuple[int, int],
    kept: tuple[int, int, int],
    dropped: tuple[int, int, int],
    by_values: bool,
    tau: float,
    out: tuple[int, int, int, int],
    workspace_ptr: int,
    workspace_bytes: int,
) -> int:
    """``kv_merge`` on a device and stream; 0, or the bytes of workspace that it wants."""

def cuda_kv_fetch(
    device: int,
    stream: int,
    shape: tuple[int, int, int, int, int],
    lists: tuple[int, int, int, int],
    maps: tuple[int, ...],
    found: tuple[int, ...],
    rows: tuple[int, int, tuple[int, int, int], int, tuple[int, int, int], int, int],
) -> None:
    """``kv_fetch`` on a device and stream."""

def cuda_kv_append_labels(
    device: int,
    stream: int,
    channels: int,
    dtype: int,
    shape: tuple[int, int, int],
    keys_ptr: int,
    key_strides: tuple[int, int, int],
    channels_ptr: int,
    first: int,
    count: int,
    records_ptr: int,
    strides_bytes: tuple[int, int],
) -> None:
    """``kv_append_labels`` on a device and stream."""

def cuda_sparse_input(
    device: int,
    stream: int,
    dtype: int,
    shape: tuple[int, int, int],
    x_ptr: int,
    x_stride: int,
    w_ptr: int,
    threshold_ptr: int,
    bias_ptr: int,
    y_ptr: int,
    y_stride: int,
    workspace_ptr: int,
    workspace_bytes: int,
) -> int:
    """``sparse_input`` on a device and stream; 0, or the bytes of workspace that it wants."""

def cuda_sparse_mlp(
    device: int,
    stream: int,
    dtype: int,
    shape: tuple[int, int, int, int],
    x_ptr: int,
    x_stride: int,
    weight_ptrs: tuple[int, int, int],
    threshold_ptr: int,
    activation: int,
    y_ptr: int,
    y_stride: int,
    workspace_ptr: int,
    workspace_bytes: int,
) -> int:
    """``sparse_mlp`` on a device and stream; 0, or the bytes of workspace that it wants."""

def cuda_prefill_attention(
    device: int,
    stream: int,
    dtypes: tuple[int, int],
    shape: tuple[int, int, int, int, int, int],
    q: tuple[int, int, int, int],
    keys: tuple[int, int, int, int],
    values: tuple[int, int, int, int],
    out: tuple[int, int, int, int],
    lse_ptr: int,
    scale: float,
    softcap: float,
    causal: bool,
    first: int,
    begin_ptr: int,
    pattern: tuple[int, int, int, int, int, int, int],
    rows: tuple[int, int, int],
    columns: tuple[int, int, int],
    workspace_ptr: int,
    tickets_ptr: int,
) -> None:
    """``prefill_attention`` on a device and stream, whose lists it does not check."""

def cuda_prefill_workspace(
    device: int,
    dtypes: tuple[int, int],
    shape: tuple[int, int, int, int, int, int],
    q: tuple[int, int, int, int],
    keys: tuple[int, int, int, int],
    values: tuple[int, int, int, int],
    out: tuple[int, int, int, int],
    lse_ptr: int,
    scale: float,
    softcap: float,
    causal: bool,
    first: int,
    begin_ptr: int,
    pattern: tuple[int, int, int, int, int, int, int],
    rows: tuple[int, int, int],
    columns: tuple[int, int, int],
) -> int:
    """Bytes of a workspace that makes ``cuda_prefill_attention`` faster; 0: none does."""

DeviceMask = tuple[str, str, tuple[int, int, int], tuple[int, int], int, int]
"""Format, w dtype, (rows, cols, nnz), (keep, of), addresses of mask and row_offsets (0: none)."""

def cuda_unpack_mask(
    device: int,
    stream: int,
    mask: DeviceMask,
    values_ptr: int,
    dense_ptr: int,
) -> None:
    """Dense [rows, cols] of a mask's values."""

def cuda_gather_mask(
    device: int,
    stream: int,
    mask: DeviceMask,
    dense_ptr: int,
    values_ptr: int,
) -> None:
    """Values of a dense [rows, cols] under a mask."""

DeviceCsr = tuple[tuple[int, int, int], int, int, int]
"""(rows, cols, nnz), addresses of values, row_offsets and col_indices."""

def cuda_spgemm_count(
    device: int,
    stream: int,
    a: DeviceCsr,
    b: DeviceCsr,
    counts_ptr: int,
    workspace_ptr: int,
    workspace_bytes: int,
) -> int:
    """Values of each row of the product; 0, or the bytes of workspace that it wants."""

def cuda_spgemm_fill(
    device: int,
    stream: int,
    a: DeviceCsr,
    b: DeviceCsr,
    row_offsets_ptr: int,
    col_indices_ptr: int,
    values_ptr: int,
    workspace_ptr: int,
    workspace_bytes: int,
) -> int:
    """Columns and values of the product; 0, or the bytes of workspace that it wants."""

class CudaMatrix:
    """A packed weight on a device, with a plan per number of tokens. Borrows all memory."""

    def __init__(
        self,
        records_ptr: int,
        record_bytes: int,
        max_record_bytes: int,
        offsets_ptr: int,
        rows: int,
        cols: int,
        dtype: str,
        device: int,
        format: str = "t16",
        scales_ptr: int = 0,
        group_size: int = 0,
        mask_ptr: int = 0,
        row_offsets_ptr: int = 0,
        row_values: int = 0,
    ) -> None: ...
    @property
    def most_tokens(self) -> int:
        """Tokens of a product that its kernels take, 0 if none fit on the device."""

    @property
    def kernel(self) -> str:
        """Name of the kernel that runs on this device, empty if none."""

    def workspace(self, m: int) -> int:
        """Bytes a product with m tokens needs, zero before its first use."""

    def plan(self, m: int) -> dict[str, int]:
        """How a product with m tokens is laid out over the device."""

    def lay_out(self, m: int, warps_k: int, splits: int) -> bool:
        """Replaces the plan for m tokens, to measure layouts; False if the device cannot hold it."""

    def lay_out_groups(self, m: int, layout: int, blocks: int) -> bool:
        """The same where warpgroups take it (m24 and bitmap on Hopper): a line of their layouts, blocks."""

    def lay_out_many(self, m: int, layout: int, parts: int) -> bool:
        """The same for many tokens: a line of m24_many_layouts.def, and parts of k."""

    def spmm(
        self,
        m: int,
        x_ptr: int,
        x_stride: int,
        bias_ptr: int,
        y_ptr: int,
        y_stride: int,
        workspace_ptr: int,
        workspace_bytes: int,
        stream: int,
    ) -> None:
        """y[m, rows] = x[m, cols] @ w.T + bias on a stream, all in the weight's dtype."""

    def unpack(self, out_ptr: int, out_stride: int, stream: int) -> None:
        """Dense [rows, cols] on a stream."""

sparse_activation_tokens: int
"""Tokens that share one pass of sparse_input and sparse_mlp."""

def sparse_input(
    dtype: int,
    shape: tuple[int, int, int],
    x_ptr: int,
    x_stride: int,
    w_ptr: int,
    threshold_ptr: int,
    bias_ptr: int,
    y_ptr: int,
    y_stride: int,
) -> int:
    """Writes y [m, n] of the inputs that count; shape: m, n, k. How many (token, input) did."""

def sparse_mlp(
    dtype: int,
    shape: tuple[int, int, int, int],
    x_ptr: int,
    x_stride: int,
    gate_ptr: int,
    up_ptr: int,
    down_ptr: int,
    threshold_ptr: int,
    activation: int,
    y_ptr: int,
    y_stride: int,
) -> int:
    """Writes y [m, d] of the neurons that count; shape: m, k, n, d. How many (token, neuron) did."""

def activation_kernels() -> list[KernelRow]:
    """Every kernel of sparse_input and sparse_mlp, best first."""
