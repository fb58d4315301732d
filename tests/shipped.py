"""The plans of `conf/plan`, composed once for all the tests that need them."""

from __future__ import annotations

from gptoss_dist.config import choices, compose_run

PLANS = {name: compose_run(["job=plan", f"plan={name}"]).plan for name in choices("plan")}
