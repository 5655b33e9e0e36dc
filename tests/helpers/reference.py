"""The definitions of every kind of run, written as plain hooks and loops over prompts and heads.

The oracle of the engine's tests. It shares no code with `circuitdiff.engine` but the data that say what to edit: its
own attention (registered under its own name), its own causal mask, and hooks on each architecture's output projection
and on what its MLP ends in, both found by name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from circuitdiff.engine.edits import Edit, Knockout, MlpEdit, ResidualEdit, Site

NAME = "reference"
AnyEdit = Edit | Knockout | MlpEdit | ResidualEdit

# z of one prompt, position and head -> what is written there instead
ZRule = Callable[[int, int, int, int, Tensor], Tensor]


@dataclass
class Act:
    """What is done to one forward pass (of one variant), and what was seen in it."""

    edits: Sequence[AnyEdit] = ()
    variant: int = 0
    z_rule: ZRule | None = None  # before the edits of z
    seen: dict[tuple[int, str], Tensor] = field(default_factory=dict)  # (layer, what) -> prompt pos head d_head
    n_prompts: int = 0

    def of(self, layer: int, what: str) -> list:
        return [e for e in self.edits if e.layer == layer and e.what == what and self.variant in e.variants.tolist()]


_act = Act()


def _nothing_is_done() -> None:
    global _act
    _act = Act()


def after(edit: Edit, variant: int, prompt: int, head: int, own: Tensor) -> Tensor:
    """What `own` of one prompt and head becomes."""
    if head not in edit.heads.tolist():
        return own
    which, row = edit.heads.tolist().index(head), edit.variants.tolist().index(variant)
    of_variant = edit.replacement[row if edit.replacement.shape[0] > 1 else 0]
    new = of_variant[prompt if of_variant.shape[0] > 1 else 0][which]
    if edit.keep is None:
        return new
    of_variant = edit.keep[row if edit.keep.shape[0] > 1 else 0]
    keep = of_variant[prompt if of_variant.shape[0] > 1 else 0][which]
    return keep * own + (1 - keep) * new


def _rows_after(x: Tensor, edits: Sequence[Edit], prompt: int, head: int) -> Tensor:
    if not edits:
        return x
    rows = list(x)
    for edit in edits:
        rows[edit.at] = after(edit, _act.variant, prompt, head, rows[edit.at])
    return torch.stack(rows)


def _one_head(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor,
    scaling: float,
    softcap: float | None,
    patterns: Mapping[int, Callable[[Tensor], Tensor]],
    sink: Tensor | None,
) -> Tensor:
    """`patterns`: by the query's position, what its weights become."""
    scores = (q @ k.T) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    weights = torch.exp(scores) * allowed
    total = weights.sum(1, keepdim=True) + (0 if sink is None else torch.exp(sink))
    pattern = list(weights / total)
    for at, change in patterns.items():
        pattern[at] = change(pattern[at])
    return torch.stack(pattern) @ v


def _seen_by(allowed: Tensor, knockouts: Sequence[Knockout], prompt: int, head: int) -> Tensor:
    """Which keys each query of one prompt and head sees after the knockouts."""
    seen = allowed.clone()
    for knockout in knockouts:
        if head in knockout.heads.tolist():
            row = knockout.variants.tolist().index(_act.variant)
            of_variant = knockout.blocked[row if len(knockout.blocked) > 1 else 0]
            for key in of_variant[prompt if len(of_variant) > 1 else 0].nonzero()[:, 0].tolist():
                seen[knockout.at, key] = False
    return seen


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    assert attention_mask is None, "the mask is made here"
    n_prompts, n_heads, length, _d = query.shape
    group, layer = n_heads // key.shape[1], int(module.layer_idx)  # pyright: ignore[reportArgumentType]
    row, column = torch.arange(length)[:, None], torch.arange(length)[None, :]
    allowed = column <= row
    if sliding_window is not None:
        allowed = allowed & (column > row - sliding_window)
    for what, x in (("q", query), ("k", key), ("v", value)):
        per_head = x if what == "q" else torch.stack([x[:, head // group] for head in range(n_heads)], 1)
        _act.seen[layer, what] = per_head.transpose(1, 2)
    edits = {what: _act.of(layer, what) for what in ("q", "k", "v", "pattern", "knockout")}
    readers = {e.read_at for e in (*edits["k"], *edits["v"])} - {None}
    out = []
    for prompt in range(n_prompts):
        for head in range(n_heads):
            q = _rows_after(query[prompt, head], edits["q"], prompt, head)
            seen = _seen_by(allowed, edits["knockout"], prompt, head)

            def changed(at: int, own: Tensor, prompt: int = prompt, head: int = head) -> Tensor:
                for edit in edits["pattern"]:
                    own = after(edit, _act.variant, prompt, head, own) if edit.at == at else own
                return own

            patterns = {e.at: functools.partial(changed, e.at) for e in edits["pattern"]}

            def seen_by(
                reader: int | None, q=q, prompt: int = prompt, head: int = head, seen=seen, patterns=patterns
            ) -> Tensor:
                k, v = (
                    _rows_after(
                        x[prompt, head // group],
                        [e for e in edits[what] if e.read_at is None or e.read_at == reader],
                        prompt,
                        head,
                    )
                    for what, x in (("k", key), ("v", value))
                )
                return _one_head(q, k, v, seen, scaling, softcap, patterns, None if s_aux is None else s_aux[head])

            z = list(seen_by(None))
            for reader in readers:
                z[reader] = seen_by(reader)[reader]
            out.append(torch.stack(z))
    z = torch.stack(out).unflatten(0, (n_prompts, n_heads))
    return z.transpose(1, 2), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)


def _edit_z(layer: int, d_head: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = args[0].unflatten(-1, (-1, d_head)).clone()
        _act.seen[layer, "z"] = z.detach().clone()
        n_prompts, length, n_heads, _d = z.shape
        edits, taken = _act.of(layer, "z"), _act.of(layer, "contribution")
        if _act.z_rule is None and not edits and not taken:
            return args
        for prompt in range(n_prompts):
            for head in range(n_heads):
                if _act.z_rule is not None:
                    for at in range(length):
                        z[prompt, at, head] = _act.z_rule(layer, prompt, at, head, z[prompt, at, head].clone())
                for edit in edits:
                    own = z[prompt, edit.at, head].clone()
                    z[prompt, edit.at, head] = after(edit, _act.variant, prompt, head, own)
                for edit in taken:
                    if head in edit.heads.tolist():
                        z[prompt, edit.at, head] = 0
        return (z.flatten(2), *args[1:])

    return hook


def _add_contributions(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """What comes in the place of what the heads wrote; their own z is 0 by now."""

    def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output = output.clone()
        for edit in _act.of(layer, "contribution"):
            for prompt in range(len(output)):
                for head in edit.heads.tolist():
                    nothing = torch.zeros_like(output[prompt, edit.at])
                    output[prompt, edit.at] += after(edit, _act.variant, prompt, head, nothing)
        return output

    return hook


def _of_prompt(edit: MlpEdit | ResidualEdit, prompt: int) -> Tensor:
    row = edit.variants.tolist().index(_act.variant)
    of_variant = edit.replacement[row if len(edit.replacement) > 1 else 0]
    return of_variant[prompt if len(of_variant) > 1 else 0]


def _take_mlp(layer: int, scale: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """What the MLP ends in, 0 where something else is added in its place; the layer still scales it."""

    def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        written = output.reshape(_act.n_prompts, -1, output.shape[-1]).clone()
        _act.seen[layer, "mlp_out"] = scale * written
        for edit in _act.of(layer, "mlp_out"):
            written[:, edit.at] = 0
        return written.reshape(output.shape)

    return hook


def _add_mlp(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """What comes in the place of what the MLP added to the layer's output; of two edits of a place the later one."""

    def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output = output.clone()
        for at, edit in {edit.at: edit for edit in _act.of(layer, "mlp_out")}.items():
            for prompt in range(len(output)):
                output[prompt, at] += _of_prompt(edit, prompt)
        return output

    return hook


def _replace_residual(layer: int) -> Callable[..., tuple[tuple[Tensor, ...], dict]]:
    """What enters a layer, prompt by prompt."""

    def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict) -> tuple[tuple[Tensor, ...], dict]:
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        for edit in _act.of(layer, "resid_pre"):
            for prompt in range(len(hidden)):
                hidden[prompt, edit.at] = _of_prompt(edit, prompt)
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    return hook


@dataclass(frozen=True)
class Reference:
    """A model with its layers, their output projections and what their MLPs end in, found by name."""

    module: PreTrainedModel
    layers: Sequence[nn.Module]
    projections: Sequence[nn.Module]
    mlps: Sequence[nn.Module]
    mlp_scale: float  # by which a layer multiplies what its MLP ends in
    d_head: int

    def logits(self, tokens: Tensor, act: Act | None = None) -> Tensor:
        """What the model says after the last token."""
        global _act
        _act = act or Act()
        _act.n_prompts = len(tokens)
        with ExitStack() as stack:
            stack.callback(_nothing_is_done)  # to a later run of the module that is not one of these
            for layer, module in enumerate(self.layers):
                stack.callback(module.register_forward_pre_hook(_replace_residual(layer), with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(_add_mlp(layer)).remove)
            for layer, mlp in enumerate(self.mlps):
                stack.callback(mlp.register_forward_hook(_take_mlp(layer, self.mlp_scale)).remove)
            for layer, projection in enumerate(self.projections):
                hook = projection.register_forward_pre_hook(_edit_z(layer, self.d_head))
                stack.callback(hook.remove)
                stack.callback(projection.register_forward_hook(_add_contributions(layer)).remove)
            return self.module(input_ids=tokens, use_cache=False).logits[:, -1]

    def clean(self, tokens: Tensor) -> Act:
        act = Act()
        self.logits(tokens, act)
        return act

    def run(self, tokens: Tensor, edits: Sequence[AnyEdit], n_variants: int) -> Tensor:
        return torch.stack([self.logits(tokens, Act(edits, variant)) for variant in range(n_variants)])

    def frozen(self, tokens: Tensor, edits: Sequence[Edit], n_variants: int, at: int) -> Tensor:
        rule = _frozen_from(at, self.clean(tokens))
        return torch.stack([self.logits(tokens, Act(edits, variant, rule)) for variant in range(n_variants)])

    def path_patched(
        self,
        tokens: Tensor,
        edits: Sequence[Edit],
        n_variants: int,
        at: int,
        sites: Sequence[Site],
        read_at: int | None,
    ) -> Tensor:
        """Second runs of path patching, in which the receivers get what they received in the first."""
        rule = _frozen_from(at, self.clean(tokens))
        out = []
        for variant in range(n_variants):
            first = Act(edits, variant, rule)
            self.logits(tokens, first)
            second = [
                Edit(
                    s.layer,
                    s.what,
                    s.at,
                    s.heads,
                    torch.tensor([variant]),
                    torch.stack([first.seen[s.layer, s.what][:, s.at, head] for head in s.heads.tolist()], 1)[None],
                    read_at=read_at,
                )
                for s in sites
            ]
            out.append(self.logits(tokens, Act(second, variant)))
        return torch.stack(out)

    def ablated(self, tokens: Tensor, positions: Sequence[int], kept: Tensor, constants: Tensor) -> Tensor:
        """`kept`: variant layer at head; `constants`: layer prompt-or-1 pos head d_head."""

        def rule_of(variant: int) -> ZRule:
            def rule(layer: int, prompt: int, at: int, head: int, own: Tensor) -> Tensor:
                if at in positions and bool(kept[variant, layer, list(positions).index(at), head]):
                    return own
                return constants[layer, prompt if constants.shape[1] > 1 else 0, at, head]

            return rule

        return torch.stack([self.logits(tokens, Act(z_rule=rule_of(variant))) for variant in range(len(kept))])


def _frozen_from(start: int, clean: Act) -> ZRule:
    def rule(layer: int, prompt: int, at: int, head: int, own: Tensor) -> Tensor:
        return clean.seen[layer, "z"][prompt, at, head] if at >= start else own

    return rule
