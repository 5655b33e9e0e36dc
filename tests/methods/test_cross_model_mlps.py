"""MLPs as parts of cross-model patching against the definition, one subset and one prompt at a time."""

from __future__ import annotations

import pytest
import torch

from circuitdiff.circuit import Group, Head, Mlps
from circuitdiff.engine import Edit, MlpEdit
from circuitdiff.engine.window import branched
from circuitdiff.errors import InputError
from circuitdiff.methods.cross_model.activations import read_activations, read_several
from circuitdiff.methods.cross_model.patching import patch_across, patch_across_several
from circuitdiff.stats.shapley import all_subsets, needed_subsets
from helpers.fake_pairs import fake_pairs
from helpers.reference import AnyEdit
from helpers.tiny_models import Subject, subject
from helpers.two_tiny_models import donor_of

LATE = Group("last", (Head(3, 5), Head(2, 0), Head(3, 1)))
EARLY = Group("previous_query_label", (Head(0, 2), Head(1, 4)))
PARTS = {"late": LATE, "mlps": Mlps("previous_query_label", (2, 0)), "early": EARLY, "more": Mlps("last", (3, 1))}
ONE = torch.tensor([0])


def by_definition(donor: Subject, recipient: Subject, subset: frozenset[str]) -> torch.Tensor:
    """The answer's log probability in the recipient with the donor's z and MLP outputs, prompt by prompt."""
    pairs, values = fake_pairs(), []
    for i in range(len(pairs)):
        tokens, edits = pairs.clean[i : i + 1, : pairs.lengths[i]], list[AnyEdit]()
        seen = donor.reference.clean(tokens).seen
        for name in subset:
            part = PARTS[name]
            at = int(pairs.positions[part.at][i])
            for layer in part.layers if isinstance(part, Mlps) else ():
                edits.append(MlpEdit(layer, at, ONE, seen[layer, "mlp_out"][None, :, at]))
            for head in part.heads if isinstance(part, Group) else ():
                new = seen[head.layer, "z"][None, :, at, head.index, None]
                edits.append(Edit(head.layer, "z", at, torch.tensor([head.index]), ONE, new))
        values.append(recipient.reference.run(tokens, edits, 1)[0, 0].log_softmax(0)[pairs.answers[i]])
    return torch.stack(values)


@pytest.mark.parametrize("executor", ["window", "full"])
@pytest.mark.parametrize("architecture", ["llama", "granite"])
@torch.no_grad()
def test_every_subset_agrees_with_its_definition(architecture, executor):
    donor, recipient = donor_of(architecture), subject(architecture)
    found = patch_across(donor.model, recipient.model, PARTS, fake_pairs(), executor=executor)
    assert list(found.runs) == all_subsets(["more", "early", "mlps", "late"])
    for subset, ran in found.runs.items():
        expected = by_definition(donor, recipient, subset)
        torch.testing.assert_close(ran.answers.log_probs, expected, rtol=1e-10, atol=1e-10)
    apart = [found.runs[frozenset([name])].answers.log_probs - found.recipient.log_probs for name in PARTS]
    assert min(float(change.abs().max()) for change in apart) > 1e-6, "the patches must show"
    assert found.noise_floor < 1e-10
    assert set(found.bases) == {"late", "early"}


@torch.no_grad()
def test_only_needed_subsets_are_run_of_many_parts_and_they_are_the_same():
    donor, recipient, pairs = donor_of("llama").model, subject("llama").model, fake_pairs()
    theirs = read_several(donor, pairs, PARTS.values(), ["z"])
    few = patch_across_several(theirs, recipient, PARTS, pairs, every_subset=False)["z"]
    whole = patch_across_several(theirs, recipient, PARTS, pairs)["z"]
    assert list(few.runs) == needed_subsets(["more", "early", "mlps", "late"])
    for subset, ran in few.runs.items():
        torch.testing.assert_close(ran.answers.log_probs, whole.runs[subset].answers.log_probs, rtol=0, atol=1e-12)
    many = {str(i): PARTS["more"] for i in range(7)}
    assert len(patch_across_several(theirs, recipient, many, pairs, every_subset=False)["z"].order) == 7


def test_subsets_that_begin_with_the_same_mlps_build_on_one_run(monkeypatch):
    first: list[frozenset[str]] = []

    def counted(batch, edits, start):
        first.append(frozenset(edit.what for edit in edits))
        return branched(batch, edits, start)

    monkeypatch.setattr("circuitdiff.evaluation.edited.branched", counted)
    patch_across(donor_of("llama").model, subject("llama").model, PARTS, fake_pairs())
    assert set(first) == {frozenset(["z"]), frozenset(["mlp_out"]), frozenset(["z", "mlp_out"])}


def test_mlps_alone_can_be_patched_and_are_read_once_for_all_kinds_of_heads():
    donor, recipient, pairs = donor_of("llama").model, subject("llama").model, fake_pairs()
    parts = {"mlps": PARTS["mlps"]}
    read = read_several(donor, pairs, [*parts.values(), EARLY], ["z", "contribution"])
    assert read["z"].mlps is read["contribution"].mlps
    assert {role: list(layers) for role, layers in read["z"].mlps.items()} == {"previous_query_label": [0, 2]}
    found = patch_across_several(read, recipient, parts, pairs)
    expected = patch_across(donor, recipient, PARTS, pairs).runs[frozenset(["mlps"])].answers.log_probs
    for each in found.values():
        torch.testing.assert_close(each.runs[frozenset(["mlps"])].answers.log_probs, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Mlps("last", (4,)), r"layers are from 0 to 3 in llama; got \[4\]"),
        (Mlps("nowhere", (1,)), "no role 'nowhere'"),
        (Mlps("last", ()), r"needs heads \(or layers, of MLPs\); mlps has none"),
    ],
)
def test_mlps_that_are_not_there_are_refused(part, message):
    with pytest.raises(InputError, match=message):
        patch_across(donor_of("llama").model, subject("llama").model, {"mlps": part}, fake_pairs())


def test_mlps_that_the_donor_was_not_read_at_are_refused():
    kept = read_activations(donor_of("llama").model, fake_pairs(), [Mlps("last", (1,))])
    for part, layer in ((Mlps("last", (1, 2)), 2), (Mlps("query_label", (1,)), 1)):
        with pytest.raises(InputError, match=f"not read at the MLP of layer {layer} of 'mlps' at '{part.at}'"):
            patch_across(kept, subject("llama").model, {"mlps": part}, fake_pairs())
