"""How a change goes out: `RolloutStrategy`, the guide's document and what we add to it."""

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
"""As people wrote it: `30m`, `1h30m`."""
_LEAST_TTL_S = 60.0


def _long_enough(text: str | None) -> str | None:
    if text is not None and parse_duration(text) < _LEAST_TTL_S:
        raise ValueError("at least 60s, since the control plane confirms every 30 s that nothing has changed")
    return text


Share = Annotated[int | float, Field(ge=0, le=1)]
TimeOfDay = Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class SuccessCriteria(Model):
    """What a stage must reach before the next one begins. A criterion that is not named is not looked at."""

    error_rate_threshold: Share | None = None
    """The most of the agents that decided that may have failed."""
    health_check_pass_rate: Share | None = None
    """The least of the agents on the candidate that must be healthy."""


class Stage(Model):
    """A step of a rollout: a share of the targets, or whole regions."""

    name: Name
    percentage: Annotated[int | float, Field(gt=0, le=100)] | None = None
    regions: list[Name] | None = Field(default=None, min_length=1)
    duration: Duration = "0s"
    """The least time from the start of the stage to that of the next."""
    success_criteria: SuccessCriteria = SuccessCriteria()
    manual: bool = False
    """Only a person ends it (`opampctl rollout promote`)."""

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
    """What becomes of a rollout whose stage fails."""

    ROLLBACK = "rollback"
    PAUSE = "pause"


class FailurePolicy(Model):
    """What happens when a stage fails."""

    action: Annotated[OnFailure, Field(strict=False)] | None = None
    """None: as the settings say (`policies.config_update.rollback_on_error`)."""
    notification: list[Name] = Field(default_factory=list, max_length=20)
    """Names of channels; their addresses are settings."""


class LocalGuard(Model):
    """When a node takes its region back to stable by itself, link or no link."""

    max_failures: int = Field(ge=1)
    """So many agents failed or turned unhealthy,"""
    min_samples: int = Field(default=1, ge=1)
    """after at least so many decided."""


class Window(Model):
    """A time in which stages may advance."""

    days: list[Day] = Field(default_factory=lambda: list(DAYS), min_length=1)
    start: TimeOfDay = "00:00"
    end: TimeOfDay | None = None
    """Exclusive; None: the end of the day. One before `start` is on the next day."""
    time_zone: str = Field(default="UTC", max_length=64)


class StrategySpec(Model):
    """What a strategy says."""

    stages: list[Stage] = Field(min_length=1, max_length=100)
    failure_policy: FailurePolicy = FailurePolicy()
    target_selector: Selector = Selector()
    """Agents of the assignment that it does not match stay on the stable revision until the rollout is complete."""
    spread: Literal["global", "per_region"] = "global"
    """Whether a percentage is of all targets, or of those of each region."""
    min_samples: Annotated[int, Field(ge=1)] | None = None
    """So many agents must have decided; None: 5, or all targets where there are fewer."""
    max_silent: Duration = "10m"
    """An agent that was offered the candidate and said nothing for so long counts as silent."""
    on_missing: Literal["hold", "exclude"] = "hold"
    """What a stage does about regions that cannot be heard."""
    local_guard: LocalGuard | None = None
    candidate_ttl: Annotated[Duration | None, AfterValidator(_long_enough)] = None
    """A node that heard nothing for so long gives the candidate to no further agent."""
    windows: list[Window] = Field(default_factory=list, max_length=100)
    """None: at any time."""

    @model_validator(mode="after")
    def _rising(self) -> StrategySpec:
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
                        f"stages: {stage.name} has {stage.percentage:g} %, which is not more than the stage before"
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
    """A way for changes to go out, named by assignments."""

    apiVersion: Literal["opamp.io/v1"]
    kind: Literal["RolloutStrategy"]
    metadata: Metadata
    spec: StrategySpec

    @property
    def key(self) -> str:
        """What it is stored under."""
        return self.metadata.name
