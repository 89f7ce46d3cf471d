"""Faults planted in the kernels: each is noticed by the tests that are there to notice it."""

import pytest
from emulator.build import ROOT
from emulator.children import (
    FOUND_BY_TSAN,
    TESTS_FAILED,
    built,
    copied_tree,
    mutated,
    plant,
    run_tests,
)
from emulator.mutations import MUTATIONS

DETECTORS = sorted({(mutation.caught_by, mutation.is_race) for mutation in MUTATIONS})


def kind_of(is_race):
    return "thread" if is_race else ""


def reported(folder):
    """All that sanitizers wrote into a folder."""
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.iterdir()))


@pytest.mark.torture
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_planted_fault_is_noticed(mutation, tmp_path, record):
    tally = record("R7", "faults planted in the kernels, each of them noticed", "faults")
    reports = tmp_path / "reports"
    reports.mkdir()
    root = copied_tree(tmp_path / "tree")
    plant(mutation, root)
    kind = kind_of(mutation.is_race)
    code, text = run_tests([mutation.caught_by], built(root, kind), kind, reports)
    if mutation.is_race:
        assert code == FOUND_BY_TSAN, text
        assert "data race" in reported(reports)
    else:  # a kernel may also never end, or bring its process down
        assert code is None or code < 0 or code == TESTS_FAILED, text
    tally.passed()


@pytest.mark.torture
@pytest.mark.parametrize(("detector", "is_race"), DETECTORS)
def test_right_kernels_pass_what_notices_faults(detector, is_race, tmp_path):
    root = copied_tree(tmp_path / "tree")
    kind = kind_of(is_race)
    code, text = run_tests([detector], built(root, kind), kind)
    assert code == 0, text


def test_each_fault_can_be_planted_and_is_another():
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names)
    edits = [(mutation.edits, mutation.is_race) for mutation in MUTATIONS]
    assert len(set(edits)) == len(edits)
    for mutation in MUTATIONS:
        assert mutated(mutation, ROOT)
