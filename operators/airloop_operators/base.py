"""
The base of all operators: it turns its arguments into a call, hands it to a runner, and tells Airflow what came back.

It neither knows how a step works nor where it runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache, update_wrapper
from inspect import Parameter, Signature, signature, unwrap
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, TypeVar, cast

from airflow.sdk import Asset, AssetAlias, BaseOperator
from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR, TriggerFailureReason

from airloop_operators.links import ManifestLink, MlflowRunLink, PodLink, ReportLink

if TYPE_CHECKING:
    import jinja2
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context
    from airflow.sdk.definitions.mappedoperator import OperatorPartial

    from airloop_operators.deferral import Deferral, Woken
    from airloop_operators.runners.base import Runner, RunOutcome
    from airloop_operators.turn import Order, Place


@lru_cache(maxsize=8)
def _templates(*folders: str) -> tuple[jinja2.Environment, jinja2.FileSystemLoader]:
    """Where the files that arguments name are looked up."""
    import jinja2

    loader = jinja2.FileSystemLoader(folders)
    return jinja2.Environment(loader=loader), loader  # noqa: S701  only files are read; nothing is rendered


class StepOperator(BaseOperator):
    """
    Run a step of the catalogue, or one of your own.

    Operators for the built-in steps are thin classes over this one. All of them return a small dictionary of
    references and counts, which can be passed wherever an argument names a table, a model or a decision::

        rows = ExtractOperator(task_id="extract", source="flights.yaml", files="flights.csv")
        checked = ValidateOperator(task_id="validate", table=rows.output, suite="flights.json")

    :param step: name in the catalogue (``airloop steps``) or ``package.module:function``. (templated)
    :param arguments: the step's arguments, JSON values. (templated)
    :param interval: ``start/end``, ISO 8601 with offsets, instead of the run's own interval. (templated)
    :param force: do the work even if a complete manifest under the same key exists. A table that holds this very
        commit already keeps it as it is.
    :param runner: where to run: ``local`` or ``pod``; default ``[airloop] runner``.
    :param size: size of its pod, by a name that ``[airloop] sizes`` explains; a local run has none. Where that file
        counts its accelerators in an Airflow pool, the task takes as many slots of it, unless it names a pool itself.
    :param deferrable: give the worker's place back while the pod runs; default ``[operators] default_deferrable``. A
        local run keeps its place: nobody else could look after its process.
    :param memory_mb: memory limit, MiB; 0: none; default ``[airloop] memory_mb``, in a pod its size's; over it the step
        is ended and OOM is named.
    :param cpus: processors that the step may use; default all.
    :param environment: more environment variables for the step. (templated)
    :param secrets: environment variable by ``connection_id.field`` (``password``, ``uri`` or ``extra.NAME``). Fetched
        when the task runs; masked in logs; never rendered, never in a manifest. ``login``, ``host`` and ``schema`` can
        be named too; they are not masked. Those of every task: ``[airloop] secrets``.
    :param python: interpreter of another virtual environment that has airloop installed.
    :param infrastructure_retries: how often a step that was ended by its surroundings (not by memory or time limits)
        is started again before the task itself fails; apart from the task's ``retries``.
    :param infrastructure_retry_delay: seconds, or a :class:`datetime.timedelta`, before it is started again the first
        time; then twice as long each time, up to two minutes, and a little at random.
    :param order: what the task waits for while runs of earlier data intervals are under way: ``task``, the same task
        in them; ``run``, their end; ``none``, nothing. Default: as the task's arguments ask for, see
        :mod:`airloop_operators.turn`.
    :param announces: asset whose event is emitted only when the task made something new, with the step's key and
        interval in its extra. A task that reuses what others made emits none; one that is cleared in the run in which
        it made it emits the event again, with the same key, since nobody knows whether the first one was taken.
    """

    template_fields: Sequence[str] = ("step", "arguments", "interval", "environment")
    operator_extra_links = (ManifestLink(), ReportLink(), MlflowRunLink(), PodLink())
    ui_color = "#e3f0ec"

    step_name: ClassVar[str] = ""
    """Step of an operator that is made for one."""
    step_arguments: ClassVar[tuple[str, ...]] = ()
    """Attributes that are arguments of the step, those of a :func:`declared` constructor; None means: not given."""
    step_reads: ClassVar[tuple[str, ...]] = ("arguments",)
    """Attributes that name tables and models which the step reads."""
    own_order: ClassVar[Order] = "task"
    """Order of a task that takes only results of other tasks."""

    step: str | None
    arguments: Mapping[str, Any] | None
    interval: str | Mapping[str, str] | None
    force: bool
    runner: Literal["local", "pod"] | None
    size: str | None
    deferrable: bool | None
    memory_mb: int | None
    cpus: float | None
    environment: Mapping[str, str] | None
    secrets: Mapping[str, str] | None
    python: str | None
    infrastructure_retries: int
    infrastructure_retry_delay: timedelta | float
    order: Order | None
    announces: Asset | None

    killed: bool = False
    """The task was asked to end."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        declares = getattr(vars(cls).get("__init__"), "declares", None)
        if declares is not None:
            if super(cls, cls).__init__ is not StepOperator.__init__:
                raise TypeError(f"{cls.__name__}: a declared constructor takes the place of StepOperator's alone")
            cls.step_arguments = declares
            cls.template_fields = (*StepOperator.template_fields, *declares)

    def __init__(
        self,
        *,
        step: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        interval: str | Mapping[str, str] | None = None,
        force: bool = False,
        runner: Literal["local", "pod"] | None = None,
        size: str | None = None,
        deferrable: bool | None = None,
        memory_mb: int | None = None,
        cpus: float | None = None,
        environment: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        python: str | None = None,
        infrastructure_retries: int = 1,
        infrastructure_retry_delay: timedelta | float = 5.0,
        order: Order | None = None,
        announces: Asset | None = None,
        **kwargs: Any,
    ) -> None:
        if announces is not None:
            kwargs["outlets"] = [*(kwargs.get("outlets") or []), AssetAlias(announces.name)]
        if size is not None:
            kwargs = _counted(kwargs, size, runner)
        super().__init__(**kwargs)
        # Not one by one: Airflow looks at each for tasks that it comes from, and then again at all of them when the
        # operator is complete. With thousands of tasks that is a large part of a parse.
        vars(self).update(
            step=step,
            arguments=arguments,
            interval=interval,
            force=force,
            runner=runner,
            size=size,
            deferrable=deferrable,
            memory_mb=memory_mb,
            cpus=cpus,
            environment=environment,
            secrets=secrets,
            python=python,
            infrastructure_retries=infrastructure_retries,
            infrastructure_retry_delay=infrastructure_retry_delay,
            order=order,
            announces=announces,
        )

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """
        As Airflow does it, with the pool that counts its accelerators.

        A size that ``expand`` gives, or ``default_args``, comes too late for that.
        """
        if isinstance(size := kwargs.get("size"), str):
            kwargs = _counted(kwargs, size, kwargs.get("runner"))
        return super().partial(**kwargs)

    def resolve_template_files(self) -> None:
        """
        Put a file's content in the place of its name, where an argument is one.

        As Airflow does it, which makes a Jinja environment for each field that it looks at.
        """
        values, endings = vars(self), tuple(self.template_ext)
        named = {
            name: value
            for name in (self.template_fields if endings else ())
            if isinstance(value := values.get(name), str) and value.endswith(endings)
        }
        if named:
            templates, loader = _templates(self.dag.folder, *(self.dag.template_searchpath or ()))
            for name, file in named.items():
                try:
                    values[name] = loader.get_source(templates, file)[0]
                except Exception:  # as Airflow: the task fails with the file's name in the place of its content
                    self.log.exception("%s: file %s of %s cannot be read", self.task_id, file, name)
        self.prepare_template()

    def call_arguments(self) -> dict[str, Any]:
        """Arguments of the call: what was given, and nothing that was not."""
        given = dict(self.arguments or {})
        for name in self.step_arguments:
            value = getattr(self, name)
            if value is not None:
                given[name] = value
        return given

    @property
    def place(self) -> Place:
        """The task's place in the order of runs."""
        from airloop_operators.turn import Place

        return Place(self.task_id, self.order, self.own_order, [getattr(self, name) for name in self.step_reads])

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the step, once it is its turn; returns its references and counts."""
        from airloop_operators.turn import PATIENCE_S, wait_for_turn

        until = self._until()
        # A time limit is for the work.
        patience_s = PATIENCE_S if until is None else 0.0
        others = list(_places(self.dag.tasks))
        wait_for_turn(
            context, self.place, others, self.log,
            patience_s=patience_s, killed=lambda: self.killed, first=lambda: self._end_earlier(context),
        )  # fmt: skip
        return self._run(context, until)

    def resume(self, context: Context, event: Any = None) -> dict[str, Any]:
        """Go on after a deferral: judge the attempt if it has ended, else wait for it, here or deferred again."""
        from airloop_operators.deferral import Woken

        woken = Woken.read(event)
        if woken is None:
            self.log.warning("what the trigger says cannot be understood: %.200r; looking here", event)
            return self._run(context, self._until(context), lost=True)
        if woken.trouble:
            self.log.warning("the trigger could not watch: %s", woken.why)
        else:
            self.log.info("woken up: %s", woken.why)
        back = woken.back
        until = None if back.until is None else time.monotonic() + back.until - time.time()
        return self._run(context, until, woken=woken)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """As Airflow does it; but of a trigger that failed nothing follows for the step: it is looked at."""
        if next_method != TRIGGER_FAIL_REPR:
            return super().resume_execution(next_method, next_kwargs, context)
        told = next_kwargs or {}
        error = str(told.get("error", "unknown"))
        self.log.warning("the trigger failed: %s\n%s", error, "".join(told.get("traceback") or []))
        # It is given one time limit only: the task's own.
        late = told.get("error") == TriggerFailureReason.TRIGGER_TIMEOUT
        return self._run(context, time.monotonic() if late else self._until(context), lost=True)

    def _end_earlier(self, context: Context) -> None:
        """What earlier tries have left must not hold its accelerators for as long as this one waits for its turn."""
        if context["ti"].try_number == 1:
            return
        from airloop_operators.attempts import end_earlier
        from airloop_operators.runners import get_runner
        from airloop_operators.settings import Settings

        settings = Settings.read()
        end_earlier(self, get_runner(self.runner or settings.runner, settings), context)

    def _until(self, context: Context | None = None) -> float | None:
        """
        When the task's time is over, by the monotonic clock; None: never.

        :param context: of a task that was deferred and has run before; None: it begins now.
        """
        limit = self.execution_timeout
        if limit is None:
            return None
        began = getattr(context["ti"], "start_date", None) if context is not None else None
        gone_s = time.time() - began.timestamp() if began is not None else 0.0
        return time.monotonic() + limit.total_seconds() - gone_s

    def _run(
        self, context: Context, until: float | None, *, woken: Woken | None = None, lost: bool = False
    ) -> dict[str, Any]:
        from airloop_operators.attempts import for_airflow, run_step
        from airloop_operators.deferral import Deferral
        from airloop_operators.results import links_of, result_of
        from airloop_operators.runners import get_runner
        from airloop_operators.settings import Settings

        settings = Settings.read()
        # What was left is a pod, whatever is configured since.
        name = "pod" if woken is not None else self.runner or settings.runner
        self._running: Runner = get_runner(name, settings)
        if name == "pod":
            PodLink().show(self, context["ti"])
        deferrable = settings.deferrable if self.deferrable is None else self.deferrable
        may_leave = deferrable and name == "pod" and not lost and (woken is None or woken.may_leave)
        outcome = run_step(
            self, self._running, context, settings,
            until=until, may_leave=may_leave, back=woken.back if woken else None, lost=lost,
        )  # fmt: skip
        if isinstance(outcome, Deferral):
            self._defer(outcome, after_trouble=woken is not None and woken.trouble)
        self._outcome = outcome
        self.step_links = links_of(outcome, settings)
        if outcome.error is not None:
            raise for_airflow(outcome.error) from outcome.error
        result = result_of(outcome)
        if self.announces is not None:
            self._announce(self.announces, context, outcome, result)
        return result

    def _defer(self, deferral: Deferral, *, after_trouble: bool) -> NoReturn:
        from airloop_operators.deferral import latest, trigger_of

        trigger = trigger_of(deferral, after_trouble=after_trouble)
        self.defer(trigger=trigger, method_name="resume", timeout=latest(deferral))

    def get_openlineage_facets_on_start(self) -> OperatorLineage[Any, Any]:
        """What Airflow's provider for OpenLineage tells when the task starts."""
        from airloop_operators import lineage
        from airloop_operators.settings import Settings

        return lineage.on_start(self, Settings.read())

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """What it tells when the task has succeeded: the snapshots that the step read and made."""
        from airloop_operators import lineage
        from airloop_operators.settings import Settings

        return lineage.on_end(self, Settings.read(), getattr(self, "_outcome", None))

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """What it tells when the task has failed: what the step was given, and how the attempt ended."""
        return self.get_openlineage_facets_on_complete(task_instance)

    def on_kill(self) -> None:
        """End the step and everything that it started."""
        self.killed = True
        running = getattr(self, "_running", None)
        if running is not None:
            running.on_kill()

    def _announce(self, asset: Asset, context: Context, outcome: RunOutcome, result: Mapping[str, Any]) -> None:
        from airloop_operators.attempts import made_by_task

        manifest = outcome.manifest or {}
        # An earlier attempt may have made it and been killed before it could say so. If it did say so and the task was
        # cleared since, the event comes twice, with the same key: lost would be worse.
        if not made_by_task(manifest, self, context["ti"]) or not manifest.get("changed", True):
            return
        if "event" in manifest and manifest["event"] is None and self.event_only:
            return
        extra = {"key": result["key"], "interval": result["interval"], **(manifest.get("event") or {})}
        context["outlet_events"][AssetAlias(asset.name)].add(asset, extra=extra)

    event_only: ClassVar[bool] = False
    """True: the step itself decides whether there is something to announce."""


_Constructor = TypeVar("_Constructor", bound=Callable[..., None])
_make: Callable[..., None] = unwrap(StepOperator.__init__)
"""As it stands above, without what Airflow put around it."""
_PARAMETERS = [p for p in signature(_make).parameters.values() if p.name != "self"]


def declared(constructor: _Constructor) -> _Constructor:
    """
    Make a constructor of its signature: what it names are the arguments of the operator's step, all of them templated.

    ::

        class CountOperator(StepOperator):
            step_name = "counts:count_rows"

            @declared
            def __init__(self, *, table: str, column: str | None = None, **kwargs: Any) -> None: ...

    Airflow goes through a DAG's ``default_args`` and ``params`` once for each constructor that an operator runs
    through. This one takes the place of :class:`StepOperator`'s, whose parameters it has too.
    """
    own = [p for p in signature(constructor).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    defaults = {p.name: None if p.default is Parameter.empty else p.default for p in own}

    def make(self: StepOperator, **kwargs: Any) -> None:
        given = {name: kwargs.pop(name, default) for name, default in defaults.items()}
        _make(self, **kwargs)
        vars(self).update(given)

    update_wrapper(make, constructor)
    itself = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
    vars(make).update(declares=tuple(defaults), __signature__=Signature([itself, *own, *_PARAMETERS]))
    return cast("_Constructor", make)


def _counted(kwargs: dict[str, Any], size: str, runner: str | None) -> dict[str, Any]:
    """With the Airflow pool that counts the accelerators of a size, unless the task names one or some of its slots."""
    from airloop_operators.budget import pool_of

    counted = pool_of(size, runner)
    return kwargs if "pool" in kwargs or "pool_slots" in kwargs else {**kwargs, **counted}


def _places(tasks: Iterable[Any]) -> Iterator[Place]:
    """Places of the tasks of a DAG that are ours."""
    from airloop_operators.turn import Place

    for task in tasks:
        if isinstance(task, StepOperator):
            yield task.place
        elif isinstance(kind := getattr(task, "operator_class", None), type) and issubclass(kind, StepOperator):
            given = task.partial_kwargs
            reads = [given[name] for name in kind.step_reads if name in given]
            # One argument each, or all arguments of each task; not yet known where another task returns them.
            mapped = task.expand_input.value
            for one in [mapped] if isinstance(mapped, Mapping) else mapped if isinstance(mapped, list | tuple) else []:
                reads += [one[name] for name in kind.step_reads if isinstance(one, Mapping) and name in one]
            yield Place(task.task_id, given.get("order"), kind.own_order, reads)
