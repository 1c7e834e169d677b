"""Make the golden file of torch for training: losses, trajectories of optimisers, schedules, clipping.

Run once with torch 2.15 (never a dependency of the tests):  python tests/golden/make_torch_training_golden.py
Writes torch_training.npz beside itself. Inputs are drawn in float32 and used exactly in both runs, float64
and float32. Array names are `case/thing`; the array `about` holds JSON: versions, and the options of each
case.
"""

import json
import platform
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

HERE = Path(__file__).parent
STEPS = 12
SHAPES = {"w": (5, 7), "b": (3,)}

# name: (shape of the logits, options of cross_entropy)
ENTROPIES = {
    "plain": ((9, 5), {}),
    "sum": ((9, 5), {"reduction": "sum"}),
    "wide": ((4, 1000), {}),
    "many": ((600, 3), {}),
    "smooth": ((9, 5), {"label_smoothing": 0.1}),
    "weights": ((9, 5), {"weight": True}),
    "weights_smooth": ((9, 5), {"weight": True, "label_smoothing": 0.3}),
    "ignored": ((9, 5), {"ignore_index": 2, "label_smoothing": 0.1}),
    "ignored_weights": ((9, 5), {"ignore_index": 2, "weight": True, "reduction": "sum"}),
    "probabilities": ((9, 5), {"probabilities": True}),
    "probabilities_smooth_weights": ((9, 5), {"probabilities": True, "label_smoothing": 0.2, "weight": True}),
}

OPTIMIZERS = {
    "SGD": ("SGD", {"lr": 0.1}),
    "SGD_decay": ("SGD", {"lr": 0.1, "weight_decay": 0.05}),
    "SGD_momentum": ("SGD", {"lr": 0.05, "momentum": 0.9}),
    "SGD_nesterov": ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "Adam": ("Adam", {}),
    "Adam_decay": ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}),
    "AdamW": ("AdamW", {}),
    "AdamW_decay": ("AdamW", {"lr": 0.02, "weight_decay": 0.3}),
}


def entropies(rng, arrays):
    for name, (shape, options) in ENTROPIES.items():
        options = dict(options)
        logits = (3 * rng.standard_normal(shape)).astype(np.float32)
        classes = rng.integers(0, shape[-1], shape[:-1])
        weight = rng.random(shape[-1]).astype(np.float32)
        probabilities = rng.dirichlet(np.ones(shape[-1]), shape[:-1]).astype(np.float32)
        case = f"entropy_{name}"
        arrays |= {f"{case}/logits": logits, f"{case}/weight": weight}
        targets = torch.tensor(classes)
        arrays[f"{case}/targets"] = probabilities if "probabilities" in options else classes
        for bits, dtype in ((32, torch.float32), (64, torch.float64)):
            given = dict(options)
            if given.pop("probabilities", False):
                targets = torch.tensor(probabilities).to(dtype)
            if given.pop("weight", False):
                given["weight"] = torch.tensor(weight).to(dtype)
            x = torch.tensor(logits).to(dtype).requires_grad_()
            loss = F.cross_entropy(x, targets, **given)
            loss.backward()
            arrays |= {f"{case}/loss{bits}": loss.detach().numpy(), f"{case}/gradient{bits}": x.grad.numpy()}


def contrastives(rng, arrays):
    for name, (b, n, symmetric) in {
        "pairs": (6, 6, False),
        "more": (5, 9, False),
        "both": (6, 6, True),
    }.items():
        case = f"contrastive_{name}"
        q, d = (rng.standard_normal((rows, 8)).astype(np.float32) for rows in (b, n))
        arrays |= {f"{case}/queries": q, f"{case}/documents": d}
        for bits, dtype in ((32, torch.float32), (64, torch.float64)):
            tq, td = (torch.tensor(x).to(dtype).requires_grad_() for x in (q, d))
            scores = F.normalize(tq, dim=-1) @ F.normalize(td, dim=-1).T / 0.05
            loss = F.cross_entropy(scores, torch.arange(b))
            if symmetric:
                loss = (loss + F.cross_entropy(scores.T, torch.arange(b))) / 2
            loss.backward()
            arrays |= {
                f"{case}/loss{bits}": loss.detach().numpy(),
                f"{case}/d_queries{bits}": tq.grad.numpy(),
                f"{case}/d_documents{bits}": td.grad.numpy(),
            }


def optimizers(rng, arrays):
    start = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    grads = {name: rng.standard_normal((STEPS, *shape)).astype(np.float32) for name, shape in SHAPES.items()}
    # One of them takes no part in some steps.
    frozen = [3, 4, 8]
    arrays |= {f"start/{name}": value for name, value in start.items()}
    arrays |= {f"grads/{name}": value for name, value in grads.items()}
    arrays["frozen/b"] = np.array(frozen)
    for case, (kind, options) in OPTIMIZERS.items():
        for bits, dtype in ((32, torch.float32), (64, torch.float64)):
            parameters = {name: torch.tensor(value).to(dtype) for name, value in start.items()}
            optimizer = getattr(torch.optim, kind)(parameters.values(), **options)
            path = {name: [] for name in SHAPES}
            for step in range(STEPS):
                for name, parameter in parameters.items():
                    out = name == "b" and step in frozen
                    parameter.grad = None if out else torch.tensor(grads[name][step]).to(dtype)
                optimizer.step()
                for name, parameter in parameters.items():
                    path[name].append(parameter.numpy().copy())
            arrays |= {f"{case}/{name}{bits}": np.stack(values) for name, values in path.items()}


def schedules(arrays):
    for name, after in {
        "linear": lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.1 / 0.3, total_iters=15),
        "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 15, eta_min=0.1),
    }.items():
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
        rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 5, 1.0, total_iters=4)
        schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, after(optimizer)], [5])
        rates = []
        for _ in range(20):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        arrays[f"schedule_{name}/rates"] = np.array(rates)


def clips(rng, arrays):
    grads = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    arrays |= {f"clip/{name}": value for name, value in grads.items()}
    for max_norm in (0.5, 100.0):
        parameters = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES.values()]
        for parameter, gradient in zip(parameters, grads.values(), strict=True):
            parameter.grad = torch.tensor(gradient)
        arrays[f"clip/norm_{max_norm}"] = torch.nn.utils.clip_grad_norm_(parameters, max_norm).numpy()
        for name, parameter in zip(SHAPES, parameters, strict=True):
            arrays[f"clip/{name}_{max_norm}"] = parameter.grad.numpy()


def main():
    rng = np.random.default_rng(5)
    arrays = {}
    entropies(rng, arrays)
    contrastives(rng, arrays)
    optimizers(rng, arrays)
    schedules(arrays)
    clips(rng, arrays)
    about = {
        "made_by": "tests/golden/make_torch_training_golden.py",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "entropies": {name: options for name, (_, options) in ENTROPIES.items()},
        "optimizers": OPTIMIZERS,
    }
    np.savez_compressed(HERE / "torch_training.npz", about=json.dumps(about), **arrays)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
