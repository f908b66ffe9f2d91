"""The foreign frameworks: Flower's simulation engine on Ray, and pfl-research. Each does the same local steps.

pfl-research is not a dependency of fedmem: install it into a folder of its own and name that on PYTHONPATH,
`pip install --no-deps --target DIR pfl==0.6.0 'multiprocess<0.71' dill`.
"""

import os
import time
import warnings
from typing import Any

import torch

from benchmarks.federation import work
from benchmarks.federation.ours import average, echo
from benchmarks.federation.work import Timed
from fedmem.federation.flower import ClientApp, Context, Grid, Message, ServerApp
from fedmem.federation.offline import RAY_SWITCHES
from fedmem.federation.wire import Params

CONNECT = 60.0


def ray(devices: int, rounds: int, steps: int, timed: Timed) -> Params:
    """Run federated averaging over Flower's simulation engine, with one CPU for each actor."""
    os.environ.update(RAY_SWITCHES)
    from flwr.simulation import run_simulation

    found, server = Params(), ServerApp()

    def main(grid: Grid, context: Context) -> None:
        deadline = time.monotonic() + CONNECT
        while len(list(grid.get_node_ids())) < devices and time.monotonic() < deadline:
            time.sleep(0.05)
        found.update(average(grid, rounds, steps, timed))

    server.main()(main)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"logging_level": "ERROR"}}
        run_simulation(server, client, devices, backend_config=resources)
    return found


def _train(message: Message, context: Context) -> Message:
    device = int(context.node_config["partition-id"])
    reply: Message = echo(device)(message, context)
    return reply


client = ClientApp()
client.train()(_train)


def pfl(devices: int, rounds: int, steps: int, timed: Timed) -> Params:
    """Run federated averaging by pfl-research's simulator in one process."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    class Rounds(TrainingProcessCallback):  # type: ignore[misc]
        def after_central_iteration(self, *_: Any, central_iteration: int) -> tuple[bool, Metrics]:
            timed.lap()
            return False, Metrics()

    class Averaging(FederatedAveraging):  # type: ignore[misc]
        def train_one_user(self, initial: Any, model: Any, user: Any, context: Any) -> Any:
            if not steps:
                return super().train_one_user(initial, model, user, context)
            number = context.current_central_iteration + 1
            work.train(work.anchor().params(), int(user.user_id), number, steps)
            return model.get_model_difference(initial), Metrics()

    module = work.anchor().model if steps else _Empty()
    module.loss, module.metrics = _nothing, _nothing
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    sampler = get_user_sampler("minimize_reuse", list(range(devices)))
    users = FederatedDataset(lambda user: Dataset([torch.zeros(1, 1)], user_id=str(user)), sampler)
    terms = NNAlgorithmParams(
        central_num_iterations=rounds, evaluation_frequency=10**9, train_cohort_size=devices, val_cohort_size=0
    )
    local = NNTrainHyperParams(local_num_epochs=0, local_learning_rate=0.1, local_batch_size=None)
    timed.lap()
    Averaging().run(terms, SimulatedBackend(users, users), model, local, None, [Rounds()])
    return work.anchor().params() if steps else {}


class _Empty(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(work.EMPTY))


def _nothing(*_: Any, **__: Any) -> dict[str, Any]:
    return {}
