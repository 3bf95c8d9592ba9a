"""How a change is rolled out: the guide's `RolloutStrategy` document, and our additions."""

from __future__ import annotations

import enum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from relay.documents import parse_duration
from relay.policy.model import Metadata, Model, Name, Selector


def _duration(text: str) -> str:
    parse_duration(text)
    return text


Duration = Annotated[str, AfterValidator(_duration)]
"""As written: `30m`, `1h30m`."""
_MIN_TTL_S = 60.0


def _check_ttl(text: str | None) -> str | None:
    if text is not None and parse_duration(text) < _MIN_TTL_S:
        raise ValueError("must be at least 60s: the control plane confirms its policy only every 30s")
    return text


Share = Annotated[int | float, Field(ge=0, le=1)]
TimeOfDay = Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class SuccessCriteria(Model):
    """What a stage must reach before the next one begins. None: not checked."""

    error_rate_threshold: Share | None = None
    """Maximum share of failures among the agents that applied the candidate or failed."""
    health_check_pass_rate: Share | None = None
    """Minimum share of healthy agents on the candidate."""


class Stage(Model):
    """A step of a rollout: a share of the targets, or whole regions."""

    name: Name
    percentage: Annotated[int | float, Field(gt=0, le=100)] | None = None
    regions: list[Name] | None = Field(default=None, min_length=1)
    duration: Duration = "0s"
    """Minimum time from the start of the stage to the start of the next one."""
    success_criteria: SuccessCriteria = SuccessCriteria()
    manual: bool = False
    """The stage ends only when a person promotes it (`opampctl rollout promote`)."""

    @model_validator(mode="after")
    def _one_measure(self) -> Stage:
        if (self.percentage is None) == (self.regions is None):
            raise ValueError("a stage has either a percentage or regions")
        return self

    @property
    def duration_s(self) -> float:
        """`duration` in seconds."""
        return parse_duration(self.duration)


class OnFailure(enum.StrEnum):
    """The action when a stage fails."""

    ROLLBACK = "rollback"
    PAUSE = "pause"


class FailurePolicy(Model):
    """What happens when a stage fails."""

    action: Annotated[OnFailure, Field(strict=False)] | None = None
    """None: as in the settings (`policies.config_update.rollback_on_error`)."""
    notification: list[Name] = Field(default_factory=list, max_length=20)
    """Names of channels; the settings have their addresses."""


class LocalGuard(Model):
    """When a node rolls its agents back to stable on its own, whether or not its link is up."""

    max_failures: int = Field(ge=1)
    """Roll back when this many agents failed or became unhealthy."""
    min_samples: int = Field(default=1, ge=1)
    """Agents that must have applied the candidate or failed before the guard acts."""


class Window(Model):
    """A time window in which stages may advance."""

    days: list[Day] = Field(default_factory=lambda: list(DAYS), min_length=1)
    start: TimeOfDay = "00:00"
    end: TimeOfDay | None = None
    """Exclusive; None: the end of the day. An `end` before `start` is on the next day."""
    time_zone: str = Field(default="UTC", max_length=64)


class StrategySpec(Model):
    """The body of a strategy."""

    stages: list[Stage] = Field(min_length=1, max_length=100)
    failure_policy: FailurePolicy = FailurePolicy()
    target_selector: Selector = Selector()
    """Agents of the assignment that it does not match stay on the stable revision until the rollout is complete."""
    spread: Literal["global", "per_region"] = "global"
    """Whether a percentage applies to all targets together or to each region."""
    min_samples: Annotated[int, Field(ge=1)] | None = None
    """Agents that must have applied the candidate or failed; None: 5, or all targets if there are fewer."""
    max_silent: Duration = "10m"
    """An agent that has not answered the offer of the candidate for this long counts as silent."""
    on_missing: Literal["hold", "exclude"] = "hold"
    """What to do about offline regions."""
    local_guard: LocalGuard | None = None
    candidate_ttl: Annotated[Duration | None, AfterValidator(_check_ttl)] = None
    """A node whose policy is older than this gives the candidate to no further agents."""
    windows: list[Window] = Field(default_factory=list, max_length=100)
    """Empty: at any time."""

    @model_validator(mode="after")
    def _consistent(self) -> StrategySpec:
        names: set[str] = set()
        regions: set[str] = set()
        highest = 0.0
        for stage in self.stages:
            if stage.name in names:
                raise ValueError(f"stages: {stage.name} is defined twice")
            names.add(stage.name)
            if stage.percentage is not None:
                if stage.percentage <= highest:
                    raise ValueError(
                        f"stages: {stage.name} has {stage.percentage:g} %, which is not more than the stage before it"
                    )
                highest = stage.percentage
            for region in stage.regions or []:
                if region in regions:
                    raise ValueError(f"stages: region {region} is in two stages")
                regions.add(region)
        return self

    @property
    def max_silent_s(self) -> float:
        """`max_silent` in seconds."""
        return parse_duration(self.max_silent)

    @property
    def candidate_ttl_s(self) -> float | None:
        """`candidate_ttl` in seconds."""
        return None if self.candidate_ttl is None else parse_duration(self.candidate_ttl)


class RolloutStrategy(Model):
    """How changes of the assignments that name it are rolled out."""

    apiVersion: Literal["opamp.io/v1"]
    kind: Literal["RolloutStrategy"]
    metadata: Metadata
    spec: StrategySpec

    @property
    def key(self) -> str:
        """The key that the document is stored under."""
        return self.metadata.name
