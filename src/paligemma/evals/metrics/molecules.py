"""SMILES: whether two strings are the same molecule, and how similar two molecules are.

Canonical forms and fingerprints are computed by rdkit (extra "chem"). A string that rdkit cannot
read matches nothing and has similarity 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from paligemma.errors import DataError, MissingExtraError
from paligemma.evals.metrics.result import MetricResult, References, mean_result, pair

if TYPE_CHECKING:
    from rdkit.Chem import Mol

Stereo = Literal["all", "chiral", "none"]


def canonical_smiles(smiles: str, *, stereo: Stereo = "all") -> str | None:
    """rdkit's canonical SMILES, or None where the string is not a molecule.

    `stereo`: "all" keeps chiral centres and cis/trans bonds, "chiral" drops the marks of
    cis/trans bonds ("/" and "\\\\"), "none" drops both. Salts, charges, isotopes and tautomers stay
    as written.
    """
    chem = _rdkit("chem")
    if stereo != "all":
        smiles = smiles.replace("/", "").replace("\\", "")
    molecule = _molecule(smiles)
    if molecule is None:
        return None
    return str(chem.MolToSmiles(molecule, canonical=True, isomericSmiles=stereo != "none"))


@dataclass(frozen=True, kw_only=True)
class SmilesExactMatch:
    """1 where prediction and truth are the same molecule, by canonical SMILES.

    A prediction with white space inside is not a molecule: rdkit would read only the part before
    it. `details`: `invalid` is the fraction of predictions that are not molecules, `same_text` that
    of predictions that equal the truth as they are.
    """

    stereo: Stereo = "all"

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        """Raises DataError where a reference is not a molecule."""
        scores, invalid, same_text = [], 0, 0
        for index, (prediction, accepted) in enumerate(pair(predictions, references)):
            predicted = canonical_smiles(_one_word(prediction), stereo=self.stereo)
            truths = [canonical_smiles(text.strip(), stereo=self.stereo) for text in accepted]
            if None in truths:
                raise _bad_reference(index, accepted[truths.index(None)])
            scores.append(float(predicted is not None and predicted in truths))
            invalid += predicted is None
            same_text += prediction in accepted
        details = {"invalid": invalid / len(scores), "same_text": same_text / len(scores)}
        return mean_result("smiles_exact_match", scores, details)


@dataclass(frozen=True, kw_only=True)
class TanimotoSimilarity:
    """Tanimoto similarity of Morgan fingerprints (radius 2, 2048 bits, without chirality), 0..1.

    Rogers and Hahn 2010, doi 10.1021/ci100050t. With several references the most similar
    counts. `details`: `invalid` as above, `identical` the fraction at exactly 1.
    """

    radius: int = 2
    num_bits: int = 2048

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        """Raises DataError where a reference is not a molecule."""
        generator = _rdkit("fingerprints").GetMorganGenerator(
            radius=self.radius, fpSize=self.num_bits
        )
        compare = _rdkit("similarity").TanimotoSimilarity
        scores, invalid = [], 0
        for index, (prediction, accepted) in enumerate(pair(predictions, references)):
            molecule = _molecule(_one_word(prediction))
            truths = [_molecule(text.strip()) for text in accepted]
            if None in truths:
                raise _bad_reference(index, accepted[truths.index(None)])
            invalid += molecule is None
            if molecule is None:
                scores.append(0.0)
                continue
            fingerprint = generator.GetFingerprint(molecule)
            scores.append(
                max(compare(fingerprint, generator.GetFingerprint(truth)) for truth in truths)
            )
        details = {
            "invalid": invalid / len(scores),
            "identical": sum(score == 1.0 for score in scores) / len(scores),
        }
        return mean_result("tanimoto", scores, details)


def _one_word(prediction: str) -> str:
    words = prediction.split()
    return words[0] if len(words) == 1 else ""


def _molecule(smiles: str) -> Mol | None:
    # rdkit reads an empty string as a molecule without atoms, and fails on half a surrogate pair.
    if not smiles or not smiles.isascii():
        return None
    with _rdkit("base").BlockLogs():  # it would log on stderr what it cannot read
        return _rdkit("chem").MolFromSmiles(smiles)  # type: ignore[no-any-return]


def _rdkit(part: Literal["chem", "base", "fingerprints", "similarity"]) -> Any:
    try:
        from rdkit import Chem, DataStructs, rdBase
        from rdkit.Chem import rdFingerprintGenerator
    except ImportError as error:
        raise MissingExtraError("rdkit", "chem", "Comparing molecules") from error
    return {
        "chem": Chem,
        "base": rdBase,
        "fingerprints": rdFingerprintGenerator,
        "similarity": DataStructs,
    }[part]


def _bad_reference(index: int, smiles: str) -> DataError:
    return DataError(
        f"The reference of example {index}, {smiles!r}, is not a molecule that rdkit can "
        "read. Correct it or leave the example out."
    )
