"""The peers, each through its own public interface, on the same data, split and first model.

Evaluation, checkpoints and logs are off wherever a peer lets us; what it keeps besides (losses,
message objects, its own clock) is a part of it. Each function runs a workload, calls `mark` after
every round and returns the final model, whose parameters are in the order of ours.
"""

import copy
import functools
import logging
import tempfile

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from work import ALPHA, ETA, WORKLOADS, A

LOCAL = nn.CrossEntropyLoss()


def network(task) -> nn.Module:
    """The network with the first model's parameters."""
    module = task.network.build(task.network.shape, task.classes)
    nn.utils.vector_to_parameters(task.init(), module.parameters())
    return module


@functools.lru_cache(1)
def prepared(workload: str, seed: int):
    """Workload, task and network where a peer knows no more than names, once per process."""
    task = WORKLOADS[workload].task(seed)
    return WORKLOADS[workload], task, network(task)


def dataset(task, i) -> TensorDataset:
    rows = torch.from_numpy(task.rows(i))
    return TensorDataset(task.x[rows], task.y[rows])


def flat(module: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(module.parameters())


def flower(work, task, mark, seed):
    """Flower's simulation on Ray: two actors of one core each, and the server beside them."""
    from flwr.app import ArrayRecord, ConfigRecord
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    server, client, done, module = ServerApp(), ClientApp(), [], network(task)
    client.train()(flower_visit)

    class Timed(FedAvg):
        def aggregate_train(self, server_round, replies):
            out = super().aggregate_train(server_round, list(replies))
            mark()
            return out

    @server.main()
    def main(grid, context):
        strategy = Timed(
            fraction_train=work.S / work.n, fraction_evaluate=0.0, min_available_nodes=work.n
        )
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(module.state_dict()),
            num_rounds=work.rounds + 1,
            train_config=ConfigRecord({"workload": work.name, "seed": seed}),
        )
        done.append(result.arrays.to_torch_state_dict())

    two = {
        "init_args": {"num_cpus": 2, "log_to_driver": False, "logging_level": "error"},
        "client_resources": {"num_cpus": 1, "num_gpus": 0},
    }
    run_simulation(server, client, num_supernodes=work.n, backend_config=two)
    module.load_state_dict(done[0])
    return flat(module)


def flower_visit(msg, context):
    """One local epoch at a client, in an actor."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    config = msg.content["config"]
    work, task, module = prepared(config["workload"], config["seed"])
    module.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    optimiser = torch.optim.SGD(module.parameters(), lr=ETA)
    own = torch.from_numpy(task.rows(context.node_config["partition-id"]))
    for rows in own[torch.randperm(len(own))].split(work.B):
        optimiser.zero_grad()
        LOCAL(module(task.x[rows]), task.y[rows]).backward()
        optimiser.step()
    content = {
        "arrays": ArrayRecord(module.state_dict()),
        "metrics": MetricRecord({"num-examples": len(own)}),
    }
    return Message(RecordDict(content), reply_to=msg)


def pfl(work, task, mark, seed):
    """Apple's pfl: its simulated backend in one process. It caches a client's batches, so their
    order is the same in each round."""
    import numpy as np
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    np.random.seed(seed)  # noqa: NPY002  its samplers draw from the global generator

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network(task)

        def forward(self, x):
            return self.net(x)

        def loss(self, x, y, **kw):
            return LOCAL(self.net(x), y)

        @torch.no_grad()
        def metrics(self, x, y, **kw):
            return {"accuracy": Weighted(float((self.net(x).argmax(1) == y).sum()), len(y))}

    class Tick(TrainingProcessCallback):
        def after_central_iteration(self, *args, **kw):
            mark()
            return False, Metrics()

    def user(i):
        return PyTorchTensorDataset(dataset(task, i).tensors, user_id=str(i))

    federation = FederatedDataset(user, get_user_sampler("random", list(range(work.n))))
    net = Net()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=work.rounds + 1,
            evaluation_frequency=10**6,
            train_cohort_size=work.S,
            val_cohort_size=None,
        ),
        SimulatedBackend(training_data=federation, val_data=federation),
        PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0)),
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=ETA, local_batch_size=work.B),
        NNEvalHyperParams(local_batch_size=None),
        [Tick()],
    )
    return flat(net)


def fluke(work, task, mark, seed):
    """fluke: FedAVG with stateless clients, in one process. It splits the data itself."""
    from fluke import DDict, FlukeENV
    from fluke.algorithms.fedavg import FedAVG
    from fluke.data import DataContainer, DataSplitter
    from fluke.evaluation import ClassificationEval
    from fluke.utils import FederationObserver

    settings = FlukeENV()
    settings.set_seed(seed)
    settings.set_device("cpu")
    settings.set_inmemory(True)
    settings.set_evaluator(ClassificationEval(eval_every=10**6, n_classes=task.classes))
    settings.set_eval_cfg(pre_fit=False, post_fit=False, locals=False, server=False)

    class Tick(FederationObserver):
        def end_round(self, round):
            mark()

    client = DDict(
        batch_size=work.B,
        local_epochs=1,
        loss="CrossEntropyLoss",
        persistency=False,
        optimizer=DDict(name="SGD", lr=ETA),
        scheduler=DDict(name="StepLR", step_size=1, gamma=1),
    )
    parts = DataContainer(task.x, task.y, task.x_test, task.y_test, task.classes)
    how = DDict(model=network(task), client=client, server=DDict(weighted=True, lr=1.0))
    federation = FedAVG(work.n, DataSplitter(parts, distribution="iid"), how)
    federation.set_callbacks([Tick()])
    federation.run(work.rounds + 1, work.S / work.n)
    return flat(federation.server.model)


def fedlab(work, task, mark, seed):
    """FedLab: its standalone pipeline, a serial trainer with a DataLoader a client."""
    from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer
    from fedlab.contrib.algorithm.basic_server import SyncServerHandler
    from fedlab.core.standalone import StandalonePipeline

    class Clients:
        def get_dataloader(self, i, batch_size):
            return DataLoader(dataset(task, i), batch_size, shuffle=True)

    class Timed(StandalonePipeline):
        def evaluate(self):
            mark()

    net = network(task)
    trainer = SGDSerialClientTrainer(net, work.n, cuda=False)
    trainer.setup_dataset(Clients())
    trainer.setup_optim(1, work.B, ETA)
    server = SyncServerHandler(net, work.rounds + 1, work.S / work.n, cuda=False)
    Timed(server, trainer).main()
    return flat(server.model)


def appfl(work, task, mark, seed):
    """APPFL: its virtual-time simulator, synchronous or asynchronous, in one process.

    Its memory switch is turned off, which collects garbage several times a visit: 50 times slower.
    The asynchronous driver trains a client when it starts; the timed part begins when all clients
    have started, and then one visit follows each arrival.
    """
    from appfl.agent.sim_client import SimClientAgent
    from appfl.agent.sim_server import SimServerAgent
    from appfl.vsim import AsyncSimDriver, ClientProfile, SyncSimDriver
    from omegaconf import OmegaConf

    light, late = {"optimize_memory": False}, work.method == "fedasync"
    if late:
        # it divides alpha by n
        mixing = dict(
            alpha=ALPHA * work.n, staleness_fn="polynomial", staleness_fn_kwargs=dict(a=A)
        )
        server = dict(
            aggregator="FedAsyncAggregator",
            aggregator_kwargs=light | mixing,
            scheduler="AsyncScheduler",
            scheduler_kwargs={},
            num_global_epochs=work.visits,
        )
    else:
        server = dict(
            aggregator="FedAvgAggregator",
            aggregator_kwargs=dict(client_weights_mode="equal", **light),
            scheduler="SyncScheduler",
            scheduler_kwargs=dict(num_clients=work.n, num_clients_per_round=work.S),
            num_global_epochs=work.rounds + 1,
        )
    trainer = dict(
        mode="epoch",
        num_local_epochs=1,
        optim="SGD",
        optim_args=dict(lr=ETA),
        loss_fn="CrossEntropyLoss",
        do_validation=False,
        metric_path=__file__,
        metric_name="hits",
        train_batch_size=work.B,
        train_data_shuffle=True,
        **light,
    )
    logs = dict(logging_output_filename="log", client_logging_output_filename="")
    settings = dict(
        algorithm_configs=dict(device="cpu", trainer="VanillaTrainer", trainer_kwargs=trainer)
        | server,
        model_configs=dict(
            model_path=__file__,
            model_name="appfl_network",
            model_kwargs=dict(workload=work.name, seed=seed),
        ),
        log_configs=dict(logging_output_dirname=tempfile.mkdtemp(), **logs),
        server_configs=light,
        comm_configs={},
    )
    settings = OmegaConf.create(settings)
    server = SimServerAgent(settings, num_clients=work.n)
    clients = [
        SimClientAgent(settings, client_id=str(i), client_dataset=dataset(task, i))
        for i in range(work.n)
    ]
    server.optimize_memory = server.scheduler.optimize_memory = False  # not passed on by itself
    for client in clients:
        client.optimize_memory = client.trainer.optimize_memory = False
        client.logger.logger.handlers.clear()

    class Sync(SyncSimDriver):
        def _aggregate_round(self, accepted):
            out = super()._aggregate_round(accepted)
            mark()
            return out

    class Async(AsyncSimDriver):
        def _handle_train_complete(self, client, when):
            if not self.history:
                mark()
            super()._handle_train_complete(client, when)

    pace = torch.empty(work.n).log_normal_(std=0.5).tolist()
    profiles = {c.get_id(): ClientProfile(speed) for c, speed in zip(clients, pace, strict=True)}
    how = dict(logger=logging.getLogger("vsim"), seed=seed, base_step_time=0.01)
    if late:
        Async(server, clients, profiles, work.n, **how).run()
        mark()
    else:
        Sync(server, clients, profiles, work.S, **how, target_rounds=work.rounds + 1).run()
    server.model.load_state_dict(server.get_parameters(serial_run=True))
    return flat(server.model)


def appfl_network(workload, seed):
    """A client's network: APPFL finds it by this file's path, and reads the file each time."""
    import peers

    return copy.deepcopy(peers.prepared(workload, seed)[2])


def hits(true, predicted):
    return 100.0 * float((predicted.argmax(1) == true).mean())


PEERS = {  # name: function and the package whose version is printed
    "flower": (flower, "flwr"),
    "pfl": (pfl, "pfl"),
    "fluke": (fluke, "fluke-fl"),
    "fedlab": (fedlab, "fedlab"),
    "appfl": (appfl, "appfl"),
}
