"""Writes the golden file of every pruning method: the papers' equations, transcribed to NumPy.

Float64 throughout, loops instead of tricks, nothing imported from the library. Run it in this
folder after adding a method; the files must not change for methods that exist.
"""

from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
CASES = {"u50": (0.5, 0, 0), "u30": (0.3, 0, 0), "nm24": (None, 2, 4), "nm18": (None, 1, 8)}


def problem(rng, n=12, k=160, tokens=200):
    """A weight with ties and zeros, correlated inputs of unequal size, one dead input."""
    weight = rng.standard_normal((n, k)).astype(np.float32)
    weight[:, ::5] = np.round(weight[:, ::5] * 2) / 2
    mix = np.eye(k) + 0.3 * rng.standard_normal((k, k)) / np.sqrt(k)
    x = rng.standard_normal((tokens, k)) @ mix * np.exp(rng.standard_normal(k))
    x = np.round(x * 16) / 16  # few bits, so that the file is small
    x[:, 7] = 0
    return weight, x.astype(np.float32)


def drop_first(scores, count):
    """keep of a flat list: the `count` smallest go, of equals the first ones."""
    keep = np.ones(len(scores), bool)
    keep[np.argsort(scores, kind="stable")[:count]] = False
    return keep


def floor_share(sparsity, count):
    return int(np.floor(np.round(sparsity * count, 6)))


def select(scores, case, group):
    sparsity, keep_n, of = case
    n, k = scores.shape
    keep = np.ones((n, k), bool)
    if of:
        for i in range(n):
            for j in range(0, k, of):
                keep[i, j : j + of] = drop_first(scores[i, j : j + of], of - keep_n)
    elif group == "row":
        for i in range(n):
            keep[i] = drop_first(scores[i], floor_share(sparsity, k))
    else:
        keep = drop_first(scores.ravel(), floor_share(sparsity, n * k)).reshape(n, k)
    return keep


def sparsegpt(weight, x, case, keep=None):
    """Algorithm 1 with the inverse formed and factored as written; no lazy batches."""
    sparsity, keep_n, of = case
    w = weight.astype(np.float64)
    n, k = w.shape
    hessian = x.astype(np.float64).T @ x.astype(np.float64) / len(x)
    for j in range(k):
        if hessian[j, j] == 0:
            hessian[j, j] = 1
            w[:, j] = 0
    hessian += 0.01 * np.mean(np.diag(hessian)) * np.eye(k)
    u = np.linalg.cholesky(np.linalg.inv(hessian)).T
    chosen = np.ones((n, k), bool) if keep is None else keep.copy()
    for j in range(k):
        if keep is None and of and j % of == 0:
            scores = w[:, j : j + of] ** 2 / np.diag(u)[j : j + of] ** 2
            chosen[:, j : j + of] = select(scores, (None, keep_n, of), "row")
        if keep is None and not of and j % 128 == 0:
            end = min(j + 128, k)
            count = floor_share(sparsity, n * end) - floor_share(sparsity, n * j)
            scores = w[:, j:end] ** 2 / np.diag(u)[j:end] ** 2
            chosen[:, j:end] = drop_first(scores.ravel(), count).reshape(n, end - j)
        q = np.where(chosen[:, j], w[:, j], 0)
        error = (w[:, j] - q) / u[j, j]
        w[:, j + 1 :] -= np.outer(error, u[j, j + 1 :])
        w[:, j] = q
    return w, chosen


def alps(weight, x, case):
    """Sections 3.1 and 3.2: ADMM with a growing penalty, then conjugate gradients on the support."""
    n, k = weight.shape
    hessian = x.astype(np.float64).T @ x.astype(np.float64) / len(x)
    norm = np.sqrt(np.diag(hessian))
    dead = np.diag(hessian) == 0
    hessian[np.diag_indices(k)] += dead
    hessian += 0.01 * np.mean(np.diag(hessian)) * np.eye(k)
    scale = np.sqrt(np.diag(hessian))
    hessian = hessian / np.outer(scale, scale)
    values, vectors = np.linalg.eigh(hessian)
    dense = np.where(dead, 0, weight * scale)
    keep = select(np.abs(weight.astype(np.float64)) * norm, case, "layer")
    d, v, rho = dense * keep, np.zeros((n, k)), 0.1
    for _ in range(30):
        before = keep
        for _ in range(3):
            inverse = vectors @ np.diag(1 / (values + rho)) @ vectors.T
            w = (dense @ hessian - v + rho * d) @ inverse
            keep = select((w + v / rho) ** 2, case, "layer")
            d = np.where(keep, w + v / rho, 0)
            v = v + rho * (w - d)
        moved = np.sum(keep != before) / np.sum(keep)
        if moved <= 0.005:
            break
        rho *= 1.3 if moved > 0.1 else 1.2
    for i in range(n):
        on = np.flatnonzero(keep[i])
        d[i, on] = conjugate_gradient(hessian[np.ix_(on, on)], hessian[on] @ dense[i], d[i, on])
    return d / scale, keep


def conjugate_gradient(a, b, x, steps=10):
    """Ten steps toward a x = b, as in any textbook."""
    r = b - a @ x
    p = r
    for _ in range(steps):
        alpha = (r @ r) / (p @ a @ p)
        x, last = x + alpha * p, r
        r = r - alpha * a @ p
        p = r + (r @ r) / (last @ last) * p
    return x


def gqsa(weight, x, sparsity, size=16):
    """Sections 3.1 and 3.2: group saliency, then the sweep, then min-max codes of 4 bits."""
    n, k = weight.shape
    hessian = x.astype(np.float64).T @ x.astype(np.float64) / len(x)
    hessian[np.diag_indices(k)] += np.diag(hessian) == 0
    u = np.linalg.cholesky(np.linalg.inv(hessian + 0.01 * np.mean(np.diag(hessian)) * np.eye(k))).T
    scores = (weight.astype(np.float64) / np.diag(u)) ** 2
    groups = [scores[i, j : j + size].sum() for i in range(n) for j in range(0, k, size)]
    kept = drop_first(np.array(groups), floor_share(sparsity, len(groups)))
    keep = np.repeat(kept.reshape(n, k // size), size, axis=1)
    swept, _ = sparsegpt(weight, x, (sparsity, 0, 0), keep)
    stored = np.zeros((n, k))
    for i in range(n):
        for j in range(0, k, size):
            part = swept[i, j : j + size]
            low, high = min(part.min(), 0), max(part.max(), 0)
            if high == low:
                continue
            scale = (high - low) / 15
            zero = np.rint(-low / scale)
            codes = np.clip(np.rint(part / scale) + zero, 0, 15)
            stored[i, j : j + size] = scale * (codes - zero)
    return swept, keep, stored


def write(name, arrays):
    np.savez_compressed(HERE / f"{name}.npz", **arrays)


def masked_methods(weight, x):
    magnitude = np.abs(weight.astype(np.float64))
    norm = np.sqrt(np.sum(x.astype(np.float64) ** 2, axis=0))
    for name, scores, group in (
        ("magnitude", magnitude, "row"),
        ("magnitude_layer", magnitude, "layer"),
        ("wanda", magnitude * norm, "row"),
    ):
        arrays = {"weight": weight, "x": x}
        for label, case in CASES.items():
            arrays[f"{label}_keep"] = select(scores, case, group)
        write(name, arrays)


def global_magnitude(rng):
    """Three layers of different size and scale compete as one list."""
    layers = [
        problem(rng, n, k)[0] * scale for n, k, scale in ((8, 40, 1), (6, 32, 3), (4, 48, 0.5))
    ]
    arrays = {f"weight{i}": layer.astype(np.float32) for i, layer in enumerate(layers)}
    flat = np.concatenate(
        [np.abs(arrays[f"weight{i}"].astype(np.float64)).ravel() for i in range(3)]
    )
    for label in ("u50", "u30"):
        keep = drop_first(flat, floor_share(CASES[label][0], len(flat)))
        at = 0
        for i, layer in enumerate(layers):
            arrays[f"{label}_keep{i}"] = keep[at : at + layer.size].reshape(layer.shape)
            at += layer.size
    write("magnitude_global", arrays)


def main():
    weight, x = problem(np.random.default_rng(7))
    masked_methods(weight, x)
    arrays = {"weight": weight, "x": x}
    for label, case in CASES.items():
        repaired, arrays[f"{label}_keep"] = sparsegpt(weight, x, case)
        arrays[f"{label}_weight"] = repaired.astype(np.float32)
    write("sparsegpt", arrays)
    arrays = {"weight": weight, "x": x}
    for label, case in CASES.items():
        found, arrays[f"{label}_keep"] = alps(weight, x, case)
        arrays[f"{label}_weight"] = found.astype(np.float32)
    write("alps", arrays)
    arrays = {"weight": weight, "x": x}
    for label in ("u50", "u30"):
        swept, keep, stored = gqsa(weight, x, CASES[label][0])
        arrays[f"{label}_keep"] = keep
        arrays[f"{label}_weight"] = swept.astype(np.float32)
        arrays[f"{label}_stored"] = stored.astype(np.float32)
    write("gqsa", arrays)
    global_magnitude(np.random.default_rng(8))
    # nothing of a random method can be transcribed but its counts per row
    counts = {
        label: select(np.zeros((12, 160)), case, "row").sum(1) for label, case in CASES.items()
    }
    write("random", {"weight": weight, "x": x, **{f"{k}_kept": v for k, v in counts.items()}})


if __name__ == "__main__":
    main()
