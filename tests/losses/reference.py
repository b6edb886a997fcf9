"""The equations again, as plain loops over Python floats (float64), and the batches they are compared on.

Written from the papers, not from the implementation: lists, no masks, no broadcasting, no stabilized log-sum-exp.
"""

import math

import torch

# How far a result may be from the loops. Half precision inputs are exact numbers, and everything is computed in float32
# from them: only gradients are rounded to the input's dtype.
VALUE_TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 2e-5, torch.bfloat16: 2e-5}
GRADIENT_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}

# rows, bank: labels with -1 = unknown
LABEL_PATTERNS = {
    "two classes": ([0, 0, 1, 1, 0, 1], None),
    "uneven classes": ([3, 3, 3, 7, 7, 5], None),
    "unknown rows": ([0, -1, 1, 0, -1, 1, 1], None),
    "bank": ([0, 1, 0, 2], [1, 1, 0, 2, 4]),
    "bank with empty slots": ([2, 2, -1, 1], [2, -1, 1, -1, 0, -1]),
    "positives only in the bank": ([0, 1, 2], [2, 1, 0, 0]),
}

# label patterns that lack anchors, positives or negatives
DEGENERATE = {
    "one row": ([4], None),
    "one row, empty bank": ([4], []),
    "one class": ([2, 2, 2, 2], None),
    "all distinct": ([0, 1, 2, 3], None),
    "all unknown": ([-1, -1, -1], None),
    "all unknown, known bank": ([-1, -1], [0, 1, 1]),
    "unknown bank": ([0, 1, 0], [-1, -1]),
    "no rows": ([], None),
    "no rows, a bank": ([], [0, 1]),
}


def embeddings(n, dim, seed=0, dtype=torch.float64):
    """n random vectors of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = 0.5 + 3 * torch.rand(n, 1, generator=generator, dtype=torch.float64)
    return (lengths * torch.randn(n, dim, generator=generator, dtype=torch.float64)).to(dtype)


def label_tensors(rows, bank):
    """The pattern as tensors; a missing bank stays None."""
    return torch.tensor(rows, dtype=torch.int64), None if bank is None else torch.tensor(bank, dtype=torch.int64)


def candidates_of(i, rows, bank):
    """A(i): indices of the other rows and of the bank (counted on from the rows), known ones only."""
    everything = list(rows) + list(bank or [])
    if everything[i] == -1:
        return []
    return [a for a in range(len(everything)) if a != i and everything[a] != -1]


def positives_of(i, rows, bank):
    """P(i): the candidates that share i's label."""
    everything = list(rows) + list(bank or [])
    return [j for j in candidates_of(i, rows, bank) if everything[j] == everything[i]]


def cosine(u, v):
    dot = sum(a * b for a, b in zip(u, v, strict=True))
    return dot / math.sqrt(sum(a * a for a in u)) / math.sqrt(sum(b * b for b in v))


def pair_loss(z, i, j, others, tau):
    """l_ij = -log [ exp(z_i z_j / tau) / sum_{a in A(i)} exp(z_i z_a / tau) ]."""
    denominator = 0.0
    for a in others:
        denominator += math.exp(cosine(z[i], z[a]) / tau)
    return -math.log(math.exp(cosine(z[i], z[j]) / tau) / denominator)


def mean_over_pairs(z, rows, bank, tau, term):
    """Mean over anchors with a positive of the mean over its positives of term(l_ij)."""
    z = z.double().tolist()
    per_anchor = []
    for i in range(len(rows)):
        others, positives = candidates_of(i, rows, bank), positives_of(i, rows, bank)
        if positives:
            terms = [term(pair_loss(z, i, j, others, tau)) for j in positives]
            per_anchor.append(sum(terms) / len(terms))
    return sum(per_anchor) / len(per_anchor) if per_anchor else 0.0


def supervised_contrast(z, rows, bank, tau):
    """L_con^k of all embeddings z: the rows, then the bank."""
    return mean_over_pairs(z, rows, bank, tau, lambda l_ij: l_ij)


def weight(l_ij, gamma, mode):
    """Eq. 3."""
    if mode == "hard":
        return 1.0 if l_ij <= gamma else 0.0
    return max(0.0, 1.0 - l_ij / gamma)


def regularizer(w, gamma, mode):
    return -gamma * w if mode == "hard" else gamma * (w * w / 2 - w)


def quartiles(values):
    """First quartile, median and third quartile, between two values in proportion."""
    ordered = sorted(values)
    found = []
    for level in (0.25, 0.5, 0.75):
        place = level * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        found.append(ordered[low] + (place - low) * (ordered[high] - ordered[low]))
    return found


def self_paced_contrast(z, rows, bank, tau, gamma, mode):
    """(L_SPcon^k, mean of w l, mean w over all positive pairs, quartiles of these w)."""
    weights = []

    def objective(l_ij):
        weights.append(weight(l_ij, gamma, mode))
        return weights[-1] * l_ij + regularizer(weights[-1], gamma, mode)

    loss = mean_over_pairs(z, rows, bank, tau, objective)
    weighted = mean_over_pairs(z, rows, bank, tau, lambda l_ij: weight(l_ij, gamma, mode) * l_ij)
    if not weights:
        return loss, weighted, 0.0, [0.0] * 3
    return loss, weighted, sum(weights) / len(weights), quartiles(weights)


def squared_distance(u, v):
    """Between two vectors on the unit sphere."""
    length_u, length_v = (math.sqrt(sum(a * a for a in w)) for w in (u, v))
    return sum((a / length_u - b / length_v) ** 2 for a, b in zip(u, v, strict=True))


def alignment(z, rows):
    """Mean over anchors with a positive of the mean squared distance to its positives."""
    z = z.double().tolist()
    per_anchor = []
    for i in range(len(rows)):
        distances = [squared_distance(z[i], z[j]) for j in positives_of(i, rows, None)]
        if distances:
            per_anchor.append(sum(distances) / len(distances))
    return sum(per_anchor) / len(per_anchor) if per_anchor else 0.0


def uniformity(z, rows):
    """Log of the mean of exp(-2 d^2) over all pairs of known labels."""
    z = z.double().tolist()
    potentials = [
        math.exp(-2 * squared_distance(z[i], z[j])) for i in range(len(rows)) for j in candidates_of(i, rows, None)
    ]
    return math.log(sum(potentials) / len(potentials)) if potentials else 0.0


def mean_over_pixels(student_logits, teacher_logits, probabilities, term):
    """Mean over pixels of the sum over classes of term(p_s, p_t); ``probabilities`` maps a list of C logits."""
    per_pixel = []
    for s_image, t_image in zip(student_logits.double(), teacher_logits.double(), strict=True):
        classes = s_image.shape[0]
        s_pixels, t_pixels = s_image.reshape(classes, -1).T.tolist(), t_image.reshape(classes, -1).T.tolist()
        for s_logits, t_logits in zip(s_pixels, t_pixels, strict=True):
            pairs = zip(probabilities(s_logits), probabilities(t_logits), strict=True)
            per_pixel.append(sum(term(p_s, p_t) for p_s, p_t in pairs))
    return sum(per_pixel) / len(per_pixel)


def mean_squared_distance(student_logits, teacher_logits, probabilities):
    """Mean over pixels of the sum over classes of squared differences."""
    return mean_over_pixels(student_logits, teacher_logits, probabilities, lambda s, t: (t - s) ** 2)


def mean_cross_entropy(student_logits, teacher_logits, probabilities, per_region):
    """Mean over pixels of the sum over classes of -p_t log p_s; with regions also of the complement."""

    def term(s, t):
        return -t * math.log(s) - ((1 - t) * math.log(1 - s) if per_region else 0)

    return mean_over_pixels(student_logits, teacher_logits, probabilities, term)


def softmax(logits):
    exponentials = [math.exp(x) for x in logits]
    return [e / sum(exponentials) for e in exponentials]


def sigmoid(logits):
    return [1 / (1 + math.exp(-x)) for x in logits]


def local_supcon(f, labels, tau, first_anchor=1):
    """Mean over the anchors (class at least ``first_anchor``) of one set that have a positive; None without one."""
    f = f.double().tolist()
    per_anchor = []
    for i, own in enumerate(labels):
        positives = positives_of(i, labels, None)
        if own >= first_anchor and positives:
            others = candidates_of(i, labels, None)
            per_anchor.append(sum(pair_loss(f, i, p, others, tau) for p in positives) / len(positives))
    return sum(per_anchor) / len(per_anchor) if per_anchor else None


def local_eq2(f, labels, tau, first_anchor=1):
    """-1/|P| log [ sum_P exp / sum_N exp ], averaged over the anchors that have both; None without one."""
    f = f.double().tolist()
    per_anchor = []
    for i, own in enumerate(labels):
        positives = positives_of(i, labels, None)
        negatives = [n for n in candidates_of(i, labels, None) if labels[n] != own]
        if own >= first_anchor and positives and negatives:
            above = sum(math.exp(cosine(f[i], f[p]) / tau) for p in positives)
            below = sum(math.exp(cosine(f[i], f[n]) / tau) for n in negatives)
            per_anchor.append(-math.log(above / below) / len(positives))
    return sum(per_anchor) / len(per_anchor) if per_anchor else None


def balanced(f, labels, tau, first_anchor=0):
    """L_bcl with n_iy = |A_y| - 1[y = y_i]; None without an anchor that has a positive."""
    f = f.double().tolist()
    per_anchor = []
    for i, own in enumerate(labels):
        positives = positives_of(i, labels, None)
        if own < first_anchor or not positives:
            continue
        others = candidates_of(i, labels, None)
        denominator = 0.0
        for y in {labels[k] for k in others}:
            members = [k for k in others if labels[k] == y]
            denominator += sum(math.exp(cosine(f[i], f[k]) / tau) for k in members) / len(members)
        terms = [-math.log(math.exp(cosine(f[i], f[p]) / tau) / denominator) for p in positives]
        per_anchor.append(sum(terms) / len(terms))
    return sum(per_anchor) / len(per_anchor) if per_anchor else None


def patches(f, labels, tau, first_anchor=0):
    """Each positive against the patches of other classes; None without an anchor that has both."""
    f = f.double().tolist()
    per_anchor = []
    for i, own in enumerate(labels):
        positives = positives_of(i, labels, None)
        negatives = [n for n in candidates_of(i, labels, None) if labels[n] != own]
        if own >= first_anchor and positives and negatives:
            below = sum(math.exp(cosine(f[i], f[n]) / tau) for n in negatives)
            above = [math.exp(cosine(f[i], f[v]) / tau) for v in positives]
            per_anchor.append(sum(-math.log(a / (a + below)) for a in above) / len(positives))
    return sum(per_anchor) / len(per_anchor) if per_anchor else None


def mean_over_sets(loss, sets, labels, *args):
    """Mean of a loss over the sets that have an anchor; 0 without one."""
    found = [loss(f, own, *args) for f, own in zip(sets, labels, strict=True)]
    found = [value for value in found if value is not None]
    return sum(found) / len(found) if found else 0.0
