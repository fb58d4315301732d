from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cluster import Cluster, is_installed


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes with two (pretended) GPUs each."""
    if not is_installed():
        pytest.skip("needs slurmctld, slurmd and munge (apt-get install slurmctld slurmd slurm-client munge)")
    if os.geteuid() != 0:
        pytest.skip("needs root: SLURM's daemons run as root, and /etc/hosts has to know their names")
    cluster = Cluster()
    yield cluster
    cluster.close()
