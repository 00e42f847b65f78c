"""Train a residual flow on two moons with a loop of your own; nothing has to be called for L.

Run: python examples/plain_loop.py
"""

import torch

import contraflow as cf
from contraflow.distributions import planar_set


def main(steps: int = 300) -> None:
    generator = torch.Generator().manual_seed(0)
    moons = planar_set("moons")
    torch.manual_seed(0)
    flow = cf.flows.ResidualFlow(
        features=2, transforms=4, hidden_features=(64, 64), activation="sine"
    )
    flow.initialise_from(moons.sample(1000, generator=generator))
    optimiser = torch.optim.Adam(flow.parameters(), lr=5e-3)
    for step in range(steps):
        loss = -flow.log_prob(moons.sample(256, generator=generator)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 100 == 0:
            print(f"step {step}: {loss.item():.3f} nats")
    flow.eval()
    x = moons.sample(2000, generator=generator)
    with torch.no_grad():
        print(f"held out: {-flow.log_prob(x).mean().item():.3f} nats, {flow.kind}")
        z, _ = flow.transform(x)
        back = flow.solve_inverse(z).check("inverse").value
    print(f"round trip: {(back - x).abs().max().item():.1e}")
    print(cf.certify(flow))


if __name__ == "__main__":
    main()
