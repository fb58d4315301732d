"""Do the installed packages belong together? What each of them asks of the others, in its own metadata.

transformers says nothing where `kernels` is not the version that it wants: it leaves the hub's kernels out, and takes
an MXFP4 checkpoint apart into bfloat16. So that pair is looked at by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

from packaging.requirements import Requirement

from gptoss_dist.doctor.finding import Finding, error, ok, warning
from gptoss_dist.runtime.agree import versions

Version = Callable[[str], str | None]
_ASKED = ("gptoss-dist", "torch", "transformers", "accelerate", "huggingface_hub", "kernels", "openai-harmony")
"""Packages whose requirements are compared with what is installed."""
_HUB_ONLY = "kernels"
"""Needed where the run asks for kernels of the hub; without it they are left out."""


def package_findings(wants_hub: bool) -> Iterator[Finding]:
    """All versions in one line, and one line for each requirement that is not met.

    `wants_hub`: whether the run asks for kernels of the hub by name.
    """
    found = versions()
    yield ok("packages", ", ".join(f"{name} {version}" for name, version in found.items() if version != "absent"))
    for package in _ASKED:
        if installed(package) is not None:
            lost = "the hub's kernels may be left out" if package == _HUB_ONLY and not _needs_hub(wants_hub) else None
            yield from unmet(package, metadata.requires(package) or (), installed, lost)
    yield from kernels_finding(installed("kernels"), kernels_range(), str(installed("transformers")), wants_hub)


def installed(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def unmet(package: str, requirements: Sequence[str], version_of: Version, lost: str | None = None) -> Iterator[Finding]:
    """One line for each of a package's requirements that another version is installed for, or none.

    None is an error, unless the run works without the package; `lost`: what it then does without.
    """
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = version_of(requirement.name)
        if version is None:
            text = f"{package} needs {requirement.name}, which is missing"
            yield (
                error("packages", text, _install(requirement))
                if lost is None
                else warning(
                    "packages", f"{text}: {lost}, and no other part of the run needs it", _install(requirement)
                )
            )
        elif not requirement.specifier.contains(version, prereleases=True):
            asked = f"{requirement.name}{requirement.specifier}"
            yield warning("packages", f"{package} wants {asked}, and {version} is installed", _install(requirement))


def _needs_hub(wants_hub: bool) -> bool:
    """Whether a run fails if `kernels` does: where it is asked for, and where transformers imports it by itself."""
    from transformers.utils.import_utils import is_kernels_available

    if wants_hub or not is_kernels_available():
        return wants_hub
    try:
        importlib.import_module(_HUB_ONLY)
    except ImportError:
        return True
    return False


def kernels_range() -> tuple[str, str]:
    """Lowest version of `kernels` that the installed transformers takes, and the first that it does not."""
    from transformers.utils.import_utils import KERNELS_MAX_VERSION, KERNELS_MIN_VERSION

    return KERNELS_MIN_VERSION, KERNELS_MAX_VERSION


def kernels_finding(
    version: str | None, wanted: tuple[str, str], transformers: str, wants_hub: bool
) -> Iterator[Finding]:
    """Whether the package `kernels` is the one that transformers takes; an error only if the run needs it."""
    from packaging.version import Version as Parsed

    low, high = wanted
    way_out = (
        f"pip install 'kernels>={low},<{high}', or another pair (transformers 5.22.2 wants kernels 0.17.2); "
        "kernels=auto and kernels=triton need no package"
    )
    if version is not None and Parsed(low) <= Parsed(version) < Parsed(high):
        yield ok("hub package", f"kernels {version} is what transformers {transformers} wants")
        return
    what = f"kernels {version} is installed" if version else "the package `kernels` is not installed"
    text = f"transformers {transformers} wants kernels >= {low}, < {high}, and {what}"
    if wants_hub:
        yield error("hub package", text, way_out)
    elif version is not None:
        yield warning("hub package", f"{text}: the hub's kernels are left out", way_out)
    else:
        yield ok("hub package", "the package `kernels` is not installed; only kernels=hub needs it")


def _install(requirement: Requirement) -> str:
    return f"pip install '{requirement.name}{requirement.specifier}'"
