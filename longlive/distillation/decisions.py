"""The choices of distillation in which the reference does something questionable.

Each is one named option. ``Decisions.reference()`` reproduces the numbers of the reference to the
last bit; the defaults are what we hold to be sound. What each costs and why: docs/distillation.md.
"""

from dataclasses import dataclass
from typing import Literal

from longlive.errors import UserError


@dataclass(frozen=True, slots=True)
class Decisions:
    """Named options of distillation; the defaults are the sound ones.

    Attributes:
        cache_gradients: ``cut``: gradients end at the call that computed them. ``leak``: what later
            blocks read from the KV cache carries the history of the gradient step that the context
            update has overwritten since, so their losses reach the earlier blocks' key and value
            projections, evaluated at keys that are not those of that step.
        text_gradients: Whether the gradient step computes the prompt's keys and values anew, so
            that the text embedding and the cross-attention learn. In the reference it does if and
            only if activation checkpointing is on.
        refreshes_text: Whether each chunk of a long video reads keys and values of the prompt that
            the weights of today made. The reference reads those of the weights at the last switch.
        context_noise: Whether the context update sees its latents with the smallest noise of the
            table (sigma 0.00498 at shift 5) instead of clean, as inference does.
        sink_after_switch: ``kept``: the sink keeps the keys of the first prompt, as in our
            rollouts. ``zeroed``: it is zero and stays so, and every later query attends to it.
        recaches_clip: Whether a recache in training runs a whole clip of the teacher's length
            instead of the window. Only a switch at the end of the first clip can tell: then the
            sink is rebuilt.
        score_levels: ``exact``: a timestep means one noise level. ``tables``: noise is added at the
            nearest level of the student's table, while teacher and critic read theirs, of another
            shift, so they believe in up to 19 % more noise than there is.
        guidance_from: What classifier-free guidance starts from: ``unprompted`` (scale 1 is the
            prompt alone) or ``prompted`` (scale s acts as s + 1).
        critic_target: ``velocity``: the critic learns its own output. ``x0``: its clean estimate is
            turned back into a velocity, with a division by sigma that enlarges rounding.
        rounds_scores: Whether noisy clips and clean estimates are rounded to bfloat16, when the
            networks compute in it, or stay in float32.
        hides_nan: Whether values of the matching gradient that are not finite become zero instead
            of stopping the run.
    """

    cache_gradients: Literal["cut", "leak"] = "cut"
    text_gradients: bool = True
    refreshes_text: bool = True
    context_noise: bool = False
    sink_after_switch: Literal["kept", "zeroed"] = "kept"
    recaches_clip: bool = False
    score_levels: Literal["exact", "tables"] = "exact"
    guidance_from: Literal["unprompted", "prompted"] = "unprompted"
    critic_target: Literal["velocity", "x0"] = "velocity"
    rounds_scores: bool = False
    hides_nan: bool = False

    @classmethod
    def reference(cls) -> "Decisions":
        """Reproduce the reference, surprises included."""
        return cls(
            cache_gradients="leak",
            text_gradients=True,
            refreshes_text=False,
            context_noise=True,
            sink_after_switch="zeroed",
            recaches_clip=True,
            score_levels="tables",
            guidance_from="prompted",
            critic_target="x0",
            rounds_scores=True,
            hides_nan=True,
        )


DecisionsName = Literal["default", "reference"]


def decisions_of(choice: DecisionsName | Decisions) -> Decisions:
    """Look up a named set of decisions; a set of one's own comes back as it is.

    Raises:
        UserError: If there is no set of that name.
    """
    if isinstance(choice, Decisions):
        return choice
    named = {"default": Decisions, "reference": Decisions.reference}
    if choice not in named:
        raise UserError(f"unknown decisions {choice!r}: choose one of {', '.join(named)}")
    return named[choice]()
