"""The structures of programs that others wrote, in small: each trains as SAM by hand, silent under the check.

What matters is who computes the gradient, who calls `update`, and what else the step carries: keys,
statistics, weights of examples, several optimizers.
"""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx, struct

import optax_sam
from optax_sam import diagnostics
from optax_sam.flax import TrainState, nnx_value_fn
from tests.clients.by_hand import RHO, assert_same, batches, checked_sam, sam_gradient, silence

BATCHES = batches()
BASE = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
normal = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape) / 3
PARAMS = {"inner": normal(0, 8, 16), "bias": jnp.zeros(16), "outer": normal(1, 16)}


def predict(params, x):
    return jnp.tanh(x @ params["inner"] + params["bias"]) @ params["outer"]


def loss_fn(params, batch, key=None):
    hidden = jnp.tanh(batch["x"] @ params["inner"] + params["bias"])
    if key is not None:
        hidden *= 2 * jax.random.bernoulli(key, 0.5, hidden.shape)
    return jnp.mean((hidden @ params["outer"] - batch["y"]) ** 2)


def by_hand(losses, params=PARAMS, base=BASE):
    """The parameters after a step of SAM by hand on each loss."""
    state = base.init(params)
    for loss in losses:
        gradient = jax.jit(functools.partial(sam_gradient, loss))(params)
        updates, state = base.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def plain(params=PARAMS):
    return by_hand([functools.partial(loss_fn, batch=batch) for batch in BATCHES], params)


def stacked():
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *BATCHES)


def method(**arguments):
    """The method alone, for programs in which somebody else calls the optimizer's `update`."""
    return optax.chain(diagnostics.wiring_check(tolerance=1e-4, **arguments), optax_sam.sam(RHO))


def vae():
    """Flax vae: linen, a key for each step, TrainState."""
    keys = jax.random.split(jax.random.key(3), 3)
    state = TrainState.create(apply_fn=predict, params=PARAMS, tx=checked_sam(BASE))

    @jax.jit
    def train_step(state, batch, key):
        value_fn = lambda params: loss_fn(params, batch, key)
        return state.apply_gradients(grads=jax.grad(value_fn)(state.params), value_fn=value_fn)

    for batch, key in zip(BATCHES, keys, strict=True):
        state = train_step(state, batch, key)
    losses = [functools.partial(loss_fn, batch=b, key=k) for b, k in zip(BATCHES, keys, strict=True)]
    return state.params, by_hand(losses)


def sst2():
    """Flax sst2: a linen module with dropout, metrics beside the loss."""

    class Classifier(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(1)(nn.Dropout(0.5, deterministic=not train)(nn.tanh(nn.Dense(8)(x))))[:, 0]

    model = Classifier()
    params = model.init(jax.random.key(0), BATCHES[0]["x"], False)["params"]

    def loss_and_logits(params, batch, key):
        logits = model.apply({"params": params}, batch["x"], True, rngs={"dropout": key})
        return jnp.mean((logits - batch["y"]) ** 2), logits

    @jax.jit
    def train_step(state, batch, key):
        key = jax.random.fold_in(key, state.step)
        value_fn = lambda params: loss_and_logits(params, batch, key)[0]
        (_, logits), grads = jax.value_and_grad(loss_and_logits, has_aux=True)(state.params, batch, key)
        return state.apply_gradients(grads=grads, value_fn=value_fn), logits.mean()

    state = TrainState.create(apply_fn=model.apply, params=params, tx=checked_sam(BASE))
    for batch in BATCHES:
        state, _ = train_step(state, batch, jax.random.key(5))
    keys = [jax.random.fold_in(jax.random.key(5), i) for i in range(3)]
    losses = [lambda w, b=b, k=k: loss_and_logits(w, b, k)[0] for b, k in zip(BATCHES, keys, strict=True)]
    return state.params, by_hand(losses, params)


def ppo():
    """Flax ppo, PureJaxRL: all of the training in a `lax.scan`, advantages from the old policy."""

    def policy_loss(params, old, batch):
        ratio = jnp.exp(predict(params, batch["x"]) - predict(old, batch["x"]))
        gain = jnp.minimum(ratio * batch["y"], jnp.clip(ratio, 0.8, 1.2) * batch["y"])
        return -gain.mean() + loss_fn(params, batch)

    def update_minibatch(state, batch):
        value_fn = lambda params: policy_loss(params, PARAMS, batch)
        loss, grads = jax.value_and_grad(value_fn)(state.params)
        return state.apply_gradients(grads=grads, value_fn=value_fn), loss

    state = TrainState.create(apply_fn=None, params=PARAMS, tx=checked_sam(BASE))
    state, _ = jax.jit(lambda state: jax.lax.scan(update_minibatch, state, stacked()))(state)
    return state.params, by_hand([lambda w, b=b: policy_loss(w, PARAMS, b) for b in BATCHES])


def seeds():
    """PureJaxRL: `vmap` over seeds around the whole run."""
    tx = checked_sam(BASE)

    def run(key):
        params = {name: leaf + jax.random.normal(key, leaf.shape) / 9 for name, leaf in PARAMS.items()}

        def step(carry, batch):
            params, state = carry
            value_fn = lambda params: loss_fn(params, batch)
            updates, state = tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)
            return (optax.apply_updates(params, updates), state), None

        return params, jax.lax.scan(step, (params, tx.init(params)), stacked())[0][0]

    starts, found = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 2))
    member = lambda tree, i: jax.tree.map(lambda leaf: leaf[i], tree)
    return found, jax.tree.map(lambda *leaves: jnp.stack(leaves), *(plain(member(starts, i)) for i in (0, 1)))


def numpyro():
    """NumPyro: an optimizer object evaluates the loss and its gradient, and updates."""

    class Optim:
        def __init__(self, tx):
            self.tx = tx

        def init(self, params):
            return params, self.tx.init(params)

        def eval_and_update(self, fn, state):
            params, tx_state = state
            (out, aux), grads = jax.value_and_grad(fn, has_aux=True)(params)
            updates, tx_state = self.tx.update(grads, tx_state, params, value_fn=lambda w: fn(w)[0])
            return (out, aux), (optax.apply_updates(params, updates), tx_state)

    optim = Optim(checked_sam(BASE))
    svi_update = jax.jit(
        lambda state, batch: optim.eval_and_update(lambda w: (loss_fn(w, batch), None), state)
    )
    state = optim.init(PARAMS)
    for batch in BATCHES:
        _, state = svi_update(state, batch)
    return state[0], plain()


def fedjax():
    """FedJAX: the trainer takes a gradient function and an optimizer, and calls both."""

    def trainer(gradient_of, optimizer, params):
        state = optimizer.init(params)
        for batch in BATCHES:
            updates, state = optimizer.update(gradient_of(params, batch, None), state, params)
            params = optax.apply_updates(params, updates)
        return params

    @jax.jit
    def sam_gradient_of(params, batch, key):
        value_fn, tx = lambda params: loss_fn(params, batch), method()
        return tx.update(jax.grad(value_fn)(params), tx.init(params), params, value_fn=value_fn)[0]

    return trainer(sam_gradient_of, BASE, PARAMS), plain()


def easylm():
    """EasyLM: a generator of keys, from which the step draws before the loss; donated states."""

    class Generator:
        def __init__(self, key):
            self.key = key

        def __call__(self):
            self.key, key = jax.random.split(self.key)
            return key

    tx = checked_sam(BASE)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, state, key, batch):
        generator = Generator(key)
        dropout = generator()
        value_fn = lambda params: loss_fn(params, batch, dropout)
        updates, state = tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state, generator()

    params, key = jax.tree.map(jnp.copy, PARAMS), jax.random.key(9)
    state, losses = tx.init(params), []
    for batch in BATCHES:
        losses.append(functools.partial(loss_fn, batch=batch, key=jax.random.split(key)[1]))
        params, state, key = train_step(params, state, key, batch)
    return params, by_hand(losses)


def levanter():
    """Levanter: the trainer passes the loss as `obj_fn`; an adapter renames it."""

    def from_obj_fn(tx):
        def update(updates, state, params=None, *, obj_fn, **extra_args):
            return tx.update(updates, state, params, value_fn=obj_fn, **extra_args)

        return optax.GradientTransformationExtraArgs(tx.init, update)

    tx = from_obj_fn(checked_sam(BASE))

    @jax.jit
    def take_step(params, state, batch):
        obj_fn = lambda params: loss_fn(params, batch)
        updates, state = tx.update(jax.grad(obj_fn)(params), state, params, obj_fn=obj_fn)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for batch in BATCHES:
        params, state = take_step(params, state, batch)
    return params, plain()


def t5x():
    """T5X, MaxText, AlgoPerf: a sum over weighted examples, divided by their number; micro-batches."""
    weights = (jnp.arange(16) % 3 > 0).astype(jnp.float32)

    def loss_sum(params, x, y, weights):
        return jnp.sum(weights * (predict(params, x) - y) ** 2)

    def accumulated(params, batch):
        micro = jax.tree.map(
            lambda leaf: leaf.reshape(4, 4, *leaf.shape[1:]), (batch["x"], batch["y"], weights)
        )

        def add(total, part):
            return jax.tree.map(jnp.add, total, jax.grad(loss_sum)(params, *part)), None

        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), micro)
        return jax.tree.map(lambda leaf: leaf / weights.sum(), total)

    state = TrainState.create(apply_fn=None, params=PARAMS, tx=checked_sam(BASE))

    @jax.jit
    def train_step(state, batch):
        grad_fn = lambda params: accumulated(params, batch)
        return state.apply_gradients(grads=grad_fn(state.params), grad_fn=grad_fn)

    for batch in BATCHES:
        state = train_step(state, batch)
    losses = [lambda w, b=b: loss_sum(w, b["x"], b["y"], weights) / weights.sum() for b in BATCHES]
    return state.params, by_hand(losses)


def diffrax():
    """Diffrax, Equinox: a module with an integrator inside, `filter_value_and_grad`, `eqx.apply_updates`."""

    class Field(eqx.Module):
        layer: eqx.nn.Linear
        steps: int = eqx.field(static=True)

        def __call__(self, x):
            move = lambda _, x: x + jnp.tanh(self.layer(x)) / self.steps
            for i in range(self.steps):
                x = move(i, x)
            return x[0]

    model = Field(eqx.nn.Linear(8, 8, key=jax.random.key(0)), 4)
    tx = checked_sam(BASE)

    def loss(model, batch):
        return jnp.mean((jax.vmap(model)(batch["x"]) - batch["y"]) ** 2)

    @eqx.filter_jit
    def make_step(model, state, batch):
        params, static = eqx.partition(model, eqx.is_inexact_array)
        value_fn = lambda params: loss(eqx.combine(params, static), batch)
        _, grads = eqx.filter_value_and_grad(loss)(model, batch)
        updates, state = tx.update(grads, state, params, value_fn=value_fn)
        return eqx.apply_updates(model, updates), state

    params, static = eqx.partition(model, eqx.is_inexact_array)
    state = tx.init(params)
    losses = [lambda w, b=b: loss(eqx.combine(w, static), b) for b in BATCHES]
    for batch in BATCHES:
        model, state = make_step(model, state, batch)
    return eqx.filter(model, eqx.is_inexact_array), by_hand(losses, params)


def jaxpi():
    """Jaxpi: a loss of several terms with weights that the state carries and updates."""

    class State(TrainState):
        weights: Any

    def terms(params, batch):
        return {"data": loss_fn(params, batch), "size": jnp.mean(predict(params, batch["x"]) ** 2)}

    def loss(params, weights, batch):
        return sum(weights[name] * value for name, value in terms(params, batch).items())

    @jax.jit
    def step(state, batch):
        value_fn = lambda params: loss(params, state.weights, batch)
        new = jax.tree.map(lambda w, t: 0.9 * w + 0.1 / (1 + t), state.weights, terms(state.params, batch))
        grads = jax.grad(value_fn)(state.params)
        return state.apply_gradients(grads=grads, value_fn=value_fn, weights=new)

    start = {"data": jnp.asarray(1.0), "size": jnp.asarray(0.1)}
    state = State.create(apply_fn=None, params=PARAMS, tx=checked_sam(BASE), weights=start)
    losses = []
    for batch in BATCHES:
        losses.append(functools.partial(loss, weights=state.weights, batch=batch))
        state = step(state, batch)
    return state.params, by_hand(losses)


def keras():
    """Keras 3: a stateless loop over lists of variables; the optimizer is Keras's own, behind the method."""

    class Optimizer:
        def stateless_apply(self, optimizer_variables, grads, trainable_variables):
            updates, state = BASE.update(grads, optimizer_variables, trainable_variables)
            return optax.apply_updates(trainable_variables, updates), state

    names, optimizer, tx = list(PARAMS), Optimizer(), method()

    def compute_loss(trainable, non_trainable, x, y):
        params = dict(zip(names, trainable, strict=True))
        return loss_fn(params, {"x": x, "y": y}), [count + 1 for count in non_trainable]

    @jax.jit
    def train_step(state, x, y):
        trainable, non_trainable, optimizer_variables, method_state = state
        value_fn = lambda trainable: compute_loss(trainable, non_trainable, x, y)[0]
        gradient = jax.value_and_grad(compute_loss, has_aux=True)
        (_, new_non_trainable), grads = gradient(trainable, non_trainable, x, y)
        grads, method_state = tx.update(grads, method_state, trainable, value_fn=value_fn)
        trainable, optimizer_variables = optimizer.stateless_apply(optimizer_variables, grads, trainable)
        return trainable, new_non_trainable, optimizer_variables, method_state

    trainable = list(PARAMS.values())
    state = trainable, [jnp.zeros(())], BASE.init(trainable), tx.init(trainable)
    for batch in BATCHES:
        state = train_step(state, batch["x"], batch["y"])
    return dict(zip(names, state[0], strict=True)), plain()


def brax():
    """Brax: a function builds the update from the loss and the optimizer."""

    def gradient_update_fn(loss, optimizer):
        def update(params, *args, state):
            value_fn = lambda params: loss(params, *args)
            value, grads = jax.value_and_grad(value_fn)(params)
            updates, state = optimizer.update(grads, state, params, value_fn=value_fn)
            return value, optax.apply_updates(params, updates), state

        return update

    tx = checked_sam(BASE)
    update = jax.jit(gradient_update_fn(loss_fn, tx))
    params, state = PARAMS, tx.init(PARAMS)
    for batch in BATCHES:
        _, params, state = update(params, batch, state=state)
    return params, plain()


def jaxrl():
    """Jaxrl: actor and critic, each with a state of its own; the actor's loss sees the new critic."""

    class Agent(NamedTuple):
        critic: TrainState
        actor: TrainState

    def actor_loss(params, critic, batch):
        return jnp.mean((predict(params, batch["x"]) - predict(critic, batch["x"])) ** 2)

    def applied(state, value_fn):
        return state.apply_gradients(grads=jax.grad(value_fn)(state.params), value_fn=value_fn)

    @jax.jit
    def update(agent, batch):
        critic = applied(agent.critic, lambda params: loss_fn(params, batch))
        actor = applied(agent.actor, lambda params: actor_loss(params, critic.params, batch))
        return Agent(critic, actor)

    tx, other = checked_sam(BASE), jax.tree.map(lambda leaf: leaf[::-1] + 0.1, PARAMS)
    create = functools.partial(TrainState.create, apply_fn=None, tx=tx)
    agent, critics = Agent(create(params=PARAMS), create(params=other)), []
    for batch in BATCHES:
        agent = update(agent, batch)
        critics.append(agent.critic.params)
    losses = [lambda w, c=c, b=b: actor_loss(w, c, b) for c, b in zip(critics, BATCHES, strict=True)]
    return (agent.critic.params, agent.actor.params), (plain(), by_hand(losses, other))


def big_vision():
    """Big_vision: masked decay and schedules in a long chain, a rate for each part, a guard on transfers."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 1, 10)
    base = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.add_decayed_weights(1e-2, {"inner": True, "bias": False, "outer": True}),
        optax.partition(
            {"body": optax.identity(), "head": optax.scale(0.1)},
            {"inner": "body", "bias": "body", "outer": "head"},
        ),
        optax.scale_by_schedule(lambda count: -schedule(count)),
    )
    tx = checked_sam(base)

    @jax.jit
    def update_fn(params, state, batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = tx.update(grads, state, params, value_fn=lambda params: loss_fn(params, batch))
        measures = {"loss": loss, "norm": optax.tree.norm(grads)}
        return optax.apply_updates(params, updates), state, measures

    params, state = PARAMS, jax.jit(tx.init)(PARAMS)
    with jax.transfer_guard("disallow"):
        for batch in BATCHES:
            params, state, _ = update_fn(params, state, batch)
    losses = [functools.partial(loss_fn, batch=batch) for batch in BATCHES]
    return params, by_hand(losses, base=base)


def tunix():
    """Tunix: nnx, adapters of LoRA alone are trained; the batch goes by name."""

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.base = nnx.Linear(8, 4, rngs=rngs)
            self.lora = nnx.LoRA(
                8, 2, 4, base_module=self.base, rngs=rngs, b_initializer=nnx.initializers.ones
            )

        def __call__(self, x):
            return self.lora(x).mean(-1)

    def loss(model, *, batch):
        return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)

    model = Network(nnx.Rngs(0))
    graphdef, params, rest = nnx.split(nnx.clone(model), nnx.LoRAParam, ...)
    optimizer = nnx.Optimizer(model, checked_sam(BASE), wrt=nnx.LoRAParam)

    @nnx.jit
    def train_step(model, optimizer, batch):
        value_fn = nnx_value_fn(loss, model, batch=batch)
        of_adapter = nnx.DiffState(0, nnx.LoRAParam)
        grads = nnx.grad(lambda model: loss(model, batch=batch), argnums=of_adapter)(model)
        optimizer.update(model, grads, value_fn=value_fn)

    for batch in BATCHES:
        train_step(model, optimizer, batch)
    as_pure = nnx.as_pure if hasattr(nnx, "as_pure") else nnx.pure
    losses = [lambda w, b=b: loss(nnx.merge(graphdef, w, rest, copy=True), batch=b) for b in BATCHES]
    return as_pure(nnx.state(model, nnx.LoRAParam)), by_hand(losses, as_pure(params))


def dalle():
    """Dalle-mini: a state of one's own that sums gradients over micro-batches and counts."""

    @struct.dataclass
    class Accumulating:
        params: Any
        state: Any
        seen: jax.Array

    tx = checked_sam(BASE)

    @jax.jit
    def train_step(carry, batch):
        micro = jax.tree.map(lambda leaf: leaf.reshape(2, 8, *leaf.shape[1:]), batch)
        mean = lambda params: jax.lax.map(lambda part: loss_fn(params, part), micro).mean()
        updates, state = tx.update(jax.grad(mean)(carry.params), carry.state, carry.params, value_fn=mean)
        return Accumulating(optax.apply_updates(carry.params, updates), state, carry.seen + 16)

    carry = Accumulating(PARAMS, tx.init(PARAMS), jnp.zeros((), jnp.int32))
    for batch in BATCHES:
        carry = train_step(carry, batch)
    return carry.params, plain()


PROGRAMS = [
    vae,
    sst2,
    ppo,
    seeds,
    numpyro,
    fedjax,
    easylm,
    levanter,
    t5x,
    diffrax,
    jaxpi,
    keras,
    brax,
    jaxrl,
    big_vision,
    tunix,
    dalle,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_trains_as_sam_by_hand(program):
    with silence():
        found, expected = program()
    assert_same(found, expected, rtol=1e-4)
