"""serve: a page in the browser where a video follows what is typed."""

import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import longlive
from longlive.cli.parsing import CommandParser
from longlive.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from longlive.live.engine import SessionEngine
    from longlive.modules.longlive import LongLive

log = logging.getLogger(__name__)

_SUMMARY = (
    "Open a page where a video follows what you type. All other options are those of longlive "
    "predict: without a --config the small model of the package is served."
)
_DEFAULT_CONFIGS = ("tiny.yaml", "decoder/tiny.yaml", "window/9.yaml", "switch/preempt.yaml")
"""The embedded model; a prompt interrupts the block at hand."""
_MOST_SAMPLES = 12
_SAMPLES = (
    "A paper boat drifts down a rain-soaked street at dusk, reflections of neon signs rippling "
    "around it, cinematic, shallow depth of field.",
    "A lighthouse on a cliff in a storm, waves breaking below, its beam sweeping through the rain, "
    "wide shot, photorealistic.",
    "A red fox trots through fresh snow between birches, its breath visible in the morning light, "
    "tracking shot.",
)


def run(args: list[str]) -> None:
    """Serve until Ctrl-C.

    Args:
        args: Command line without the program's name.

    Raises:
        UserError: If the arguments cannot work, or the address cannot be used.
    """
    given, rest = _parser().parse_known_args(args[1:])
    from longlive.live.serve import ServeSettings, require_ui, serve

    require_ui()
    settings = ServeSettings(
        host=given.host,
        port=given.port,
        token=given.token,
        origins=given.origin,
        recordings=given.recordings,
        grace_s=given.grace,
        samples=_samples(given.samples),
    )
    settings.check()
    if given.buffer is not None and not 1 <= given.buffer <= 256:
        raise UserError(f"--buffer goes from 1 to 256 frames, got {given.buffer}")

    # torch and Lightning take seconds to import, and a typing error should not.
    from longlive.cli.recipe_option import with_recipes_spelled_out
    from longlive.cli.serve_model import configure
    from longlive.live.engine import SessionEngine

    served = configure(_with_default_config(with_recipes_spelled_out(rest)))

    def load() -> SessionEngine:
        served.model.prepare(served.device)
        return SessionEngine(
            served.model,
            callbacks=served.callbacks,
            callback_configs=served.callback_configs,
            buffer_frames=given.buffer,
            snapshot_mib=given.snapshot_mib,
        )

    # A thread in which torch has computed on a CPU keeps workers for as long as it lives, and if
    # those of all threads are more than there are cores, each operation has to wake its own. The
    # rollout's thread, which is started here, is to be the only one that has some.
    engine = _in_a_thread(load)
    if not settings.samples:
        settings = replace(settings, samples=_suggestions(engine.model))
    try:
        log.info("warming up")
        engine.warm_up(settings.samples[0])
        serve(engine, settings)
    finally:
        engine.close()


def _in_a_thread(work: "Callable[[], SessionEngine]") -> "SessionEngine":
    made: list[SessionEngine] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            made.append(work())
        except BaseException as error:
            errors.append(error)

    # Ctrl-C does not wait for it.
    thread = threading.Thread(target=run, name="load", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return made[0]


def _parser() -> CommandParser:
    parser = CommandParser("serve", _SUMMARY)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=int, default=7860, help="port to listen on; 0 for any (%(default)s)")
    add("--token", default="", help="secret that viewers must know; needed beyond this machine")
    add(
        "--origin",
        action="append",
        default=[],
        metavar="URL",
        help="page of another server that may talk to this one; may be repeated",
    )
    add(
        "--recordings",
        type=Path,
        default=Path("outputs/live"),
        metavar="FOLDER",
        help="where recordings go (%(default)s)",
    )
    add(
        "--buffer",
        type=int,
        metavar="FRAMES",
        help="frames made ahead (as many as play while a prompt changes on this machine)",
    )
    add(
        "--snapshot-mib",
        type=float,
        metavar="MIB",
        help="memory for states to go back to (256, or a quarter of a GPU's free memory)",
    )
    add(
        "--grace",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how long a session waits for a lost viewer (%(default)g)",
    )
    add("--samples", type=Path, metavar="FILE", help="prompts to suggest, one a line")
    return parser


def _samples(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    from longlive.data.prompt_files import read_prompt_file

    return tuple(entry.prompts[0] for entry in read_prompt_file(path))


def _suggestions(model: "LongLive") -> tuple[str, ...]:
    """Prompts that fit what is loaded."""
    if model.parts is None or model.parts.kind != "embedded":
        return _SAMPLES
    from longlive.shapes import training_prompts

    prompts = training_prompts()
    return tuple(prompt.text for prompt in prompts[:: max(1, len(prompts) // _MOST_SAMPLES)])


def _with_default_config(rest: list[str]) -> list[str]:
    if any(arg.partition("=")[0] in ("--config", "-c") for arg in rest):
        return rest
    configs = Path(longlive.__file__).parents[1] / "configs"
    if not all((configs / name).is_file() for name in _DEFAULT_CONFIGS):
        raise UserError("no configuration: name one, as in --config configs/tiny.yaml")
    return [*(f"--config={configs / name}" for name in _DEFAULT_CONFIGS), *rest]
