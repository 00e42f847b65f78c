"""Training: order and noise are functions of the seed, the average forgets its start."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import contraflow as cf
from contraflow.tasks.density import DensityTask, Optimisation, WarmAverage
from contraflow.tasks.loaders import Batches, mix_seed


def correlated(rows: int, seed: int = 0) -> Tensor:
    """Draw from a Gaussian of correlation .9; entropy per row ``ln(2 pi e) + ln(1 - .81) / 2``."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, rows, generator=generator)
    return torch.stack([a, 0.9 * a + math.sqrt(1 - 0.81) * b], -1)


def small() -> cf.Flow:
    torch.manual_seed(0)
    return cf.flows.MAF(features=2, transforms=2, hidden_features=(16,))


def test_fit_reaches_the_entropy_of_a_correlated_gaussian() -> None:
    """A flow that ignores the correlation stays .83 nats above; the bar is .08."""
    flow = cf.fit(small(), correlated(4000), max_epochs=15, learning_rate=1e-2, ema_decay=0.95)
    assert not flow.training
    entropy = math.log(2 * math.pi * math.e) + 0.5 * math.log(1 - 0.81)
    with torch.no_grad():
        loss = -flow.log_prob(correlated(4000, seed=1)).mean().item()
    assert abs(loss - entropy) < 0.08


def test_fit_is_a_function_of_its_seed_and_not_of_the_global_one() -> None:
    x = correlated(200)
    torch.manual_seed(1)
    first = cf.fit(small(), x, max_epochs=2, seed=3)
    torch.manual_seed(2)
    again = cf.fit(small(), x, max_epochs=2, seed=3)
    other = cf.fit(small(), x, max_epochs=2, seed=4)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert any(not torch.equal(v, other.state_dict()[n]) for n, v in first.state_dict().items())


def test_the_noise_of_a_step_does_not_depend_on_the_global_generator() -> None:
    flow = cf.flows.ResidualFlow(
        4, transforms=1, hidden_features=(8,), log_det=cf.logdet.Roulette()
    )
    task = DensityTask(flow, seed=5)
    x = torch.randn(16, 4)
    losses = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        losses.append(task._loss({"x": x}, task._generator(1, 7, 0)).item())
    assert losses[0] == losses[1]
    assert task._loss({"x": x}, task._generator(1, 8, 0)).item() != losses[0]


def test_fit_takes_a_context_and_integer_levels() -> None:
    x, c = torch.randn(64, 2), torch.randn(64, 3)
    flow = cf.flows.ResidualFlow(2, context=3, transforms=1, hidden_features=(8,))
    cf.fit(flow, x, c, max_epochs=1)
    assert flow.log_prob(x, c).shape == (64,)
    levels = torch.randint(0, 4, (64, 1, 2, 2)).float()
    image = cf.flows.ResidualFlow(
        shape=(1, 2, 2), num_bins=4, scales=0, tail=1, hidden_features=(8,), marginals=4
    )
    cf.fit(image, levels, max_epochs=1)
    assert bool(image.log_prob(levels).isfinite().all())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_fit_names_the_row_that_is_not_finite(bad: float) -> None:
    x = torch.randn(10, 2)
    x[7, 1] = bad
    with pytest.raises(cf.DataError, match="row 7 of x"):
        cf.fit(small(), x)


def test_a_loss_that_is_not_finite_stops_training() -> None:
    x = torch.randn(64, 2)
    flow = cf.flows.ResidualFlow(2, transforms=1, hidden_features=(8,))
    with pytest.raises(cf.DivergenceError, match="Lower the learning rate"):
        cf.fit(flow, x, max_epochs=50, learning_rate=1e30, warmup_steps=0)


def test_batches_cover_each_epoch_once_in_a_new_order() -> None:
    batches = Batches(10, 3, seed=0)
    assert len(batches) == 3
    epochs = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        epochs.append([i for batch in batches for i in batch])
        assert len(set(epochs[-1])) == 9
    assert epochs[0] != epochs[1]
    batches.set_epoch(0)
    assert [i for batch in batches for i in batch] == epochs[0]
    assert [len(b) for b in Batches(10, 4)] == [4, 4, 2]  # evaluation: in order, all rows
    assert [len(b) for b in Batches(5, 100, seed=0)] == [5]  # fewer rows than a batch


def test_mixed_seeds_differ_for_every_pair_of_small_numbers() -> None:
    seeds = {mix_seed(a, b, c) for a in range(8) for b in range(8) for c in range(8)}
    assert len(seeds) == 512


def test_the_average_forgets_its_start() -> None:
    """After n steps a plain average of decay .999 keeps .999**n of the start: .9 at 100."""
    average = WarmAverage(0.999)._kwargs["multi_avg_fn"]
    kept = [torch.ones(1)]
    for step in range(100):
        average(kept, [torch.zeros(1)], torch.tensor(step))
    assert kept[0].item() < 1e-4


def test_weight_decay_acts_on_matrices_alone() -> None:
    task = DensityTask(small(), Optimisation(weight_decay=0.1))
    groups = task.configure_optimizers()["optimizer"].param_groups
    decayed = next(group for group in groups if group["weight_decay"] == 0.1)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert sum(len(g["params"]) for g in groups) == len(list(task.flow.parameters()))


def test_the_rate_warms_up_and_decays() -> None:
    rate = Optimisation(warmup_steps=10, decay_steps=100, final_rate=0.1).rate
    assert rate(0) == pytest.approx(0.1)
    assert rate(10) == pytest.approx(1.0)
    assert rate(110) == pytest.approx(0.1)
    assert Optimisation(warmup_steps=0).rate(10**6) == 1.0


@pytest.mark.parametrize("wrong", [{"learning_rate": 0.0}, {"ema_decay": 1.0}, {"batch_size": 0}])
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(cf.ConfigurationError, match=next(iter(wrong))):
        Optimisation(**wrong)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_every_batch(world: int) -> None:
    whole = [sorted(rows) for rows in Batches(100, 12, seed=3)]
    parts = [list(Batches(100, 12, seed=3, rank=rank, world=world)) for rank in range(world)]
    assert {len(rows) for part in parts for rows in part} == {12 // world}
    batches = zip(*parts, strict=True)
    together = [sorted(row for rows in shares for row in rows) for shares in batches]
    assert together == whole
    # In a validation all processes take as many rows, and none is left out.
    parts = [list(Batches(10, 4, rank=rank, world=world)) for rank in range(world)]
    assert len({tuple(map(len, part)) for part in parts}) == 1
    assert {row for part in parts for rows in part for row in rows} == set(range(10))
