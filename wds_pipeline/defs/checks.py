"""The asset checks of `published_version`.

They are evaluated in three ways. By themselves ("Execute" in the UI): for the newest version, by what is
stored of it. While a version is built (`watching`): for the candidate, before it is committed; a
blocking one that fails refuses it. After a version was read back (`log_audit`): by what that found.

Dagster shows the latest evaluation. So what reading back found stays until the damaged shards are packed
anew or the version is read back again: what is stored beside a version knows nothing of bit rot.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

import dagster as dg

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import freshness
from wds_pipeline.dataset.build import BuildResult
from wds_pipeline.dataset.freshness import Freshness
from wds_pipeline.dataset.plan import Plan
from wds_pipeline.dataset.report import Report
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.defs import check_history, check_results, check_subject, keys
from wds_pipeline.defs.check_results import (
    DUPLICATES,
    FRESH,
    NO_KEY_LOST,
    NO_LEAK,
    QUARANTINE_WITHIN_BUDGET,
    VERIFICATION_PASSED,
)
from wds_pipeline.defs.check_subject import Subject
from wds_pipeline.defs.session import Session
from wds_pipeline.errors import VerificationError, WdsPipelineError
from wds_pipeline.storage import Storage

Context = dg.OpExecutionContext | dg.AssetExecutionContext
OF_VERSION = (
    VERIFICATION_PASSED,
    NO_KEY_LOST,
    QUARANTINE_WITHIN_BUDGET,
    NO_LEAK,
    DUPLICATES,
)
"""The checks of a version itself; `fresh` compares it with the source."""
_SAME_CONTENT = (NO_LEAK, DUPLICATES)
_DESCRIPTIONS = {
    VERIFICATION_PASSED: "Every shard was read back and is what the plan says, and its content decodes: "
    "the report has no error. Damaged shards of a published version are packed anew by "
    "{repair}.",
    NO_KEY_LOST: "Samples in = published + quarantined: by the report, and counted anew from inventory, "
    "ledger and quarantine. Should it fail, restore the version's tables from a backup, or another "
    "version.",
    QUARANTINE_WITHIN_BUDGET: "No larger share of the samples is left out than `samples.max_quarantined` "
    "allows, and none breaks a rule whose policy is `error`. Mend the samples, or change the rule.",
    NO_LEAK: "No content is in two splits: a model would be judged by what it was trained on. Give what "
    "belongs together one split (`split.group_by`), or remove the copies. `verify.on_leak: error` "
    "refuses such a version, `warn` only tells.",
    DUPLICATES: "No content is in a split more than once. Remove the copies from the source, if they are "
    "not meant.",
    FRESH: "No change of the source has been waiting to be published for longer than "
    "`freshness.max_lag_hours` ({hours:g} h). Run {job}, or see why its last run failed.",
}


def specs(config: DatasetConfig) -> list[dg.AssetCheckSpec]:
    """The checks of one dataset. Those that are blocking refuse a version before it is published."""
    asset = keys.asset_key(config.name, keys.PUBLISHED_VERSION)
    values = {
        "job": keys.job_name(config.name),
        "repair": keys.repair_job_name(config.name),
        "hours": config.freshness.max_lag_hours,
    }
    return [
        dg.AssetCheckSpec(
            name,
            asset=asset,
            description=text.format(**values),
            blocking=_blocking(config, name),
        )
        for name, text in _DESCRIPTIONS.items()
    ]


def _blocking(config: DatasetConfig, name: str) -> bool:
    """What would be an error in a published version must not come into one."""
    return check_results.severity_of(config, name) is dg.AssetCheckSeverity.ERROR


def build_checks(config: DatasetConfig) -> list[dg.AssetChecksDefinition]:
    """The asset checks of one dataset, each of which can be executed by itself."""
    session_key = keys.session_key(config.name)
    known = specs(config)

    @dg.multi_asset_check(
        name=f"{config.name}_version_checks",
        specs=[spec for spec in known if spec.name in OF_VERSION],
        description="Looks at the newest version: its report and tables are read, its shards are not.",
        can_subset=True,
        required_resource_keys={session_key},
    )
    def version_checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        chosen = {key.name for key in context.selected_asset_check_keys}
        session: Session = getattr(context.resources, session_key)
        yield from _stored(context.instance, session, chosen)

    @dg.multi_asset_check(
        name=f"{config.name}_freshness_check",
        specs=[spec for spec in known if spec.name == FRESH],
        description="Lists the source and compares it with the newest version.",
        required_resource_keys={session_key},
    )
    def freshness_check(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        yield _fresh(getattr(context.resources, session_key))

    return [version_checks, freshness_check]


def _of(subject: Subject, chosen: Collection[str] = OF_VERSION) -> list[dg.AssetCheckResult]:
    """What these checks say of a version or candidate."""
    tables = (subject.ledger, subject.quarantine, subject.facts())
    work = {
        VERIFICATION_PASSED: lambda: check_results.verification_passed(subject),
        NO_KEY_LOST: lambda: check_results.no_key_lost(subject),
        QUARANTINE_WITHIN_BUDGET: lambda: check_results.quarantine_within_budget(
            subject.config, *tables
        ),
        NO_LEAK: lambda: check_results.no_leak_between_splits(subject),
        DUPLICATES: lambda: check_results.duplicates(subject),
    }
    return [evaluate() for name, evaluate in work.items() if name in chosen]


def _stored(
    instance: dg.DagsterInstance, session: Session, chosen: Collection[str]
) -> list[dg.AssetCheckResult]:
    """What these checks say of the newest version, by what is stored; what cannot be read fails."""
    config = session.config
    try:
        storage, newest = session.build.destination, session.build.newest()
        if newest is None:
            return [check_results.unpublished(config, name) for name in chosen]
        found = _of(check_subject.of_version(config, storage, newest), chosen)
    except (WdsPipelineError, OSError) as error:
        return [check_results.unreadable(config, name, error) for name in chosen]
    known = check_history.known_damage(instance, config, storage, newest)
    if known is None:
        return found
    return [known if each.check_name == VERIFICATION_PASSED else each for each in found]


def _fresh(session: Session) -> dg.AssetCheckResult:
    """What the check `fresh` says now."""
    try:
        found = None
        if session.build.newest() is not None:  # or the source need not be listed
            found = freshness.look(session.build, session.listing)
    except (WdsPipelineError, OSError) as error:
        return check_results.unreadable(session.config, FRESH, error)
    return check_results.fresh(session.config, found)


def evaluate(
    config: DatasetConfig,
    storage: Storage,
    manifest: Manifest,
    report: Report,
    damaged: Collection[str] = (),
    instance: dg.DagsterInstance | None = None,
) -> Iterator[dg.AssetCheckEvaluation]:
    """What the checks say of a version that was just read back: `report` and `damaged` as in
    `audit.Audit`. Checks for which the report's level is too shallow are left out.

    With `instance` the evaluations point to the version's materialization.

    Raises DestinationError, VersionError, VerificationError when the version's tables cannot be read.
    """
    subject = check_subject.of_audit(config, storage, manifest, report, damaged)
    chosen = [
        name for name in OF_VERSION if name not in _SAME_CONTENT or subject.found.read_members
    ]
    target = check_history.target(instance, config) if instance else None
    for each in _of(subject, chosen):
        yield _evaluation(config, each, target)


def log_audit(
    context: Context,
    session: Session,
    manifest: Manifest,
    report: Report,
    damaged: Collection[str] = (),
) -> None:
    """Logs what reading a version back says: `report` and `damaged` as in `audit.Audit`.

    Says nothing if another version was published meanwhile: the checks are of the newest one.

    Raises as `evaluate`.
    """
    config, storage = session.config, session.build.destination
    newest = session.build.newest()
    if newest is None or newest.version != manifest.version:
        context.log.info(
            f"{config.name}: version {manifest.version} is not the newest any more: the checks of the "
            "newest stay as they are"
        )
    else:
        shallow = not damaged and check_history.hides_damage(
            context.instance, config, storage, manifest, report.level
        )
        if shallow:
            context.log.warning(
                f"{config.name}: a deeper reading found damage that level {report.level} cannot see; it "
                f"stays until {keys.repair_job_name(config.name)} or a reading as deep"
            )
        for each in evaluate(config, storage, manifest, report, damaged, context.instance):
            if not (shallow and each.check_name == VERIFICATION_PASSED):
                log_evaluation(context, each)


def log_unreadable(context: Context, session: Session, error: Exception) -> None:
    """Logs that the newest version's own files cannot be read, for each of its checks."""
    _log(
        context,
        session.config,
        [check_results.unreadable(session.config, name, error) for name in OF_VERSION],
    )


def log_fresh(context: Context, session: Session) -> None:
    """Logs whether the newest version is fresh; lists the source if this run has not."""
    _log(context, session.config, [_fresh(session)])


def log_newest(context: Context, session: Session, manifest: Manifest) -> None:
    """Logs the checks of the newest version, as far as the catalogue lacks them: after a repair, or
    when another program made it."""
    instance, storage = context.instance, session.build.destination
    names = check_history.lacking(instance, session.config, storage, manifest, OF_VERSION)
    if names:
        _log(context, session.config, _stored(instance, session, names))


class Watch:
    """The checks of the version that a build is about to publish."""

    def __init__(self, context: Context, session: Session) -> None:
        self._context = context
        self._session = session
        self._config = session.config
        self._about = ""
        self._held: list[dg.AssetCheckResult] = []

    def candidate(self, plan: Plan, report: Report | None = None) -> None:
        """Evaluates the checks for a plan, or, when that is settled, for its report too.

        Raises VerificationError for a candidate that a blocking check refuses, but the build would not.
        """
        self._about = check_subject.candidate_name(plan)
        if report is None:  # `check_policies` refuses it
            facts = {"checked": self._about}
            tables = (plan.ledger, plan.quarantine)
            self._held = [check_results.quarantine_within_budget(self._config, *tables, facts)]
            return
        self._held = _of(check_subject.of_candidate(self._config, plan, report))
        refused = [str(each.description) for each in self._held if self._refuses(each)]
        if refused and report.passed:
            raise VerificationError("\n".join([*refused, "Nothing was published"]))

    def _refuses(self, found: dg.AssetCheckResult) -> bool:
        blocking = _blocking(self._config, str(found.check_name))
        return blocking and not found.passed and found.severity is dg.AssetCheckSeverity.ERROR

    def done(self, result: BuildResult) -> None:
        """Logs what was found, when the catalogue knows the version."""
        if result.status != "published":
            self.unchanged(result.manifest)
            return
        number = result.manifest.version
        published = [check_results.as_version(each, self._about, number) for each in self._held]
        _log(self._context, self._config, [*published, self._all_taken_in(result.manifest)])

    def unchanged(self, manifest: Manifest) -> None:
        """Logs the checks of a version that stays the newest, as far as the catalogue lacks them."""
        log_newest(self._context, self._session, manifest)
        _log(self._context, self._config, [self._all_taken_in(manifest)])

    def _all_taken_in(self, manifest: Manifest) -> dg.AssetCheckResult:
        return check_results.fresh(self._config, Freshness(manifest.version))

    def refused(self, error: WdsPipelineError) -> None:
        """Logs what was found of a candidate, if that is why it was not published."""
        failed = {each.check_name for each in self._held if self._refuses(each)}
        if isinstance(error, VerificationError) and not failed:
            # Before there was a report: a shard that is damaged whenever it is packed.
            said = check_results.unreadable(self._config, VERIFICATION_PASSED, error)
            others = [each for each in self._held if each.check_name != VERIFICATION_PASSED]
            self._held = [said, *others]
        elif not failed:
            return
        _log(self._context, self._config, [*self._held, _fresh(self._session)])


@contextmanager
def watching(context: Context, session: Session) -> Iterator[Watch]:
    """Evaluates the checks for each candidate of the build in this block, before it is published.

    A candidate that is refused is logged when the block is left by its error. After a success call
    `done`, when the version is in the catalogue, unless Dagster itself executes the checks next.
    """
    watch = Watch(context, session)
    session.build.on_candidate = watch.candidate
    try:
        yield watch
    except WdsPipelineError as error:
        watch.refused(error)
        raise
    finally:
        session.build.on_candidate = None


def _log(context: Context, config: DatasetConfig, found: Iterable[dg.AssetCheckResult]) -> None:
    target = check_history.target(context.instance, config)
    for each in found:
        published = "version" in each.metadata
        log_evaluation(context, _evaluation(config, each, target if published else None))


def log_evaluation(context: Context, evaluation: dg.AssetCheckEvaluation) -> None:
    """Logs an evaluation at once, so that it is there even if the step fails next."""
    context.log_event(evaluation)  # type: ignore[arg-type]  # of op jobs too; it is not announced


def _evaluation(
    config: DatasetConfig, found: dg.AssetCheckResult, target: check_history.Target | None
) -> dg.AssetCheckEvaluation:
    name = str(found.check_name)
    return dg.AssetCheckEvaluation(
        asset_key=keys.asset_key(config.name, keys.PUBLISHED_VERSION),
        check_name=name,
        passed=found.passed,
        metadata=found.metadata,
        target_materialization_data=target,
        severity=found.severity,
        description=found.description,
        blocking=_blocking(config, name),
    )
