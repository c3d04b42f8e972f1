"""The prompt sets in ``configs/eval/prompts``, as rules: a test holds the files to them."""

from longlive.shapes import ShapePrompt, held_out_prompts

HELD_OUT = 100
LONG = 12
INTERACTIVE = 16
PROMPTS_OF_A_VIDEO = 6
_STRIDE = 97  # prime to the 251 held-out prompts, so that a walk in such steps meets each once


def spread(count: int) -> list[ShapePrompt]:
    """Held-out prompts, evenly spread over their list."""
    prompts = held_out_prompts()
    return [prompts[index * len(prompts) // count] for index in range(count)]


def interactive(videos: int = INTERACTIVE) -> list[list[ShapePrompt]]:
    """Six held-out prompts for each video, none of them twice."""
    prompts = held_out_prompts()
    walk = [prompts[_STRIDE * step % len(prompts)] for step in range(videos * PROMPTS_OF_A_VIDEO)]
    starts = range(0, len(walk), PROMPTS_OF_A_VIDEO)
    return [walk[start : start + PROMPTS_OF_A_VIDEO] for start in starts]
