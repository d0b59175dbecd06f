"""The learning-rate schedule, the optimizer's groups, and gradients that are not finite."""

import math

import pytest
import torch

from lpd.distributed import World
from lpd.errors import InputError
from lpd.models.lpd import LPD, LPDConfig
from lpd.training.lr_schedule import LRSchedule
from lpd.training.optim import FiniteGuard, make_optimizer


def published(kind: str = "constant+cosine") -> LRSchedule:
    """L at 256 pixels, 10 steps an epoch."""
    return LRSchedule(
        kind=kind, lr=8e-4, min_lr=1e-5, warmup_steps=500, decay_start=4000, total_steps=4500
    )


@pytest.mark.parametrize(
    ("step", "lr"),
    [(0, 0.0), (250, 4e-4), (500, 8e-4), (3999, 8e-4), (4250, 4.05e-4), (4500, 1e-5), (9999, 1e-5)],
)
def test_constant_then_cosine(step: int, lr: float) -> None:
    assert published().at(step) == pytest.approx(lr)


def test_pure_cosine_and_constant() -> None:
    assert published("cosine").at(2500) == pytest.approx((8e-4 + 1e-5) / 2)
    assert published("constant").at(4499) == 8e-4


def test_no_warmup() -> None:
    schedule = LRSchedule(
        kind="cosine", lr=1.0, min_lr=0.0, warmup_steps=0, decay_start=0, total_steps=2
    )
    assert [schedule.at(step) for step in range(3)] == pytest.approx([1.0, 0.5, 0.0])


def test_weight_decay_by_number_of_dimensions(tiny_config: LPDConfig) -> None:
    model = LPD(tiny_config)
    optimizer = make_optimizer(model, 0.02)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    by_name = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert len(decay) == len(by_name)
    for name, value in by_name.items():
        one_dimensional = "norm" in name or name.endswith("bias") or "z_proj_ln" in name
        assert value == (0.0 if one_dimensional else 0.02), name
    # Tables and the position query are of two or three dimensions: they decay.
    for name in ("pos_embed", "mask_token", "fake_latent", "token_emb.weight"):
        assert by_name[name] == 0.02


def test_one_step_against_adamw_by_hand() -> None:
    weight = torch.nn.Parameter(torch.tensor([[2.0]]))
    module = torch.nn.Module()
    module.weight = weight
    optimizer = make_optimizer(module, 0.1)
    optimizer.param_groups[0]["lr"] = 0.5
    weight.grad = torch.tensor([[4.0]])
    optimizer.step()
    # Decay: 2 (1 - 0.5 x 0.1) = 1.9; the first Adam step is lr x sign of the gradient.
    assert weight.item() == pytest.approx(1.4)


class Descent:
    """A weight that follows given gradients, with a guard."""

    def __init__(self, most_in_a_row: int = 3) -> None:
        self.module = torch.nn.Linear(1, 1)
        torch.nn.init.ones_(self.module.weight)
        torch.nn.init.ones_(self.module.bias)
        self.optimizer = make_optimizer(self.module, 0.1)
        device = torch.device("cpu")
        self.guard = FiniteGuard(self.optimizer, device, most_in_a_row=most_in_a_row)
        self.steps = 0

    def step(self, *gradients: float) -> None:
        for gradient in gradients:
            for group in self.optimizer.param_groups:
                group["lr"] = 0.5
            for parameter in self.module.parameters():
                parameter.grad = torch.full_like(parameter, gradient)
            self.steps += 1
            norm = torch.tensor(abs(gradient))
            self.guard.watch(self.steps, torch.tensor(10 * gradient), norm)
            self.optimizer.step()

    def check(self, world: World | None = None, most: int | None = None) -> None:
        self.guard.check(
            world or World(),
            lambda step: f"step {step}'s images",
            remedy="take a lower lr",
            most_in_a_row=most,
        )

    def state(self) -> list[torch.Tensor]:
        moments = [m for state in self.optimizer.state.values() for m in state.values()]
        return [tensor.clone() for tensor in (*self.module.parameters(), *moments)]


def assert_equal(left: Descent, right: Descent) -> None:
    for one, other in zip(left.state(), right.state(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_step_whose_gradient_is_not_finite_changes_nothing(bad: float) -> None:
    descent, twin = Descent(), Descent()
    descent.step(1.0, bad, -2.0, bad, bad, 0.5)
    twin.step(1.0, -2.0, 0.5)
    assert_equal(descent, twin)  # weights, moments and step counts
    descent.check()
    assert descent.guard.skipped() == 3
    assert descent.guard.newly_skipped() == [2, 4, 5]
    assert descent.guard.newly_skipped() == []
    assert descent.guard.in_a_row() == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_too_many_in_a_row_end_it_for_good(bad: float) -> None:
    descent, twin = Descent(), Descent()
    descent.step(1.0, bad, -2.0)
    twin.step(1.0, -2.0)
    descent.step(math.nan, math.nan, bad, 1.0, math.nan, 3.0)
    assert_equal(descent, twin)
    told = rf"in 3 steps in a row, 4 to 6 \(the last one's loss: {bad}, step 6's images\)"
    with pytest.raises(InputError, match=told + r".*; take a lower lr"):
        descent.check()
    assert descent.guard.skipped() == 4
    twin.step(1.0)
    assert not torch.equal(twin.module.weight, descent.module.weight)


def test_a_training_that_goes_on_begins_with_no_bad_steps_in_a_row() -> None:
    """What is saved is from before a row; with a lower learning rate it may go well."""
    descent = Descent()
    descent.step(1.0, math.nan, 1.0, math.nan, math.nan)
    saved = {name: value.clone() for name, value in descent.guard.state_dict().items()}
    resumed = Descent()
    resumed.guard.load_state_dict(saved)
    resumed.steps = descent.steps
    assert (resumed.guard.skipped(), resumed.guard.in_a_row()) == (3, 0)
    assert resumed.guard.newly_skipped() == []  # they were told
    resumed.step(math.nan, math.nan)
    resumed.check()
    assert resumed.guard.newly_skipped() == [6, 7]
    resumed.step(math.nan)
    with pytest.raises(InputError, match="in 3 steps in a row, 6 to 8 "):
        resumed.check()


def test_fewer_in_a_row_may_be_too_many_at_the_end() -> None:
    descent = Descent()
    descent.step(1.0, math.nan)
    descent.check()
    with pytest.raises(InputError, match="in 1 steps in a row, 2 to 2 "):
        descent.check(most=1)
    descent.step(1.0)
    descent.check(most=1)


def test_of_very_many_bad_steps_the_last_are_named() -> None:
    descent = Descent(most_in_a_row=1000)
    descent.step(*[math.nan] * 100)
    assert descent.guard.newly_skipped() == list(range(37, 101))


def test_a_guard_changes_no_number() -> None:
    guarded, plain = Descent(), Descent()
    del plain.optimizer.found_inf
    for gradient in (1.0, 1e-3, -7.0, 1e30, 0.0):
        guarded.step(gradient)
        plain.step(gradient)
        assert_equal(guarded, plain)
