"""Settings of the objectives on videos and texts. No torch here."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from abridged.objectives.settings import Objective


class VideoTextContrast(Objective):
    """VTC: a video and its text are to be more alike than others (BLIP, Li et al., ICML 2022, arXiv:2201.12086)."""

    term: ClassVar[str] = "abridged.objectives.video:Contrast"
    needs_teacher: ClassVar[bool] = False

    momentum: float | None = Field(
        default=0.995,
        ge=0,
        lt=1,
        description="of a slow copy of the encoders, which gives the vectors of a queue and soft targets; null: "
        "neither, the batch alone",
    )
    queue: int = Field(
        default=57_600, ge=0, description="vectors of earlier batches to be told from, at most as many as examples"
    )
    soft_targets: float = Field(
        default=0.4, ge=0, le=1, description="share of the slow copy's own distribution in the targets"
    )


class VideoTextMatching(Objective):
    """VTM: whether a text matches a video, against the hardest others of the batch (BLIP).

    A model that has vectors alone, such as one made of a CLIP, learns nothing from it.
    """

    term: ClassVar[str] = "abridged.objectives.video:Matching"
    needs_teacher: ClassVar[bool] = False

    every: int = Field(
        default=1, ge=1, description="in each nth step alone: pairs are read together, which costs as much as the rest"
    )


class FrameContrast(Objective):
    """ECL: a frame and its own caption (EA-VTR, Ma et al., ECCV 2024, arXiv:2407.07478)."""

    term: ClassVar[str] = "abridged.objectives.video:FrameContrast"
    needs_teacher: ClassVar[bool] = False

    temperature: float = Field(default=0.05, gt=0, description="divides the cosines")
    alike: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="captions of one video whose cosine is at least this are no negatives of each other; 1: only "
        "equal ones",
    )


class EventOrder(Objective):
    """ETL: joined videos and sentences in order, against their twins in the other order (EA-VTR).

    The loss is TACT's (Test of Time, Bagad et al., CVPR 2023, arXiv:2301.02074, section 4).
    """

    term: ClassVar[str] = "abridged.objectives.video:EventOrder"
    needs_teacher: ClassVar[bool] = False

    temperature: float = Field(default=0.05, gt=0, description="divides the cosines")
    alpha_same: float = Field(default=1.0, ge=0, description="how much a pair's own twin counts as a negative")
    alpha_cross: float = Field(default=1.0, ge=0, description="how much other pairs in the other order count")
    beta: float = Field(default=1.0, ge=0, description="weight of the reversed pairs' own loss")
