"""SMILES are compared as molecules."""

import json
import random
import sys
from pathlib import Path

import pytest

from paligemma.errors import DataError, MissingExtraError
from paligemma.evals.metrics.molecules import (
    SmilesExactMatch,
    Stereo,
    TanimotoSimilarity,
    canonical_smiles,
)

chem = pytest.importorskip("rdkit.Chem", reason="the chem extra is not installed")

MOLECULES = [
    "CN1C=NC2=C1C(=O)N(C)C(=O)N2C",  # caffeine
    "CC(=O)Oc1ccccc1C(=O)O",  # aspirin
    "C[C@H](N)C(=O)O",  # L-alanine
    "F/C=C/F",
    "[NH4+].[Cl-]",
]


def exact(prediction: str, reference: str, stereo: Stereo = "all") -> float:
    return SmilesExactMatch(stereo=stereo).score([prediction], [reference]).value


@pytest.mark.parametrize("smiles", MOLECULES)
def test_every_way_to_write_a_molecule_is_the_same_molecule(smiles: str) -> None:
    molecule = chem.MolFromSmiles(smiles)
    order = list(range(molecule.GetNumAtoms()))
    for seed in range(5):
        random.Random(seed).shuffle(order)
        written = chem.MolToSmiles(chem.RenumberAtoms(molecule, order), canonical=False)
        assert exact(written, smiles) == 1.0
        assert TanimotoSimilarity().score([written], [smiles]).value == 1.0


def test_published_molecules_match_themselves_only(shared_data: Path) -> None:
    path = shared_data / "molecules" / "molecules.json"
    smiles = [case["smiles"] for case in json.loads(path.read_text())["cases"]]
    assert SmilesExactMatch().score(smiles, smiles).value == 1.0
    assert SmilesExactMatch().score(smiles, smiles[::-1]).value == 0.0


@pytest.mark.parametrize(
    ("prediction", "reference", "matches"),
    [
        ("OCC", "CCO", ("all", "chiral", "none")),
        ("C1=CC=CC=C1", "c1ccccc1", ("all", "chiral", "none")),
        (" CCO\n", "CCO", ("all", "chiral", "none")),
        ("C[C@@H](N)C(=O)O", "C[C@H](N)C(=O)O", ("none",)),
        ("F/C=C\\F", "F/C=C/F", ("chiral", "none")),
        ("CCO.Cl", "CCO", ()),
        ("CC[O-]", "CCO", ()),
        ("[13CH4]", "C", ("none",)),
        ("C1CC", "CCC", ()),  # a ring that never closes
        ("", "C", ()),
        ("水", "O", ()),
        ("\ud800", "O", ()),
        ("CCO CCO", "CCO", ()),  # rdkit would take the second word for a name
        ("CCO\tthat is ethanol", "CCO", ()),
    ],
)
def test_matches_by_hand(prediction: str, reference: str, matches: tuple[str, ...]) -> None:
    ways: tuple[Stereo, ...] = ("all", "chiral", "none")
    assert tuple(stereo for stereo in ways if exact(prediction, reference, stereo)) == matches


def test_details_tell_invalid_predictions_from_wrong_ones() -> None:
    predictions, references = ["CCO", "OCC", "C(", "CC"], ["CCO"] * 4
    result = SmilesExactMatch().score(predictions, references)
    assert result.per_example == (1.0, 1.0, 0.0, 0.0)
    assert result.details == {"invalid": 0.25, "same_text": 0.25}


def test_tanimoto_by_hand() -> None:
    # Ethane has the environments of CH3 (radius 0) and of CH3-CH3 (radius 1); methane its own.
    result = TanimotoSimilarity().score(["CC", "C", "C(", "OCC"], ["CC", "CC", "CC", "CCO"])
    assert result.per_example == (1.0, 0.0, 0.0, 1.0)
    assert result.details == {"invalid": 0.25, "identical": 0.5}
    # Propane shares the CH3 of radius 0 with ethane, out of 2 + 4 - 1 environments.
    near = TanimotoSimilarity().score(["CCC"], [["CC", "N"]]).value
    assert 0.0 < near < 1.0


def test_nothing_is_printed_about_strings_that_are_no_molecules(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert canonical_smiles("C(((") is None
    assert capfd.readouterr() == ("", "")


def test_a_reference_that_is_no_molecule_is_refused() -> None:
    for metric in (SmilesExactMatch(), TanimotoSimilarity()):
        with pytest.raises(DataError, match=r"reference of example 1, 'C\(\(', is not a molecule"):
            metric.score(["C", "C"], ["C", ["C", "C(("]])


def test_without_rdkit_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'paligemma\[chem\]'"):
        exact("C", "C")
