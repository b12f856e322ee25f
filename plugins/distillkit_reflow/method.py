"""The method: its settings and its recipe."""

from __future__ import annotations

from pydantic import Field

from distillkit import Method, MethodConfig, OneStep, Recipe, Stage, StudentGenerator, Teacher
from distillkit.parts import DistanceName, distance_for
from distillkit_reflow.presets import PRESETS
from distillkit_reflow.straight import Straightening, straight_sampler


class ReflowConfig(MethodConfig):
    """Settings of reflow."""

    rounds: int = Field(1, ge=0, le=16, description="rounds of reflow before the distillation; 0 distils at once")
    steps: int = Field(
        20, ge=1, le=1000, description="Euler steps of a straight flow, whose samples the next stage takes"
    )
    flow_guidance: float = Field(
        1.0,
        ge=0,
        description="guidance weight w of a straight flow whose samples are taken; the teacher's is the pairs'",
    )
    distance: DistanceName = Field("l2", description="distance of the distillation's one step to the flow's sample")
    last_share: float = Field(1.0, gt=0, description="length of the distillation, in lengths of a round")
    l2_share: float = Field(
        0.0, ge=0, lt=1, description="share of the distillation in which the distance is l2, before that of `distance`"
    )


class Reflow(Method):
    """One-step student of a flow that rounds of reflow have made straight (Liu et al. 2022; InstaFlow: 2023)."""

    name = "reflow"
    Config = ReflowConfig
    presets = PRESETS
    caution = (
        "It is bound to its pairs, and every round passes the errors of its flow on to the next: one round, and more "
        "pairs before more rounds."
    )
    examples = (
        {"rounds": 2, "steps": 3, "last_share": 2.0},
        {"rounds": 0, "distance": "pseudo-huber", "l2_share": 0.5},
        {"flow_guidance": 1.5, "steps": 2},
    )

    def recipe(self, teacher: Teacher, config: ReflowConfig) -> Recipe:
        rounds = list[Stage]()
        if config.rounds:
            straight = straight_sampler(teacher.schedule, config.steps)
            rounds = [Stage(f"{k + 2}-rectified flow", sampler=straight) for k in range(config.rounds)]
        distances = {"one step": distance_for(teacher, config.distance)}
        last = [Stage("one step", share=config.last_share * (1 - config.l2_share), sampler=OneStep())]
        if config.l2_share:
            distances = {"one step, l2": distance_for(teacher, "l2"), **distances}
            last = [Stage("one step, l2", share=config.last_share * config.l2_share, sampler=OneStep()), *last]
        stages = [*rounds, *last]
        student = StudentGenerator.from_teacher(teacher, stages[0].sampler)
        objective = Straightening(
            student, teacher, distances, taught=[stages[0].name] if rounds else [*distances],
            steps=config.steps if rounds else 0, guidance=config.flow_guidance if rounds else 1.0,
        )  # fmt: skip
        guided = {"flow_guidance": config.flow_guidance} if rounds else {}
        return Recipe(student, [objective], stages=stages, guided=guided)
