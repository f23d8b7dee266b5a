"""The calibration file: which heads to read, what scores to expect, and for which pair of models that was measured.

`lvspec calibrate` writes it, `--lvspec-calibration` names it. Strict JSON of format 1: every field is there, nothing
else is, numbers are finite.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from sgl_lvspec.relevance.identity import ModelIdentity, identify
from sgl_lvspec.shown import printable

FORMAT = 1
FILE_NAME = "lvspec.json"  # in the target's folder, where a server looks for it
NO_FILE = "none"  # named in its place: read none
N_BINS = 32  # of equal share; a prior has one edge more
# Ranges of scores, where nothing has been measured.
RANGES = {"attention": (0.0, 1.0), "similarity": (-1.0, 1.0), "combined": (0.0, 1.0)}
CALIBRATED_WEIGHT = 64.0  # mismatches that a measured prior counts as; an answer of a hundred tokens shows about 20
LOG_OFFSET = 1e-3  # added to a share before its logarithm: a head that looks at no video says so, and no more


class HeadWeight(NamedTuple):
    """A query head of the target and its part in the score: weight * m + log_weight * ln(m + LOG_OFFSET), m being the
    share of its attention on visual slots. Heads are counted over all ranks."""

    layer: int
    head: int
    weight: float
    log_weight: float = 0.0


class Prior(NamedTuple):
    """What scores to expect before a request has shown its own.

    `edges` are N_BINS + 1 quantiles (0, 1/N_BINS, ..., 1) of the care over drafted tokens that the target would not
    have chosen, in ascending order; `weight` is the number of such tokens that this counts as.
    """

    edges: tuple[float, ...]
    weight: float

    def quantile(self, share: float) -> float:
        """The care that this share of such tokens lies below; infinite where nothing was measured or all is asked."""
        if self.weight == 0 or share >= 1:
            return math.inf
        place = share * (len(self.edges) - 1)
        low = int(place)
        return self.edges[low] + (self.edges[low + 1] - self.edges[low]) * (place - low)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Contents of a calibration file.

    Attributes:
        target, draft: the pair that it was measured on.
        heads: heads of the attention scorer, each once; empty means the mean share of all heads.
        bias: what is added to their parts. With heads, a score estimates how many nats the video adds to the
            log-probability of the target's choice.
        priors: for each scorer by name, N_BINS + 1 quantiles of its care over mismatching drafts, ascending.
        combined: parameters of the combined score by name.
        statistics: what it was made from: clips, tokens, date, versions.
    """

    target: ModelIdentity
    draft: ModelIdentity
    heads: tuple[HeadWeight, ...] = ()
    bias: float = 0.0
    priors: dict[str, tuple[float, ...]] = field(default_factory=dict)
    combined: dict[str, float] = field(default_factory=dict)
    statistics: dict[str, str | int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what would score wrongly.

        Raises:
            ValueError: in the form *required / found / do this*.
        """
        seen: set[tuple[int, int]] = set()
        for layer, head, *weights in self.heads:
            if not (0 <= layer < self.target.num_layers and 0 <= head < self.target.num_heads):
                _refuse(
                    f"heads of the target ({self.target.num_layers} layers of {self.target.num_heads} heads)",
                    f"layer {layer}, head {head}",
                )
            if not all(map(math.isfinite, weights)):
                _refuse("finite weights", f"{weights} for layer {layer}, head {head}")
            if (layer, head) in seen:
                _refuse("each head once", f"layer {layer}, head {head} twice")
            seen.add((layer, head))
        if not math.isfinite(self.bias):
            _refuse("a finite bias", str(self.bias))
        for scorer, edges in self.priors.items():
            if scorer not in RANGES:
                _refuse(f"priors of {', '.join(RANGES)}", repr(scorer))
            if len(edges) != N_BINS + 1:
                _refuse(f"{N_BINS + 1} quantiles in the prior of {scorer}", str(len(edges)))
            if not all(map(math.isfinite, edges)) or list(edges) != sorted(edges):
                _refuse(f"finite quantiles in ascending order in the prior of {scorer}", str(list(edges)))
        for name, value in self.combined.items():
            if not math.isfinite(value):
                _refuse("finite parameters of the combined score", f"{name} = {value}")

    def misfit(self, target: ModelIdentity, draft: ModelIdentity) -> str | None:
        """Which model the file does not belong to, and in what; None when it belongs to both.

        A reason to warn only: scores of another model's heads are worse, not wrong.
        """
        for role, ours, theirs in (("target", self.target, target), ("draft", self.draft, draft)):
            different = [
                f"{name} {getattr(ours, name)} instead of {getattr(theirs, name)}"
                for name in ModelIdentity.__dataclass_fields__
                if name != "fingerprint" and getattr(ours, name) != getattr(theirs, name)
            ]
            if not different and ours.fingerprint != theirs.fingerprint:
                different = ["other weights"]
            if different:
                return (
                    f"The calibration file must be of this pair of models; found one of another {role} "
                    f"({', '.join(different)}). Calibrate for this pair (`lvspec calibrate`), or set "
                    "--lvspec-calibration none."
                )
        return None

    def prior(self, scorer: str) -> Prior:
        """What to expect of a scorer's numbers."""
        edges = self.priors.get(scorer)
        return default_prior(scorer) if edges is None else Prior(edges, CALIBRATED_WEIGHT)


def default_prior(scorer: str) -> Prior:
    """Uniform over the scorer's range, of no weight: a rule stays strict until it has seen enough."""
    low, high = RANGES[scorer]
    return Prior(tuple(low + (high - low) * edge / N_BINS for edge in range(N_BINS + 1)), 0.0)


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write the file, whole or not at all."""
    document = {"format": FORMAT, **dataclasses.asdict(calibration)}
    text = json.dumps(document, indent=1, allow_nan=False)
    draft = path.with_name(path.name + ".part")
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(path)


def read_calibration(path: Path) -> Calibration:
    """Read a file.

    Raises:
        ValueError: no calibration file of this format, in the form *required / found / do this*.
    """
    try:
        document = json.loads(
            path.read_text(encoding="utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_repetition
        )
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"--lvspec-calibration must name a file of strict JSON; found {path}: {printable(str(error))}. "
            "Write it with `lvspec calibrate`."
        ) from error
    try:
        return _from_document(document)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def find_calibration(named: str | None, target: str) -> str | None:
    """The file that a server reads: the named one, or else the one in the target's folder.

    Args:
        named: a path, NO_FILE for none at all, or None where the user named nothing.
        target: the model's path; one of a repository of the Hugging Face Hub has no such folder.
    """
    if named is not None:
        return None if named == NO_FILE else named
    beside = Path(target) / FILE_NAME
    return str(beside) if beside.is_file() else None


def examine_calibration(
    path: Path, target: str, draft: str, target_revision: str | None = None, draft_revision: str | None = None
) -> str | None:
    """What a user must know who serves this pair of checkpoints with this file; None when the file is of this pair.

    Raises:
        ValueError: no calibration file, or one that names heads which the target does not have.
    """
    calibration = read_calibration(path)
    try:
        served = identify(target, target_revision), identify(draft, draft_revision)
    except ValueError as error:
        return f"LVSPEC cannot tell whether {path} belongs to this pair of models: {error}"
    for layer, head, *_ in calibration.heads:
        if layer >= served[0].num_layers or head >= served[0].num_heads:
            raise ValueError(
                f"A calibration file must name heads of the target ({served[0].num_layers} layers of "
                f"{served[0].num_heads} heads); found layer {layer}, head {head} in {path}. Calibrate for this target "
                "(`lvspec calibrate`), or set --lvspec-calibration none."
            )
    return calibration.misfit(*served)


def _from_document(document: Any) -> Calibration:
    names = ["format", *(part.name for part in dataclasses.fields(Calibration))]
    fields = _object(document, names, "a calibration")
    if fields["format"] != FORMAT:
        _refuse(f"format {FORMAT}", repr(fields["format"]))
    return Calibration(
        target=_identity(fields["target"], "target"),
        draft=_identity(fields["draft"], "draft"),
        heads=tuple(
            HeadWeight(_integer(layer, "layers"), _integer(head, "heads"), *(_number(w, "weights") for w in weights))
            for layer, head, *weights in _quadruples(fields["heads"])
        ),
        bias=_number(fields["bias"], "the bias"),
        priors={
            name: tuple(_number(edge, f"the prior of {name}") for edge in _list(edges, f"the prior of {name}"))
            for name, edges in _object(fields["priors"], None, "priors").items()
        },
        combined={
            name: _number(value, f"combined {name}")
            for name, value in _object(fields["combined"], None, "combined").items()
        },
        statistics={
            name: value if isinstance(value, str) else _number(value, f"statistics {name}", keep=True)
            for name, value in _object(fields["statistics"], None, "statistics").items()
        },
    )


def _identity(value: Any, name: str) -> ModelIdentity:
    fields = _object(value, list(ModelIdentity.__dataclass_fields__), name)
    for part in ("architecture", "fingerprint"):
        if not isinstance(fields[part], str):
            _refuse(f"a text in {name}.{part}", repr(fields[part]))
    for part in ("hidden_size", "num_layers", "num_heads", "vocab_size"):
        _integer(fields[part], f"{name}.{part}")
    return ModelIdentity(**fields)


def _object(value: Any, names: list[str] | None, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(f"an object for {what}", repr(value)[:80])
    if names is not None and sorted(value) != sorted(names):
        _refuse(f"the fields {', '.join(names)} in {what}", ", ".join(value) or "none")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        _refuse(f"a list for {what}", repr(value)[:80])
    return value


def _quadruples(value: Any) -> list[list[Any]]:
    for entry in _list(value, "heads"):
        if len(_list(entry, "each of heads")) != 4:
            _refuse("layer, head, weight and log_weight in each of heads", repr(entry)[:80])
    return value


def _integer(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        _refuse(f"whole numbers for {what}", repr(value)[:80])
    return value


def _number(value: Any, what: str, *, keep: bool = False) -> Any:
    if not isinstance(value, int | float) or isinstance(value, bool):
        _refuse(f"numbers for {what}", repr(value)[:80])
    try:
        return value if keep else float(value)
    except OverflowError:
        _refuse(f"numbers for {what}", printable(str(value)))


def _refuse(required: str, found: str) -> NoReturn:
    required, found = printable(required), printable(found)
    raise ValueError(f"A calibration file must have {required}; found {found}. Write it again with `lvspec calibrate`.")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _no_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(names) != len(set(names)):
        raise ValueError(f"a field is there twice among {', '.join(names)}")
    return dict(pairs)
