"""Methods by the names that people know: what `lossearch search --method NAME` puts beneath the config."""

from collections.abc import Mapping
from typing import Any

_SOFTMAX = {"kind": "modulating_factor"}
_COST = [{"metric": "reward"}, {"metric": "seconds", "direction": "minimize"}]


def _sampled(sampler: str, **settings: object) -> dict[str, Any]:
    return {"search": {"method": "sampler", "sampler": sampler, **settings}}


METHODS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "search-softmax": {"search": {"method": "reinforce"}, "space": _SOFTMAX},
    "search-softmax-released": {"search": {"method": "released"}, "space": _SOFTMAX},
    "random-softmax": {"search": {"method": "random"}, "space": _SOFTMAX},
    "am-lfs": {"search": {"method": "reinforce", "sigma": "fixed"}, "space": {"kind": "am_lfs"}},
    "tpe": _sampled("tpe"),
    "cmaes": _sampled("cmaes"),
    "gp": _sampled("gp"),
    "qmc": _sampled("qmc"),
    "nsga2": _sampled("nsga2", objectives=_COST),
    "asha": _sampled("random", fidelity="halving"),
    "hyperband": _sampled("random", fidelity="hyperband"),
    "bohb": _sampled("tpe", fidelity="hyperband"),
    "evolution": _sampled("evolution", candidates=60),
    "pbt": {"search": {"method": "population"}},
}
"""Tables of a config by the name of a method."""
