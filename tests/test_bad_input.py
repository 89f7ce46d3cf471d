"""Bad input to every public call: a typed error that says what was given and what was expected.

The table is as it was after each of them, and the process lives. The cases stand in bad_input/:
each is (call of a Scene, class of the error, parts of its message).
"""

import pytest
from bad_input import arrays, calls, files, parameters
from bad_input.scene import Scene
from contract.tools import snapshot

import embstore as es

CASES = arrays.CASES | calls.CASES | parameters.CASES | files.CASES


@pytest.mark.parametrize("engine", ["cpu"])
@pytest.mark.parametrize("case", CASES)
def test_bad_input(engine, case, tmp_path):
    call, error, parts = CASES[case]
    scene = Scene(engine, tmp_path)
    before = snapshot(scene.table)
    with pytest.raises(es.EmbstoreError) as caught:
        call(scene)
    assert type(caught.value) is error, repr(caught.value)
    missing = [part for part in parts if part not in str(caught.value)]
    assert not missing, f"{missing} is not in the message: {caught.value}"
    assert snapshot(scene.table) == before
    scene.store.close()


def test_names_of_cases_are_unique():
    n_cases = sum(len(module.CASES) for module in (arrays, calls, files, parameters))
    assert len(CASES) == n_cases
