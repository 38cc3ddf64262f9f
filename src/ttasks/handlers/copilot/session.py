"""The handlers of PROMPT and AGENT tasks, and `CopilotAgentSession`: one conversation for many tasks."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

from ttasks import clock
from ttasks.errors import TtasksError, words
from ttasks.events.agent_facts import AgentErred
from ttasks.handlers.context import AttemptPort, DetachedPort, TaskContext
from ttasks.handlers.copilot.default import named
from ttasks.handlers.copilot.options import AGENT_MODEL, PROMPT_MODEL, Options, Subscriber
from ttasks.handlers.copilot.permissions import Permissions
from ttasks.model.callbacks import check_ran, check_runs_when_called
from ttasks.model.checks import check_timeout
from ttasks.public import public

if TYPE_CHECKING:
    from ttasks.handlers.copilot.driver import Driver

# What starts the CLI, asyncio with it, is imported by whoever runs a task: making an executor stays as fast as it was.
Handler = Callable[[TaskContext], Any]
PathLike = str | os.PathLike[str]


def make_copilot_prompt_handler(
    *,
    model: str = PROMPT_MODEL,
    timeout: float | None = 60.0,
    provider: Mapping[str, Any] | None = None,
    cli_path: PathLike | None = None,
    reasoning_effort: str | None = None,
    working_directory: PathLike | None = None,
    env: Mapping[str, str] | None = None,
    **session_options: Any,
) -> Handler:
    """Return a handler for PROMPT tasks: the payload is one prompt, answered without tools.

    Args:
        model: the model; $COPILOT_MODEL takes the place of the default one.
        timeout: seconds for everything, the start of the CLI included; None: no limit. A task's own wins.
        provider: a model endpoint of your own, as the SDK's ``ProviderConfig`` (``type``, ``base_url``, ``api_key``
            …); None: what $COPILOT_PROVIDER_BASE_URL and its companions name, else GitHub Copilot.
        cli_path: the Copilot CLI; None: $COPILOT_CLI_PATH, the SDK's own, or ``copilot`` on PATH.
        reasoning_effort: ``low``, ``medium``, ``high`` … where the model knows it.
        working_directory: None: the task's `cwd`, else this process's.
        env: variables for the CLI, on top of the few that it is given anyway and the task's.
        session_options: further options of the SDK's ``create_session``.

    The handler returns the assistant's text ("" for none), and raises `CopilotError`, whose `code` says what failed.

    Raises:
        TypeError, ValueError: a wrong argument: ``model must not be empty``, ``timeout must be greater than 0``.
    """
    misplaced = sorted({"available_tools", "excluded_tools", "permissions"} & session_options.keys())
    if misplaced:
        raise TypeError(f"{', '.join(misplaced)}: a prompt is answered without tools; agents may have some")
    options = Options(
        model, timeout, provider, _text(cli_path), reasoning_effort, _text(working_directory), (), None, "deny_all",
        env, session_options,
    )  # fmt: skip

    def copilot_prompt_handler(context: TaskContext) -> str:
        return _run_alone(context, options, resumes=False)

    return named(copilot_prompt_handler)


def make_copilot_agent_handler(
    *,
    model: str = AGENT_MODEL,
    timeout: float | None = None,
    provider: Mapping[str, Any] | None = None,
    cli_path: PathLike | None = None,
    reasoning_effort: str | None = None,
    working_directory: PathLike | None = None,
    available_tools: Sequence[str] | None = None,
    excluded_tools: Sequence[str] | None = None,
    permissions: Permissions | None = None,
    env: Mapping[str, str] | None = None,
    **session_options: Any,
) -> Handler:
    """Return a handler for AGENT tasks: the payload is an instruction, carried out with the agent's tools in one turn.

    Args:
        model, timeout, provider, cli_path, reasoning_effort, working_directory, env, session_options: as
            `make_copilot_prompt_handler`, but without a limit of time.
        available_tools: the only tools it has (``["view", "grep"]``); None: the CLI's own.
        excluded_tools: tools that it has not.
        permissions: what it may do: ``"approve_all"``, ``"deny_all"``, ``"read_only"`` (in its working directory), a
            list of rules (``["read", "write(src/*)", "shell(git status*)", "deny shell(rm *)"]``), or a function that
            is given a `PermissionRequest` and returns True, False, or a text that refuses; None:
            $TTASKS_COPILOT_PERMISSIONS, else ``"approve_all"``.

    An attempt that was interrupted is gone on with in its own conversation, where the CLI still has it.

    Raises:
        TypeError, ValueError: as `make_copilot_prompt_handler`, or a rule that can't be read.
    """
    options = Options(
        model, timeout, provider, _text(cli_path), reasoning_effort, _text(working_directory), available_tools,
        excluded_tools, permissions, env, session_options,
    )  # fmt: skip

    def copilot_agent_handler(context: TaskContext) -> str:
        return _run_alone(context, options, resumes=True)

    return named(copilot_agent_handler)


def _text(path: PathLike | None) -> str | None:
    return path if path is None or isinstance(path, str) else cast("str", path)  # Options says what is wrong with it


def _run_alone(context: TaskContext, options: Options, *, resumes: bool) -> str:
    """Run a task in a conversation of its own."""
    from ttasks.handlers.copilot.driver import Driver, Waiting

    port: AttemptPort = context._port or DetachedPort()
    waiting = Waiting(port, context.timeout if context.timeout is not None else options.timeout)
    driver = Driver(options, options.settled(context.env, context.cwd), lambda _: None, context.grace)
    interrupted = port.interrupted_session() if resumes else None
    driver.open(port, waiting, interrupted)
    try:
        answer = driver.turn(port, context.id, context.payload, waiting, interrupted)
    except BaseException as error:
        try:
            driver.close(port, aborts=True)
        except TtasksError as problem:
            error.add_note(f"ending the Copilot CLI failed as well: {problem}")
        raise
    try:
        driver.close(port)
    except TtasksError as error:  # the answer is there, so the task has succeeded: this is recorded with it
        code = getattr(error, "code", None) or "processes_left"
        port.report(AgentErred(port.number, clock.now(), code, str(error), is_retried=False))
    return answer


class AsyncCopilotAgentSession(Protocol):
    """A `CopilotAgentSession` as ``async with`` gives it: what takes long has to be awaited."""

    def send_and_wait(self, prompt: str, *, timeout: float | None = None) -> Awaitable[str]:
        """Send a prompt, and return the agent's text."""

    def on(self, handler: Subscriber) -> Callable[[], None]:
        """Subscribe."""

    @property
    def session_id(self) -> str:
        """The id of the conversation."""

    @property
    def event_errors(self) -> list[Exception]:
        """What subscribers raised."""


class CopilotAgentSession:
    """One Copilot conversation for many AGENT tasks: later ones know what was said and done before.

    Use it in a ``with``, and register its `handler`; or in an ``async with``, where `send_and_wait` is awaited. Turns
    are taken one after the other, whoever asks. Cancelling a task ends its turn, and the session stays usable.

    Args:
        model, reasoning_effort, working_directory, provider, cli_path, permissions, available_tools, excluded_tools,
            env, session_options: as `make_copilot_agent_handler`.
        timeout: seconds for each turn; None: no limit. A task's own wins.
        on_event: a subscriber from the beginning, see `on`.

    Raises:
        TypeError, ValueError: a wrong argument.

    Opening raises `CopilotError` where the CLI can't be started or signed in; nothing is left of it then. Closing
    raises it where the CLI had died meanwhile, or could not be closed as it should.
    """

    def __init__(
        self,
        *,
        model: str = AGENT_MODEL,
        reasoning_effort: str | None = None,
        working_directory: PathLike | None = None,
        timeout: float | None = None,
        on_event: Subscriber | None = None,
        provider: Mapping[str, Any] | None = None,
        cli_path: PathLike | None = None,
        permissions: Permissions | None = None,
        available_tools: Sequence[str] | None = None,
        excluded_tools: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        **session_options: Any,
    ) -> None:
        self._options = Options(
            model, timeout, provider, _text(cli_path), reasoning_effort, _text(working_directory), available_tools,
            excluded_tools, permissions, env, session_options,
        )  # fmt: skip
        self._driver: Driver | None = None
        self._is_sync = False
        self._subscribers: list[Subscriber] = []
        self._event_errors: list[Exception] = []
        if on_event is not None:
            self.on(on_event)

    # --- opening and closing -----------------------------------------------------------------------------------------

    def _open(self) -> None:
        if self._driver is not None:
            raise RuntimeError("CopilotAgentSession is already active")
        from ttasks.handlers.copilot.driver import Driver, Waiting

        port = DetachedPort()
        driver = self._driver = Driver(self._options, self._options.settled({}, None), self._publish)
        try:
            driver.open(port, Waiting(port, None))
        except BaseException:
            self._driver = None
            raise

    def _close(self) -> None:
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.close()

    def _leave(self, error: BaseException | None) -> None:
        try:
            self._close()
        except TtasksError as problem:
            if error is None:
                raise
            error.add_note(f"closing the Copilot session failed as well: {problem}")

    def __enter__(self) -> Self:
        self._open()
        self._is_sync = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_sync = False
        self._leave(error)

    async def __aenter__(self) -> AsyncCopilotAgentSession:
        import asyncio

        await asyncio.to_thread(self._open)
        return cast("AsyncCopilotAgentSession", self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        import asyncio

        await asyncio.to_thread(self._leave, error)

    def _active(self) -> Driver:
        if self._driver is None:
            raise RuntimeError("CopilotAgentSession is not active: use it inside a with")
        return self._driver

    # --- using it ----------------------------------------------------------------------------------------------------

    @property
    def session_id(self) -> str:
        """The id of the conversation, by which the CLI keeps it.

        Raises:
            RuntimeError: the session is ``not active``.
        """
        return self._active().id

    @property
    def event_errors(self) -> list[Exception]:
        """What subscribers raised, oldest first: a new list each time. It disturbs nobody else."""
        return list(self._event_errors)

    def on(self, handler: Subscriber) -> Callable[[], None]:
        """Call `handler` with every event of the SDK's (``SessionEvent``), on a thread of the session's own.

        Returns:
            What ends the subscription; calling it again is harmless.

        Raises:
            TypeError: ``handler must be callable``; or a call would do nothing, because it is async or has a yield.
        """
        check_runs_when_called(handler, "handler")

        def subscriber(event: Any) -> object:  # one of its own, so that the same function may subscribe twice
            return handler(event)

        self._subscribers.append(subscriber)

        def unsubscribe() -> None:
            if subscriber in self._subscribers:
                self._subscribers.remove(subscriber)

        return unsubscribe

    def _publish(self, event: Any) -> None:
        for subscriber in list(self._subscribers):
            try:
                check_ran(subscriber(event), "a subscriber")
            except Exception as error:  # noqa: BLE001 - kept for whoever asks; the turn goes on
                self._event_errors.append(error)
            except BaseException as error:  # noqa: BLE001 - no signal comes here: this is a thread of the session's own
                wrapped = RuntimeError(f"a subscriber raised {type(error).__name__}: {words(error)}")
                wrapped.__cause__ = error
                self._event_errors.append(wrapped)

    def send_and_wait(self, prompt: str, *, timeout: float | None = None) -> str:
        """Send a prompt, wait until the agent is done, and return its last text ("" for none).

        In an ``async with`` it returns an awaitable of that; cancelling it ends the turn.

        Args:
            timeout: seconds for this turn; None: the session's own.

        Raises:
            TypeError: ``prompt must be a str``, or a wrong timeout.
            ValueError: ``timeout must be greater than 0``.
            RuntimeError: the session is ``not active``.
            CopilotError: the turn failed.
            TaskTimeoutError: it took too long, and was ended.
        """
        if not isinstance(prompt, str):
            raise TypeError(f"prompt must be a str, got {type(prompt).__name__}")
        check_timeout(timeout)
        from ttasks.handlers.copilot.driver import Waiting

        driver = self._active()
        port = _AskedByHand()
        limit = timeout if timeout is not None else self._options.timeout
        if self._is_sync:
            return driver.turn(port, "", prompt, Waiting(port, limit))
        return cast("str", self._awaited(driver, port, prompt, limit))

    @staticmethod
    async def _awaited(driver: Driver, port: _AskedByHand, prompt: str, limit: float | None) -> str:
        import asyncio

        from ttasks.handlers.copilot.driver import Waiting

        turn = asyncio.ensure_future(asyncio.to_thread(driver.turn, port, "", prompt, Waiting(port, limit)))
        try:
            return await asyncio.shield(turn)
        except asyncio.CancelledError:
            port.cancel()
            await asyncio.wait([turn])
            if not turn.cancelled():
                turn.exception()  # looked at, so that asyncio does not report it as lost
            raise

    def handler(self) -> Handler:
        """Return a handler for AGENT tasks: each task's payload is the next turn of this conversation.

        Raises:
            RuntimeError: ``handler() requires an active sync context``.
        """
        if self._driver is None or not self._is_sync:
            raise RuntimeError("CopilotAgentSession.handler() requires an active sync context: use it inside a with")

        def copilot_session_handler(context: TaskContext) -> str:
            from ttasks.handlers.copilot.driver import Waiting

            driver = self._active()
            port: AttemptPort = context._port or DetachedPort()
            limit = context.timeout if context.timeout is not None else self._options.timeout
            return driver.turn(port, context.id, context.payload, Waiting(port, limit), port.interrupted_session())

        return named(copilot_session_handler)


class _AskedByHand(DetachedPort):
    """The port of a turn that no task asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._enders: list[Callable[[], None]] = []

    def on_cancel(self, end: Callable[[], None]) -> None:
        self._enders.append(end)

    def cancel(self) -> None:
        """End the turn."""
        self.is_cancelled = True
        for end in self._enders:
            end()


public(make_copilot_prompt_handler, make_copilot_agent_handler, CopilotAgentSession)
