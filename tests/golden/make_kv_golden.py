"""Writes the golden files of KV-cache methods: the papers' equations, transcribed to NumPy.

Float64 throughout, loops instead of tricks, nothing imported from the library. Every file holds what
a method's cache answers to one more query after the same prompt, and how many tokens it holds.
"""

from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
HEADS, GROUPS, TOKENS, DIM, BUDGET = 4, 2, 200, 16, 64


def problem(rng):
    """Queries, keys, values of a prompt, and a next query; few bits, so that the file is small."""
    q = rng.standard_normal((HEADS, TOKENS + 1, DIM))
    k = rng.standard_normal((GROUPS, TOKENS, DIM)) + rng.standard_normal((GROUPS, 1, DIM))
    v = rng.standard_normal((GROUPS, TOKENS, DIM))
    k[:, 30:50] *= 2.5  # some tokens draw more than others
    k[:, 60:70], v[:, 60:70] = k[:, 50:60] * 1.02, v[:, 50:60]  # and some are alike
    return tuple((np.round(x * 16) / 16).astype(np.float32) for x in (q, k, v))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def weights(q, k):
    """Attention [h, t, s] of the prompt's queries, causal."""
    made = np.zeros((HEADS, TOKENS, TOKENS))
    for h in range(HEADS):
        for t in range(TOKENS):
            row = k[h // 2, : t + 1].astype(float) @ q[h, t] / np.sqrt(DIM)
            made[h, t, : t + 1] = softmax(row)
    return made


def answer(q, k, v, keep, bias=None):
    """What the next query gets from the kept tokens [g, s]."""
    out = np.zeros((HEADS, DIM))
    for h in range(HEADS):
        g = h // 2
        at = np.flatnonzero(keep[g])
        score = k[g, at].astype(float) @ q[h, TOKENS] / np.sqrt(DIM)
        if bias is not None:
            score = score + bias[g, at]
        out[h] = softmax(score) @ v[g, at]
    return out


def column_mass(a, first):
    """[g, s]: attention from queries ``first`` and later, mean over a group's heads."""
    return a[:, first:].sum(1).reshape(GROUPS, 2, TOKENS).mean(1)


def pooled(x, width=5):
    out = np.zeros_like(x)
    for g in range(GROUPS):
        for j in range(TOKENS):
            out[g, j] = x[g, max(0, j - width // 2) : j + width // 2 + 1].mean()
    return out


def shared(score, floor=0.2, recent=32):
    """Ada-KV: every head its own best, then the best of all heads."""
    score = score.copy()
    score[:, TOKENS - recent :] = np.inf
    keep = np.zeros((GROUPS, TOKENS), bool)
    own = max(int(floor * BUDGET), recent)
    for g in range(GROUPS):
        keep[g, np.argsort(-score[g], kind="stable")[:own]] = True
    rest = [(-score[g, j], g, j) for g in range(GROUPS) for j in range(TOKENS) if not keep[g, j]]
    for _, g, j in sorted(rest)[: GROUPS * BUDGET - int(keep.sum())]:
        keep[g, j] = True
    return keep


def ems_scores(a):
    score = np.zeros((GROUPS, TOKENS))
    local = pooled(column_mass(a, TOKENS - 32), width=7)
    spread = column_mass(a, 0) / np.arange(TOKENS, 0, -1)
    for g in range(GROUPS):
        score[g] = np.maximum(local[g], spread[g] * local[g].mean() / spread[g].mean())
    return score


def ems(q, k, v, score):
    keep = shared(score, floor=1)
    merged, bias = v.astype(float).copy(), np.zeros((GROUPS, TOKENS))
    for g in range(GROUPS):
        centers = np.flatnonzero(keep[g])
        left = [j for j in np.argsort(-score[g], kind="stable") if not keep[g, j]]
        sums = {y: [score[g, y], score[g, y] * v[g, y].astype(float)] for y in centers}
        for x in left[: 3 * len(centers)]:
            best, found = -1.0, None
            for y in centers:
                cos = []
                for m in (k, v):
                    one, two = m[g, x].astype(float), m[g, y].astype(float)
                    cos.append(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
                if cos[0] > 0 and cos[1] > 0 and cos[0] * cos[1] > best:
                    best, found = cos[0] * cos[1], y
            if best > 0.3:
                sums[found][0] += score[g, x]
                sums[found][1] = sums[found][1] + score[g, x] * v[g, x].astype(float)
        for y, (mass, total) in sums.items():
            merged[g, y] = total / mass
            bias[g, y] = np.log(mass / score[g, y])
    return answer(q, k, merged, keep, bias), keep.sum(1)


def half(x, up):
    """The next f16 not below x, or not above."""
    y = x.astype(np.float16)
    wrong = y.astype(float) < x if up else y.astype(float) > x
    return np.where(wrong, np.nextafter(y, np.float16(np.inf if up else -np.inf)), y).astype(float)


def coded(x, bits, axis):
    """In codes of f16 steps from an f16 minimum, as the page format has it, and back."""
    low = half(x.min(axis, keepdims=True), False)
    step = half((x.max(axis, keepdims=True) - low) / (2**bits - 1), True)
    return low + step * np.round((x - low) / step)


def classes(a, rows, recent, top_p, share):
    """Important tokens [s] and their scores, by the attention of some rows."""
    mass, seen = np.zeros(TOKENS), np.zeros(TOKENS)
    for t in rows:
        mass += a[:, t].sum(0)
        seen[: t + 1] += 1
    if top_p:
        sums, count = 0.0, 0
        for x in sorted(mass)[::-1]:
            if sums >= top_p * mass.sum():
                break
            sums, count = sums + x, count + 1
    else:
        count = round(share * TOKENS)
    score = mass / np.maximum(seen, 1)
    ranked = score.copy()
    ranked[TOKENS - recent :] = np.inf
    important = np.zeros(TOKENS, bool)
    important[np.argsort(-ranked, kind="stable")[: max(count, recent)]] = True
    return important, score


def two_classes(q, k, v, chosen, bits, other_bits):
    important, score = chosen
    whole = TOKENS // 64 * 64
    most = -(-important[:whole].sum() // 64) * 64
    ranked = np.where(important[:whole], np.inf, score[:whole])
    order = np.argsort(-ranked, kind="stable")
    keep = np.ones((GROUPS, TOKENS), bool)
    k, v = k.astype(float).copy(), v.astype(float).copy()
    for at, b in ((np.sort(order[:most]), bits), (np.sort(order[most:]), other_bits)):
        for i in range(0, len(at), 64):
            page = at[i : i + 64]
            if b == 0:
                keep[:, page] = False
            elif b < 16:
                for g in range(GROUPS):
                    k[g, page] = coded(k[g, page], b, 0)
                    v[g, page] = coded(v[g, page], b, 1)
    return answer(q, k, v, keep), keep.sum(1)


def layout(q, k, v, seen):
    """A fixed pattern: what the next query sees; seen(g, i, j) of blocks."""
    keep = np.zeros((GROUPS, TOKENS), bool)
    for g in range(GROUPS):
        for j in range(TOKENS):
            keep[g, j] = seen(g, TOKENS // 16, j // 16)
    return answer(q, k, v, keep), keep.sum(1)


def layout_prompt(q, k, v, seen):
    """The prompt's own attention along the pattern, rows 0, 50, 100 and 150."""
    made = []
    for t in (0, 50, 100, 150):
        for h in range(HEADS):
            g = h // 2
            at = [j for j in range(t + 1) if seen(g, t // 16, j // 16)]
            made.append(softmax(k[g, at].astype(float) @ q[h, t] / np.sqrt(DIM)) @ v[g, at])
    return np.array(made)


def turned(x, places, sign=1):
    """Rotary embedding of x [s, d]: channels i and i + d / 2 by places * 10000^(-2 i / d)."""
    out = np.zeros_like(x, dtype=float)
    half_dim = DIM // 2
    for i in range(half_dim):
        for s, place in enumerate(places):
            angle = sign * place * 10000.0 ** (-i / half_dim)
            a, b = x[s, i], x[s, i + half_dim]
            out[s, i] = a * np.cos(angle) - b * np.sin(angle)
            out[s, i + half_dim] = b * np.cos(angle) + a * np.sin(angle)
    return out


def odd_chunks(k, count):
    """The chunks with the smallest cosine of a key and the chunk's mean."""
    worst = []
    for c in range(0, len(k), 8):
        mean = k[c : c + 8].mean(0)
        cos = [x @ mean / np.linalg.norm(x) / np.linalg.norm(mean) for x in k[c : c + 8]]
        worst.append((min(cos), c // 8))
    return {c for _, c in sorted(worst)[:count]}


def shadowkv(q, k, v):
    """168 tokens as rank 5 of 32, 3 odd chunks, 8 chunks rebuilt, the last 32 as they came."""
    taken, rank = 168, 5
    k = k.astype(float)
    plain = np.concatenate([turned(k[g, :taken], range(taken), -1) for g in range(GROUPS)], 1)
    u, s, vt = np.linalg.svd(plain, full_matrices=False)
    low = (u[:, :rank] * s[:rank]) @ vt[:rank]
    keep, rebuilt = np.zeros((GROUPS, TOKENS), bool), k.copy()
    keep[:, taken:] = True
    for g in range(GROUPS):
        odd = odd_chunks(k[g, :taken], 3)
        rest = [c for c in range(taken // 8) if c not in odd]
        marks = np.array([k[g, 8 * c : 8 * c + 8].mean(0) for c in rest])
        drawn = [softmax(marks @ q[h, TOKENS] / np.sqrt(DIM)) for h in (2 * g, 2 * g + 1)]
        best = np.argsort(-np.maximum(*drawn), kind="stable")[:8]
        for c in odd:
            keep[g, 8 * c : 8 * c + 8] = True
        for c in (rest[i] for i in best):
            at = np.arange(8 * c, 8 * c + 8)
            keep[g, at] = True
            rebuilt[g, at] = turned(low[at, g * DIM : (g + 1) * DIM], at)
    return answer(q, rebuilt, v, keep), np.full(GROUPS, TOKENS)


def alisa(q, k, v, a):
    """190 tokens of prompt, 10 steps that read 64 each; the window is 8 parts of 4 steps."""
    parts = []
    for t in range(190 - 32, 190):
        if not parts or parts[-1][1] == 4:
            parts.append([np.zeros(TOKENS), 0])
        parts[-1][0] += a[:, t].sum(0)
        parts[-1][1] += 1
    for t in range(190, TOKENS):
        sums = sum(x for x, _ in parts[-8:])
        older = np.argsort(-sums[: t + 1 - 32], kind="stable")[:32]
        read = np.concatenate([older, np.arange(t + 1 - 32, t + 1)])
        if parts[-1][1] == 4:
            parts.append([np.zeros(TOKENS), 0])
        out = np.zeros((HEADS, DIM))
        for h in range(HEADS):
            row = softmax(k[h // 2, read].astype(float) @ q[h, t] / np.sqrt(DIM))
            out[h] = row @ v[h // 2, read]
            parts[-1][0][read] += row
        parts[-1][1] += 1
    return out, np.full(GROUPS, TOKENS)


def main():
    rng = np.random.default_rng(11)
    q, k, v = problem(rng)
    np.savez_compressed(HERE / "kv_problem.npz", q=q, k=k, v=v)
    a = weights(q, k)
    probes = np.sort(rng.choice(TOKENS - 64, 64, replace=False)).tolist()
    rows = probes + list(range(TOKENS - 64, TOKENS))
    few = probes[:10] + list(range(TOKENS - 10, TOKENS))

    found = {}
    keep = shared(pooled(column_mass(a, TOKENS - 32)))
    found["adakv_snapkv"] = answer(q, k, v, keep), keep.sum(1)
    found["ems"] = ems(q, k, v, ems_scores(a))
    covering = classes(a, rows, 64, 0.975, 0)
    found["zipvl"] = two_classes(q, k, v, covering, 4, 2)
    found["zipvl_evict"] = two_classes(q, k, v, covering, 16, 0)
    found["shadowkv"] = shadowkv(q, k, v)
    found["alisa"] = alisa(q, k, v, a)
    found["zipcache"] = two_classes(q, k, v, classes(a, few, 10, 0, 0.6), 4, 2)
    for name, (out, held) in found.items():
        extra = {"rows": few if name == "zipcache" else rows} if name.startswith("zip") else {}
        np.savez_compressed(HERE / f"kv_{name}.npz", out=out, held=held, **extra)

    def strided(g, i, j):
        return i - j < 3 or (j + g * 2 + 1) % 4 == 0

    def spans(g, i, j):
        # alpha 16, 0 and beta 0, 1/4 of a prompt of 13 blocks of 16, and of 12 before its last row
        return j < 1 or i - j < (1, 3)[g]

    for name, seen in (("s2", strided), ("moa", spans)):
        out, held = layout(q, k, v, seen)
        prompt = layout_prompt(q, k, v, seen)
        np.savez_compressed(HERE / f"kv_{name}.npz", out=out, held=held, prompt=prompt)


if __name__ == "__main__":
    main()
