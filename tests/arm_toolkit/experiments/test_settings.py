"""Settings in which runs differ."""

from arm_toolkit.experiments.settings import differing_settings


def test_settings_that_differ():
    one = dict(a=1, model=dict(x=[dict(type="A", p=1), dict(type="B")], y=(1, 2)), n=3, m=3, work_dir="one")
    two = dict(a=1, model=dict(x=[dict(type="A", p=2), dict(type="B", q=0)], y=(1, 3)), n=4, m=4, k=dict(type="C", r=1))
    assert differing_settings([one, two]) == [
        ("`model.x.0.p`", "1", "2"),
        ("`model.x.1.q`", "–", "0"),
        ("`model.y`", "(1, 2)", "(1, 3)"),
        ("`n`\n`m`", "3", "4"),
        ("`k`", "–", "C(r=1)"),
    ]
    assert differing_settings([one, one]) == []


def test_three_configurations_and_long_values():
    rows = differing_settings([dict(a=1, b="x" * 99), dict(a=1), dict(a=2, b="y")])
    assert rows == [("`a`", "1", "1", "2"), ("`b`", "x" * 59 + "…", "–", "y")]
