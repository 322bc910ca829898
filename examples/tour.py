"""Every public function once, from the simple to the special. Run it, read it, change it.

pip install -e ".[train]"  # once, at the top of the repository
python examples/tour.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import functional_marl as fm


def title(text: str) -> None:
    print(f"\n--- {text}")


title("1. A network for one agent, and a sharing, make a network for many")
# Any function that returns an nn.Module works; fm.nets has some that batch well.
build = fm.nets.mlp(4, 8, 2)
net = fm.network(build, n_agents=3, sharing="independent")
params = fm.init_params(net, fm.key(0))  # a plain dict of tensors [slots, *leaf]
x = torch.randn(5, 3, 4)  # a batch of 5, 3 agents, 4 features
y = fm.apply(net, params, x)
print("outputs", tuple(y.shape))
print(fm.tabulate(net))

title("2. Sharing is data")
for sharing in ("shared", [0, 0, 1], {"0.*": "shared", "*": "independent"}, fm.Sharing([2, 1, 2], n_slots=3)):
    other = fm.network(build, n_agents=3, sharing=sharing)
    print(f"{sharing!s:50} {[shape[0] for shape in other.param_shapes.values()]} slots per leaf")

title("3. Agent 2's network in agent 0's place: change the map, keep the parameters")
swapped = net.replace(sharing=fm.Sharing([2, 1, 2], n_slots=3))
same_input = x[:, :1].expand(5, 3, 4)
out = fm.apply(swapped, params, same_input)
print("agents 0 and 2 now give the same outputs:", torch.equal(out[:, 0], out[:, 2]))

title("4. From one agent's trees to parameters and back")
trees = fm.unstack_agents(net, params)  # three trees without the slot axis
again = fm.stack_agents(trees)
print("round trip:", all(torch.equal(again[k], params[k]) for k in params))
pretrained = fm.agent_params(net, params, 1)
everywhere = fm.stack_agents(pretrained, n_agents=3, sharing="shared")
print("agent 1's network for all:", tuple(everywhere["0.weight"].shape))
robot = fm.agent_module(net, params, 1)  # an ordinary nn.Module, for export or a robot
print("the same as agent 1:", torch.allclose(robot(x[:, 1]), y[:, 1], atol=1e-6))

title("5. Merge, split and grow a team")
try:
    fm.reshare(net, params, [0, 0, 1])
except fm.SharingError as error:
    print("loses numbers only with merge=:", str(error).split(";")[0])
merged_net, merged = fm.reshare(net, params, [0, 0, 1], merge="mean")  # FedAvg of agents 0 and 1
print("merged:", tuple(merged["0.weight"].shape))
grown_net, grown = fm.reshare(net, params, "independent", agents=[0, 1, 2, 0])  # a fourth agent, a copy of agent 0
print("grown:", fm.apply(grown_net, grown, torch.randn(4, 4)).shape)

title("6. Gradients by torch.func: the trunk frozen, the heads trained")
layered = fm.network(build, n_agents=3, sharing={"0.*": "shared", "*": "independent"})
weights = fm.init_params(layered, fm.key(1))
parts = fm.partition(weights, {"0.*": "frozen", "*": "trained"})


def loss(trained: dict[str, Tensor]) -> Tensor:
    return fm.apply(layered, fm.combine(parts["frozen"], trained), x).square().mean()


gradient = torch.func.grad(loss)(parts["trained"])
print({name: tuple(g.shape) for name, g in gradient.items()})

title("7. Keys: the same key, the same numbers, and no global generator")
first, second = fm.split(fm.key(7))
dropout = fm.network(lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), n_agents=3)
p = fm.init_params(dropout, first)
step_3 = fm.fold_in(second, 3)
a = fm.apply(dropout, p, x, key=step_3, train=True)
b = fm.apply(dropout, p, x, key=step_3, train=True)
print("equal:", torch.equal(a, b))
larger = fm.init_params(fm.network(build, n_agents=5), fm.key(0))
print("agent 0 does not depend on the size of the team:", torch.equal(larger["0.weight"][:3], params["0.weight"]))

title("8. Buffers are inputs and outputs")
norm = fm.network(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), n_agents=3)
p = fm.init_params(norm, 0)  # an int is accepted wherever a key is
state = fm.init_state(norm)
out, state = fm.apply(norm, p, x, state=state, train=True, mutable=True)
print("batches seen:", state["1.num_batches_tracked"].tolist())

title("9. Several inputs, one of which all agents see as a whole; a centralized critic")


class Messenger(nn.Module):
    """Reads its own observation and a message that all agents receive."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.heard = nn.Linear(4, 2), nn.Linear(6, 2)

    def forward(self, observation: Tensor, message: Tensor) -> dict[str, Tensor]:
        return {"action": self.own(observation) + self.heard(message)}


team = fm.network(Messenger, n_agents=3, agent_dim=(-2, None))
out = fm.apply(team, fm.init_params(team, 0), x, torch.randn(5, 6))
print("action", tuple(out["action"].shape))
critic = fm.network(fm.nets.mlp(3 * 4, 8, 1), n_agents=3, sharing="shared", centralized=True)
print("values", tuple(fm.apply(critic, fm.init_params(critic, 0), x).shape))
with_ids = fm.with_agent_ids(x)  # so that a shared network can distinguish agents
print("with ids", tuple(with_ids.shape))

title("10. A population: seeds x agents x batch in one call")
population = fm.init_params(net, fm.split(fm.key(0), 6))
outs = torch.func.vmap(lambda q: fm.apply(net, q, x))(population)
print(tuple(outs.shape))

title("11. Groups")
names = ["adversary_0", "adversary_1", "agent_0"]
groups = fm.group_map(names, fm.by_prefix)
fm.check_group_map(groups, names)
print(groups)
print(fm.group_map(names, fm.MarlGroupMapType.ALL_IN_ONE_GROUP))
print(fm.group_map(names, fm.by_spec({"adversary_0": 3, "adversary_1": 3, "agent_0": 5})))
observations = {name: torch.randn(5, 4) for name in names}  # as from a parallel environment
grouped = fm.group_agents(groups, observations, batch_dims=1)
nets = {name: fm.network(build, n_agents=len(members)) for name, members in groups.items()}
trees_of_groups = {name: fm.init_params(group_net, 0) for name, group_net in nets.items()}
actions = fm.ungroup_agents(groups, fm.apply_groups(nets, trees_of_groups, grouped), batch_dims=1)
print({name: tuple(action.shape) for name, action in actions.items()})

title("12. Save and load: TensorDict, safetensors")
print(fm.to_tensordict(params)["0", "weight"].shape, list(fm.from_tensordict(fm.to_tensordict(params)))[:2])
with tempfile.TemporaryDirectory() as folder:
    save_file(params, Path(folder) / "params.safetensors")
    loaded = load_file(Path(folder) / "params.safetensors")
print("loaded:", torch.equal(fm.apply(net, loaded, x), y))

title("13. Errors name the leaf, what was expected, what was given, and the fix")
for mistake in (
    lambda: fm.apply(net, {k: v[:2] for k, v in params.items()}, x),
    lambda: fm.apply(net, params, torch.randn(5, 4, 4)),
    lambda: fm.group_map(names, {"all": ["adversary_0"]}),
):
    try:
        mistake()
    except (fm.StructureError, fm.GroupingError) as error:
        print("*", str(error).splitlines()[0])

title("14. It compiles and exports")
compiled = torch.compile(lambda q, v: fm.apply(net, q, v), fullgraph=True, backend="aot_eager")
print("compiled:", torch.allclose(compiled(params, x), y, atol=1e-6))
