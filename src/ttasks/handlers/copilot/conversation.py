"""One conversation with Copilot on an event loop of its own: opened, one turn after the other, closed.

Every wait on the CLI has an end: it may be mute, hang, or die without a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
from collections.abc import Callable, Coroutine, Mapping
from importlib.metadata import version
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

from ttasks import clock
from ttasks.errors import CopilotError, words
from ttasks.events.agent_facts import AgentPrompted, AgentSessionOpened
from ttasks.handlers.copilot.cli import connection_to, end_all, find_cli, started_with
from ttasks.handlers.copilot.failures import CRASHED, crashed, failure, not_runnable, not_signed_in
from ttasks.handlers.copilot.loop import in_thread
from ttasks.handlers.copilot.options import Options, Settled
from ttasks.handlers.copilot.permissions import Decision
from ttasks.handlers.copilot.recorder import Recorder
from ttasks.log.survivors import Leader

if TYPE_CHECKING:
    from copilot import CopilotClient, CopilotSession

T = TypeVar("T")

START_WAIT_S: Final = 30.0
CALL_WAIT_S: Final = 15.0
"""How long the CLI may take for what needs no model."""
ABORT_WAIT_S: Final = 5.0
"""How long an aborted turn may take to end, before the CLI is ended."""
PING_EVERY_S: Final = 0.5
PING_WAIT_S: Final = 30.0
"""How long a CLI may say nothing at all before it counts as dead."""
STOP_WAIT_S: Final = 10.0
CLOSED: Final = "closed"
# The SDK reports on itself; where nobody has set up logging, Python would print that to stderr, tracebacks and all.
logging.getLogger("copilot").addHandler(logging.NullHandler())


class Turn:
    """One prompt and what comes of it. Any thread may `stop` it; the loop is woken by that."""

    def __init__(self, recorder: Recorder, loop: asyncio.AbstractEventLoop) -> None:
        self.recorder = recorder
        self._loop = loop
        self._changed = asyncio.Event()
        self.finished = asyncio.Event()
        self.is_sent = False
        self.stopped_why: str | None = None
        self.error: BaseException | None = None

    def stop(self, why: str) -> None:
        """End the turn before its time; `why` is recorded."""
        self.stopped_why = self.stopped_why or why
        self._loop.call_soon_threadsafe(self._changed.set)

    def fail(self, error: BaseException) -> None:
        """End the turn by an error, on the loop's thread."""
        self.error = self.error or error
        self._changed.set()

    def changed(self) -> None:
        """Look again, on the loop's thread."""
        self._changed.set()

    @property
    def is_over(self) -> bool:
        return self.recorder.is_over or self.error is not None

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so, which is looked at again whenever anything happens."""
        while not is_so():
            self._changed.clear()
            await self._changed.wait()

    async def over_or_stopped(self) -> None:
        """Wait until it has ended, or somebody wants it to."""
        await self.until(lambda: self.is_over or self.stopped_why is not None)


class Conversation:
    """A CLI process and a session in it. All methods run on its loop.

    Args:
        options: what was asked for.
        settled: what counts.
        mark: what names the processes of it, for their environment.
        tell: gets every event of the SDK's.
    """

    def __init__(
        self, options: Options, settled: Settled, mark: Mapping[str, str], tell: Callable[[Any], None]
    ) -> None:
        self.settled = settled
        self.error: CopilotError | None = None
        self.is_resumed = False
        self.turns = 0
        self._options = options
        self._env = {**settled.env, **mark}
        self._tell = tell
        self._client: CopilotClient | None = None
        self._session: CopilotSession | None = None
        self._watching: asyncio.Task[None] | None = None
        self._turn: Turn | None = None
        self._unfinished: Turn | None = None
        self._leader: Leader | None = None
        self.cli_version: str | None = None
        self.account: str | None = None
        self._totals: dict[str, Any] = {}
        self._pipes: list[IO[bytes] | None] = []

    # --- opening -----------------------------------------------------------------------------------------------------

    async def open(self, resumes: str | None = None) -> int | None:
        """Start the CLI and open a session, that of an earlier conversation where its id is given; return its pid.

        Raises:
            CopilotError: it could not be. No process is left.
        """
        try:
            await self.start()
            await self._open_session(resumes)
        except BaseException as error:
            with contextlib.suppress(CopilotError):  # the first one says what is wrong
                await self.close(aborts=True)
            if isinstance(error, Exception) and not isinstance(error, CopilotError):
                raise failure(error) from error
            raise
        self._watching = asyncio.ensure_future(self._watch())
        return self._leader.pid if self._leader is not None else None

    async def start(self) -> None:
        """Start the CLI, and find out who is signed in; `close` has to follow.

        Raises:
            CopilotError: it can't be started, or nobody is signed in who has to be.
            OSError, RuntimeError: other words for that, by the SDK.
        """
        from copilot import CopilotClient

        settled = self.settled
        if not os.path.isdir(settled.working_directory):  # noqa: PTH112
            text = f"the working directory {settled.working_directory} does not exist, or is no folder"
            raise CopilotError(text, code="bad_working_directory")
        path = find_cli(settled.cli_path)
        self._client = CopilotClient(
            connection=connection_to(path),
            env=dict(self._env),
            working_directory=settled.working_directory,
            use_logged_in_user=settled.provider is None and settled.token is None,
            log_level="error",
        )
        self._note_pipes(self._client)
        try:
            async with asyncio.timeout(START_WAIT_S):
                await self._client.start()
        except TimeoutError:
            raise not_runnable(f"{path} did not answer within {START_WAIT_S:g} seconds") from None
        except Exception as error:
            found = failure(error)
            if found.code == CRASHED:
                raise not_runnable(f"{path} ended before it had answered: {words(error)}") from error
            raise found from error
        finally:
            self._leader = await in_thread(started_with, self._env)
        status = await self._bounded(self._client.get_status())
        self.cli_version = str(status.version)
        if settled.provider is not None:
            return
        if settled.token is not None:
            self.account = "token"
            return
        auth = await self._bounded(self._client.get_auth_status())
        if not auth.isAuthenticated:
            raise not_signed_in()
        self.account = ":".join(str(part) for part in (auth.authType, auth.login) if part)

    def _note_pipes(self, client: CopilotClient) -> None:
        """Keep the pipes to the CLI, which the SDK leaves to the garbage collector, and forgets where a start fails."""
        start = getattr(client, "_start_cli_server", None)
        if start is None:  # an SDK that goes another way
            return

        async def start_noted() -> None:
            try:
                await start()
            finally:
                process = getattr(client, "_process", None)
                self._pipes = [process.stdin, process.stdout, process.stderr] if process is not None else []

        client._start_cli_server = start_noted  # type: ignore[method-assign]

    async def _open_session(self, resumes: str | None) -> None:
        assert self._client is not None
        settled, options = self.settled, self._options
        wanted: dict[str, Any] = {
            "streaming": True,
            **options.session,
            "model": settled.model,
            "reasoning_effort": options.reasoning_effort,
            "working_directory": settled.working_directory,
            "available_tools": list(options.available_tools) if options.available_tools is not None else None,
            "excluded_tools": list(options.excluded_tools) if options.excluded_tools is not None else None,
            "provider": dict(settled.provider) if settled.provider is not None else None,
            "github_token": settled.token,
            "on_permission_request": self._decide,
            "on_event": self._heard,
        }
        wanted = {name: value for name, value in wanted.items() if value is not None}
        if resumes is not None:
            known = inspect.signature(self._client.resume_session).parameters
            wanted = {name: value for name, value in wanted.items() if name in known}
            self._session = await self._bounded(self._client.resume_session(resumes, **wanted))
            self.is_resumed = True
            self._totals = await self._metrics() or {}
        else:
            self._session = await self._bounded(self._client.create_session(**wanted))

    async def go_on_with(self, session: str) -> bool:
        """Take up an earlier conversation in place of this one, in which nothing was said yet; return if it could.

        Raises:
            CopilotError: it could not, for another reason than that it is gone. This one is closed.
        """
        fresh = self._session
        assert fresh is not None and self.turns == 0
        try:
            await self._open_session(session)
        except Exception as error:
            found = failure(error)
            if found.code == "session_not_found":
                return False
            raise found from error
        await self._bounded(fresh.disconnect())
        return True

    async def was_prompted(self) -> bool:
        """Return whether the conversation that was taken up has got as far as its first prompt."""
        assert self._session is not None
        events = await self._bounded(self._session.get_events())
        return any(event.type.value == "user.message" for event in events)

    @property
    def id(self) -> str:
        """The session's id, by which the conversation can be taken up again."""
        assert self._session is not None
        return str(self._session.session_id)

    @property
    def pid(self) -> int | None:
        """The CLI's process."""
        return self._leader.pid if self._leader is not None else None

    # --- one turn ----------------------------------------------------------------------------------------------------

    async def take(self, turn: Turn, prompt: str, opened: AgentSessionOpened) -> str:
        """Send `prompt`, and return what the agent says at last.

        Raises:
            CopilotError: it failed, or was ended by something else than `stop`.
            LedgerUnwritableError: what it wanted could not be recorded.

        A turn that was stopped returns what the agent had said by then.
        """
        recorder = turn.recorder
        self._unfinished = turn
        try:
            await in_thread(self._record, recorder, opened, prompt)
            self.turns += 1
            self._turn = turn
            if turn.stopped_why is None:
                await self._send(turn, prompt)
            await turn.over_or_stopped()
            if self.error is not None:
                recorder.aborted("crashed")
            elif not recorder.is_over:
                await self._abort(turn, turn.stopped_why or "failed")
        finally:
            self._turn = None
            try:
                recorder.ended(None if self.error is not None else await self._added())
            finally:
                self._unfinished = None
                turn.finished.set()
        if turn.stopped_why == CLOSED:
            raise CopilotError("the Copilot session was closed before the agent was done", code="aborted")
        if turn.error is not None:
            raise turn.error
        if turn.stopped_why is None and recorder.refusal is not None:
            raise recorder.refusal
        if turn.stopped_why is None and recorder.is_aborted:
            raise CopilotError("Copilot ended the turn before it was done. Look at what it did, and run it again",
                               code="aborted")  # fmt: skip
        return recorder.answer

    @staticmethod
    def _record(recorder: Recorder, opened: AgentSessionOpened, prompt: str) -> None:
        recorder.report(opened)
        recorder.begin(AgentPrompted(opened.attempt, clock.now(), prompt))

    async def _send(self, turn: Turn, prompt: str) -> None:
        assert self._session is not None
        if self.error is not None:
            turn.fail(self.error)
            return
        try:
            await self._bounded(self._session.send(prompt))
            turn.is_sent = True
        except Exception as error:  # noqa: BLE001 - it is raised where the turn ends
            turn.fail(self.error or failure(error))

    async def _abort(self, turn: Turn, why: str) -> None:
        """Let the agent end the turn and what it runs; where it does not, end the CLI."""
        recorder = turn.recorder
        try:
            recorder.aborted(why)
        except Exception as error:  # noqa: BLE001 - it ends all the same; whoever waits for it gets the first error
            turn.fail(error)
        assert self._session is not None
        try:
            async with asyncio.timeout(ABORT_WAIT_S):
                if turn.is_sent:  # one that has not begun yet would begin after the abort
                    await turn.until(lambda: recorder.has_begun or self.error is not None)
                await self._session.abort()
                if turn.is_sent:
                    await turn.until(lambda: recorder.is_over or self.error is not None)
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing of the turn may go on
            await self._break(crashed(f"it did not end an aborted turn ({words(error) or type(error).__name__})"))

    async def _added(self) -> dict[str, Any] | None:
        """Return what the latest turn added to the totals of the session; None where the CLI does not tell."""
        totals = await self._metrics()
        if totals is None:
            return None
        before, self._totals = self._totals, totals
        return {name: value - (before.get(name) or 0) for name, value in totals.items() if value is not None}

    async def _metrics(self) -> dict[str, Any] | None:
        assert self._session is not None
        try:
            return _totals(await self._bounded(self._session.rpc.usage.get_metrics()))
        except Exception:  # noqa: BLE001 - an experimental call, which other CLIs may lack, or answer in another form
            return None

    # --- what the CLI says and asks ----------------------------------------------------------------------------------

    def _heard(self, event: Any) -> None:
        turn = self._turn
        if turn is not None:
            try:
                turn.recorder.take(event)
            except Exception as error:  # noqa: BLE001 - the SDK would swallow it; whoever waits for the turn gets it
                turn.fail(error)
            turn.changed()
        self._tell(event)

    async def _decide(self, request: Any, _: Any) -> Any:
        """Decide what the agent may do. It hears of a decision only after that was recorded."""
        from copilot.rpc import PermissionDecisionApproveOnce, PermissionDecisionReject

        turn = self._turn
        if turn is None:
            return PermissionDecisionReject(feedback="Nothing was asked of you: this turn has ended.")
        recorder = turn.recorder
        try:
            decision = await in_thread(self._decided, recorder, request)
        except Exception as error:  # noqa: BLE001 - what can't be recorded may not be done, and nobody swallows why
            turn.fail(error)
            return PermissionDecisionReject(feedback="This can't be recorded, so it may not be done.")
        if decision.is_approved:
            return PermissionDecisionApproveOnce()
        return PermissionDecisionReject(feedback=decision.feedback)

    def _decided(self, recorder: Recorder, request: Any) -> Decision:
        name = recorder.name_of(request)
        decision = self.settled.policy.decide(recorder.asks(request))
        recorder.decided(name, decision)
        return decision

    # --- watching and closing ----------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Take note when the CLI dies or falls silent: the SDK does not tell whoever waits for a turn."""
        assert self._client is not None
        while self.error is None:
            await asyncio.sleep(PING_EVERY_S)
            self._check_recording()
            try:
                async with asyncio.timeout(PING_WAIT_S):
                    await self._client.ping()
            except TimeoutError:
                await self._break(crashed(f"it did not answer for {PING_WAIT_S:g} seconds"))
            except Exception as error:  # noqa: BLE001 - the connection is gone, in whatever words
                await self._break(crashed(words(error)))

    def _check_recording(self) -> None:
        """End the turn where what was reported of it could not be recorded: the agent may say nothing more."""
        if self._turn is not None:
            try:
                self._turn.recorder.check()
            except Exception as error:  # noqa: BLE001 - whoever waits for the turn gets it
                self._turn.fail(error)

    async def _break(self, error: CopilotError) -> None:
        """End the CLI and all that it started; whoever waits for a turn gets `error`."""
        self.error = self.error or error
        turn = self._turn
        if turn is not None:
            turn.fail(self.error)
        assert self._client is not None
        with contextlib.suppress(Exception):  # it may be gone already; what is left is ended below
            async with asyncio.timeout(STOP_WAIT_S):
                await self._client.force_stop()
        await in_thread(end_all, self._env, self._leader)

    async def close(self, *, aborts: bool = False) -> None:
        """End the session and the CLI. `aborts`: what its agent still runs is ended too.

        Raises:
            CopilotError: it could not be closed as it should: what the agent has not saved may be lost.
        """
        turn = self._unfinished
        if turn is not None and self.error is None:
            turn.stop(CLOSED)
            await turn.finished.wait()
        if self._watching is not None:
            self._watching.cancel()
        client, self._client = self._client, None
        if client is None:
            return
        problem: Exception | None = None
        if self.error is None:
            try:
                async with asyncio.timeout(STOP_WAIT_S):
                    if self._session is not None:
                        await self._session.disconnect()
                    await client.stop()
            except Exception as error:  # noqa: BLE001 - it is raised below, after nothing of it is left
                problem = error
        if problem is not None or self.error is not None or aborts:
            with contextlib.suppress(Exception):  # it may be gone already; what is left is ended below
                async with asyncio.timeout(STOP_WAIT_S):
                    await client.force_stop()
            await in_thread(end_all, self._env, self._leader)
        for pipe in self._pipes:
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what it was not told any more
                    pipe.close()
        if problem is not None:
            raise failure(problem)
        if self.error is not None:
            raise self.error

    def opened(self, attempt: int) -> AgentSessionOpened:
        """Return what is recorded of the session at the start of an attempt's turn."""
        settled, options = self.settled, self._options
        return AgentSessionOpened(
            attempt,
            clock.now(),
            self.id,
            self.is_resumed or self.turns > 0,
            self.cli_version,
            version("github-copilot-sdk"),
            settled.model,
            options.reasoning_effort,
            settled.working_directory,
            settled.address,
            self.account,
            settled.policy.names,
            tuple(options.available_tools) if options.available_tools is not None else None,
            tuple(options.excluded_tools) if options.excluded_tools is not None else None,
        )

    async def _bounded(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            async with asyncio.timeout(CALL_WAIT_S):
                return await call
        except TimeoutError:
            raise crashed(f"it did not answer within {CALL_WAIT_S:g} seconds") from None


def _totals(metrics: Any) -> dict[str, Any]:
    """Return the totals of a session as the fields of an AgentTurnEnded."""
    models = list((metrics.model_metrics or {}).values())
    has_credits = any(_said(model, "ai_credits_status") != "unavailable" for model in models)
    changes = metrics.code_changes
    return {
        "model_calls": sum(int(model.requests.count or 0) for model in models),
        "input_tokens": sum(int(model.usage.input_tokens or 0) for model in models),
        "output_tokens": sum(int(model.usage.output_tokens or 0) for model in models),
        "cache_read_tokens": sum(int(model.usage.cache_read_tokens or 0) for model in models),
        "cache_write_tokens": sum(int(model.usage.cache_write_tokens or 0) for model in models),
        "premium_requests": metrics.total_premium_request_cost,
        "nano_aiu": metrics.total_nano_aiu if has_credits else None,
        "requests": metrics.total_user_requests,
        "lines_added": getattr(changes, "lines_added", None),
        "lines_removed": getattr(changes, "lines_removed", None),
    }


def _said(thing: Any, name: str) -> str:
    value = getattr(thing, name, None)
    return str(getattr(value, "value", value))
