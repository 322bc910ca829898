"""All laws in one place; each group has a file of its own, and :data:`LAWS` has them by name."""

from __future__ import annotations

from functional_marl.laws.compiling import compile_is_eager as compile_is_eager
from functional_marl.laws.compiling import export_is_eager as export_is_eager
from functional_marl.laws.compiling import inductor_is_eager as inductor_is_eager
from functional_marl.laws.critics import detached_groups_get_no_gradient as detached_groups_get_no_gradient
from functional_marl.laws.dependence import centralized_sees_all as centralized_sees_all
from functional_marl.laws.dependence import dropped_agents as dropped_agents
from functional_marl.laws.dependence import gradient_reaches_own_slot as gradient_reaches_own_slot
from functional_marl.laws.dependence import local_jacobian as local_jacobian
from functional_marl.laws.dependence import masked_agents_are_inert as masked_agents_are_inert
from functional_marl.laws.dependence import masked_critics_look_away as masked_critics_look_away
from functional_marl.laws.equivalence import chunks_make_the_whole as chunks_make_the_whole
from functional_marl.laws.equivalence import coarsen_after_refine as coarsen_after_refine
from functional_marl.laws.equivalence import patterns_are_total as patterns_are_total
from functional_marl.laws.equivalence import refine_after_coarsen as refine_after_coarsen
from functional_marl.laws.equivalence import refinement_composes as refinement_composes
from functional_marl.laws.equivalence import refining_keeps_outputs as refining_keeps_outputs
from functional_marl.laws.equivalence import relabelling_keeps_outputs as relabelling_keeps_outputs
from functional_marl.laws.equivalence import shared_is_tiled as shared_is_tiled
from functional_marl.laws.equivalence import unused_slots_are_inert as unused_slots_are_inert
from functional_marl.laws.equivalence import ways_agree as ways_agree
from functional_marl.laws.equivariance import centralized_rows_are_equal as centralized_rows_are_equal
from functional_marl.laws.equivariance import cluster_equivariance as cluster_equivariance
from functional_marl.laws.equivariance import equal_inputs_equal_outputs as equal_inputs_equal_outputs
from functional_marl.laws.equivariance import ids_break_equivariance as ids_break_equivariance
from functional_marl.laws.equivariance import independent_equivariance as independent_equivariance
from functional_marl.laws.equivariance import pooled_critics_are_symmetric as pooled_critics_are_symmetric
from functional_marl.laws.equivariance import shared_equivariance as shared_equivariance
from functional_marl.laws.gradients import frozen_stays as frozen_stays
from functional_marl.laws.gradients import optimizer_commutes_with_stacking as optimizer_commutes_with_stacking
from functional_marl.laws.gradients import slot_gradient_is_the_sum as slot_gradient_is_the_sum
from functional_marl.laws.gradients import tied_agents_stay_tied as tied_agents_stay_tied
from functional_marl.laws.groups import group_layout as group_layout
from functional_marl.laws.groups import group_map_is_a_partition as group_map_is_a_partition
from functional_marl.laws.groups import group_map_is_the_callers as group_map_is_the_callers
from functional_marl.laws.groups import group_round_trip as group_round_trip
from functional_marl.laws.law import LAWS as LAWS
from functional_marl.laws.modules import facade_is_functional as facade_is_functional
from functional_marl.laws.modules import lazy_is_eager as lazy_is_eager
from functional_marl.laws.modules import state_dicts_carry_over as state_dicts_carry_over
from functional_marl.laws.purity import calls_are_reentrant as calls_are_reentrant
from functional_marl.laws.purity import generators_are_untouched as generators_are_untouched
from functional_marl.laws.purity import networks_pickle as networks_pickle
from functional_marl.laws.purity import nothing_is_changed as nothing_is_changed
from functional_marl.laws.purity import populations_are_loops as populations_are_loops
from functional_marl.laws.purity import threads_agree as threads_agree
from functional_marl.laws.randomness import (
    initialisation_has_the_modules_distribution as initialisation_has_the_modules_distribution,
)
from functional_marl.laws.randomness import initialisation_is_prefix_stable as initialisation_is_prefix_stable
from functional_marl.laws.randomness import initialisation_is_the_modules_own as initialisation_is_the_modules_own
from functional_marl.laws.randomness import masks_are_independent as masks_are_independent
from functional_marl.laws.randomness import mode_is_irrelevant_in_evaluation as mode_is_irrelevant_in_evaluation
from functional_marl.laws.randomness import randomness_has_one_meaning as randomness_has_one_meaning
from functional_marl.laws.randomness import results_follow_the_key as results_follow_the_key
from functional_marl.laws.randomness import slots_differ as slots_differ
from functional_marl.laws.shapes import agent_dim_is_a_place as agent_dim_is_a_place
from functional_marl.laws.shapes import batch_is_a_loop as batch_is_a_loop
from functional_marl.laws.shapes import empty_batches as empty_batches
from functional_marl.laws.shapes import kinds_are_kept as kinds_are_kept
from functional_marl.laws.shapes import one_agent_is_the_network as one_agent_is_the_network
from functional_marl.laws.structure import nothing_is_aliased as nothing_is_aliased
from functional_marl.laws.structure import number_of_parameters as number_of_parameters
from functional_marl.laws.structure import presets_are_explicit_maps as presets_are_explicit_maps
from functional_marl.laws.structure import stack_round_trip as stack_round_trip

__all__ = [
    "LAWS",
    "agent_dim_is_a_place",
    "batch_is_a_loop",
    "calls_are_reentrant",
    "centralized_rows_are_equal",
    "centralized_sees_all",
    "chunks_make_the_whole",
    "cluster_equivariance",
    "coarsen_after_refine",
    "compile_is_eager",
    "detached_groups_get_no_gradient",
    "dropped_agents",
    "empty_batches",
    "equal_inputs_equal_outputs",
    "export_is_eager",
    "facade_is_functional",
    "frozen_stays",
    "generators_are_untouched",
    "gradient_reaches_own_slot",
    "group_layout",
    "group_map_is_a_partition",
    "group_map_is_the_callers",
    "group_round_trip",
    "ids_break_equivariance",
    "independent_equivariance",
    "inductor_is_eager",
    "initialisation_has_the_modules_distribution",
    "initialisation_is_prefix_stable",
    "initialisation_is_the_modules_own",
    "kinds_are_kept",
    "lazy_is_eager",
    "local_jacobian",
    "masked_agents_are_inert",
    "masked_critics_look_away",
    "masks_are_independent",
    "mode_is_irrelevant_in_evaluation",
    "networks_pickle",
    "nothing_is_aliased",
    "nothing_is_changed",
    "number_of_parameters",
    "one_agent_is_the_network",
    "optimizer_commutes_with_stacking",
    "patterns_are_total",
    "pooled_critics_are_symmetric",
    "populations_are_loops",
    "presets_are_explicit_maps",
    "randomness_has_one_meaning",
    "refine_after_coarsen",
    "refinement_composes",
    "refining_keeps_outputs",
    "relabelling_keeps_outputs",
    "results_follow_the_key",
    "shared_equivariance",
    "shared_is_tiled",
    "slot_gradient_is_the_sum",
    "slots_differ",
    "stack_round_trip",
    "state_dicts_carry_over",
    "threads_agree",
    "tied_agents_stay_tied",
    "unused_slots_are_inert",
    "ways_agree",
]
