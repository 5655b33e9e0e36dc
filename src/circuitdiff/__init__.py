"""circuitdiff: what fine-tuning did to the circuit behind a behaviour."""

import os

# Before torch starts its threads: on a laptop that also does other things, threads that spin while they wait for one
# another made a sweep seven times slower (72 s against 10 s, two threads on two cores, three other processes).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from circuitdiff import tasks
from circuitdiff.circuit import Circuit, Group, Head, Mlps
from circuitdiff.engine import Model
from circuitdiff.errors import InputError
from circuitdiff.evaluation import (
    Evaluation,
    Means,
    all_heads,
    evaluate_circuit,
    evaluate_circuits,
    evaluate_model,
    evaluate_without,
    mean_activations,
)
from circuitdiff.methods.ablations import compare_ablations
from circuitdiff.methods.attention import AttentionToRoles, attention_to_roles
from circuitdiff.methods.attribution_patching import Attribution, attribution, path_attribution
from circuitdiff.methods.auto_plan import AutoPlan, FoundPlan, find_circuit
from circuitdiff.methods.completeness import completeness
from circuitdiff.methods.component_mask.fit import MaskOptions, fit_mask
from circuitdiff.methods.cross_model.patching import Limits, patch_across
from circuitdiff.methods.discovery import Plan, Stage, circuit_of, discover, gaps, measure_with
from circuitdiff.methods.graft import graft
from circuitdiff.methods.graft_by_role import graft_by_role
from circuitdiff.methods.knockout import Blocking, attention_knockout
from circuitdiff.methods.locate import residual_patching, role_ceiling
from circuitdiff.methods.minimality import MinimalityRule, minimality
from circuitdiff.methods.path_patching import MlpPathEffects, PathEffects, mlp_path_effects, path_effects
from circuitdiff.models import load_model
from circuitdiff.models.checks import CheckError
from circuitdiff.models.differences import ModelDifferences, model_differences
from circuitdiff.prompts import Pairs, PromptSet
from circuitdiff.runs import compare
from circuitdiff.stats.selection import Discoveries, TopK, lowest
from circuitdiff.tasks import Task
from circuitdiff.triples import Triples

__all__ = [
    "AttentionToRoles",
    "Attribution",
    "AutoPlan",
    "Blocking",
    "CheckError",
    "Circuit",
    "Discoveries",
    "Evaluation",
    "FoundPlan",
    "Group",
    "Head",
    "InputError",
    "Limits",
    "MaskOptions",
    "Means",
    "MinimalityRule",
    "MlpPathEffects",
    "Mlps",
    "Model",
    "ModelDifferences",
    "Pairs",
    "PathEffects",
    "Plan",
    "PromptSet",
    "Stage",
    "Task",
    "TopK",
    "Triples",
    "all_heads",
    "attention_knockout",
    "attention_to_roles",
    "attribution",
    "circuit_of",
    "compare",
    "compare_ablations",
    "completeness",
    "discover",
    "evaluate_circuit",
    "evaluate_circuits",
    "evaluate_model",
    "evaluate_without",
    "find_circuit",
    "fit_mask",
    "gaps",
    "graft",
    "graft_by_role",
    "load_model",
    "lowest",
    "mean_activations",
    "measure_with",
    "minimality",
    "mlp_path_effects",
    "model_differences",
    "patch_across",
    "path_attribution",
    "path_effects",
    "residual_patching",
    "role_ceiling",
    "tasks",
]
