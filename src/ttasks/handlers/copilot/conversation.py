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
from ttasks.errors import CopilotError, SurvivorError, words
from ttasks.events.agent_facts import AgentPrompted, AgentSessionOpened
from ttasks.handlers.copilot.cli import SESSION_MARK, connection_to, end_all, find_cli, started_with
from ttasks.handlers.copilot.failures import (
    CRASHED,
    UNRESPONSIVE,
    crashed,
    died_before,
    failure,
    not_runnable,
    not_signed_in,
    unresponsive,
)
from ttasks.handlers.copilot.loop import in_thread
from ttasks.handlers.copilot.options import Options, Settled
from ttasks.handlers.copilot.permissions import Decision
from ttasks.handlers.copilot.recorder import Recorder, totals_of
from ttasks.handlers.copilot.turn import Turn
from ttasks.log.survivors import MARK, Ended, Leader, innermost
from ttasks.state.task import GRACE_S

if TYPE_CHECKING:
    from copilot import CopilotClient, CopilotSession

T = TypeVar("T")

START_WAIT_S: Final = 30.0
OPEN_WAIT_S: Final = 60.0
"""How long a session may take to open: the account is asked, and tool servers are started, over the network."""
CALL_WAIT_S: Final = 15.0
"""How long the CLI may take for what it does by itself."""
ABORT_WAIT_S: Final = 5.0
"""How long an aborted turn may take to end, before the CLI is ended."""
PING_EVERY_S: Final = 0.5
PING_WAIT_S: Final = 30.0
"""How long a CLI may say nothing at all before it counts as dead."""
STOP_WAIT_S: Final = 10.0
CLOSED: Final = "closed"
CLOSED_TEXT: Final = "the Copilot session was closed before the agent was done"
_TOO_LATE: Final = "This turn has ended: nothing more may be done."
GO_ON: Final = (
    "You were interrupted while you worked on this task, and what you did last may be half done. Look at how things "
    "are now, don't blindly repeat what you did, and carry on until the task is done. This was the task:\n\n"
)
"""What an agent is told, before the task's payload, that goes on with a conversation after an interruption."""
# The SDK reports on itself; where nobody has set up logging, Python would print that to stderr, tracebacks and all.
logging.getLogger("copilot").addHandler(logging.NullHandler())


class Conversation:
    """A CLI process and a session in it. All methods run on its loop.

    Args:
        options: what was asked for.
        settled: what counts.
        mark: what names the processes of it, for their environment.
        tell: gets every event of the SDK's.
        grace_s: seconds between SIGTERM and SIGKILL, where what it started is ended by force.

    `ended` is what was ended by force.
    """

    def __init__(
        self,
        options: Options,
        settled: Settled,
        mark: Mapping[str, str],
        tell: Callable[[Any], None],
        grace_s: float = GRACE_S,
    ) -> None:
        self.ended = Ended()
        self._grace_s = grace_s
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
        self._totals: Mapping[str, Any] | None = {}
        self._pipes: list[IO[bytes] | None] = []

    # --- opening -----------------------------------------------------------------------------------------------------

    async def open(self, resumes: str | None = None) -> None:
        """Start the CLI and open a session, that of an earlier conversation where its id is given.

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
        status = await _bounded(self._client.get_status())
        self.cli_version = str(status.version)
        if settled.provider is not None:
            return
        if settled.token is not None:
            self.account = "token"
            return
        auth = await _bounded(self._client.get_auth_status(), OPEN_WAIT_S)
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
            self._session = await _bounded(self._client.resume_session(resumes, **wanted), OPEN_WAIT_S)
            self.is_resumed = True
            self._totals = await self._metrics()
        else:
            self._session = await _bounded(self._client.create_session(**wanted), OPEN_WAIT_S)

    async def _goes_on(self, interrupted: str) -> bool:
        """Return whether this is, or has become, the conversation that was interrupted after a prompt."""
        if self.id != interrupted and (self.turns or not await self._go_on_with(interrupted)):
            return False
        return await self._was_prompted()

    async def _go_on_with(self, session: str) -> bool:
        """Take up an earlier conversation in place of this one, in which nothing was said yet; return if it could.

        Raises:
            CopilotError: it could not, for another reason than that it is gone.
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
        try:
            await _bounded(fresh.disconnect())
        except Exception as error:
            raise failure(error) from error
        return True

    async def _was_prompted(self) -> bool:
        """Return whether the conversation that was taken up has got as far as its first prompt."""
        assert self._session is not None
        events = await _bounded(self._session.get_events())
        return any(event.type.value == "user.message" for event in events)

    @property
    def id(self) -> str:
        """The session's id, by which the conversation can be taken up again.

        Raises:
            RuntimeError: the session is not open yet.
        """
        if self._session is None:
            raise RuntimeError("CopilotAgentSession is not active: it is being opened")
        return str(self._session.session_id)

    @property
    def pid(self) -> int | None:
        """The CLI's process."""
        return self._leader.pid if self._leader is not None else None

    # --- one turn ----------------------------------------------------------------------------------------------------

    async def take(self, turn: Turn, prompt: str, interrupted: str | None = None) -> str:
        """Send `prompt`, and return what the agent says at last.

        Args:
            interrupted: the conversation in which the task was interrupted; None: it was not. Where that is this one,
                or can still be taken up in its place, the agent is told to carry on.

        Raises:
            CopilotError: it failed, or was ended by something else than `stop`.
            LedgerUnwritableError: what it wanted could not be recorded.

        A turn that was stopped returns what the agent had said by then.
        """
        recorder = turn.recorder
        self._unfinished = turn
        try:
            if self.error is not None:
                raise died_before(self.error)
            if interrupted is not None and await turn.unless_stopped(self._goes_on(interrupted)):
                recorder.tell("goes on with the conversation that was interrupted")
                prompt = GO_ON + prompt
            if turn.stopped_why is None:
                await self._converse(turn, prompt)
        finally:
            self._unfinished = None
            turn.finished.set()
        if turn.stopped_why == CLOSED:
            raise CopilotError(CLOSED_TEXT, code="aborted")
        if turn.error is not None:
            raise turn.error
        if turn.stopped_why is None and recorder.refusal is not None:
            raise recorder.refusal
        if turn.stopped_why is None and recorder.is_aborted:
            raise CopilotError("Copilot ended the turn before it was done. Look at what it did, and run it again",
                               code="aborted")  # fmt: skip
        return recorder.answer

    async def _converse(self, turn: Turn, prompt: str) -> None:
        recorder = turn.recorder
        try:
            await in_thread(self._record, recorder, self._opened(recorder.attempt), prompt)
            self.turns += 1
            self._turn = turn
            if turn.stopped_why is None:
                await self._send(turn, prompt)
            await turn.until(lambda: turn.is_ending)
            if self.error is not None:
                recorder.aborted("crashed")
            elif not recorder.is_over:
                await self._abort(turn, turn.stopped_why or "failed")
        finally:
            self._turn = None
            recorder.ended(None if self.error is not None else await self._added())

    @staticmethod
    def _record(recorder: Recorder, opened: AgentSessionOpened, prompt: str) -> None:
        recorder.report(opened)
        recorder.begin(AgentPrompted(opened.attempt, clock.now(), prompt))

    async def _send(self, turn: Turn, prompt: str) -> None:
        assert self._session is not None
        if self.error is not None:
            turn.fail(self.error)
            return
        turn.may_be_sent = True
        try:
            await _bounded(self._session.send(prompt))
        except Exception as error:  # noqa: BLE001 - it is raised where the turn ends
            found = self.error or failure(error)
            turn.may_be_sent = found.code == UNRESPONSIVE
            turn.fail(found)

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
                if turn.may_be_sent:  # one that has not begun yet would begin after the abort
                    await turn.until(lambda: recorder.has_begun or self.error is not None)
                await self._session.abort()
                if turn.may_be_sent:
                    await turn.until(lambda: recorder.is_over or self.error is not None)
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing of the turn may go on
            await self._break(crashed(f"it did not end an aborted turn ({words(error) or type(error).__name__})"))

    async def _added(self) -> dict[str, Any] | None:
        """Return what the latest turn added to the totals of the session; None where the CLI does not tell."""
        totals = await self._metrics()
        if totals is None:
            return None
        before, self._totals = self._totals, totals
        if before is None:  # what was before this turn is not known
            return None
        return {name: value - (before.get(name) or 0) for name, value in totals.items() if value is not None}

    async def _metrics(self) -> dict[str, Any] | None:
        assert self._session is not None
        try:
            return totals_of(await _bounded(self._session.rpc.usage.get_metrics()))
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
            return PermissionDecisionReject(feedback=_TOO_LATE)
        try:
            decision = await in_thread(self._decided, turn, request)
        except Exception as error:  # noqa: BLE001 - what can't be recorded may not be done, and nobody swallows why
            turn.fail(error)
            return PermissionDecisionReject(feedback="This can't be recorded, so it may not be done.")
        if decision.is_approved and turn is self._turn and not turn.is_ending:
            return PermissionDecisionApproveOnce()
        return PermissionDecisionReject(feedback=decision.feedback or _TOO_LATE)

    def _decided(self, turn: Turn, request: Any) -> Decision:
        recorder = turn.recorder
        name = recorder.name_of(request)
        decision = self.settled.policy.decide(recorder.asks(request))
        if turn.is_ending:  # a person may have been asked, who took too long
            decision = Decision(False, "too late", _TOO_LATE)
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
                await self._break(unresponsive(PING_WAIT_S))
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
        with contextlib.suppress(SurvivorError):  # whoever closes the session meets it again
            await self._end_all()

    async def _end_all(self) -> None:
        ended = await in_thread(end_all, self._env, self._leader, self._grace_s)
        if ended.pids:
            self.ended = ended

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
            try:
                await self._end_all()
            except SurvivorError as left:
                problem = problem or left
        for pipe in self._pipes:
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what it was not told any more
                    pipe.close()
        if self.error is not None:
            if problem is not None:
                self.error.add_note(str(problem))
            raise self.error
        if problem is not None:
            raise problem if isinstance(problem, SurvivorError) else failure(problem)

    def _opened(self, attempt: int) -> AgentSessionOpened:
        """Return what is recorded of the session at the start of an attempt's turn."""
        settled, options, own = self.settled, self._options, innermost(self._env[MARK])
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
            own if own.startswith(SESSION_MARK) else None,
        )


async def _bounded(call: Coroutine[Any, Any, T], wait_s: float | None = None) -> T:
    wait_s = CALL_WAIT_S if wait_s is None else wait_s
    try:
        async with asyncio.timeout(wait_s):
            return await call
    except TimeoutError:
        raise unresponsive(wait_s) from None
