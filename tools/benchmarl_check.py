"""BenchMARL's MLP and CNN models with this library's classes instead of torchrl's; run by ``make benchmarl``.

Three checks, in an environment with the released BenchMARL and the torchrl that it needs:

1. the models have the same outputs as with torchrl's classes, initialized under the same seed, in every combination
   of shared parameters, centralized critic and input with or without agents;
2. three iterations of MAPPO on VMAS balance give the same returns, with shared parameters and without;
3. BenchMARL's own tests of these models pass (its source distribution has them; give the folder).

    python tools/benchmarl_check.py path/to/benchmarl-1.5.2/test
"""

import itertools
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# BenchMARL 1.5.2 and torchrl 0.11 warn about deprecations of each other and of gym, which we cannot change.
warnings.simplefilter("ignore")

import benchmarl.models.cnn  # noqa: E402
import benchmarl.models.mlp  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import torchrl.modules  # noqa: E402
from benchmarl.algorithms import MappoConfig  # noqa: E402
from benchmarl.environments import VmasTask  # noqa: E402
from benchmarl.experiment import Experiment, ExperimentConfig  # noqa: E402
from benchmarl.models import CnnConfig, MlpConfig  # noqa: E402
from tensordict import TensorDict  # noqa: E402
from torchrl.data import Composite, Unbounded  # noqa: E402

import functional_marl.nn  # noqa: E402

CLASSES = ("MultiAgentMLP", "MultiAgentConvNet")
N_AGENTS = 3


@contextmanager
def classes_of(library: Any) -> Iterator[None]:
    """BenchMARL's models take their multi-agent networks from this library."""
    modules = (benchmarl.models.mlp, benchmarl.models.cnn)
    places = [(module, name) for module, name in itertools.product(modules, CLASSES) if hasattr(module, name)]
    before = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, getattr(library, name))
    try:
        yield
    finally:
        for (module, name), kept in zip(places, before, strict=True):
            setattr(module, name, kept)


def model(kind: str, share: bool, centralized: bool, agents_in: bool) -> Any:
    """A model of BenchMARL, initialized under seed 0."""
    lead, shape = [N_AGENTS] if agents_in else [], [12, 12, 2] if kind == "cnn" else [5]
    given = {"observation": Unbounded([*lead, *shape]), "other": Unbounded([*lead, 3])}
    single = share and centralized  # then the output has no agent axis
    out = {"out": Unbounded([4] if single else [N_AGENTS, 4])}
    config: Any = (CnnConfig if kind == "cnn" else MlpConfig).get_from_yaml()
    torch.manual_seed(0)
    return config.get_model(
        input_spec=Composite({"agents": Composite(given, shape=lead)}) if agents_in else Composite(given),
        output_spec=Composite(out) if single else Composite({"agents": Composite(out, shape=[N_AGENTS])}),
        agent_group="agents",
        input_has_agent_dim=agents_in,
        n_agents=N_AGENTS,
        centralised=centralized,
        share_params=share,
        device="cpu",
        action_spec=Composite({"agents": Composite({"action": Unbounded([N_AGENTS, 2])}, shape=[N_AGENTS])}),
    )


def check_models() -> None:
    """Outputs, gradients and checkpoints of the models, with ours and with torchrl's classes."""
    for kind, share, centralized, agents_in in itertools.product(("mlp", "cnn"), *[(True, False)] * 3):
        if not (centralized or agents_in):
            continue  # BenchMARL does not allow it
        with classes_of(torchrl.modules):
            theirs = model(kind, share, centralized, agents_in)
        with classes_of(functional_marl.nn):
            ours = model(kind, share, centralized, agents_in)
        used = [part for part in ours.modules() if type(part).__module__.startswith("functional_marl.nn.")]
        assert used or not agents_in, f"{kind}: none of our classes is used"
        states = [net.state_dict() for net in (theirs, ours)]
        tensors = [{k: t for k, t in state.items() if isinstance(t, torch.Tensor)} for state in states]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(t, tensors[1][k]) for k, t in tensors[0].items())
        for batch in ([], [2], [3, 2]):
            data = theirs.input_spec.expand([*batch, *theirs.input_spec.shape]).rand()
            outputs = [net(data.clone())[net.out_key] for net in (theirs, ours)]
            torch.testing.assert_close(*outputs)
            pairs = zip((theirs, ours), outputs, strict=True)
            grads = [torch.autograd.grad(y.square().sum(), list(net.parameters())) for net, y in pairs]
            torch.testing.assert_close(*grads)
        for reader, writer in ((theirs, ours), (ours, theirs)):
            reader.load_state_dict(writer.state_dict())
        print(f"{kind} share_params={share} centralised={centralized} input_has_agent_dim={agents_in}: equal")


def returns(share: bool) -> tuple[list[float], TensorDict]:
    """The mean return of each of three iterations of MAPPO on balance, and the parameters in the end."""
    config = ExperimentConfig.get_from_yaml()
    config.loggers, config.create_json, config.render, config.evaluation = [], False, False, False
    config.max_n_iters, config.max_n_frames = 3, None
    config.on_policy_collected_frames_per_batch, config.on_policy_n_envs_per_worker = 600, 6
    config.on_policy_n_minibatch_iters, config.on_policy_minibatch_size = 2, 200
    config.share_policy_params = share
    task = VmasTask.BALANCE.get_from_yaml()
    task.config["max_steps"] = 100
    trace: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        config.save_folder = folder
        experiment = Experiment(
            task=task,
            algorithm_config=MappoConfig.get_from_yaml(),
            model_config=MlpConfig.get_from_yaml(),
            critic_model_config=MlpConfig.get_from_yaml(),
            seed=0,
            config=config,
        )
        log = experiment.logger.log_collection

        def logged(*args: Any, **kwargs: Any) -> Any:
            value = log(*args, **kwargs)
            trace.append(float(value))
            return value

        experiment.logger.log_collection = logged
        experiment.run()
    losses = {group: TensorDict.from_module(loss).detach().clone() for group, loss in experiment.losses.items()}
    return trace, TensorDict(losses)


def check_training() -> None:
    """The same returns and the same parameters after training."""
    for share in (True, False):
        with classes_of(torchrl.modules):
            theirs, their_params = returns(share)
        with classes_of(functional_marl.nn):
            ours, our_params = returns(share)
        assert len(theirs) == len(ours) == 3
        # sums in another order: a trajectory amplifies a difference in the last digit
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-4, atol=1e-4)
        for key, leaf in their_params.flatten_keys(".").items():
            torch.testing.assert_close(our_params.flatten_keys(".")[key], leaf, rtol=1e-3, atol=1e-3)
        print(f"MAPPO on balance, share_policy_params={share}: returns {ours}, torchrl {theirs}")


def check_own_tests(folder: str) -> None:
    """BenchMARL's tests of its MLP and CNN."""
    with classes_of(functional_marl.nn):
        file = os.path.join(folder, "test_models.py")
        apart = ["-c", os.devnull, "--rootdir", folder, "-p", "no:cacheprovider"]  # without this project's settings
        code = pytest.main(["-q", *apart, "-W", "ignore", "-k", "mlp or cnn", file])
    if code:
        sys.exit(f"BenchMARL's own tests failed ({code!r})")


if __name__ == "__main__":
    check_models()
    check_training()
    check_own_tests(sys.argv[1])
