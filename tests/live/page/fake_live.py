"""A server that speaks the protocol and shows one color a prompt, so that a test can read pixels.

Blocks take no time to make and last a quarter of a second. Everything a viewer sent is kept in
``received``. It has the rules that the page relies on, and none of the others.
"""

import asyncio
import base64
import contextlib
import json
import secrets
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from fake_pictures import CODEC, ENCODERS, FPS, HEIGHT, WIDTH, draw, jpeg
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

import longlive.live
from longlive.live.protocol import (
    Ack,
    Back,
    BlockDone,
    Branches,
    BranchInfo,
    ChangePrompt,
    ClientMessage,
    Ended,
    Error,
    Files,
    Hello,
    Leave,
    Limits,
    Message,
    ModelOffer,
    PictureFlag,
    PictureHeader,
    PictureKind,
    PromptMark,
    ProtocolError,
    Queue,
    RecipeOffer,
    Shown,
    Start,
    State,
    Stats,
    Video,
    Welcome,
    pack_picture,
    parse_client,
    to_json,
)
from longlive.rollout.transitions import Transition

PAGE = Path(longlive.live.__file__).parent / "page"
FIRST_BLOCK, BLOCK = 3, 4
SAMPLES = ("a large red circle", "a small blue star", "a green ring spins", "a yellow square")
MODEL = ModelOffer(
    name="fake",
    width=WIDTH,
    height=HEIGHT,
    fps=FPS,
    first_block_frames=FIRST_BLOCK,
    block_frames=BLOCK,
    recipes=(RecipeOffer("standard", "as configured", (16, 8)), RecipeOffer("fast", "fast", (4,))),
    samples=SAMPLES,
)


def frame_of(block: int) -> int:
    return 0 if block == 0 else FIRST_BLOCK + (block - 1) * BLOCK


@dataclass
class Made:
    """A block, and the request and prompt it shows."""

    prompt: int
    text: str


@dataclass
class Tree:
    """Branches, and which blocks each has made."""

    branches: dict[int, BranchInfo] = field(default_factory=dict)
    blocks: dict[int, dict[int, Made]] = field(default_factory=dict)
    marks: list[PromptMark] = field(default_factory=list)
    current: int = 0

    def owner(self, branch: int | None, block: int) -> int:
        while branch is not None and block < self.branches[branch].block:
            branch = self.branches[branch].parent
        return 0 if branch is None else branch

    def branch(self, parent: int | None, block: int) -> int:
        empty = [i for i, info in self.branches.items() if info.blocks == info.block and i]
        for i in empty:
            del self.branches[i]
        new = max(self.branches, default=-1) + 1
        self.branches[new] = BranchInfo(new, parent, block, block, seed=0)
        self.blocks[new] = {}
        self.current = new
        return new

    def add(self, made: Made) -> int:
        info = self.branches[self.current]
        self.blocks[self.current][info.blocks] = made
        self.branches[self.current] = BranchInfo(
            info.id, info.parent, info.block, info.blocks + 1, info.seed
        )
        return info.blocks

    @property
    def next_block(self) -> int:
        return self.branches[self.current].blocks if self.branches else 0


class FakeSession:
    def __init__(self, server: "FakeLive") -> None:
        self.token = secrets.token_urlsafe(8)
        self.socket: WebSocket | None = None
        self.tree = Tree()
        self.state = "idle"
        self.recording = False
        self.last_id = 0
        self.serial = 0
        self.pending: tuple[int, str, Transition] | None = None
        self.active: Made | None = None
        self.default = Transition()
        self._server = server
        self._encoder = None
        self._headers: deque[PictureHeader] = deque()
        self._jumps = True
        self._sent_us = 0

    async def say(self, message: Message) -> None:
        if self.socket is not None:
            with contextlib.suppress(Exception):
                await self.socket.send_text(to_json(message))

    async def say_state(self) -> None:
        await self.say(State(self.state, self.tree.current, self.tree.next_block, self.recording))

    async def connect(self, socket: WebSocket, hello: Hello, resumed: bool) -> None:
        self.socket = socket
        transport = hello.transports[0]
        self._encoder = ENCODERS[transport]()
        self._headers.clear()
        self._sent_us = 0
        self._jumps = True
        await self.say(
            Welcome(1, self.token, resumed, transport, 30.0, self.last_id, 4, Limits(), MODEL)
        )
        await self.say_queue()
        if resumed and self.tree.branches:
            await self.say(Branches(self.tree.current, tuple(self.tree.branches.values())))
            for mark in self.tree.marks:
                await self.say(mark)
            for branch, blocks in self.tree.blocks.items():
                for block, made in blocks.items():
                    await self.say(self._done(branch, block, made))
        await self.say_state()
        mime = f'video/mp4; codecs="{CODEC}"' if transport == "mse" else ""
        codec = "" if transport == "jpeg" else CODEC
        await self.say(Video(transport, codec, mime, WIDTH, HEIGHT, FPS))

    async def say_queue(self) -> None:
        line = self._server.line
        if self in line:
            await self.say(Queue(line.index(self), max(len(line) - 1, 0)))

    async def take(self, message: ClientMessage) -> None:
        if isinstance(message, Shown | Hello):
            return
        if self._server.line[0] is not self:
            await self.say(Error("out_of_order", "wait for your turn", message.id))
            return
        self.last_id = message.id
        handler = getattr(self, f"_{message.type}", None)
        if handler:
            await handler(message)

    async def _ack(self, message: ClientMessage, replaces: int | None = None) -> None:
        block = self.tree.next_block
        await self.say(
            Ack(
                message.id,
                message.type,
                self.tree.current,
                block,
                frame_of(block),
                replaces,
                unchanged=message.type == "prompt" and self._server.unchanged,
            )
        )

    async def _start(self, message: Start) -> None:
        self.tree = Tree()
        self.tree.branch(None, 0)
        self.active, self.default = None, message.transition
        self.pending = (message.id, message.prompt, message.transition)
        self.state = "starting"
        await self._ack(message)
        await self.say(Branches(self.tree.current, tuple(self.tree.branches.values())))
        await self.say_state()

    async def _prompt(self, message: ChangePrompt) -> None:
        if self.state == "idle":
            await self.say(Error("out_of_order", "start a video first", message.id))
            return
        replaces = self.pending[0] if self.pending else None
        self.pending = (message.id, message.prompt, message.transition or self.default)
        await self._ack(message, replaces)

    async def _back(self, message: Back) -> None:
        if message.branch not in self.tree.branches:
            await self.say(Error("bad_value", f"there is no branch {message.branch}", message.id))
            return
        parent = self.tree.owner(message.branch, max(message.block - 1, 0))
        blocks = self.tree.blocks[self.tree.owner(message.branch, message.block)]
        made = blocks.get(message.block) or self.tree.blocks[parent][message.block - 1]
        self.tree.branch(parent, message.block)
        self._jumps = True
        self.active = None
        self.pending = (made.prompt, made.text, self.default)
        if message.prompt:
            self.pending = (message.id, message.prompt, message.transition or self.default)
        self.state = "playing" if message.play else "paused"
        await self._ack(message)
        await self.say(Branches(self.tree.current, tuple(self.tree.branches.values())))
        await self.say_state()

    async def _pause(self, message: ClientMessage) -> None:
        self.state = "paused"
        await self._ack(message)
        await self.say_state()

    async def _resume(self, message: ClientMessage) -> None:
        self.state = "playing"
        await self._ack(message)
        await self.say_state()

    async def _stop(self, message: ClientMessage) -> None:
        self.state = "idle"
        await self._ack(message)
        await self.say(Ended("stopped", "the video was stopped"))
        await self.say_state()

    async def _record(self, message: ClientMessage) -> None:
        self.recording = True
        await self._ack(message)
        await self.say_state()

    async def _record_stop(self, message: ClientMessage) -> None:
        self.recording = False
        await self._ack(message)
        await self.say_state()
        await self.say(
            Files(
                message.id, "recording", 32, *(f"recordings/a.{e}" for e in ("mp4", "json", "png"))
            )
        )

    async def _export(self, message: ClientMessage) -> None:
        await self._ack(message)
        await self.say(Files(message.id, "export", 32, None, "recordings/a.json", None))

    def _done(self, branch: int, block: int, made: Made) -> BlockDone:
        frames = FIRST_BLOCK if block == 0 else BLOCK
        picture = base64.b64encode(jpeg(draw(made.text, frame_of(block)))).decode()
        return BlockDone(branch, block, frame_of(block), frames, made.prompt, 0.01, picture)

    async def play_block(self) -> None:
        """Make the next block and send its frames at their pace."""
        is_first = self.pending is not None
        if self.pending:
            id_, text, transition = self.pending
            self.pending = None
            self.active = Made(id_, text)
            mark = PromptMark(
                id_,
                self.tree.current,
                self.tree.next_block,
                frame_of(self.tree.next_block),
                text,
                transition,
            )
            self.tree.marks.append(mark)
            await self.say(mark)
        made, branch = self.active, self.tree.current
        block = self.tree.add(made)
        await self.say(self._done(branch, block, made))
        if self.state == "starting":
            self.state = "playing"
            await self.say_state()
        for i in range(FIRST_BLOCK if block == 0 else BLOCK):
            if self.state != "playing" or self.tree.current != branch:
                return
            await self._send_frame(made, branch, block, i, is_first and i == 0)
            await asyncio.sleep(1 / FPS)
        await self.say(
            Stats(16.0, (62.0,) * 4, 63.0, None, 0, 0, 4, 1, 10.0, 0.5, 0.0, 0, 812.0, None)
        )

    async def _send_frame(self, made: Made, branch: int, block: int, i: int, first: bool) -> None:
        if self.socket is None or self._encoder is None:
            return
        self.serial += 1
        flags = PictureFlag.FIRST_OF_PROMPT if first else PictureFlag(0)
        if self._jumps:
            flags |= PictureFlag.JUMP
        header = PictureHeader(
            PictureKind.JPEG,
            flags,
            self.serial,
            branch,
            block,
            frame_of(block) + i,
            made.prompt,
            self._sent_us,
        )
        self._sent_us += 1_000_000 // FPS
        self._headers.append(header)
        packets = self._encoder.encode(draw(made.text, header.frame), self._jumps)
        self._jumps = False
        for kind, is_key, payload in packets:
            header = self._headers[0] if kind == PictureKind.MP4_HEADER else self._headers.popleft()
            flags = header.flags | (PictureFlag.KEY if is_key else PictureFlag(0))
            fields = {name: getattr(header, name) for name in header.__slots__}
            packed = pack_picture(
                PictureHeader(**{**fields, "kind": kind, "flags": flags}), payload
            )
            with contextlib.suppress(Exception):
                await self.socket.send_bytes(packed)


class FakeLive:
    """Runs in a thread of its own; use it as a context manager.

    Attributes:
        received: Every message of every viewer, as sent.
        line: Sessions; the first has the model.
        delay_seconds: Before every block.
        unchanged: Whether a prompt is said to be the active one.
    """

    def __init__(self, token: str | None = None) -> None:
        self.received: list[dict] = []
        self.line: list[FakeSession] = []
        self.token = token
        self.delay_seconds = 0.0
        self.unchanged = False
        self._refuses = False
        app = Starlette(
            routes=[
                WebSocketRoute("/live", self._serve),
                Route("/healthz", lambda request: JSONResponse({"status": "ok"})),
                Route("/recordings/{name}", lambda request: PlainTextResponse("kept")),
                Mount("/", StaticFiles(directory=PAGE, html=True)),
            ]
        )
        config = uvicorn.Config(
            app, port=0, log_level="error", lifespan="off", ws="websockets-sansio"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "FakeLive":
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
        self._loop.call_soon_threadsafe(lambda: None)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(5)

    @property
    def url(self) -> str:
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}/"

    def sent(self, kind: str) -> list[dict]:
        """What viewers sent of one type."""
        return [message for message in self.received if message["type"] == kind]

    def drop(self, refuse: bool = False) -> None:
        """Cut every connection without a word; with ``refuse``, take no new ones."""
        self._refuses = refuse
        asyncio.run_coroutine_threadsafe(self._drop(self.line), self._loop).result(5)

    def accept(self) -> None:
        """Take connections again."""
        self._refuses = False

    def forget(self) -> None:
        """End every session, as after its grace period, and cut its connection."""
        ended, self.line = self.line, []
        asyncio.run_coroutine_threadsafe(self._drop(ended), self._loop).result(5)

    def say(self, message: Message) -> None:
        """Say something to who has the model."""
        asyncio.run_coroutine_threadsafe(self.line[0].say(message), self._loop).result(5)

    def _run(self) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            player = asyncio.create_task(self._play())
            await self._server.serve()
            player.cancel()

        asyncio.run(main())

    async def _play(self) -> None:
        while True:
            session = self.line[0] if self.line else None
            if session and session.socket and session.state in ("starting", "playing"):
                await asyncio.sleep(self.delay_seconds)
                await session.play_block()
            else:
                await asyncio.sleep(0.01)

    async def _drop(self, sessions: list[FakeSession]) -> None:
        for session in sessions:
            if session.socket is not None:
                await session.socket.close(1012)

    async def _serve(self, socket: WebSocket) -> None:
        if self._refuses or (self.token and socket.query_params.get("token") != self.token):
            await socket.close(1008)
            return
        await socket.accept()
        session: FakeSession | None = None
        try:
            while True:
                text = await socket.receive_text()
                self.received.append(json.loads(text))
                try:
                    message = parse_client(text)
                except ProtocolError as error:
                    id_ = json.loads(text).get("id")
                    await socket.send_text(to_json(Error(error.code, str(error), id_)))
                    continue
                if isinstance(message, Hello):
                    session = await self._hello(socket, message)
                elif isinstance(message, Leave):
                    return
                elif session is not None:
                    await session.take(message)
        except (WebSocketDisconnect, RuntimeError):
            pass
        finally:
            if session is not None and session.socket is socket:
                session.socket = None

    async def _hello(self, socket: WebSocket, hello: Hello) -> FakeSession | None:
        known = {session.token: session for session in self.line}
        if hello.session and hello.session not in known:
            error = Error("unknown_session", "the session has ended", None, fatal=True)
            await socket.send_text(to_json(error))
            await socket.close(1008)
            return None
        resumed = hello.session is not None
        session = known[hello.session] if resumed else FakeSession(self)
        if resumed and session.socket is not None:
            taken = Error("taken_over", "the session goes on in another window", None, fatal=True)
            await session.say(taken)
            await session.socket.close(1008)
        if not resumed:
            self.line.append(session)
        await session.connect(socket, hello, resumed)
        return session

    async def _end(self, session: FakeSession) -> None:
        self.line.remove(session)
        for waiting in self.line:
            await waiting.say_queue()

    def leave_first(self) -> None:
        """Who has the model goes away; the next one gets it."""
        asyncio.run_coroutine_threadsafe(self._end(self.line[0]), self._loop).result(5)
