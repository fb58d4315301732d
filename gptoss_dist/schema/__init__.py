"""The one schema of a run: what every key of `conf/` may hold; the files there say what each means.

A module for each folder of `conf/`, and for each file of `conf/job/`; `run` puts them together.

The classes are structured configs of OmegaConf: plain mutable dataclasses with enums, `int | None` and lists, no torch.
`gptoss_dist.config` composes them once, checks them and calls `freeze`, after which nothing can be set any more.
No field holds a secret: tokens come from the environment only.
"""
