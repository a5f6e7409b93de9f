"""What to quantize: ordered rules over quantizer names, calibrator, SmoothQuant, QAT. From YAML, checked, frozen."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from quant.formats import INT8, get_format
from quant.recipe_fields import check_alpha, check_choice, check_fields, check_percentile, shown

KINDS = ("linear", "conv", "norm_output", "bmm", "softmax", "embedding")
METHODS = ("max", "percentile", "entropy", "mse")
BIAS_CORRECTION = ("auto", "off")
LEARNED = "learned"
ROUNDING = ("nearest", LEARNED)
OFF = "off"  # a rule's alpha that switches SmoothQuant off
SETTINGS = ("format", "method", "percentile", "alpha")  # what a rule may give beside on and off
RECIPE_FOLDER = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "int8_smoothquant"  # what calibration takes where none is named, and every sweep measures


@dataclass(frozen=True)
class Rule:
    """One line of a recipe: switches the quantizers it matches on or off, or gives them settings, or both.

    Field by field the last rule that matches and speaks of it wins: `enable: false` leaves the settings as they were,
    and a rule with settings that does not say `enable` leaves on what is on, and off what is off. A rule goes before
    the recipe's own calibrator and SmoothQuant.
    """

    match: str = "*"
    """Pattern over the quantizer's name, e.g. `*layer.0.*input_quantizer` (`*`, `?`, `[...]`)."""
    kind: str | None = None
    """Only quantizers of this kind: linear, conv, norm_output, bmm, softmax, embedding."""
    enable: bool | None = None
    """Whether the matched quantizers are on; not said means yes, but in a rule with settings: as they were."""
    optional: bool = False
    """Whether the rule may match nothing."""
    format: str | None = None
    """Number format of the matched quantizers (quant/formats.py); int8 where no rule gives one."""
    method: str | None = None
    """Calibrator of the matched activations: max, percentile, entropy or mse."""
    percentile: float | None = None
    """What `percentile` keeps of them, in percent."""
    alpha: float | str | bool | None = None
    """SmoothQuant of the matched inputs: 0 to 1, `search`, or `off` (YAML's false; not 0, which divides too)."""

    def __post_init__(self) -> None:
        if self.alpha is False:
            object.__setattr__(self, "alpha", OFF)
        if self.format is not None:
            get_format(self.format)
        if self.method is not None:
            check_choice("rule method", self.method, METHODS)
        if self.percentile is not None:
            check_percentile("rule percentile", self.percentile)
            if self.method not in (None, "percentile"):
                raise ValueError(f"rule {self} gives a percentile, which only 'method: percentile' uses")
        if self.alpha is not None:
            check_alpha("rule alpha", self.alpha, ("search", OFF), OFF)
        if self.enable is None and all(getattr(self, option) is None for option in SETTINGS):
            object.__setattr__(self, "enable", True)

    def matches(self, name: str, kind: str) -> bool:
        """Return whether this rule speaks of the quantizer `name` of `kind`."""
        return (self.kind is None or self.kind == kind) and fnmatch.fnmatchcase(name, self.match)

    def __str__(self) -> str:
        kind = f", kind: {self.kind}" if self.kind else ""
        enable = f", enable: {str(self.enable).lower()}" if self.enable is not None else ""
        settings = [f", {option}: {value}" for option in SETTINGS if (value := getattr(self, option)) is not None]
        return f"{{match: '{self.match}'{kind}{enable}{''.join(settings)}}}"


@dataclass(frozen=True)
class CalibratorOptions:
    """How statistics become an activation's amax."""

    method: str = "max"
    """max, percentile, entropy or mse."""
    percentile: float = 99.999
    """Share of |x| kept inside the range by `percentile`, in percent."""
    bias_correction: str = "auto"
    """`auto`: the mean shift of a layer's output goes into its bias where held-out samples say that it helps; `off`."""
    rounding: str = "nearest"
    """Of weights: `nearest`, or `learned` from the samples (AdaRound), where held-out samples say that it helps."""

    def __post_init__(self) -> None:
        check_choice("calibrator method", self.method, METHODS)
        check_choice("calibrator bias_correction", self.bias_correction, BIAS_CORRECTION)
        check_choice("calibrator rounding", self.rounding, ROUNDING)
        check_percentile("calibrator percentile", self.percentile)


@dataclass(frozen=True)
class SmoothQuantOptions:
    """Moves range from the activations of a linear layer to its weights, channel by channel (arXiv:2211.10438)."""

    alpha: float | str | None = None
    """Share moved, 0 to 1; `search` picks it for each site on the statistics; null switches SmoothQuant off."""
    match: str = "*"
    """Pattern over the names of the activation quantizers that are smoothed."""

    def __post_init__(self) -> None:
        if self.alpha is not None:
            check_alpha("smoothquant alpha", self.alpha, ("search",), "null")


RANGES = ("learned", "retaken", "frozen")


@dataclass(frozen=True)
class QatOptions:
    """How quantization-aware training treats the ranges, and what it learns from the float model."""

    activation_ranges: str = "learned"
    """`learned` with the weights (LSQ), or `frozen` as calibrated."""
    weight_ranges: str = "learned"
    """`learned` (LSQ), `retaken` as the maximum at each step, or `frozen` as calibrated."""
    scale_learning_rate: float = 2e-2
    """Learning rate of log2(amax), which follows the schedule: 2e-2 moves a range by at most 1.4 % a step."""
    distill_logits: float = 1.0
    """Weight of the distance from the float model's logits; 0 switches distillation from them off."""
    logit_loss: str = "mse"
    """`mse` of the logits, or `kl` divergence of the probabilities."""
    distill_hidden: float = 1.0
    """Weight of the mean squared difference of every layer's hidden states, relative to their mean square."""
    distill_attention: float = 0.0
    """Weight of the divergence of every layer's attention probabilities."""
    label_loss: float = 0.0
    """Weight of the task's own loss while distilling; without distillation it is always 1."""
    temperature: float = 1.0
    """Softens both distributions of logits before `kl` compares them."""
    dropout: bool = False
    """Whether the model's dropout stays on: off, the student can meet its teacher exactly."""

    def __post_init__(self) -> None:
        check_choice("qat activation_ranges", self.activation_ranges, ("learned", "frozen"))
        check_choice("qat weight_ranges", self.weight_ranges, RANGES)
        check_choice("qat logit_loss", self.logit_loss, ("mse", "kl"))
        negative = [f.name for f in dataclasses.fields(self) if not isinstance(getattr(self, f.name), str)
                    and getattr(self, f.name) < 0]  # fmt: skip
        if negative or self.temperature == 0:
            raise ValueError(f"qat {', '.join(negative) or 'temperature'} must be positive")

    @property
    def distills(self) -> bool:
        """Whether the float model teaches."""
        return self.distill_logits + self.distill_hidden + self.distill_attention > 0


SECTIONS: dict[str, Any] = {"calibrator": CalibratorOptions, "smoothquant": SmoothQuantOptions, "qat": QatOptions}


@dataclass(frozen=True)
class Recipe:
    """A named set of rules and options; `digest` identifies it in checkpoints, engines and result rows."""

    name: str
    rules: tuple[Rule, ...]
    calibrator: CalibratorOptions = field(default_factory=CalibratorOptions)
    smoothquant: SmoothQuantOptions = field(default_factory=SmoothQuantOptions)
    qat: QatOptions = field(default_factory=QatOptions)

    def __post_init__(self) -> None:
        if not self.rules or self.rules[0] != Rule(match="*", enable=False):
            raise ValueError(
                f"recipe '{self.name}': the first rule must switch all off: - {{match: '*', enable: false}}"
            )

    @property
    def digest(self) -> str:
        """sha256 of the resolved recipe, 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved recipe as plain JSON types; `recipe_from_dict` reads it back."""
        content = json.loads(json.dumps(dataclasses.asdict(self)))
        for rule in content["rules"]:
            for option in SETTINGS:  # so recipes without settings keep the digest that checkpoints and rows bear
                if rule[option] is None:
                    del rule[option]
        for option in ("bias_correction", "rounding"):  # the same for what came later
            if content["calibrator"][option] == getattr(CalibratorOptions, option):
                del content["calibrator"][option]
        return content

    def last_rule(self, option: str, name: str, kind: str) -> Rule | None:
        """Return the last rule matching the quantizer `name` of `kind` that speaks of `option`: enable or a setting."""
        latest = reversed(self.rules)  # exact names make as many rules as sites: what is cheap to ask comes first
        return next((r for r in latest if getattr(r, option) is not None and r.matches(name, kind)), None)

    def format_of(self, name: str, kind: str) -> str:
        """Return the number format of the quantizer `name` of `kind`, by the last rule that gives it one."""
        rule = self.last_rule("format", name, kind)
        return INT8.name if rule is None else str(rule.format)

    def with_options(self, **options: Any) -> Recipe:
        """Return a copy with other calibrator options, e.g. `with_options(method="mse")`."""
        return dataclasses.replace(self, calibrator=dataclasses.replace(self.calibrator, **options))


def load_recipe(source: str | Path, _extending: tuple[Path, ...] = ()) -> Recipe:
    """Return the recipe named `source` (a shipped one) or read from the YAML file `source`.

    Raises: FileNotFoundError: neither a shipped name nor a file. ValueError: unknown keys or values, all named.
    """
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = RECIPE_FOLDER / f"{source}.yaml"
    if not path.is_file():
        shipped = shipped_recipes()
        near = difflib.get_close_matches(str(source), shipped, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise FileNotFoundError(f"no recipe '{source}'{hint} Shipped: {', '.join(shipped)}; or give a .yaml file")
    content = _read(path)
    try:
        base = content.pop("extends", None)
        if base is not None:
            content = _extend(_base(base, (*_extending, path)), content)
        content["name"] = content.get("name") or path.stem
        return recipe_from_dict(content)
    except ValueError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        raise
    except Exception as error:  # beside YAMLError: what int(), float() and datetime raise of a scalar, RecursionError
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no recipe: expected keys such as 'rules:'")
    return content


def _base(name: Any, extending: tuple[Path, ...]) -> dict[str, Any]:
    """Return the recipe that another one extends, as a mapping."""
    if not isinstance(name, str):
        raise ValueError(f"extends is {shown(name)}; expected the name of a recipe or a .yaml file")
    if Path(name).resolve() in [path.resolve() for path in extending]:
        raise ValueError(f"extends {name!r} comes back to itself; name another recipe")
    return load_recipe(name, extending).to_dict()


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml"))


def recipe_from_dict(content: dict[str, Any]) -> Recipe:
    """Return the recipe of a parsed YAML or JSON mapping; unknown keys are refused with near matches."""
    check_fields("recipe", content, Recipe)
    if not content.get("name"):
        raise ValueError("the recipe has no name")
    rules = _rules(content)
    for rule in rules:
        check_fields("rule", rule, Rule)
        if rule.get("kind") is not None:
            check_choice("rule kind", rule["kind"], KINDS)
    options = {}
    for key, section in SECTIONS.items():
        if content.get(key) is not None:
            check_fields(key, content[key], section)
            options[key] = section(**content[key])
    return Recipe(name=content["name"], rules=tuple(Rule(**rule) for rule in rules), **options)


def _rules(content: dict[str, Any]) -> list[Any]:
    rules = content.get("rules")
    if rules is not None and not isinstance(rules, list):
        raise ValueError(f"rules is {shown(rules)}; expected a list such as - {{kind: linear}}")
    return rules or []


def _extend(base: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the rules of `content` appended and its options put in place of the base's, key by key.

    A section that is null goes back to its defaults.
    """
    merged = {**base, "name": content.get("name"), **{key: x for key, x in content.items() if key not in SECTIONS}}
    merged["rules"] = base["rules"] + _rules(content)
    for key in SECTIONS.keys() & content.keys():
        own = content[key]
        merged[key] = {**base[key], **own} if isinstance(own, dict) else own
    return merged
