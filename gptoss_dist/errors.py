"""Every error this program raises on purpose.

    GptOssDistError                exit 1   something the user can act on; printed without a traceback
    ├── UsageError                 exit 2   the words on the command line, or the configuration they make
    │   ├── ConfigError                     a typo, a wrong type, an impossible combination
    │   └── WorldSizeError                  as many ranks as the plan needs, and not the number started
    ├── CheckpointError                     a weight, index or config file is missing, torn or of the wrong shape
    ├── PlanError                           a loaded module is not sharded as its plan says
    ├── LogitsError                         the model's logits are not numbers
    ├── EngineError                         a step of the engine failed or was interrupted before: it cannot go on
    ├── KernelError                         a kernel was asked for by name and cannot run here
    ├── VocabularyError                     the harmony vocabulary is missing or not the one expected
    ├── PromptError                         a conversation cannot be rendered
    ├── DoesNotFitError                     weights, cache or prompt are larger than what there is
    ├── BatchError                          a batch's input or output is gone, full, or of another run
    ├── ServerError                         a server that is talked to is not there, refuses, or breaks off
    ├── StagedError                         a staged folder lacks something, or the hub does not give it
    ├── DoctorError                         `gptoss doctor` found something that is in the way of a run
    ├── SlurmError                          SLURM refuses a script, or is not here
    ├── RankError                           another rank failed, vanished or disagrees
    └── OutputError                         the standard output cannot be written: a full disk, or closed from the start
        └── OutputClosedError  exit 141     whoever reads the answer has left

A message says what was wrong, where, and what to do. Anything else that reaches the top is a defect and keeps its
traceback.
"""

from __future__ import annotations


class GptOssDistError(Exception):
    """Base of the tree; `exit_status` is what the process ends with."""

    exit_status = 1


class UsageError(GptOssDistError):
    """What was typed cannot be carried out."""

    exit_status = 2


class ConfigError(UsageError):
    """The configuration has a typo, a wrong type or an impossible combination."""


class WorldSizeError(UsageError):
    """The number of ranks started differs from the number the plan needs."""


class CheckpointError(GptOssDistError):
    """A checkpoint file is missing, torn, or holds something else than the model needs."""


class PlanError(GptOssDistError):
    """What a rank holds after loading is not what its plan says."""


class KernelError(GptOssDistError):
    """A kernel that was asked for by name cannot run here."""


class LogitsError(GptOssDistError):
    """The model's logits are not numbers. Every rank of a replica raises it in the same step."""


class EngineError(GptOssDistError):
    """A step of the engine has failed, or was interrupted, and another one is asked for."""


class VocabularyError(GptOssDistError):
    """The harmony vocabulary is missing, or its content is not the one expected."""


class PromptError(GptOssDistError):
    """A conversation cannot be rendered as a prompt."""


class DoesNotFitError(GptOssDistError):
    """Weights, cache or prompt need more room than there is."""


class RankError(GptOssDistError):
    """Another rank failed, vanished or disagrees."""


class BatchError(GptOssDistError):
    """The input or output of a batch is gone, cannot be written, or belongs to another run."""


class StagedError(GptOssDistError):
    """A staged folder lacks something or holds other bytes, or it cannot be filled."""


class DoctorError(GptOssDistError):
    """Something that a run needs is missing or wrong."""


class SlurmError(GptOssDistError):
    """SLURM refuses a script, or is not on this machine."""


class ServerError(GptOssDistError):
    """A server that this program talks to is not there, refuses, or breaks off."""


class OutputError(GptOssDistError):
    """The standard output cannot be written."""


class OutputClosedError(OutputError):
    """Nobody reads the standard output any more; the status is a shell's for SIGPIPE."""

    exit_status = 141
