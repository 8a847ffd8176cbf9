"""The published rules in plain NumPy, float64: what the JAX library is checked against.

Nothing here imports JAX or `optax_sam`. Parameters are one flat vector `w`, so that every rule
reads like its equation; `flatten` and `unflatten` go to and from the dictionary
`{"layer1": {"weight", "bias"}, "layer2": {"weight", "bias"}}`.

Every rule is a small class with `direction(w, batch, refresh)`: what the base optimizer receives
in place of the gradient. `refresh` matters only to the rules with an occasional step.
"""

import numpy as np
from numpy.linalg import norm

# --- A two-layer tanh network with softmax cross-entropy -----------------------------------------
# Every operation is analytic (no abs, no max), so that `hessian_vector_product` may pass complex w.

SHAPES = {
    ("layer1", "weight"): (5, 7),
    ("layer1", "bias"): (7,),
    ("layer2", "weight"): (7, 3),
    ("layer2", "bias"): (3,),
}


def flatten(params):
    return np.concatenate([np.ravel(params[layer][name]) for layer, name in SHAPES])


def unflatten(w):
    params, start = {"layer1": {}, "layer2": {}}, 0
    for (layer, name), shape in SHAPES.items():
        stop = start + np.prod(shape)
        params[layer][name] = np.reshape(w[start:stop], shape)
        start = stop
    return params


IS_WEIGHT = np.concatenate([np.full(np.prod(shape), name == "weight") for (_, name), shape in SHAPES.items()])


def forward(w, inputs):
    params = unflatten(w)
    hidden = np.tanh(inputs @ params["layer1"]["weight"] + params["layer1"]["bias"])
    logits = hidden @ params["layer2"]["weight"] + params["layer2"]["bias"]
    return hidden, logits


def loss(w, batch):
    inputs, labels = batch
    _, logits = forward(w, inputs)
    log_normaliser = np.log(np.sum(np.exp(logits), axis=1))
    return np.mean(log_normaliser - logits[np.arange(len(labels)), labels])


def gradient(w, batch):
    """Backpropagation by hand."""
    inputs, labels = batch
    hidden, logits = forward(w, inputs)
    probabilities = np.exp(logits) / np.sum(np.exp(logits), axis=1, keepdims=True)
    d_logits = (probabilities - np.eye(logits.shape[1])[labels]) / len(labels)
    d_hidden = d_logits @ unflatten(w)["layer2"]["weight"].T
    d_preactivation = d_hidden * (1 - hidden**2)
    return flatten(
        {
            "layer1": {"weight": inputs.T @ d_preactivation, "bias": d_preactivation.sum(axis=0)},
            "layer2": {"weight": hidden.T @ d_logits, "bias": d_logits.sum(axis=0)},
        }
    )


def hessian_vector_product(w, v, batch, h=1e-30):
    """The complex-step derivative Im ∇L(w + ihv) / h, which is exact to rounding."""
    return gradient(w + 1j * h * v, batch).imag / h


def initial_parameters(seed=0):
    return 0.5 * np.random.default_rng(seed).normal(size=len(IS_WEIGHT))


def mini_batches(num_batches, batch_size=16, seed=1):
    """A different batch for every step; random labels keep the gradients large and noisy."""
    rng = np.random.default_rng(seed)
    teacher = rng.normal(size=(5, 3))
    for _ in range(num_batches):
        inputs = rng.normal(size=(batch_size, 5))
        labels = np.argmax(inputs @ teacher, axis=1)
        random_labels = rng.integers(3, size=batch_size)
        yield inputs, np.where(rng.random(batch_size) < 0.25, random_labels, labels)


# --- The rules -----------------------------------------------------------------------------------


class Sgd:
    """d = g."""

    def direction(self, w, batch, refresh=False):
        return gradient(w, batch)


class Sam:
    """k ascents of ρ/k each along the unit gradient; d is the gradient at the last point."""

    def __init__(self, rho, num_steps=1):
        self.rho, self.num_steps = rho, num_steps

    def climb(self, w, batch):
        for _ in range(self.num_steps):
            g = gradient(w, batch)
            w = w + self.rho / self.num_steps * g / norm(g)
        return w

    def direction(self, w, batch, refresh=False):
        return gradient(self.climb(w, batch), batch)


class Asam:
    """ε = ρ T² g / ‖T g‖ with T = |w| + η where `where` is true and 1 elsewhere."""

    def __init__(self, rho, eta, where=None):
        self.rho, self.eta = rho, eta
        self.where = np.ones_like(IS_WEIGHT) if where is None else where

    def direction(self, w, batch, refresh=False):
        g = gradient(w, batch)
        T = np.where(self.where, np.abs(w) + self.eta, 1.0)
        epsilon = self.rho * T**2 * g / norm(T * g)
        return gradient(w + epsilon, batch)


class FisherSam:
    """ε = ρ F⁻¹g / √(gᵀF⁻¹g) with F⁻¹ = 1 / (1 + η g²)."""

    def __init__(self, rho, eta):
        self.rho, self.eta = rho, eta

    def direction(self, w, batch, refresh=False):
        g = gradient(w, batch)
        inverse_fisher = 1 / (1 + self.eta * g**2)
        epsilon = self.rho * inverse_fisher * g / np.sqrt(g @ (inverse_fisher * g))
        return gradient(w + epsilon, batch)


class InfoSam:
    """ε = ρ (g/b) / ‖g/b‖, as in the authors' early code.

    First step: m = g, b = 1. Then m ← a m + (1 − a) g and b = (m − g)², not averaged, not damped.
    """

    def __init__(self, rho, decay):
        self.rho, self.decay = rho, decay
        self.mean = None

    def direction(self, w, batch, refresh=False):
        g = gradient(w, batch)
        if self.mean is None:
            self.mean = g
            b = np.ones_like(g)
        else:
            self.mean = self.decay * self.mean + (1 - self.decay) * g
            b = (self.mean - g) ** 2
        epsilon = self.rho * (g / b) / norm(g / b)
        return gradient(w + epsilon, batch)


class EigenSam:
    """ε = ρ (ĝ + α s v⊥) with s = sign⟨g, v⟩ and v⊥ = v − ⟨ĝ, v⟩ ĝ; neither is normalised again.

    A refresh repeats v ← H v / ‖H v‖ on this batch, before the step uses v. Until the first refresh
    the rule is plain SAM. With a running mean β λ v + (1 − β) H v takes the place of H v from the second
    refresh on, where λ = ⟨v, that⟩ is of the last one.
    """

    def __init__(self, rho, alpha, start, num_iters, decay=0.0):
        self.rho, self.alpha, self.num_iters, self.decay = rho, alpha, num_iters, decay
        self.eigenvector, self.eigenvalue = start, None
        self.refreshed = False

    def direction(self, w, batch, refresh):
        if refresh:
            last = self.eigenvalue
            for _ in range(self.num_iters):
                image = hessian_vector_product(w, self.eigenvector, batch)
                if last is not None:
                    image = self.decay * last * self.eigenvector + (1 - self.decay) * image
                self.eigenvalue = self.eigenvector @ image
                self.eigenvector = image / norm(image)
            self.refreshed = True

        g = gradient(w, batch)
        unit_g = g / norm(g)
        epsilon = self.rho * unit_g
        if self.refreshed:
            v = self.eigenvector
            v_perp = v - (unit_g @ v) * unit_g
            epsilon = self.rho * (unit_g + self.alpha * np.sign(g @ v) * v_perp)
        return gradient(w + epsilon, batch)


class Xsam:
    """d = ‖g_k‖ v(α), with v(α) on the great circle through v0 = (w_k − w)/‖·‖ and v1 = g_k/‖g_k‖.

    A refresh takes the first α of 0, 0.1, …, 2.0 with the largest L(w + ρ_m v(α)) on this batch.
    """

    def __init__(self, rho, rho_max, num_steps=1):
        self.rho_max = rho_max
        self.ascent = Sam(rho, num_steps)
        self.alpha = None

    def direction(self, w, batch, refresh):
        w_k = self.ascent.climb(w, batch)
        g_k = gradient(w_k, batch)
        v0 = (w_k - w) / norm(w_k - w)
        v1 = g_k / norm(g_k)
        psi = np.arccos(np.clip(v0 @ v1, -1, 1))

        def v(alpha):
            if np.sin(psi) < 1e-8:
                return (v0 + v1) / 2
            return (np.sin((1 - alpha) * psi) * v0 + np.sin(alpha * psi) * v1) / np.sin(psi)

        if refresh:
            alphas = np.linspace(0, 2, 21)
            losses = [loss(w + self.rho_max * v(alpha), batch) for alpha in alphas]
            self.alpha = alphas[np.argmax(losses)]
        return norm(g_k) * v(self.alpha)


# --- The wider family ----------------------------------------------------------------------------


class LayerwiseSam:
    """ε = ρ g/‖g‖ for each weight matrix and bias on its own."""

    def __init__(self, rho):
        self.rho = rho

    def direction(self, w, batch, refresh=False):
        layers = unflatten(gradient(w, batch))
        for layer in layers.values():
            for name, g in layer.items():
                layer[name] = self.rho * g / norm(g)
        return gradient(w + flatten(layers), batch)


class SignSam:
    """ε = ρ sign(g), the worst point of the ball |ε_i| ≤ ρ."""

    def __init__(self, rho):
        self.rho = rho

    def direction(self, w, batch, refresh=False):
        return gradient(w + self.rho * np.sign(gradient(w, batch)), batch)


class Vasso:
    """m ← (1 − θ) m + θ g, which starts at g; ε = ρ m/‖m‖."""

    def __init__(self, rho, theta):
        self.rho, self.theta, self.mean = rho, theta, None

    def direction(self, w, batch, refresh=False):
        g = gradient(w, batch)
        self.mean = g if self.mean is None else (1 - self.theta) * self.mean + self.theta * g
        return gradient(w + self.rho * self.mean / norm(self.mean), batch)


class FriendlySam:
    """ε along g − σ m, m from before this step; then m ← λ m + (1 − λ) g. At first ε along g, and m = g."""

    def __init__(self, rho, sigma, decay):
        self.rho, self.sigma, self.decay, self.mean = rho, sigma, decay, None

    def direction(self, w, batch, refresh=False):
        g = r = gradient(w, batch)
        if self.mean is None:
            self.mean = g
        else:
            r = g - self.sigma * self.mean
            self.mean = self.decay * self.mean + (1 - self.decay) * g
        return gradient(w + self.rho * r / norm(r), batch)


class FisherMaskSam:
    """ε = M ⊙ ρ g/‖g‖; a refresh chooses the largest g² of this batch for M."""

    def __init__(self, rho, sparsity):
        self.rho, self.sparsity, self.mask, self.step = rho, sparsity, 1.0, -1

    def direction(self, w, batch, refresh):
        self.step += 1
        g = gradient(w, batch)
        if refresh:
            self.mask = self.choose(g)
        return gradient(w + self.mask * self.rho * g / norm(g), batch)

    def choose(self, g):
        return largest(g**2, len(g) * (1 - self.sparsity))


class RandomMaskSam(FisherMaskSam):
    """M keeps each coordinate whose random number in [0, 1), given for every step, is at least s."""

    def __init__(self, rho, sparsity, uniform):
        super().__init__(rho, sparsity)
        self.uniform = uniform

    def choose(self, g):
        return 1.0 * (self.uniform[self.step] >= self.sparsity)


class DynamicMaskSam(RandomMaskSam):
    """A fraction of M moves from the smallest |g| in it to the largest random numbers outside of it."""

    def __init__(self, rho, sparsity, drop_rate, uniform):
        super().__init__(rho, sparsity, uniform)
        self.drop_rate = drop_rate

    def choose(self, g):
        num_kept, uniform = len(g) * (1 - self.sparsity), self.uniform[self.step]
        if self.step == 0:
            return largest(uniform, num_kept)
        num_dropped = num_kept * self.drop_rate
        stay = largest(np.where(self.mask == 1, np.abs(g), -np.inf), num_kept - num_dropped)
        enter = largest(np.where(self.mask == 0, uniform, -np.inf), num_dropped)
        return stay + enter


def largest(scores, num_kept):
    """1 where a score is among the largest, 0 elsewhere."""
    kept = np.zeros(len(scores))
    kept[np.argsort(-scores)[: int(np.floor(num_kept))]] = 1.0
    return kept


class Gsam:
    """d = g' − α g⊥ with g⊥ the part of g orthogonal to g'."""

    def __init__(self, rho, alpha):
        self.sam, self.alpha = Sam(rho), alpha

    def direction(self, w, batch, refresh=False):
        g, g_prime = gradient(w, batch), self.sam.direction(w, batch)
        cosine = g @ g_prime / norm(g) / norm(g_prime)
        vertical = g - cosine * norm(g) * g_prime / norm(g_prime)
        return g_prime - self.alpha * vertical


class Wsam:
    """d = g + γ/(1 − γ) (g' − g)."""

    def __init__(self, rho, gamma):
        self.sam, self.gamma = Sam(rho), gamma

    def direction(self, w, batch, refresh=False):
        g, g_prime = gradient(w, batch), self.sam.direction(w, batch)
        return g + self.gamma / (1 - self.gamma) * (g_prime - g)


class StableSam:
    """d = g' ‖g‖/‖g'‖."""

    def __init__(self, rho):
        self.sam = Sam(rho)

    def direction(self, w, batch, refresh=False):
        g_prime = self.sam.direction(w, batch)
        return g_prime / norm(g_prime) * norm(gradient(w, batch))


class ReverseSam:
    """d = ∇L(w − ρ g/‖g‖)."""

    def __init__(self, rho):
        self.rho = rho

    def direction(self, w, batch, refresh=False):
        g = gradient(w, batch)
        return gradient(w - self.rho * g / norm(g), batch)


class GradientNormPenalty:
    """d = g + ρ H g/‖g‖."""

    def __init__(self, rho):
        self.rho = rho

    def direction(self, w, batch, refresh=False):
        g = gradient(w, batch)
        return g + self.rho * hessian_vector_product(w, g / norm(g), batch)


class LookbehindSam:
    """A fast copy of w descends with the gradient at each of k ascents; w moves a part α of the way to it.

    `alpha=None`: for each array α = (1 + cos)/2 of the copy's first step and all its steps.
    """

    def __init__(self, rho, alpha, num_steps):
        self.rho, self.alpha, self.num_steps = rho, alpha, num_steps

    def direction(self, w, batch, refresh=False, step_size=0.37):
        point, fast, first = w, w, None
        for _ in range(self.num_steps):
            g = gradient(point, batch)
            point = point + self.rho * g / norm(g)
            fast = fast - step_size * gradient(point, batch)
            first = fast if first is None else first
        if self.alpha is not None:
            return self.alpha * (w - fast) / step_size
        parts, firsts = unflatten((w - fast) / step_size), unflatten((w - first) / step_size)
        for layer, arrays in parts.items():
            for name, total in arrays.items():
                one = firsts[layer][name]
                cosine = np.sum(one * total) / norm(one) / norm(total)
                arrays[name] = (1 + cosine) / 2 * total
        return flatten(parts)


class LookSam:
    """On refresh d = g', and u = the unit vector of its part orthogonal to g; otherwise d = g + α ‖g‖ u."""

    def __init__(self, rho, alpha):
        self.sam, self.alpha, self.unit = Sam(rho), alpha, 0.0

    def direction(self, w, batch, refresh):
        g = gradient(w, batch)
        if not refresh:
            return g + self.alpha * norm(g) * self.unit
        g_prime = self.sam.direction(w, batch)
        orthogonal = g_prime - (g_prime @ g) / norm(g) ** 2 * g
        self.unit = orthogonal / norm(orthogonal)
        return g_prime


class OneGradient:
    """d = g' = ∇L(w + sign ρ m/‖m‖); m the running mean of the g' before."""

    def __init__(self, rho, decay, sign):
        self.rho, self.decay, self.sign, self.mean = rho, decay, sign, 0.0

    def direction(self, w, batch, refresh=False):
        length = norm(self.mean)
        epsilon = self.sign * self.rho * self.mean / length if length else 0.0
        g_prime = gradient(w + epsilon, batch)
        self.mean = self.decay * self.mean + (1 - self.decay) * g_prime
        return g_prime


class BayesianSam:
    """bSAM, with the noise given: ε = ρ g/s, g at a sample; d = m/s; then s is updated."""

    def __init__(self, rho, noise, num_examples, decay, precision_decay, damping, weight_decay):
        self.rho, self.noise, self.num_examples = rho, iter(noise), num_examples
        self.decay, self.precision_decay = decay, precision_decay
        self.damping, self.weight_decay = damping, weight_decay
        self.precision, self.mean = 1.0, 0.0

    def direction(self, w, batch, refresh=False):
        s = self.precision
        g = gradient(w + np.sqrt(1 / (self.num_examples * s)) * next(self.noise), batch)
        g_prime = gradient(w + self.rho * g / s, batch)
        self.mean = self.decay * self.mean + (1 - self.decay) * (g_prime + self.weight_decay * w)
        size = np.sqrt(s * g**2) + self.damping + self.weight_decay
        self.precision = self.precision_decay * s + (1 - self.precision_decay) * size
        return self.mean / s


class Rwp:
    """d = λ g' + (1 − λ) g, g' = ∇L(w + ε), ε_f = σ ‖w_f‖ n_f / √(1 + η F_f); then F ← β F + g'².

    The noise n is given. f is a column of a weight matrix (its last axis are the outputs), for ‖w_f‖ also a
    whole bias; F of a bias is that of each entry.
    """

    def __init__(self, sigma, noise, lam=1.0, eta=0.0, decay=0.0):
        self.sigma, self.noise, self.lam = sigma, iter(noise), lam
        self.eta, self.decay, self.fisher = eta, decay, np.zeros(len(IS_WEIGHT))

    def direction(self, w, batch, refresh=False):
        lengths = of_columns(w, norm, norm)
        fisher = of_columns(self.fisher, np.sum, lambda bias: bias)
        epsilon = self.sigma * lengths * next(self.noise) / np.sqrt(1 + self.eta * fisher)
        g_prime = gradient(w + epsilon, batch)
        self.fisher = self.decay * self.fisher + g_prime**2
        return self.lam * g_prime + (1 - self.lam) * gradient(w, batch)


def of_columns(w, of_column, of_bias):
    """A number for each column of a weight matrix, and what `of_bias` gives for a bias, like w."""
    layers = unflatten(w.copy())
    for layer in layers.values():
        layer["weight"] = np.array([np.full(len(x), of_column(x)) for x in layer["weight"].T]).T
        layer["bias"] = np.zeros(len(layer["bias"])) + of_bias(layer["bias"])
    return flatten(layers)


class RandomDirection:
    """ε = ρ n/‖n‖ with the noise given."""

    def __init__(self, rho, noise):
        self.rho, self.noise = rho, iter(noise)

    def direction(self, w, batch, refresh=False):
        n = next(self.noise)
        return gradient(w + self.rho * n / norm(n), batch)


class LeSam:
    """ε = ρ_t g/‖g‖ with ρ_t = min(σ_t/‖g‖, ρ_max)."""

    def __init__(self, sigma, rho_max):
        self.sigma, self.rho_max, self.step, self.limited = sigma, rho_max, 0, set()

    def direction(self, w, batch, refresh=False):
        g = gradient(w, batch)
        rho = self.sigma(self.step) / norm(g)
        self.limited.add(rho > self.rho_max)
        self.step += 1
        return gradient(w + min(rho, self.rho_max) * g / norm(g), batch)


def momentum_sam_program(w, batches, *, rho, learning_rate, momentum):
    """Momentum-SAM as its authors run it: the parameters are those at w + ε. Yields w after every step."""
    buffer, inverse_norm = np.zeros_like(w), 0.0
    for batch in batches:
        g = gradient(w, batch)
        w = w + rho * inverse_norm * buffer
        buffer = momentum * buffer + g
        w = w - learning_rate * buffer
        yield w
        inverse_norm = 1 / norm(buffer)
        w = w - rho * inverse_norm * buffer


# --- The base optimizer --------------------------------------------------------------------------


def trajectory(rule, w, batches, *, learning_rate, momentum, weight_decay, refresh_steps=()):
    """PyTorch's SGD around a rule. Yields the parameters after every step."""
    buffer = np.zeros_like(w)
    for step, batch in enumerate(batches):
        d = rule.direction(w, batch, refresh=step in refresh_steps)
        buffer = momentum * buffer + (d + weight_decay * w)
        w = w - learning_rate * buffer
        yield w
