from __future__ import annotations

import pytest

from gptoss_dist.errors import ConfigError
from gptoss_dist.launcher.nodelist import expand_nodelist, expand_task_counts


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("gpu05", ["gpu05"]),
        ("gpu05,login", ["gpu05", "login"]),
        ("node[1-3,7],gpu05", ["node1", "node2", "node3", "node7", "gpu05"]),
        ("node[008-011]", ["node008", "node009", "node010", "node011"]),
        ("node[1-2]-ib.cluster", ["node1-ib.cluster", "node2-ib.cluster"]),
        ("rack[1-2]node[1,3]", ["rack1node1", "rack1node3", "rack2node1", "rack2node3"]),
        ("a-[9-10],b[1]", ["a-9", "a-10", "b1"]),
    ],
)
def test_hosts_of_a_node_list(text: str, hosts: list[str]):
    assert expand_nodelist(text) == hosts


@pytest.mark.parametrize("text", ["", "node[1-3", "node1-3]", "node[]", "node[a-b]", "node[[1]]", "a,,b", "node[1-2"])
def test_what_is_no_node_list_is_shown(text: str):
    with pytest.raises(ConfigError, match="is no SLURM node list") as error:
        expand_nodelist(text)
    assert f"'{text}'" in str(error.value)


@pytest.mark.parametrize(("text", "counts"), [("2", [2]), ("2(x3),1", [2, 2, 2, 1]), ("4,3(x2)", [4, 3, 3])])
def test_tasks_of_each_node(text: str, counts: list[int]):
    assert expand_task_counts(text) == counts


@pytest.mark.parametrize("text", ["", "2x3", "(x3)", "two"])
def test_what_is_no_list_of_tasks_is_shown(text: str):
    with pytest.raises(ConfigError, match="is no list of tasks per node"):
        expand_task_counts(text)
